"""Rows as they go to a caller: cut into batches of bounded size, columns handed on as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from twinmesh_core.observations import (
    BYTE,
    ObservationBatch,
    Section,
    SeriesKey,
    TextSection,
    text_section,
)
from twinmesh_storage.domain.history import SeriesRows
from twinmesh_storage.domain.rows import Lane, Rows, concat
from twinmesh_storage.domain.series import Series

_ANSWER_ROWS: Final = 100_000
_ANSWER_TEXT_BYTES: Final = 4 << 20


def answers(parts: Sequence[SeriesRows]) -> Iterator[ObservationBatch]:
    """Cut rows into batches of at most 100,000 rows and some MB of text; a batch's dictionary holds only its series."""
    gathered: list[SeriesRows] = []
    room = _ANSWER_ROWS
    for part in parts:
        rows = part.rows
        at = 0
        while at < len(rows):
            take = min(room, _fitting(rows, at, room))
            gathered.append(SeriesRows(series=part.series, rows=rows.take(slice(at, at + take))))
            at += take
            room = 0 if Lane.of(part.series.kind) is Lane.TEXT and at < len(rows) else room - take
            if room <= 0:
                yield to_batch(gathered)
                gathered, room = [], _ANSWER_ROWS
    if gathered:
        yield to_batch(gathered)


def _fitting(rows: Rows, at: int, room: int) -> int:
    """Return how many rows from `at` on fit one answer by their text; at least one."""
    if rows.value.dtype != object:
        return room
    size = 0
    for count, value in enumerate(rows.value[at : at + room]):
        size += len(value)
        if count and size > _ANSWER_TEXT_BYTES:
            return count
    return room


def to_batch(parts: Sequence[SeriesRows]) -> ObservationBatch:
    """Return rows of several series as one batch; its dictionary is the series in order, rows keep theirs."""
    handles: dict[int, int] = {}
    series: list[SeriesKey] = []
    by_section: dict[str, list[tuple[int, Rows]]] = {}
    for part in parts:
        if part.series.series_id not in handles:
            handles[part.series.series_id] = len(series)
            series.append(series_key(part.series))
        by_section.setdefault(_SECTION_OF[part.series.kind.name], []).append(
            (handles[part.series.series_id], part.rows)
        )
    sections: dict[str, Any] = {name: _section(name, rows) for name, rows in by_section.items()}
    return ObservationBatch(series=tuple(series), **sections)


def series_key(series: Series) -> SeriesKey:
    """Return the dictionary entry of a series."""
    return SeriesKey(
        twin_id=series.twin_id,
        channel=series.channel,
        unit=series.unit,
        series_id=series.series_id,
        kind=series.kind,
    )


_SECTION_OF: Final = {
    "GAUGE": "doubles",
    "COUNTER": "doubles",
    "STATE": "int64s",
    "BOOL": "bools",
    "TEXT": "texts",
    "JSON": "jsons",
}


def _section(name: str, parts: Sequence[tuple[int, Rows]]) -> Section | TextSection:
    rows = concat([r for _, r in parts])
    handles = np.repeat(np.array([h for h, _ in parts], np.uint32), [len(r) for _, r in parts])
    if name in ("texts", "jsons"):
        return text_section(handles, rows.ts, rows.value.tolist(), rows.quality)
    bits = np.ascontiguousarray(rows.value)
    values = bits.view(np.float64) if name == "doubles" else bits.astype(BYTE) if name == "bools" else bits
    return Section(series=handles, time_unix_us=rows.ts, quality=rows.quality, values=values)
