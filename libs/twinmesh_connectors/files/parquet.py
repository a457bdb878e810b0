"""A Parquet file as tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from twinmesh_client.csv_files import TIME_NAMES, BrokenCell, CsvTable
from twinmesh_client.frames import event_times
from twinmesh_client.local_times import near_change, to_known_instants
from twinmesh_connectors.files.sources import CELLS, EXTENSIONS, Reading
from twinmesh_core.errors import invalid_field
from twinmesh_core.kinds import ChannelKind

if TYPE_CHECKING:
    import pandas as pd

_EPOCHS_US: Final = ((1e17, "ns", 1e-3), (1e14, "us", 1.0), (1e11, "ms", 1e3), (0.0, "s", 1e6))


class ParquetSource:
    """A Parquet file; its row groups may be of any size."""

    place = "row"

    def __init__(self, path: Path, *, cells: int = CELLS) -> None:
        self.path = path
        self._cells = cells

    def tables(self, reading: Reading) -> Iterator[tuple[CsvTable, float]]:
        """Yield tables, as `Source.tables`."""
        try:
            with pq.ParquetFile(self.path) as file:
                yield from self._tables(file, reading)
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, pa.ArrowException) and error.errno:
                raise
            raise invalid_field(
                self.path.name, "cannot be read as Parquet; is it a damaged or another kind of file?"
            ) from error

    def _tables(self, file: pq.ParquetFile, reading: Reading) -> Iterator[tuple[CsvTable, float]]:
        schema = file.schema_arrow
        title = _time_title(schema, reading.time_column)
        dropped = [name for name in reading.drop if name not in schema.names]
        if dropped:
            raise invalid_field(
                "drop", f"names {dropped[0]!r}, which is no column; there are {', '.join(schema.names)}"
            )
        columns = [name for name in schema.names if name not in reading.drop]
        total = max(file.metadata.num_rows, 1)
        done = 0
        waiting: pd.DataFrame | None = None
        joined = 0
        for batch in file.iter_batches(max(1, self._cells // max(1, len(columns))), columns=columns):
            cells = batch.to_pandas(timestamp_as_object=False)
            if waiting is not None:
                cells = _joined(waiting, cells)
            if joined < EXTENSIONS and _cuts_a_change(cells[title], reading):
                waiting, joined = cells, joined + 1
                continue
            waiting, joined = None, 0
            yield _table(cells, title, reading, done), (done + len(cells)) / total
            done += len(cells)
        if waiting is not None:
            yield _table(waiting, title, reading, done), 1.0
        elif not done:
            raise invalid_field(self.path.name, "holds no row")


def _joined(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    return pd.concat([first, second], ignore_index=True)


def _time_title(schema: pa.Schema, wanted: str | None) -> str:
    names = list(schema.names)
    if wanted is not None:
        if wanted not in names:
            raise invalid_field("time_column", f"{wanted!r} is no column; there are {', '.join(names)}")
        return wanted
    stamps = [field.name for field in schema if pa.types.is_timestamp(field.type)]
    named = [name for name in names if name.lower() in TIME_NAMES]
    found = [name for name in named if name in stamps] or stamps or named or names
    if not found:
        raise invalid_field("time_column", "the file has no column")
    return str(found[0])


def _table(cells: pd.DataFrame, title: str, reading: Reading, before: int) -> CsvTable:
    import pandas as pd

    broken: list[BrokenCell] = []
    times, meaning = _instants(cells[title], title, reading, before, broken)
    index = pd.DatetimeIndex(times, tz="UTC")
    columns = {
        name: _column(name, cells[name], (reading.kinds or {}).get(name), times, before, broken)
        for name in map(str, cells.columns)
        if name != title
    }
    frame = pd.DataFrame(columns, index=index)
    return CsvTable(
        frame=frame[frame.index.notna()],
        time_column=title,
        time_meaning=meaning,
        broken=tuple(sorted(broken, key=lambda b: b.line)),
        last_line=before + len(cells),
    )


def _instants(
    cells: pd.Series[Any], title: str, reading: Reading, before: int, broken: list[BrokenCell]
) -> tuple[npt.NDArray[Any], str]:
    import pandas as pd

    missing = cells.isna().to_numpy()
    _note(broken, missing, title, cells, before, "is no time")
    if pd.api.types.is_numeric_dtype(cells):
        present = cells[~missing].to_numpy(np.float64)
        size = float(np.median(np.abs(present))) if len(present) else 0.0
        _, unit, to_us = next(e for e in _EPOCHS_US if size >= e[0])
        times: npt.NDArray[Any] = np.full(len(cells), np.datetime64("NaT", "us"))
        times[~missing] = np.round(present * to_us).astype(np.int64).view("M8[us]")
        return times, f"{unit} since 1970"
    if pd.api.types.is_datetime64_any_dtype(cells):
        stamps = pd.DatetimeIndex(cells)
        if stamps.tz is not None:
            return stamps.tz_convert("UTC").tz_localize(None).to_numpy().astype("M8[us]"), "with its zone"
        if not reading.time_zone:
            raise invalid_field(
                "time_zone",
                f"the times in column {title!r} have no zone; say in which one they were recorded: "
                "--tz Europe/Berlin, or --tz UTC",
            )
        times, twice, never = to_known_instants(stamps, reading.time_zone)
        _note(broken, twice, title, cells, before, f"occurs twice in {reading.time_zone}, where clocks change")
        _note(broken, never, title, cells, before, f"does not exist in {reading.time_zone}, where clocks change")
        return times, f"local time of {reading.time_zone}"
    times = np.full(len(cells), np.datetime64("NaT", "us"))
    texts = pd.Index(cells[~missing].astype(str))
    times[~missing] = event_times(texts, reading.time_zone).view("M8[us]")
    return times, "texts"


def _column(
    name: str,
    cells: pd.Series[Any],
    kind: ChannelKind | None,
    times: npt.NDArray[Any],
    before: int,
    broken: list[BrokenCell],
) -> Any:
    """Return numbers as float64 or int64, the rest as objects; what its channel's kind does not take is named."""
    import pandas as pd

    numeric = kind in (ChannelKind.GAUGE, ChannelKind.COUNTER, ChannelKind.STATE)
    if pd.api.types.is_bool_dtype(cells) or kind in (ChannelKind.TEXT, ChannelKind.JSON, ChannelKind.BOOL):
        return _objects(cells)
    if pd.api.types.is_numeric_dtype(cells):
        values = cells.to_numpy(np.float64, na_value=np.nan)
        if kind is ChannelKind.STATE:
            with np.errstate(invalid="ignore"):
                wrong = ~np.isnan(values) & ~((values == np.round(values)) & (np.abs(values) < 2.0**53))
            _note(broken, wrong, name, cells, before, "is no whole number, as a state takes", times)
            values = np.where(wrong, np.nan, values)
        return values
    if not numeric:
        return _objects(cells)
    numbers = pd.to_numeric(cells, errors="coerce")
    wrong = np.asarray(numbers.isna() & cells.notna())
    _note(broken, wrong, name, cells, before, "is no number", times)
    return numbers.to_numpy(np.float64, na_value=np.nan)


def _objects(cells: pd.Series[Any]) -> Any:
    return cells.astype(object).where(cells.notna(), None).to_numpy()


def _note(
    broken: list[BrokenCell],
    wrong: npt.NDArray[np.bool_],
    column: str,
    cells: pd.Series[Any],
    before: int,
    problem: str,
    times: npt.NDArray[Any] | None = None,
) -> None:
    for row in np.flatnonzero(wrong).tolist():
        broken.append(
            BrokenCell(
                line=before + row + 1,
                column=column,
                cell=str(cells.iloc[row])[:200],
                problem=problem,
                time_unix_us=None
                if times is None or np.isnat(times[row])
                else int(times[row].astype("M8[us]").astype(np.int64)),
            )
        )


def _cuts_a_change(cells: pd.Series[Any], reading: Reading) -> bool:
    import pandas as pd

    if not reading.time_zone or not pd.api.types.is_datetime64_any_dtype(cells):
        return False
    stamps = pd.DatetimeIndex(cells)
    last = stamps[-1]
    if cells.dt.tz is not None or not isinstance(last, pd.Timestamp):
        return False
    return near_change(last, reading.time_zone)
