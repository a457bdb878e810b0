"""Which small blocks a fold merges with the rows that it brings.

A live series brings a few rows a fold. Merging them with what is there each time would write each row hundreds of
times; never merging would leave thousands of small blocks. So blocks are merged in tiers: of a series' folds every 4th
merges blocks of less than 4 times the rows it brings, every 16th those of less than 16 times, and so on up to
`SMALL_BLOCK_ROWS`. A row is then written once per tier, and at most about 3 blocks per tier wait. Which folds these are
differs by series, so that not all of them merge at once. When a series has moved on to the next cell, the small blocks
that end the last one are merged once more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from twinmesh_storage.domain.blocks import SMALL_BLOCK_ROWS, BlockSpan, SeriesOf, spans_of
from twinmesh_storage.domain.rows import Lane, Rows

_FAN: Final = 4
_SEALS_AT_ONCE: Final = 500


class Merging:
    """Decides for one compactor; forgets everything with the process, which costs some merging and nothing else.

    Args:
        small_rows: blocks with fewer rows are small.
    """

    def __init__(self, *, series_of: SeriesOf, small_rows: int = SMALL_BLOCK_ROWS) -> None:
        self._series_of = series_of
        self._small_rows = small_rows
        self._folds = 0
        self._cells: dict[int, int] = {}
        self._left: deque[tuple[int, int]] = deque()

    def spans(self, fresh: Mapping[Lane, Rows]) -> list[BlockSpan]:
        """Return where fresh rows fall, each with the size of what is merged, and ends of cells that were left."""
        self._folds += 1
        spans = [self._tier(span) for rows in fresh.values() for span in spans_of(rows, self._series_of)]
        touched = {(span.series_id, span.cell_start) for span in spans}
        for span in spans:
            before = self._cells.get(span.series_id)
            if before is None or span.cell_start > before:
                self._cells[span.series_id] = span.cell_start
                if before is not None:
                    self._left.append((span.series_id, before))
        for _ in range(min(_SEALS_AT_ONCE, len(self._left))):
            left = self._left.popleft()
            if left in touched:
                self._left.append(left)
            else:
                spans.append(self._end_of(*left))
        return spans

    def _tier(self, span: BlockSpan) -> BlockSpan:
        turn, small = self._folds + span.series_id, span.n
        if turn % _FAN:
            return span
        while turn % _FAN == 0 and small < self._small_rows:
            turn //= _FAN
            small *= _FAN
        return replace(span, small=min(small, self._small_rows))

    def _end_of(self, series_id: int, cell_start: int) -> BlockSpan:
        series = self._series_of(series_id)
        end = cell_start + series.cell_us
        return BlockSpan(
            tenant=series.tenant,
            series_id=series_id,
            cell_start=cell_start,
            first=end,
            last=end - 1,
            n=0,
            small=self._small_rows,
        )
