"""Newest values: from the in-process table, whose gaps are filled from the cache first and the blocks else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.errors import TwinmeshError
from twinmesh_storage.domain.blocks import Block, block_lane, decode_block
from twinmesh_storage.domain.compactor import Fold
from twinmesh_storage.domain.history import SeriesRows
from twinmesh_storage.domain.latest import CHUNK_SERIES
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.ports import BlockStore, LatestCache
from twinmesh_storage.domain.rows import Lane, concat
from twinmesh_storage.domain.series import Catalogue, Series

_BASES_AT_ONCE: Final = 2_000


class LatestReader:
    """Answers newest values, and keeps the cache up to date after folds.

    What a base may be taken from: a cache record is the newest row *as of a fold offset*, a block read the newest row
    folded so far. Either is complete beside the tail as long as it is not older than the tail's beginning, since the
    tail has everything after that.
    """

    def __init__(self, *, view: LogView, blocks: BlockStore, cache: LatestCache, catalogue: Catalogue) -> None:
        self._view = view
        self._blocks = blocks
        self._cache = cache
        self._catalogue = catalogue
        self._warmed = False
        self._filling = asyncio.Lock()

    async def read(self, tenant: str, series: Sequence[Series]) -> tuple[int, list[SeriesRows]]:
        """Return the offset reflected at least, and the newest row of each series that has one."""
        view = self._view
        tail = await view.tail_view()
        table = view.latest
        ids = np.array([s.series_id for s in series], np.int64)
        if len(table.without_base(ids)):
            async with self._filling:
                await self._fill(tenant, series)
            table = view.latest
        found: dict[int, SeriesRows] = {}
        by_id = {s.series_id: s for s in series}
        for lane in Lane:
            wanted = np.array([s.series_id for s in series if Lane.of(s.kind) is lane], np.int64)
            rows = table.rows(wanted, lane)
            for row, series_id in enumerate(rows.series.tolist()):
                found[series_id] = SeriesRows(series=by_id[series_id], rows=rows.take(slice(row, row + 1)))
        return tail.head, [found[s.series_id] for s in series if s.series_id in found]

    async def _fill(self, tenant: str, series: Sequence[Series]) -> None:
        table = self._view.latest
        if not self._warmed:
            self._warmed = True
            await self._warm()
        missing = table.without_base(np.array([s.series_id for s in series], np.int64))
        for at in range(0, len(missing), _BASES_AT_ONCE):
            part = missing[at : at + _BASES_AT_ONCE]
            blocks = await self._blocks.read_last(tenant, part.tolist())
            await asyncio.to_thread(put_bases, self._view, part, blocks)

    async def _warm(self) -> None:
        """Take from the cache what is still true."""
        view = self._view
        table, base = view.latest, view.tail.base
        for number, body in (await self._cache.load(view.incarnation, base)).items():
            table.put_chunk(number, body)

    async def store(self, fold: Fold) -> None:
        """Put the chunks that a fold touched into the cache, as of its offset."""
        view = self._view
        table = view.latest
        touched = np.unique(fold.series // CHUNK_SERIES).tolist()
        texts = np.array(
            [s for s in fold.series.tolist() if self._lane(s) is Lane.TEXT], np.int64
        )
        chunks = {number: table.chunk(number, texts) for number in touched}
        await self._cache.store(view.incarnation, fold.offset, chunks)

    def _lane(self, series_id: int) -> Lane | None:
        series = self._catalogue.by_id(series_id)
        return None if series is None else Lane.of(series.kind)
