"""Recorded CSV files: what time and cells mean, and every row that cannot be read named by line, column and cell."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_client.local_times import OFFSET_PATTERN, doubtful_rows, to_instants
from twinmesh_core.errors import InvalidArgument, invalid_field
from twinmesh_core.kinds import ChannelKind

if TYPE_CHECKING:
    import pandas as pd

MAX_CELLS: Final = 50_000_000
"""Cells of a file that are held in memory at once; a larger one is to be split."""
TIME_NAMES: Final = ("time", "timestamp", "datetime", "date_time", "date", "ts", "event_time", "zeit", "utc")
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
    """

    line: int
    column: str
    cell: str
    problem: str

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
    """

    frame: pd.DataFrame
    time_column: str
    time_meaning: str
    broken: tuple[BrokenCell, ...]

    @property
    def value_count(self) -> int:
        """Cells that hold a value."""
        return int(self.frame.notna().to_numpy().sum())


@dataclass(frozen=True, slots=True)
class _Rows:
    header: list[str]
    cells: list[list[str]]
    lines: list[int]
    broken: list[BrokenCell]


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
    rows = _read_rows(path)
    time_at = _time_position(rows, time_column)
    _check_titles(rows.header, drop)
    instants, meaning = _instants(rows, time_at, time_zone, time_format)
    columns = {
        title: _column(rows, i, (kinds or {}).get(title))
        for i, title in enumerate(rows.header)
        if i != time_at and title not in drop
    }
    broken = sorted(rows.broken, key=lambda b: b.line)
    if broken and not skip_broken:
        raise InvalidArgument(
            f"{path.name}, {broken[0]}. Mend it, or leave broken rows out with --skip-broken "
            f"(skip_broken=True in Python); {len(broken)} in this file.",
            metadata={"line": str(broken[0].line), "column": broken[0].column, "broken": str(len(broken))},
        )
    import pandas as pd

    frame = pd.DataFrame(columns, index=instants)
    return CsvTable(
        frame=frame[frame.index.notna()],
        time_column=rows.header[time_at],
        time_meaning=meaning,
        broken=tuple(broken),
    )


def _read_rows(path: Path) -> _Rows:
    try:
        with _opened(path) as file:
            first = file.readline()
            if not first.strip():
                raise invalid_field(str(path.name), "is empty; its first line must name the columns")
            delimiter = max(",;\t|", key=first.count)
            header = [title.strip() for title in next(csv.reader([first], delimiter=delimiter))]
            reader = csv.reader(file, delimiter=delimiter)
            rows = _Rows(header, [], [], [])
            for cells in reader:
                # The header was read apart; a quoted cell may hold line breaks, so the row's last line is named.
                line = reader.line_num + 1
                if not cells:
                    continue
                if len(cells) != len(header):
                    text = delimiter.join(cells)
                    problem = f"has {len(cells)} cells, but the header has {len(header)}"
                    rows.broken.append(BrokenCell(line=line, column="", cell=text, problem=problem))
                    continue
                rows.cells.append(cells)
                rows.lines.append(line)
                if len(rows.cells) * len(header) > MAX_CELLS:
                    raise invalid_field(path.name, f"holds more than {MAX_CELLS:,} cells; split it by time")
    except UnicodeDecodeError as error:
        raise invalid_field(
            path.name, "is not UTF-8; convert it first, e.g. iconv -f latin1 -t utf-8 FILE > NEW"
        ) from error
    except (csv.Error, EOFError, gzip.BadGzipFile) as error:
        raise invalid_field(path.name, "cannot be read as CSV; is it a damaged or another kind of file?") from error
    if not rows.cells:
        raise invalid_field(path.name, "has a header and no readable row below it")
    if delimiter == ";":
        _mend_decimal_commas(rows.cells)
    return rows


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    else:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file


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

    known = np.flatnonzero(~np.asarray(stamps.isna()))
    full = np.full(len(stamps), np.datetime64("NaT", "us"))
    try:
        found = to_instants(stamps[known], time_zone)
        full[known] = found.tz_convert("UTC").tz_localize(None).to_numpy().astype("M8[us]")
    except InvalidArgument:
        ambiguous, missing = doubtful_rows(stamps[known], time_zone)
        bad = ambiguous | missing
        for kind, problem in ((ambiguous, f"occurs twice in {time_zone}"), (missing, f"does not exist in {time_zone}")):
            wrong = np.zeros(len(stamps), np.bool_)
            wrong[known[kind]] = True
            _note(rows, at, wrong, f"{problem}, where clocks change; {_CONSTANT_CLOCK}")
        good = known[~bad]
        localised = stamps[good].tz_localize(time_zone, ambiguous="raise", nonexistent="raise")
        full[good] = localised.tz_convert("UTC").tz_localize(None).to_numpy().astype("M8[us]")
    return pd.DatetimeIndex(full, tz="UTC")


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
        rows.broken.append(
            BrokenCell(line=rows.lines[row], column=rows.header[at], cell=rows.cells[row][at], problem=problem)
        )
