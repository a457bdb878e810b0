"""Which series the columns of windows are, looked up once: who reads windows asks for the same ones again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from twinmesh_storage.domain.latest_reader import Selection
from twinmesh_storage.domain.rows import Rows
from twinmesh_storage.domain.series import Series


@dataclass(frozen=True, kw_only=True, eq=False)  # not slotted: what is derived from it is kept in it
class WindowGrid:
    """The series of each column, by twin and channel.

    Attributes:
        series: per twin, the series of each channel; None = the twin has none.
    """

    series: tuple[tuple[Series | None, ...], ...]

    @classmethod
    def of(cls, series: Sequence[Sequence[Series | None]]) -> WindowGrid:
        """Return the grid of these series."""
        return cls(series=tuple(tuple(twin) for twin in series))

    @property
    def twins(self) -> int:
        """Number of twins."""
        return len(self.series)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.series[0]) if self.series else 0

    @cached_property
    def selection(self) -> Selection:
        """All series of the grid."""
        return Selection.of([s for twin in self.series for s in twin if s is not None])

    @cached_property
    def units(self) -> tuple[str, ...]:
        """Unit of each channel, of the first twin that has it."""
        return tuple(next((s.unit for s in column if s is not None), "") for column in zip(*self.series, strict=True))

    @cached_property
    def _place(self) -> npt.NDArray[np.int64]:
        """Column numbers, twin by twin, of the series of the selection."""
        there = [s is not None for twin in self.series for s in twin]
        return np.flatnonzero(np.array(there, np.bool_))

    def newest(self, rows: Rows) -> list[int | None]:
        """Return the newest event time of each twin, None = no row.

        Args:
            rows: at most one of each series of the selection, in its order.
        """
        never = np.iinfo(np.int64).min
        times = np.full(self.twins * self.channels, never, np.int64)
        place = self._place
        ids = self.selection.ids
        times[place if len(rows) == len(ids) else place[np.isin(ids, rows.series)]] = rows.ts
        if not len(times):
            return [None] * self.twins
        newest = times.reshape(self.twins, self.channels).max(axis=1)
        return [None if time == never else time for time in newest.tolist()]
