"""What the checks remember of each series between batches: its newest values. Advisory, bounded, lost with the process.

Losing it never loses an observation: a check that needs the past only has less of it for a moment.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.observations import SeriesKey

TAIL: Final = 10
"""How many of its newest values are kept of each series."""
MAX_DICTIONARIES: Final = 256
"""Dictionaries whose slots are remembered."""
NEVER: Final = np.iinfo(np.int64).min
"""Event time of a series that was not seen yet."""


class SeriesMemory:
    """Newest values of up to `capacity` series, in columns; the longest unused series are forgotten first.

    Attributes:
        time: int64 [capacity], event time of the newest value, microseconds; `NEVER` = none.
        value: float64 [capacity], the newest value.
        since: int64 [capacity], event time since which it has not changed.
        tail: float64 [capacity, TAIL], newest values, oldest first; NaN = fewer were seen.
    """

    def __init__(self, capacity: int = 65_536) -> None:
        self._capacity = capacity
        self._slots: dict[tuple[str, int], int] = {}
        self._keys: list[tuple[str, int] | None] = [None] * capacity
        self._used = np.zeros(capacity, np.int64)
        self._tick = 0
        self._evictions = 0
        self._known: OrderedDict[tuple[str, int], tuple[object, int, npt.NDArray[np.intp]]] = OrderedDict()
        self.time: npt.NDArray[np.int64] = np.full(capacity, NEVER, np.int64)
        self.value: npt.NDArray[np.float64] = np.full(capacity, np.nan)
        self.since: npt.NDArray[np.int64] = np.full(capacity, NEVER, np.int64)
        self.tail: npt.NDArray[np.float64] = np.full((capacity, TAIL), np.nan)

    def __len__(self) -> int:
        return len(self._slots)

    def slots(self, tenant: str, dictionary: Sequence[SeriesKey]) -> npt.NDArray[np.intp]:
        """Return the slot of each series, int [n]; new ones are empty, -1 where there are more series than slots.

        The answer is remembered by the dictionary's identity, since a producer sends the same one again and again.
        """
        self._tick += 1
        known = self._known.get((tenant, id(dictionary)))
        if known is not None and known[0] is dictionary and known[1] == self._evictions:
            self._known.move_to_end((tenant, id(dictionary)))
            self._used[known[2]] = self._tick
            return known[2]
        slots = self._slots
        found = np.array([slots.get((tenant, key.series_id), -1) for key in dictionary], np.intp)
        self._used[found[found >= 0]] = self._tick
        for position in np.flatnonzero(found < 0).tolist():
            found[position] = self._take((tenant, dictionary[position].series_id))
        if (found >= 0).all():
            self._known[tenant, id(dictionary)] = (dictionary, self._evictions, found)
            if len(self._known) > MAX_DICTIONARIES:
                self._known.popitem(last=False)
        return found

    def _take(self, key: tuple[str, int]) -> int:
        known = self._slots.get(key)
        if known is not None:
            return known
        slot = len(self._slots)
        if slot >= self._capacity:
            slot = int(self._used.argmin())
            if self._used[slot] == self._tick:
                return -1
            evicted = self._keys[slot]
            if evicted is not None:
                del self._slots[evicted]
            self._evictions += 1
        self._slots[key] = slot
        self._keys[slot] = key
        self._used[slot] = self._tick
        self.time[slot] = self.since[slot] = NEVER
        self.value[slot] = np.nan
        self.tail[slot] = np.nan
        return slot
