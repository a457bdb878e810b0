"""A recorded file as a series of tables, each small enough for memory, the same ones each time the file is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from twinmesh_client.csv_files import BrokenCell, CsvReader, CsvTable, table_of
from twinmesh_client.local_times import near_change
from twinmesh_core.errors import InvalidArgument, invalid_field
from twinmesh_core.kinds import ChannelKind

if TYPE_CHECKING:
    import pandas as pd

CELLS: Final = 200_000
"""Cells of one table: what is held in memory at once, and what one message holds at most."""
CHARACTERS: Final = 4 * 1024 * 1024
"""Likewise, of texts."""
EXTENSIONS: Final = 4
"""How often a table is lengthened where clocks change, so that a repeated hour is not cut apart."""
LAYOUT: Final = 1
"""Changes whenever the same file would be cut into other tables: an import begun before must not be gone on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a file is to be read; as `twinmesh_client.csv_files.read_csv` takes it.

    Attributes:
        time_column: title of the time; None = the one that is named like one, else the first.
        time_zone: IANA zone of times without an offset.
        time_format: as `strptime` takes it; CSV only.
        kinds: kind of columns by title; the others are what the first table suggests.
        drop: columns to leave out.
    """

    time_column: str | None = None
    time_zone: str | None = None
    time_format: str | None = None
    kinds: Mapping[str, ChannelKind] | None = None
    drop: Sequence[str] = ()


class Source(Protocol):
    """A file that can be read again and again."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def place(self) -> str:
        """What broken rows are counted in: lines or rows."""
        ...

    def tables(self, reading: Reading) -> Iterator[tuple[CsvTable, float]]:
        """Yield tables in the order of the file, each with the share of the file that is read by then.

        Raises:
            InvalidArgument: the file cannot be read at all, or its times change their form on the way.
        """
        ...


def open_source(path: Path) -> Source:
    """Return the source for a file, by its name; raises `InvalidArgument`."""
    if not path.is_file():
        raise invalid_field(path.name, "there is no such file; check its name")
    name = path.name.lower()
    if name.endswith((".parquet", ".pq")):
        try:
            from twinmesh_connectors.files.parquet import ParquetSource
        except ModuleNotFoundError:
            raise invalid_field(
                path.name, "is Parquet, which needs the extra 'files': pip install 'twinmesh[files]'"
            ) from None
        return ParquetSource(path)
    return CsvSource(path)


class CsvSource:
    """A CSV file, compressed with gzip or not."""

    place = "line"

    def __init__(self, path: Path, *, cells: int = CELLS) -> None:
        self.path = path
        self._cells = cells

    def tables(self, reading: Reading) -> Iterator[tuple[CsvTable, float]]:
        """Yield tables, as `Source.tables`."""
        size = max(self.path.stat().st_size, 1)
        first: CsvTable | None = None
        with CsvReader(self.path) as reader:
            while True:
                rows = reader.read(self._cells, CHARACTERS)
                if not rows.cells and not rows.broken:
                    break
                if not rows.cells:
                    # Nothing but rows of a wrong length, to the end of the file.
                    if first is not None:
                        yield replace(first, frame=first.frame[:0], broken=tuple(b for _, b in rows.broken)), 1.0
                    break
                for _ in range(EXTENSIONS):
                    if not _cuts_a_change(rows, reading):
                        break
                    more = reader.read(self._cells, CHARACTERS)
                    rows.cells.extend(more.cells)
                    rows.lines.extend(more.lines)
                    rows.broken.extend(more.broken)
                table = table_of(
                    rows, reading.time_column, reading.time_zone, reading.time_format, reading.kinds, reading.drop
                )
                if first is None:
                    first = table
                    reading = replace(reading, time_column=table.time_column, kinds=_settled(table, reading))
                elif table.time_meaning != first.time_meaning:
                    raise invalid_field(
                        table.time_column,
                        f"is {first.time_meaning} at first, and {table.time_meaning} before line {table.last_line}; "
                        "split the file there and import the parts",
                    )
                yield _whole_states(table, reading.kinds or {}), min(reader.read_bytes / size, 1.0)
        if first is None:
            raise invalid_field(self.path.name, "has a header and no readable row below it")


def _cuts_a_change(rows: Any, reading: Reading) -> bool:
    """Return whether the last row stands where clocks change, so that the next rows say which hour it is."""
    import pandas as pd

    if not reading.time_zone:
        return False
    at = rows.header.index(reading.time_column) if reading.time_column in rows.header else 0
    text = rows.cells[-1][at].strip()
    try:
        stamp = pd.to_datetime(text, format=reading.time_format or "ISO8601")
        return stamp.tz is None and near_change(stamp, reading.time_zone)
    except (ValueError, TypeError, KeyError, OverflowError):
        # It will be named as broken, or the zone refused, where times are read.
        return False


def _settled(table: CsvTable, reading: Reading) -> dict[str, ChannelKind]:
    """Return the kind of every column, so that later tables are not judged anew."""
    from pandas.api.types import is_numeric_dtype

    found = {
        str(title): ChannelKind.GAUGE if is_numeric_dtype(table.frame[title]) else ChannelKind.TEXT
        for title in table.frame.columns
    }
    return found | dict(reading.kinds or {})


def _whole_states(table: CsvTable, kinds: Mapping[str, ChannelKind]) -> CsvTable:
    """Return the table without the cells that are no whole number where a state takes one, and name them."""
    frame = table.frame
    broken: list[BrokenCell] = []
    for title in frame.columns:
        if kinds.get(str(title)) is not ChannelKind.STATE:
            continue
        values = frame[title].to_numpy(np.float64)
        with np.errstate(invalid="ignore"):
            wrong = ~np.isnan(values) & ~((values == np.round(values)) & (np.abs(values) < 2.0**53))
        if wrong.any():
            times = frame.index.as_unit("us").asi8  # type: ignore[attr-defined]  # a DatetimeIndex
            for row in np.flatnonzero(wrong).tolist():
                broken.append(
                    BrokenCell(
                        line=table.last_line,
                        column=str(title),
                        cell=str(values[row]),
                        problem=f"at {frame.index[row]} is no whole number, as a state takes",
                        time_unix_us=int(times[row]),
                    )
                )
            frame = frame.assign(**{str(title): np.where(wrong, np.nan, values)})
    return replace(table, frame=frame, broken=(*table.broken, *broken)) if broken else table


def first_table(source: Source, reading: Reading) -> CsvTable:
    """Return the first table, to guess from; raises `InvalidArgument` where there is none."""
    for table, _ in source.tables(reading):
        return table
    raise InvalidArgument(f"{source.path.name} holds no row.")


def values_of(frame: pd.DataFrame) -> int:
    """Return the number of cells that hold a value."""
    return int(frame.notna().to_numpy().sum())
