"""Newest values as bytes: at 10,000 series a dictionary of Python objects would cost far more than the values.

A series' dictionary entry never changes, so its bytes are kept, and so is what was asked for by twins: asked again, it
costs one look at the arrays.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from twinmesh_core import wire
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import BYTE, ObservationBatch, Section, text_section
from twinmesh_storage.domain.directory import Directory
from twinmesh_storage.domain.history import series_key
from twinmesh_storage.domain.latest_reader import Selection
from twinmesh_storage.domain.rows import Lane, Rows
from twinmesh_storage.domain.series import Series

_KEPT: Final = 64
_SECTIONS: Final = (
    ("doubles", (ChannelKind.GAUGE, ChannelKind.COUNTER)),
    ("int64s", (ChannelKind.STATE,)),
    ("bools", (ChannelKind.BOOL,)),
    ("texts", (ChannelKind.TEXT,)),
    ("jsons", (ChannelKind.JSON,)),
)


class TwinSelections:
    """The series of twins as selections, kept until the catalogue grows."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], tuple[int, Selection]] = OrderedDict()

    async def of(self, tenant: str, twin_ids: Sequence[str]) -> Selection:
        """Return all series of these twins."""
        key = (tenant, tuple(twin_ids))
        kept = self._kept.get(key)
        if kept is not None and kept[0] == self._directory.version:
            self._kept.move_to_end(key)
            return kept[1]
        selection = Selection.of(await self._directory.of_twins(tenant, twin_ids))
        self._kept[key] = (self._directory.version, selection)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return selection


class LatestEncoder:
    """Writes newest rows as the bytes of an ObservationBatch."""

    def __init__(self) -> None:
        self._entries: dict[int, bytes] = {}
        self._last: tuple[Selection, bytes] | None = None

    def encode(self, selection: Selection, by_lane: dict[Lane, Rows]) -> bytes:
        """Return a serialized batch: its dictionary holds the series that have a row, in the order asked."""
        found = np.concatenate([rows.series for rows in by_lane.values()])
        if len(found) == len(selection.ids):
            present: Any = slice(None)
            dictionary = self._dictionary(selection)
        else:
            present = np.isin(selection.ids, found)
            dictionary = b"".join(
                self._entry(s) for s, there in zip(selection.series, present.tolist(), strict=True) if there
            )
        return dictionary + wire.encode(_sections(selection.kinds[present], by_lane))

    def _dictionary(self, selection: Selection) -> bytes:
        if self._last is None or self._last[0] is not selection:
            self._last = (selection, b"".join(map(self._entry, selection.series)))
        return self._last[1]

    def _entry(self, series: Series) -> bytes:
        entry = self._entries.get(series.series_id)
        if entry is None:
            entry = self._entries[series.series_id] = wire.encode(ObservationBatch(series=(series_key(series),)))
        return entry


def _sections(kinds: np.ndarray[Any, np.dtype[np.uint8]], by_lane: dict[Lane, Rows]) -> ObservationBatch:
    """Return the rows as sections; the handles of a lane's rows are its places among `kinds`."""
    is_text = kinds > ChannelKind.BOOL
    sections: dict[str, Any] = {}
    for name, members in _SECTIONS:
        lane = Lane.of(members[0])
        handles = np.flatnonzero(is_text if lane is Lane.TEXT else ~is_text).astype(np.uint32)
        mine = np.isin(kinds[handles], [int(kind) for kind in members])
        if not mine.any():
            continue
        rows = by_lane[lane].take(mine)
        handles = handles[mine]
        if lane is Lane.TEXT:
            sections[name] = text_section(handles, rows.ts, rows.value.tolist(), rows.quality)
            continue
        bits = np.ascontiguousarray(rows.value)
        values = bits.view(np.float64) if name == "doubles" else bits.astype(BYTE) if name == "bools" else bits
        sections[name] = Section(series=handles, time_unix_us=rows.ts, quality=rows.quality, values=values)
    return ObservationBatch(**sections)
