"""The recent changes of one tenant, in order: what every watcher reads by a cursor of its own.

There are no queues per watcher. A watcher that does not read costs nothing but its place; when the ring has moved on
past it, it is told so. Bounded by number and by estimated bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import count
from typing import Final

from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.erasing import stripped

_BASE_BYTES: Final = 600
_VALUE_BYTES: Final = 160
"""Rough cost of a change and of each value in it, in memory, its encoded form included."""
_TRIM_STEP: Final = 1_024
"""Dropped from the front at least so many at once: removing from a list's front moves all the rest."""


class RingItem:
    """A change and, once somebody needed it, its bytes for the wire: encoded once however many watch."""

    __slots__ = ("change", "encoded", "weight")

    def __init__(self, change: Change, weight: int) -> None:
        self.change = change
        self.weight = weight
        self.encoded: bytes | None = None


class Ring:
    """Changes of one tenant with offsets in (`floor`, `through`], each at an index that never changes.

    Args:
        floor: changes up to this offset are not here.
        max_changes: at least the newest so many are kept, unless `max_bytes` is reached first.
        max_bytes: estimated bytes kept at most.

    Attributes:
        number: tells it from every other ring of this process, those that are gone included.
    """

    _numbers = count()

    def __init__(self, *, floor: int, max_changes: int, max_bytes: int) -> None:
        self.number = next(self._numbers)
        self.floor = floor
        self._through = floor
        self._max_changes = max_changes
        self._max_bytes = max_bytes
        self._first = 0
        self._items: list[RingItem] = []
        self._offsets: list[int] = []
        self._bytes = 0

    @property
    def end(self) -> int:
        """The index that the next change will have."""
        return self._first + len(self._items)

    @property
    def first(self) -> int:
        """The index of the oldest change kept."""
        return self._first

    def append(self, changes: Sequence[Change]) -> None:
        """Add the changes of one offset."""
        for change in changes:
            weight = _weight(change)
            self._items.append(RingItem(change, weight))
            self._offsets.append(change.offset)
            self._bytes += weight
        if len(self._items) > self._max_changes + _TRIM_STEP or self._bytes > self._max_bytes:
            self._trim()

    def forget(self, twin_id: str) -> None:
        """Take what was told of a twin out of its changes; that they were, and their revisions, stays."""
        for item in self._items:
            if item.change.twin.twin_id == twin_id:
                item.change, item.encoded = stripped(item.change), None

    def index_after(self, offset: int) -> int | None:
        """Return the index of the first change after `offset`, or None if some of them are gone."""
        if offset < self.floor:
            return None
        return self._first + bisect_right(self._offsets, offset)

    def read(self, index: int, limit: int) -> list[RingItem]:
        """Return at least `limit` changes from `index` on (fewer at the end), never cutting through an offset.

        The index must not be before `first`.
        """
        start = index - self._first
        stop = min(start + limit, len(self._items))
        if start < stop < len(self._items):
            stop = bisect_right(self._offsets, self._offsets[stop - 1])
        return self._items[start:stop]

    def newest(self, count: int) -> tuple[int, list[Change]]:
        """Return at most `count` of the newest changes, whole offsets only, and the offset after which they are all."""
        start = max(0, len(self._items) - count)
        while 0 < start < len(self._items) and self._offsets[start] == self._offsets[start - 1]:
            start += 1
        floor = self._offsets[start - 1] if start else self.floor
        return floor, [item.change for item in self._items[start:]]

    def _trim(self) -> None:
        drop = max(len(self._items) - self._max_changes, 0)
        kept = self._bytes - sum(item.weight for item in self._items[:drop])
        # One more step than needed when bytes decide, so that this does not run at every append.
        target = self._max_bytes - self._max_bytes // 8 if kept > self._max_bytes else self._max_bytes
        while drop < len(self._items) and kept > target:
            kept -= self._items[drop].weight
            drop += 1
        if not drop:
            return
        self.floor = self._offsets[drop - 1]
        del self._items[:drop], self._offsets[:drop]
        self._first += drop
        self._bytes = kept


def _weight(change: Change) -> int:
    values = len(change.reported) + len(change.desired) + len(change.commands) + len(change.events)
    if change.replica is not None:
        values += len(change.replica.reported.values)
    numbers = sum(len(prediction.values) for prediction in change.predicted)
    return _BASE_BYTES + _VALUE_BYTES * values + 40 * numbers
