"""What a fold does to blocks apart from the database: where rows fall, what is merged, and the rows to be copied.

All of it runs in threads, since appends go on meanwhile on the event loop. Folds of few rows have many small blocks:
Python at work on each. Nobody waits for them, so they are done in slices, with pauses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from twinmesh_core.pace import Pace
from twinmesh_storage.adapters.postgres.arrays import BigInts, Texts
from twinmesh_storage.adapters.postgres.block_rows import block_chunks
from twinmesh_storage.domain.blocks import Block, BlockSpan, SeriesOf, build_blocks
from twinmesh_storage.domain.folding import Hide, Superseded, settle
from twinmesh_storage.domain.merging import Merging
from twinmesh_storage.domain.partitions import REST, Partition, partition_of, width_of
from twinmesh_storage.domain.rows import Lane, Rows, concat

_FEW_ROWS: Final = 100_000
"""A fold of fewer rows gives way to the event loop; of more, the tail would grow meanwhile."""
_PAUSES_S: Final = 2.0
_SLICE_SERIES: Final = 32
_SLICES: Final = 64

Deletion = tuple[int, dict[str, Any]]
"""A number of blocks, and what deletes them by their keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a fold puts in the place of the blocks that it touched.

    Attributes:
        blocks: the new ones.
        superseded: rows moved aside.
        partitions: where the new ones lie.
        replaced: deletes those touched, by width class.
        pace: of the work that is left.
    """

    blocks: list[Block]
    superseded: list[Superseded]
    partitions: frozenset[Partition]
    replaced: list[Deletion]
    pace: Pace


class Rewriting:
    """Rewrites blocks for one compactor.

    Args:
        series_of: finds the series of rows.
        small_rows: blocks with fewer rows are merged with what follows.
        max_rows: most rows of a block.
    """

    def __init__(self, *, series_of: SeriesOf, small_rows: int, max_rows: int) -> None:
        self._series_of = series_of
        self._max_rows = max_rows
        self._merging = Merging(series_of=series_of, small_rows=small_rows)

    def reach(self, fresh: Mapping[Lane, Rows]) -> tuple[list[BlockSpan], list[dict[str, Any]]]:
        """Return where fresh rows fall, and what to ask for the blocks that are there, by width class."""
        spans = self._merging.spans(fresh)
        by_width: dict[int, list[BlockSpan]] = {}
        for span in spans:
            by_width.setdefault(width_of(self._series_of(span.series_id).cell_us).number, []).append(span)
        return spans, [
            {
                "tenant": Texts(s.tenant for s in some),
                "series": BigInts([s.series_id for s in some]),
                "cell": BigInts([s.cell_start for s in some]),
                "first": BigInts([s.first for s in some]),
                "last": BigInts([s.last for s in some]),
                "small": BigInts([s.small for s in some]),
                "width": width,
                "low": min(s.cell_start for s in some),
                "high": max(s.last for s in some),
            }
            for width, some in by_width.items()
        ]

    def rewrite(self, fresh: Mapping[Lane, Rows], touched: Sequence[Block], hides: Sequence[Hide]) -> Written:
        """Return what fresh rows and the blocks that they touch become.

        Args:
            fresh: by lane, each sorted by (series, event time).
        """
        few = sum(map(len, fresh.values())) + sum(block.n for block in touched) <= _FEW_ROWS
        pace = Pace(_PAUSES_S if few else 0.0)
        blocks: list[Block] = []
        superseded: list[Superseded] = []
        for lane in Lane:
            aside: list[Superseded] = []
            mine = [block for block in touched if block.lane is lane]
            for ids, parts in _slices(fresh.get(lane), mine, _SLICE_SERIES if few else 0):
                settled = settle(parts, _within(hides, ids) if few else hides)
                pace.step()
                blocks.extend(build_blocks(settled.readable, lane, self._series_of, self._max_rows))
                if len(settled.superseded):
                    aside.append(settled.superseded)
                pace.step()
            if aside:
                by_offset = np.concatenate([one.by_offset for one in aside])
                superseded.append(Superseded(rows=concat([one.rows for one in aside]), by_offset=by_offset))
        return Written(
            blocks=blocks,
            superseded=superseded,
            partitions=frozenset(map(self.partition, blocks)),
            replaced=self._replaced(touched),
            pace=pace,
        )

    def chunks(self, written: Written, there: frozenset[Partition]) -> list[bytes]:
        """Return the rows that add the new blocks, given which partitions exist."""
        where = [self.partition(block) for block in written.blocks]
        return block_chunks(written.blocks, [p.width if p in there else REST for p in where], written.pace)

    def partition(self, block: Block) -> Partition:
        """Return where a block lies."""
        return partition_of(self._series_of(block.series_id).cell_us, block.t0)

    def _replaced(self, blocks: Sequence[Block]) -> list[Deletion]:
        by_width: dict[int, list[Block]] = {}
        for block in blocks:
            by_width.setdefault(self.partition(block).width, []).append(block)
        return [
            (
                len(some),
                {
                    "tenant": Texts(b.tenant for b in some),
                    "series": BigInts([b.series_id for b in some]),
                    "t0": BigInts([b.t0 for b in some]),
                    "width": width,
                    "low": min(b.t0 for b in some),
                    "high": max(b.t0 for b in some),
                },
            )
            for width, some in by_width.items()
        ]


def _within(hides: Sequence[Hide], ids: Sequence[int]) -> list[Hide]:
    """Return the hides of any of these series, each of no others: what they name is looked up for each slice."""
    found = [(hide, hide.series_ids.intersection(ids)) for hide in hides]
    return [replace(hide, series_ids=mine) for hide, mine in found if mine]


def _slices(fresh: Rows | None, blocks: Sequence[Block], series: int) -> Iterator[tuple[list[int], list[Rows]]]:
    """Yield so many series each, or more where they are many, with their rows, fresh ones last; 0 = all at once."""
    keys = np.array([block.series_id for block in blocks], np.int64)
    ids = np.unique(keys if fresh is None else np.concatenate([keys, fresh.series]))
    # Each slice costs a millisecond before a row is looked at.
    step = max(series, len(ids) // _SLICES) if series else max(len(ids), 1)
    for at in range(0, len(ids), step):
        chosen = ids[at : at + step]
        low, high = chosen[0], chosen[-1]
        parts = [blocks[i].rows() for i in np.flatnonzero((keys >= low) & (keys <= high)).tolist()]
        if fresh is not None:
            start = int(fresh.series.searchsorted(low, "left"))
            parts.append(fresh.take(slice(start, int(fresh.series.searchsorted(high, "right")))))
        yield chosen.tolist(), parts
