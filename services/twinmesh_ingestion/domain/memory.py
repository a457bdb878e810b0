"""What the checks remember of each series between batches: its newest values. Advisory, bounded, lost with the process.

Losing it never loses an observation: a check that needs the past only has less of it for a moment. What decides that a
row is *not* stored is held to more: a repetition is one only of a value that is durable, and the value against which a
deadband measures is forgotten as soon as its batch fails to become durable.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.observations import SeriesKey
from twinmesh_core.quality import Quality

TAIL: Final = 10
"""How many of its newest values are kept of each series."""
MAX_DICTIONARIES: Final = 256
"""Dictionaries whose slots are remembered."""
NEVER: Final = np.iinfo(np.int64).min
"""Event time of a series that was not seen yet."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Newest:
    """The newest row of each of n series.

    Attributes:
        slot: int [n], the memory's slot of the series; none twice.
        time: int64 [n], event time, microseconds.
        value: float64 [n], in the channel's unit.
        quality: uint8 [n], as sent.
    """

    slot: npt.NDArray[np.intp]
    time: npt.NDArray[np.int64]
    value: npt.NDArray[np.float64]
    quality: npt.NDArray[np.uint8]


class SeriesMemory:
    """Newest values of up to `capacity` series, in columns; the longest unused series are forgotten first.

    Attributes:
        time: int64 [capacity], event time of the newest value, microseconds; `NEVER` = none.
        value: float64 [capacity], the newest value.
        since: int64 [capacity], event time since which it has not changed.
        tail: float64 [capacity, TAIL], newest values, oldest first; NaN = fewer were seen.
        stored_time: int64 [capacity], event time of the newest value that was sent to be stored; `NEVER` = none.
        stored_value: float64 [capacity], that value.
        stored_good: bool [capacity], whether it is GOOD: a deadband measures against it.
        durable_time: int64 [capacity], event time of the newest value that is durable; `NEVER` = none.
        durable_value: float64 [capacity], that value.
        durable_quality: uint8 [capacity], its quality as sent.
    """

    def __init__(self, capacity: int = 65_536) -> None:
        self._capacity = capacity
        self._slots: dict[tuple[str, int], int] = {}
        self._keys: list[tuple[str, int] | None] = [None] * capacity
        self._used = np.zeros(capacity, np.int64)
        self._tick = 0
        self._evictions = 0
        self._forgettings = 0
        self._known: OrderedDict[tuple[str, int], tuple[object, int, npt.NDArray[np.intp]]] = OrderedDict()
        self.time: npt.NDArray[np.int64] = np.full(capacity, NEVER, np.int64)
        self.value: npt.NDArray[np.float64] = np.full(capacity, np.nan)
        self.since: npt.NDArray[np.int64] = np.full(capacity, NEVER, np.int64)
        self.tail: npt.NDArray[np.float64] = np.full((capacity, TAIL), np.nan)
        self.stored_time: npt.NDArray[np.int64] = np.full(capacity, NEVER, np.int64)
        self.stored_value: npt.NDArray[np.float64] = np.full(capacity, np.nan)
        self.stored_good: npt.NDArray[np.bool_] = np.zeros(capacity, np.bool_)
        self.durable_time: npt.NDArray[np.int64] = np.full(capacity, NEVER, np.int64)
        self.durable_value: npt.NDArray[np.float64] = np.full(capacity, np.nan)
        self.durable_quality: npt.NDArray[np.uint8] = np.zeros(capacity, np.uint8)
        self._asked: npt.NDArray[np.bool_] = np.zeros(capacity, np.bool_)
        self._settled: list[tuple[tuple[Newest, ...], bool, int]] = []

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

    @property
    def evictions(self) -> int:
        """How often series were forgotten, for lack of room or because their twin was erased."""
        return self._evictions + self._forgettings

    def forget(self, tenant: str, series_ids: Sequence[int]) -> None:
        """Forget every value of series; what becomes of batches under way is not noted any more."""
        slots = [slot for i in series_ids if (slot := self._slots.get((tenant, i))) is not None]
        if slots:
            self._forgettings += 1
            self._clear(np.array(slots, np.intp))

    def settle(self, newest: tuple[Newest, ...], *, durable: bool, evictions: int) -> None:
        """Note what became of a batch; it counts from the next `apply_settled` on, since the columns have one writer.

        Args:
            newest: its newest rows.
            durable: whether it is durable; otherwise it is not, or nobody knows.
            evictions: of the memory when the batch went through the pipeline.
        """
        if newest:
            self._settled.append((newest, durable, evictions))

    def apply_settled(self) -> None:
        """Take in what became of earlier batches."""
        if not self._settled:
            return
        settled, self._settled = self._settled, []
        for batch, durable, evictions in settled:
            if evictions != self.evictions:
                continue  # a slot may be another series' by now
            for newest in batch:
                if durable:
                    later = newest.time >= self.durable_time[newest.slot]
                    slot = newest.slot[later]
                    self.durable_time[slot] = newest.time[later]
                    self.durable_value[slot] = newest.value[later]
                    self.durable_quality[slot] = newest.quality[later]
                else:
                    self.stored_time[newest.slot] = NEVER

    def unasked(self, slots: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Return the positions in `slots` of series of which nothing is known, and for which nobody asked storage yet.

        A series that was forgotten for lack of room is not asked for again: where there are more series than room,
        every batch would ask.
        """
        if self._evictions:
            return np.empty(0, np.intp)
        unknown = np.flatnonzero((slots >= 0) & (self.time[slots] == NEVER) & ~self._asked[slots])
        self._asked[slots[unknown]] = True
        return unknown

    def warm(self, latest: Newest) -> None:
        """Take in values read from storage, for series of which nothing is known yet."""
        unknown = self.time[latest.slot] == NEVER
        slot, time, value, quality = (
            latest.slot[unknown],
            latest.time[unknown],
            latest.value[unknown],
            latest.quality[unknown],
        )
        self.stored_time[slot] = self.durable_time[slot] = time
        self.stored_value[slot] = self.durable_value[slot] = value
        self.stored_good[slot] = quality == Quality.GOOD
        self.durable_quality[slot] = quality
        usable = quality < Quality.BAD
        slot, time, value = slot[usable], time[usable], value[usable]
        self.time[slot] = self.since[slot] = time
        self.value[slot] = value
        self.tail[slot, -1] = value

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
        self._clear(np.array([slot], np.intp))
        return slot

    def _clear(self, slots: npt.NDArray[np.intp]) -> None:
        for times in (self.time, self.since, self.stored_time, self.durable_time):
            times[slots] = NEVER
        for values in (self.value, self.tail, self.stored_value, self.durable_value):
            values[slots] = np.nan
