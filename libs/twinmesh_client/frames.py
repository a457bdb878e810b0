"""pandas frames to columnar batches: one row per time, one column per channel."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_client.local_times import OFFSET_PATTERN, to_instants
from twinmesh_core.errors import invalid_field
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
MAX_TEXT_BYTES_PER_BATCH: Final = 4 * 1024 * 1024
"""Bound of the texts in one message, far below the largest message."""
_LARGEST_EXACT: Final = 2.0**53
_TRUE: Final = ("true", "yes", "on", "1", "1.0")
_FALSE: Final = ("false", "no", "off", "0", "0.0")


@dataclass(frozen=True, slots=True)
class _Column:
    position: int
    name: str
    channel: str
    unit: str


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
        units: unit of columns (by column or by channel) that are not in their channel's own unit.
        columns: channel of columns that are named otherwise than it.
        max_rows: most values per batch.

    Raises:
        InvalidArgument: times that cannot be read, are naive without a zone, or do not exist or occur twice on a day
            when clocks change; a cell that is no number in a numeric channel; each names the row and the remedy.
    """
    import pandas as pd

    table = _with_time_index(frame if isinstance(frame, pd.DataFrame) else frame.to_frame())
    times = event_times(table.index, time_zone)
    chosen = _chosen_columns(table, units or {}, columns or {})
    order = np.argsort(times, kind="stable")
    rows_per_batch = max(1, max_rows // max(1, len(chosen)))
    for start in range(0, len(order), rows_per_batch):
        picked = order[start : start + rows_per_batch]
        yield from _bounded(table.iloc[picked], times[picked], twin_id, chosen, kinds)


def _bounded(
    table: pd.DataFrame,
    times: npt.NDArray[np.int64],
    twin_id: str,
    chosen: Sequence[_Column],
    kinds: Mapping[str, ChannelKind],
) -> Iterator[ObservationBatch]:
    """Yield one batch, or halves of it where long texts would make the message too large."""
    batch = _batch(table, times, twin_id, chosen, kinds)
    text_bytes = len(batch.texts.heap) + len(batch.jsons.heap)
    if text_bytes <= MAX_TEXT_BYTES_PER_BATCH or len(times) == 1:
        yield batch
        return
    half = len(times) // 2
    yield from _bounded(table.iloc[:half], times[:half], twin_id, chosen, kinds)
    yield from _bounded(table.iloc[half:], times[half:], twin_id, chosen, kinds)


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
    texts = index.to_series()
    try:
        stamps = pd.to_datetime(texts, errors="coerce", format="ISO8601")
    except ValueError:
        # Offsets that differ from row to row: each row names its instant, if each row has one.
        stamps = _with_offsets(texts)
    if stamps.isna().any():
        row = int(np.flatnonzero(stamps.isna().to_numpy())[0])
        raise invalid_field(
            "time", f"row {row} (counted from 0) is {str(index[row])[:40]!r}, not a time such as 2026-11-23 08:00:00"
        )
    return pd.DatetimeIndex(stamps)


def _with_offsets(texts: pd.Series[Any]) -> pd.Series[Any]:
    import pandas as pd

    with_offset = texts.astype(str).str.contains(OFFSET_PATTERN, regex=True).to_numpy()
    if not with_offset.all():
        row = int(np.flatnonzero(~with_offset)[0])
        raise invalid_field(
            "time", f"row {row} (counted from 0), {str(texts.iloc[row])[:40]!r}, has no offset while others have one"
        )
    return pd.to_datetime(texts, errors="coerce", format="ISO8601", utc=True)


def _localised(stamps: pd.DatetimeIndex, time_zone: str | None) -> pd.DatetimeIndex:
    if not time_zone:
        raise invalid_field(
            "time_zone", "the times have no zone; say which one they are in, e.g. time_zone='Europe/Berlin' or 'UTC'"
        )
    return to_instants(stamps, time_zone)


def _with_time_index(table: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    if "time" in table.columns and not isinstance(table.index, pd.DatetimeIndex):
        return table.set_index("time")
    return table


def _chosen_columns(table: pd.DataFrame, units: Mapping[str, str], columns: Mapping[str, str]) -> list[_Column]:
    names = [str(c) for c in table.columns]
    channels = [columns.get(name, name) for name in names]
    for field, given, known in (("units", units, {*names, *channels}), ("columns", columns, {*names})):
        unknown = sorted(set(given) - known)
        if unknown:
            raise invalid_field(field, f"names {unknown[0]!r}, which is no column; there are {', '.join(names)}")
    repeated = sorted({c for c in channels if channels.count(c) > 1})
    if repeated:
        raise invalid_field("columns", f"the channel {repeated[0]!r} is meant by two columns; drop or rename one")
    return [
        _Column(i, name, channel, units.get(name, units.get(channel, "")))
        for i, (name, channel) in enumerate(zip(names, channels, strict=True))
    ]


def _batch(
    table: pd.DataFrame,
    times: npt.NDArray[np.int64],
    twin_id: str,
    chosen: Sequence[_Column],
    kinds: Mapping[str, ChannelKind],
) -> ObservationBatch:
    keys: list[SeriesKey] = []
    parts: dict[str, list[tuple[int, npt.NDArray[np.int64], Any]]] = {}
    for column in chosen:
        cells = table.iloc[:, column.position]
        present = cells.notna().to_numpy()
        if not present.any():
            continue
        keys.append(SeriesKey(twin_id=twin_id, channel=column.channel, unit=column.unit))
        kind = kinds.get(column.channel) or _kind_of(cells)
        section, values = _values(column.name, cells[present], kind)
        parts.setdefault(section, []).append((len(keys) - 1, times[present], values))
    sections: dict[str, Any] = {name: _section(name, columns) for name, columns in parts.items()}
    return ObservationBatch(series=tuple(keys), **sections)


def _kind_of(cells: pd.Series[Any]) -> ChannelKind:
    import pandas as pd

    if pd.api.types.is_bool_dtype(cells):
        return ChannelKind.BOOL
    if pd.api.types.is_numeric_dtype(cells):
        return ChannelKind.GAUGE
    return ChannelKind.TEXT


def _values(name: str, cells: pd.Series[Any], kind: ChannelKind) -> tuple[str, Any]:
    """Return the section that values of a kind go to, and the values; raises where a cell cannot be one."""
    import pandas as pd

    if kind is ChannelKind.TEXT:
        return "texts", [str(v) for v in cells]
    if kind is ChannelKind.JSON:
        return "jsons", [v if isinstance(v, str) else json.dumps(v) for v in cells]
    if kind is ChannelKind.BOOL:
        return "bools", _bools(name, cells)
    if kind is ChannelKind.STATE and pd.api.types.is_integer_dtype(cells):
        return "int64s", cells.to_numpy(np.int64)
    numbers = pd.to_numeric(cells, errors="coerce")
    _refuse_first(name, cells, numbers.isna().to_numpy(), "which is no number")
    values = numbers.to_numpy(np.float64)
    if kind is ChannelKind.STATE:
        _refuse_first(name, cells, values != np.round(values), "but a STATE channel takes whole numbers")
        _refuse_first(name, cells, np.abs(values) >= _LARGEST_EXACT, "which is too large for a whole number")
        return "int64s", values.astype(np.int64)
    return "doubles", values


def _bools(name: str, cells: pd.Series[Any]) -> npt.NDArray[np.bool_]:
    import pandas as pd

    if pd.api.types.is_bool_dtype(cells):
        return cells.to_numpy(np.bool_)
    texts = cells.astype(str).str.strip().str.lower()
    true = texts.isin(_TRUE).to_numpy()
    _refuse_first(name, cells, ~(true | texts.isin(_FALSE).to_numpy()), "which is neither true nor false")
    return np.asarray(true, np.bool_)


def _refuse_first(name: str, cells: pd.Series[Any], wrong: npt.NDArray[np.bool_], why: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise invalid_field(
            name, f"holds {str(cells.iloc[row])[:40]!r} at {cells.index[row]}, {why}; mend or drop the row"
        )


def _section(name: str, columns: list[tuple[int, npt.NDArray[np.int64], Any]]) -> Section | TextSection:
    handles = np.concatenate([np.full(len(t), h, np.uint32) for h, t, _ in columns])
    times = np.concatenate([t for _, t, _ in columns])
    if name in ("texts", "jsons"):
        return text_section(handles, times, [text for _, _, texts in columns for text in texts])
    values = np.concatenate([v for _, _, v in columns])
    build = {"doubles": double_section, "int64s": int64_section, "bools": bool_section}[name]
    return build(handles, times, values)
