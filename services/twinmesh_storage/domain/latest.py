"""The newest value of each series, in arrays indexed by series id.

What the table knows of a series is complete once its *base* (the newest row in blocks) has been put in beside the
rows of the tail; until then the base must be read. Records for the cache are fixed-width, in chunks of consecutive ids.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_storage.domain.rows import Lane, Rows
from twinmesh_storage.domain.tail import Run

CHUNK_SERIES: Final = 1024
"""Series per cached chunk."""
RECORD: Final = np.dtype(
    [("ts", "<i8"), ("value", "<i8"), ("offset", "<i8"), ("quality", "u1"), ("state", "u1"), ("pad", "u2")]
)
"""One cached record: state 0 = not known, 1 = no value at all, 2 = this value."""

_UNKNOWN, _NONE, _VALUE = 0, 1, 2


class LatestTable:
    """Newest row per series, of rows absorbed and bases put in; ids are dense, so arrays beat dictionaries."""

    def __init__(self) -> None:
        self._ts = np.zeros(0, np.int64)
        self._value = np.zeros(0, np.int64)
        self._text: dict[int, bytes] = {}
        self._offset = np.zeros(0, np.int64)  # 0 = no row: offsets begin at 1
        self._quality = np.zeros(0, np.uint8)
        self._has_base = np.zeros(0, np.bool_)

    def absorb(self, run: Run) -> None:
        """Take the newest row of each series of a sorted run, where it is newer than what is known."""
        last = run.starts[1:] - 1
        rows = run.rows.take(last)
        self._grow(int(run.keys[-1]) + 1 if len(run.keys) else 0)
        self._put(rows, run.lane)

    def put_base(self, series: npt.NDArray[np.int64], rows: Rows, lane: Lane) -> None:
        """State that `rows` (at most one per series) are the newest in blocks of `series`; the others have none."""
        if len(series):
            self._grow(int(series.max()) + 1)
            self._has_base[series] = True
        self._put(rows, lane)

    def complete(self, span: slice) -> bool:
        """Return whether the newest row in blocks is known of all these consecutive series."""
        self._grow(span.stop)
        return bool(self._has_base[span].all())

    def without_base(self, series: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return those of the series whose newest row in blocks is not known here."""
        if len(series):
            self._grow(int(series.max()) + 1)
        return series[~self._has_base[series]]

    def rows(self, series: npt.NDArray[np.int64], lane: Lane, span: slice | None = None) -> Rows:
        """Return the newest row of each series that has one, in the order asked; bases must be there.

        Args:
            series: int64 [k], the series.
            lane: theirs.
            span: their ids, where these are consecutive: columns are then copied as they lie.
        """
        if span is not None and lane is Lane.NUMERIC:
            self._grow(span.stop)
            if self._offset[span].all():
                return Rows(
                    series=series,
                    ts=self._ts[span].copy(),
                    value=self._value[span].copy(),
                    quality=self._quality[span].copy(),
                    offset=self._offset[span].copy(),
                )
        if len(series):
            self._grow(int(series.max()) + 1)
        known = series[self._offset[series] > 0]
        if lane is Lane.TEXT:
            value = np.empty(len(known), object)
            value[:] = [self._text[s] for s in known.tolist()]
        else:
            value = self._value[known]
        return Rows(
            series=known, ts=self._ts[known], value=value, quality=self._quality[known], offset=self._offset[known]
        )

    def _put(self, rows: Rows, lane: Lane) -> None:
        ids = rows.series
        newer = (self._offset[ids] == 0) | (rows.ts > self._ts[ids])
        newer |= (rows.ts == self._ts[ids]) & (rows.offset > self._offset[ids])
        chosen = rows.take(newer)
        ids = chosen.series
        self._ts[ids], self._offset[ids], self._quality[ids] = chosen.ts, chosen.offset, chosen.quality
        if lane is Lane.TEXT:
            self._text.update(zip(ids.tolist(), chosen.value.tolist(), strict=True))
        else:
            self._value[ids] = chosen.value

    def _grow(self, size: int) -> None:
        if size <= len(self._ts):
            return
        more = max(size, 2 * len(self._ts), 1024) - len(self._ts)
        self._ts = np.append(self._ts, np.zeros(more, np.int64))
        self._value = np.append(self._value, np.zeros(more, np.int64))
        self._offset = np.append(self._offset, np.zeros(more, np.int64))
        self._quality = np.append(self._quality, np.zeros(more, np.uint8))
        self._has_base = np.append(self._has_base, np.zeros(more, np.bool_))

    # --- chunks for the cache ---

    def chunk(self, number: int) -> bytes:
        """Return the records of series number * CHUNK_SERIES onwards; texts are not cached and read as not known."""
        first = number * CHUNK_SERIES
        self._grow(first + CHUNK_SERIES)
        part = slice(first, first + CHUNK_SERIES)
        records = np.zeros(CHUNK_SERIES, RECORD)
        records["ts"], records["value"], records["offset"] = self._ts[part], self._value[part], self._offset[part]
        records["quality"] = self._quality[part]
        state = np.where(self._offset[part] > 0, _VALUE, _NONE).astype(np.uint8)
        state[~self._has_base[part]] = _UNKNOWN
        state[[s - first for s in range(first, first + CHUNK_SERIES) if s in self._text]] = _UNKNOWN
        records["state"] = state
        return records.tobytes()

    def put_chunk(self, number: int, data: bytes) -> int:
        """Take cached records as bases; returns how many series they made known: none of bytes that are no chunk."""
        if len(data) != CHUNK_SERIES * RECORD.itemsize:
            return 0
        records = np.frombuffer(data, RECORD)
        ids = number * CHUNK_SERIES + np.arange(len(records), dtype=np.int64)
        known = records["state"] != _UNKNOWN
        valued = records["state"] == _VALUE
        rows = Rows(
            series=ids[valued],
            ts=records["ts"][valued],
            value=records["value"][valued],
            quality=records["quality"][valued],
            offset=records["offset"][valued],
        )
        self.put_base(ids[known], rows, Lane.NUMERIC)
        return int(known.sum())
