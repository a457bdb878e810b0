"""pandas frames to columnar batches: one row per time, one column per channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.errors import InvalidArgument, invalid_field
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import (
    ObservationBatch,
    Section,
    SeriesKey,
    TextSection,
    bool_section,
    double_section,
    int64_section,
    text_section,
)

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS_PER_BATCH: Final = 100_000
"""Rows (values) per message: large enough to be fast, small enough to be repeated cheaply."""
_NAMED: Final = 3


def frame_batches(
    frame: pd.DataFrame | pd.Series[Any],
    *,
    twin_id: str,
    kinds: Mapping[str, ChannelKind],
    time_zone: str | None = None,
    units: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    max_rows: int = MAX_ROWS_PER_BATCH,
) -> Iterator[ObservationBatch]:
    """Yield a frame as batches, in order of time; empty cells (NaN, None) are absent, not sent.

    Args:
        frame: a row per time, a column per channel. The index, or a column ``time``, is the time.
        twin_id: the twin it belongs to.
        kinds: kind of each known channel; unknown ones go as their dtype suggests, and the server judges.
        time_zone: zone of naive times; required for them.
        units: unit of columns that are not in their channel's own unit.
        columns: channel of columns that are named otherwise.
        max_rows: most values per batch.

    Raises:
        InvalidArgument: times that cannot be read, are naive without a zone, or do not exist or occur twice on a day
            when clocks change; a cell that is no number in a numeric channel; each names the row and the remedy.
    """
    import pandas as pd

    table = _with_time_index(frame if isinstance(frame, pd.DataFrame) else frame.to_frame())
    times = event_times(table.index, time_zone)
    names = {str(c): (columns or {}).get(str(c), str(c)) for c in table.columns}
    _check_names(names, units, columns)
    order = np.argsort(times, kind="stable")
    rows_per_batch = max(1, max_rows // max(1, len(names)))
    for start in range(0, len(order), rows_per_batch):
        picked = order[start : start + rows_per_batch]
        yield _batch(table.iloc[picked], times[picked], twin_id, names, kinds, units or {})


def event_times(index: pd.Index[Any], time_zone: str | None) -> npt.NDArray[np.int64]:
    """Return an index as int64 microseconds since the Unix epoch, UTC; raises as `frame_batches`."""
    import pandas as pd

    stamps = index if isinstance(index, pd.DatetimeIndex) else _parsed(index)
    if stamps.hasnans:
        row = int(np.flatnonzero(stamps.isna())[0])
        raise invalid_field("time", f"row {row} (counted from 0) has no time; fill it or drop the row")
    if stamps.tz is None:
        stamps = _localised(stamps, time_zone)
    return np.asarray(stamps.tz_convert("UTC").tz_localize(None).to_numpy().astype("M8[us]").astype(np.int64))


def _parsed(index: pd.Index[Any]) -> pd.DatetimeIndex:
    import pandas as pd

    if not pd.api.types.is_string_dtype(index) and index.dtype != object:
        raise invalid_field(
            "time", "the index holds numbers; make it times first, e.g. pandas.to_datetime(index, unit='s', utc=True)"
        )
    stamps = pd.to_datetime(index.to_series(), errors="coerce", format="ISO8601")
    if stamps.isna().any():
        row = int(np.flatnonzero(stamps.isna().to_numpy())[0])
        raise invalid_field(
            "time", f"row {row} (counted from 0) is {str(index[row])[:40]!r}, not a time such as 2026-11-23 08:00:00"
        )
    return pd.DatetimeIndex(stamps)


def _localised(stamps: pd.DatetimeIndex, time_zone: str | None) -> pd.DatetimeIndex:
    import pandas as pd

    if not time_zone:
        raise invalid_field(
            "time_zone", "the times have no zone; say which one they are in, e.g. time_zone='Europe/Berlin' or 'UTC'"
        )
    try:
        return stamps.tz_localize(time_zone, ambiguous="infer", nonexistent="raise")
    except (ValueError, KeyError) as error:
        doubtful = _doubtful_times(stamps, time_zone)
        if doubtful is None:
            raise invalid_field(
                "time_zone", f"{time_zone!r} is no IANA time zone; write e.g. 'Europe/Berlin'"
            ) from error
        ambiguous, missing = doubtful
        parts = [
            f"{kind}: {', '.join(str(t) for t in times[:_NAMED])}{' ...' if len(times) > _NAMED else ''} ({len(times)})"
            for kind, times in (("occur twice", ambiguous), ("do not exist", missing))
            if len(times)
        ]
        raise InvalidArgument(
            f"Clocks change in {time_zone}: these local times {'; '.join(parts)}. "
            "Give times with an offset, convert them to UTC, or use time_zone='UTC' if they were recorded in UTC."
        ) from error
    except pd.errors.OutOfBoundsDatetime as error:
        raise invalid_field("time", "a time is outside the years 1 to 9999") from error


def _doubtful_times(stamps: pd.DatetimeIndex, zone: str) -> tuple[pd.DatetimeIndex, pd.DatetimeIndex] | None:
    try:
        ambiguous = stamps.tz_localize(zone, ambiguous="NaT", nonexistent="shift_forward").isna()
        missing = stamps.tz_localize(zone, ambiguous=np.zeros(len(stamps), np.bool_), nonexistent="NaT").isna()
    except (ValueError, KeyError):
        return None
    return stamps[ambiguous], stamps[missing]


def _with_time_index(table: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    if "time" in table.columns and not isinstance(table.index, pd.DatetimeIndex):
        return table.set_index("time")
    return table


def _check_names(names: Mapping[str, str], units: Mapping[str, str] | None, columns: Mapping[str, str] | None) -> None:
    for field, given in (("units", units), ("columns", columns)):
        unknown = sorted(set(given or {}) - names.keys())
        if unknown:
            raise invalid_field(field, f"names {unknown[0]!r}, which is no column; there are {', '.join(names)}")


def _batch(
    table: pd.DataFrame,
    times: npt.NDArray[np.int64],
    twin_id: str,
    names: Mapping[str, str],
    kinds: Mapping[str, ChannelKind],
    units: Mapping[str, str],
) -> ObservationBatch:
    import pandas as pd

    keys: list[SeriesKey] = []
    parts: dict[str, list[tuple[int, npt.NDArray[np.int64], Any]]] = {}
    for column, channel in names.items():
        cells = table[column]
        present = cells.notna().to_numpy()
        if not present.any():
            continue
        keys.append(SeriesKey(twin_id=twin_id, channel=channel, unit=units.get(column, "")))
        kind = kinds.get(channel) or _kind_of(cells)
        section, values = _column(column, cells[present], kind)
        parts.setdefault(section, []).append((len(keys) - 1, times[present], values))
    empty = not pd.notna(table.to_numpy(dtype=object)).any()
    if empty:
        return ObservationBatch()
    sections: dict[str, Any] = {name: _section(name, columns) for name, columns in parts.items()}
    return ObservationBatch(series=tuple(keys), **sections)


def _kind_of(cells: pd.Series[Any]) -> ChannelKind:
    import pandas as pd

    if pd.api.types.is_bool_dtype(cells):
        return ChannelKind.BOOL
    if pd.api.types.is_numeric_dtype(cells):
        return ChannelKind.GAUGE
    return ChannelKind.TEXT


def _column(name: str, cells: pd.Series[Any], kind: ChannelKind) -> tuple[str, Any]:
    import pandas as pd

    if kind in (ChannelKind.TEXT, ChannelKind.JSON):
        return ("texts" if kind is ChannelKind.TEXT else "jsons"), [str(v) for v in cells]
    if kind is ChannelKind.BOOL:
        return "bools", cells.astype(bool).to_numpy()
    numbers = pd.to_numeric(cells, errors="coerce")
    if numbers.isna().any():
        row = int(np.flatnonzero(numbers.isna().to_numpy())[0])
        raise invalid_field(
            name, f"holds {str(cells.iloc[row])[:40]!r} at {cells.index[row]}, which is no number; mend or drop the row"
        )
    if kind is ChannelKind.STATE:
        whole = numbers.to_numpy(np.float64)
        if (whole != np.round(whole)).any():
            raise invalid_field(name, "holds fractions, but a STATE channel takes whole numbers; round them first")
        return "int64s", whole.astype(np.int64)
    return "doubles", numbers.to_numpy(np.float64)


def _section(name: str, columns: list[tuple[int, npt.NDArray[np.int64], Any]]) -> Section | TextSection:
    handles = np.concatenate([np.full(len(t), h, np.uint32) for h, t, _ in columns])
    times = np.concatenate([t for _, t, _ in columns])
    if name in ("texts", "jsons"):
        return text_section(handles, times, [text for _, _, texts in columns for text in texts])
    values = np.concatenate([v for _, _, v in columns])
    build = {"doubles": double_section, "int64s": int64_section, "bools": bool_section}[name]
    return build(handles, times, values)
