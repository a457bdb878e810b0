"""Hot rows in the shared cache: what windows need of recent folded rows, for other processes and for the next life.

What is written is what is read: after a fold, the series whose windows somebody lately asked this process for. A fold
writes a bounded amount, the last used first; a slot that it changed and had no room for is not vouched for any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from typing import Final

import numpy as np

from twinmesh_storage.domain.cache_records import WINDOW_SLOT_SERIES, Stamp, decode_windows, encode_windows
from twinmesh_storage.domain.compactor import Fold
from twinmesh_storage.domain.fold_cache import Bounds, FoldCache
from twinmesh_storage.domain.hot import HotSeries
from twinmesh_storage.domain.logview import LogView

_FOLD_BYTES: Final = 8 << 20
"""Written per fold at most."""
_ROW_BYTES: Final = 25


class WindowCache:
    """Loads hot rows from the cache, and stores them after folds."""

    def __init__(self, *, cache: FoldCache, view: LogView) -> None:
        self._cache = cache
        self._view = view

    async def load(self, series: Collection[int]) -> dict[int, HotSeries]:
        """Return what the cache has of these series that is right beside the tail of now or earlier; keeps it hot."""
        view = self._view
        hot, version = view.hot, view.hot.version
        bounds = Bounds(incarnation=view.incarnation, oldest_fold=view.tail.base, head=view.head)
        slots = sorted({series_id // WINDOW_SLOT_SERIES for series_id in series})
        found: dict[int, HotSeries] = {}
        for slot, body in (await self._cache.load(bounds, slots)).items():
            for series_id, rows in (decode_windows(slot, body) or {}).items():
                held = hot.peek(series_id)
                if held is None or held.since > rows.since:
                    hot.put(series_id, rows, version)
                found[series_id] = rows
        return found

    async def store(self, fold: Fold) -> None:
        """Store the hot rows of slots that a fold touched, or that are not stored yet."""
        view = self._view
        if not self._cache.enabled or fold.incarnation != view.incarnation:
            return
        stamp = Stamp(incarnation=fold.incarnation, fold_offset=fold.offset, reach=view.head)
        touched = set(np.unique(fold.series // WINDOW_SLOT_SERIES).tolist())
        known = self._cache.vouched
        chosen: dict[int, list[tuple[int, HotSeries]]] = {}
        room = _FOLD_BYTES
        for slot in _slots(view.hot.newest_used()):
            if slot not in touched and slot in known:
                continue
            ids = range(slot * WINDOW_SLOT_SERIES, (slot + 1) * WINDOW_SLOT_SERIES)
            held = [(series_id, hot) for series_id in ids if (hot := view.hot.peek(series_id)) is not None]
            room -= sum(_ROW_BYTES * len(hot.rows) for _, hot in held)
            if room < 0:
                break
            chosen[slot] = held
        records = await asyncio.to_thread(_encode, chosen) if chosen else {}
        await self._cache.store(stamp, fold.after, records, touched)

    async def forget(self, series: Iterable[int]) -> bool:
        """Remove what the cache has of series; False = it could not be reached."""
        return await self._cache.forget({series_id // WINDOW_SLOT_SERIES for series_id in series})


def _slots(series: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(series_id // WINDOW_SLOT_SERIES for series_id in series))


def _encode(chosen: dict[int, list[tuple[int, HotSeries]]]) -> dict[int, bytes]:
    return {slot: encode_windows(held) for slot, held in chosen.items()}
