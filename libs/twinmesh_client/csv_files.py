"""Recorded CSV files: what time and cells mean, and every row that cannot be read named by line, column and cell."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import numpy.typing as npt

from twinmesh_client.local_times import OFFSET_PATTERN, to_known_instants
from twinmesh_core.errors import InvalidArgument, invalid_field
from twinmesh_core.kinds import ChannelKind

if TYPE_CHECKING:
    import pandas as pd

MAX_CELLS: Final = 50_000_000
"""Cells of a file that are held in memory at once; a larger one is to be split."""
TIME_NAMES: Final = ("time", "timestamp", "datetime", "date_time", "date", "ts", "event_time", "zeit", "utc")
_SHOWN: Final = 200
"""Characters of a broken cell that are kept."""
_EMPTY: Final = ("", "na", "n/a", "nan", "null", "none")
_EPOCH_UNITS: Final = ((1e17, "ns", 1e3), (1e14, "us", 1.0), (1e11, "ms", 1e-3), (0.0, "s", 1e-6))
_DECIMAL_COMMA: Final = re.compile(r"[+-]?\d+,\d+")
_OFFSET: Final = re.compile(OFFSET_PATTERN)
_CONSTANT_CLOCK: Final = "if the recorder's clock never changes, give its own zone, e.g. --tz UTC or --tz Etc/GMT-1"
_TRUTHS: Final = ("true", "false", "yes", "no", "on", "off", "0", "1")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenCell:
    """One cell that cannot be read.

    Attributes:
        line: of the file, the header being line 1.
        column: its title; empty when the whole row is broken.
        cell: as it stands there.
        problem: what is wrong with it.
        time_unix_us: of its row; None when that cannot be read.
    """

    line: int
    column: str
    cell: str
    problem: str
    time_unix_us: int | None = None

    def __str__(self) -> str:
        where = f", column {self.column!r}" if self.column else ""
        return f"line {self.line}{where}: {self.cell[:40]!r} {self.problem}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CsvTable:
    """A recorded file, read.

    Attributes:
        frame: rows by UTC time; columns of numbers (float64, NaN = empty) or of texts (None = empty), titled as in the
            file, without the time.
        time_column: the title of the time.
        time_meaning: how it was read, for people.
        broken: what was left out with `skip_broken`.
        last_line: of the file, that was read.
    """

    frame: pd.DataFrame
    time_column: str
    time_meaning: str
    broken: tuple[BrokenCell, ...]
    last_line: int

    @property
    def value_count(self) -> int:
        """Cells that hold a value."""
        return int(self.frame.notna().to_numpy().sum())


@dataclass(frozen=True, slots=True)
class _Rows:
    header: list[str]
    cells: list[list[str]]
    lines: list[int]
    broken: list[tuple[int, BrokenCell]]
    """What cannot be read, each with its row; -1 where that is none."""


def read_csv(
    path: Path,
    *,
    time_column: str | None = None,
    time_zone: str | None = None,
    time_format: str | None = None,
    kinds: Mapping[str, ChannelKind] | None = None,
    drop: Sequence[str] = (),
    skip_broken: bool = False,
) -> CsvTable:
    """Read a CSV file (or ``.csv.gz``): UTF-8, with a header; comma, semicolon, tab or bar between cells.

    Args:
        path: the file.
        time_column: title of the time; None = the one that is named like one, else the first.
        time_zone: IANA zone of times without an offset; required for them.
        time_format: as `datetime.strptime` takes it; None = ISO 8601, or a number since 1970.
        kinds: kind of columns that are known; others are numbers if most of their cells are.
        drop: columns to leave out.
        skip_broken: leave broken rows (and cells) out and count them, rather than refuse the file.

    Raises:
        InvalidArgument: the first thing that cannot be read, with line, column, cell and remedy.
    """
    with CsvReader(path) as reader:
        rows = reader.read(MAX_CELLS)
        if not rows.cells:
            raise invalid_field(path.name, "has a header and no readable row below it")
        if reader.read(1).cells:
            raise invalid_field(path.name, f"holds more than {MAX_CELLS:,} cells; import it with `twinmesh import`")
    table = table_of(rows, time_column, time_zone, time_format, kinds, drop)
    if table.broken and not skip_broken:
        raise refused(path, table.broken)
    return table


def refused(path: Path, broken: Sequence[BrokenCell], count: int | None = None) -> InvalidArgument:
    """Return the error for a file with broken rows, where they are not to be left out."""
    more = f"; {count or len(broken)} in this file" if count is None or count > 1 else ""
    return InvalidArgument(
        f"{path.name}, {broken[0]}. Mend it, or leave broken rows out: `twinmesh import` with --broken skip, "
        f"`twinmesh write` with --skip-broken, Python with skip_broken=True{more}.",
        metadata={"line": str(broken[0].line), "column": broken[0].column, "broken": str(count or len(broken))},
    )


def table_of(
    rows: _Rows,
    time_column: str | None,
    time_zone: str | None,
    time_format: str | None,
    kinds: Mapping[str, ChannelKind] | None,
    drop: Sequence[str],
) -> CsvTable:
    """Return rows as a table; the arguments are those of `read_csv`."""
    import pandas as pd

    time_at = _time_position(rows, time_column)
    _check_titles(rows.header, drop)
    instants, meaning = _instants(rows, time_at, time_zone, time_format)
    columns = {
        title: _column(rows, i, (kinds or {}).get(title))
        for i, title in enumerate(rows.header)
        if i != time_at and title not in drop
    }
    known = np.asarray(instants.notna())
    stamps = instants.as_unit("us").asi8
    broken = [
        replace(cell, time_unix_us=int(stamps[row])) if row >= 0 and known[row] else cell for row, cell in rows.broken
    ]
    frame = pd.DataFrame(columns, index=instants)
    return CsvTable(
        frame=frame[frame.index.notna()],
        time_column=rows.header[time_at],
        time_meaning=meaning,
        broken=tuple(sorted(broken, key=lambda b: b.line)),
        last_line=rows.lines[-1],
    )


class CsvReader:
    """A CSV file, read in order and as much at a time as is asked for; ``with CsvReader(path) as reader``.

    Attributes:
        header: titles of the columns.
        read_bytes: of the file, compressed ones as they lie on disk.

    Raises:
        InvalidArgument: empty, not UTF-8, or no CSV.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._raw = path.open("rb")
        try:
            packed = gzip.GzipFile(fileobj=self._raw) if path.suffix == ".gz" else self._raw
            self._file = io.TextIOWrapper(packed, encoding="utf-8-sig", newline="")
            with self._explained():
                first = self._file.readline()
                if not first.strip():
                    raise invalid_field(path.name, "is empty; its first line must name the columns")
                self._delimiter = max(",;\t|", key=first.count)
                self.header = [title.strip() for title in next(csv.reader([first], delimiter=self._delimiter))]
        except BaseException:
            self._raw.close()
            raise
        self._reader = csv.reader(self._file, delimiter=self._delimiter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._raw.close()

    @property
    def read_bytes(self) -> int:
        """Bytes of the file that were read so far."""
        return self._raw.tell()

    def read(self, max_cells: int, max_characters: int | None = None) -> _Rows:
        """Return the next rows, at least one unless none is left."""
        rows = _Rows(self.header, [], [], [])
        characters = 0
        with self._explained():
            for cells in self._reader:
                # The header was read apart; a quoted cell may hold line breaks, so the row's last line is named.
                line = self._reader.line_num + 1
                if not cells:
                    continue
                if len(cells) != len(self.header):
                    text = self._delimiter.join(cells)
                    problem = f"has {len(cells)} cells, but the header has {len(self.header)}"
                    rows.broken.append((-1, BrokenCell(line=line, column="", cell=text[:_SHOWN], problem=problem)))
                    characters += len(text)
                else:
                    rows.cells.append(cells)
                    rows.lines.append(line)
                if max_characters is not None:
                    characters += sum(map(len, cells))
                full = len(rows.cells) * len(self.header) >= max_cells
                if full or (max_characters is not None and characters >= max_characters and rows.cells):
                    break
        if self._delimiter == ";":
            _mend_decimal_commas(rows.cells)
        return rows

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:
            raise invalid_field(
                self._path.name, "is not UTF-8; convert it first, e.g. iconv -f latin1 -t utf-8 FILE > NEW"
            ) from error
        except (csv.Error, EOFError, gzip.BadGzipFile) as error:
            raise invalid_field(
                self._path.name, "cannot be read as CSV; is it a damaged or another kind of file?"
            ) from error


def _mend_decimal_commas(cells: list[list[str]]) -> None:
    for row in cells:
        for i, cell in enumerate(row):
            if _DECIMAL_COMMA.fullmatch(cell.strip()):
                row[i] = cell.replace(",", ".")


def _check_titles(header: Sequence[str], drop: Sequence[str]) -> None:
    repeated = sorted({t for t in header if header.count(t) > 1})
    if repeated:
        raise invalid_field("header", f"names the column {repeated[0]!r} twice; rename one")
    unknown = sorted(set(drop) - set(header))
    if unknown:
        raise invalid_field("drop", f"names {unknown[0]!r}, which is no column; there are {', '.join(header)}")


def _time_position(rows: _Rows, time_column: str | None) -> int:
    header = rows.header
    if time_column is not None:
        if time_column not in header:
            raise invalid_field(
                "time_column", f"{time_column!r} is no column; there are {', '.join(header)} (--time-column NAME)"
            )
        return header.index(time_column)
    lowered = [t.lower() for t in header]
    return next((lowered.index(name) for name in TIME_NAMES if name in lowered), 0)


def _instants(rows: _Rows, at: int, time_zone: str | None, time_format: str | None) -> tuple[pd.DatetimeIndex, str]:
    """Return UTC times, NaT where they are broken (and noted), and how they were read."""
    import pandas as pd

    title = rows.header[at]
    texts = [row[at].strip() for row in rows.cells]
    numbers = None if time_format else _epoch(texts)
    if numbers is not None:
        time_unix_us, unit = numbers
        return pd.DatetimeIndex(time_unix_us.view("M8[us]"), tz="UTC"), f"{unit} since 1970"
    offset = np.array([_OFFSET.search(t) is not None for t in texts])
    if time_format is None and int(offset.sum()) * 2 > len(texts):
        kept = pd.Series([t if o else None for t, o in zip(texts, offset, strict=True)], dtype=object)
        stamps = pd.DatetimeIndex(pd.to_datetime(kept, format="ISO8601", errors="coerce", utc=True))
        _note(rows, at, np.asarray(stamps.isna()), "is no time with an offset, as the others are")
        return stamps, "each with its offset"
    kept = pd.Series(
        [None if o and time_format is None else t for t, o in zip(texts, offset, strict=True)], dtype=object
    )
    stamps = pd.DatetimeIndex(pd.to_datetime(kept, format=time_format or "ISO8601", errors="coerce"))
    missing = np.asarray(stamps.isna())
    if missing.all():
        raise invalid_field(
            title,
            f"holds no time that can be read, e.g. {texts[0][:40]!r} in line {rows.lines[0]}; say which column is the "
            "time (--time-column NAME) or how it is written (--time-format '%d.%m.%Y %H:%M')",
        )
    if stamps.tz is not None:
        _note(rows, at, missing, f"is no time as {time_format!r} says")
        return stamps.tz_convert("UTC"), "each with its offset"
    _note(rows, at, missing, "is no time such as 2026-11-23 08:00:00 (without an offset, as the others are)")
    if not time_zone:
        raise invalid_field(
            "time_zone",
            f"the times in column {title!r} have no offset, e.g. {texts[0][:40]!r}; say in which zone they were "
            "recorded: --tz Europe/Berlin, or --tz UTC (make demo TZ=...; time_zone=... in Python)",
        )
    return _localised(rows, at, stamps, time_zone), f"local time of {time_zone}"


def _localised(rows: _Rows, at: int, stamps: pd.DatetimeIndex, time_zone: str) -> pd.DatetimeIndex:
    import pandas as pd

    instants, twice, never = to_known_instants(stamps, time_zone)
    for wrong, problem in ((twice, f"occurs twice in {time_zone}"), (never, f"does not exist in {time_zone}")):
        _note(rows, at, wrong, f"{problem}, where clocks change; {_CONSTANT_CLOCK}")
    return pd.DatetimeIndex(instants, tz="UTC")


def _epoch(texts: list[str]) -> tuple[npt.NDArray[np.int64], str] | None:
    """Return times written as numbers, in microseconds, and their unit; None when they are not."""
    try:
        values = np.array(texts, np.float64)
    except ValueError:
        return None
    # A year such as 2019 is a number too, but not one that counts from 1970.
    if not np.isfinite(values).all() or float(np.abs(values).min()) < 1e7:
        return None
    size = float(np.median(np.abs(values)))
    _, unit, per_us = next(e for e in _EPOCH_UNITS if size >= e[0])
    return np.round(values / per_us).astype(np.int64), unit


def _column(rows: _Rows, at: int, kind: ChannelKind | None) -> Any:
    """Return one column as float64 (NaN = empty) or objects (None = empty); notes broken cells and empties them."""
    import pandas as pd

    texts = [row[at].strip() for row in rows.cells]
    empty = np.array([t.lower() in _EMPTY for t in texts])
    if kind in (ChannelKind.TEXT, ChannelKind.JSON):
        return np.array([None if e else t for t, e in zip(texts, empty, strict=True)], object)
    if kind is ChannelKind.BOOL:
        wrong = np.array([t.lower() not in _TRUTHS for t in texts]) & ~empty
        _note(rows, at, wrong, "is neither true nor false")
        return np.array([None if e else t for t, e in zip(texts, empty | wrong, strict=True)], object)
    numbers = np.array(pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce"), np.float64)
    numbers[empty] = np.nan
    wrong = np.isnan(numbers) & ~empty
    if kind is None and int(wrong.sum()) * 2 >= max(1, int((~empty).sum())):
        return np.array([None if e else t for t, e in zip(texts, empty, strict=True)], object)
    _note(rows, at, wrong, "is no number")
    return numbers


def _note(rows: _Rows, at: int, wrong: npt.NDArray[np.bool_], problem: str) -> None:
    for row in np.flatnonzero(wrong).tolist():
        cell = rows.cells[row][at]
        broken = BrokenCell(line=rows.lines[row], column=rows.header[at], cell=cell[:_SHOWN], problem=problem)
        rows.broken.append((row, broken))
