"""The recent changes of one tenant, in order: what every watcher reads by a cursor of its own.

There are no queues per watcher. A watcher that does not read costs nothing but its place; when the ring has moved on
past it, it is told so. Bounded by number and by estimated bytes.

Each change keeps the twin before and after it, immutable, so the ring is also the near past of all twins:
`first_after` leads to any twin as it was at any offset from `versions_floor` on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import count
from sys import getsizeof
from typing import Final

from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.erasing import without_values

_BASE_BYTES: Final = 850
_VALUE_BYTES: Final = 160
"""Rough cost of a change and of each value in it, in memory, its encoded form included."""
_TRIM_STEP: Final = 1_024
"""Dropped from the front at least so many at once: removing from a list's front moves all the rest."""


class RingItem:
    """A change and, once somebody needed it, its bytes in a frame: encoded once however many watch it whole."""

    __slots__ = ("change", "event", "weight")

    def __init__(self, change: Change, weight: int) -> None:
        self.change = change
        self.weight = weight
        self.event: bytes | None = None


class Ring:
    """Changes of one tenant with offsets in (`floor`, `through`], each at an index that never changes.

    Attributes:
        floor: changes up to this offset are not here.
        versions_floor: changes up to this offset do not have the twin before and after them.
        number: tells it from every other ring of this process, those that are gone included.

    Args:
        floor: changes up to this offset are not here.
        max_changes: at least the newest so many are kept, unless `max_bytes` is reached first.
        max_bytes: estimated bytes kept at most.
    """

    _numbers = count()

    def __init__(self, *, floor: int, max_changes: int, max_bytes: int) -> None:
        self.number = next(self._numbers)
        self.floor = floor
        self.versions_floor = floor
        self._max_changes = max_changes
        self._max_bytes = max_bytes
        self._first = 0
        self._items: list[RingItem] = []
        self._offsets: list[int] = []
        self._by_twin: dict[str, list[RingItem]] = {}
        self._bytes = 0

    @property
    def end(self) -> int:
        """The index that the next change will have."""
        return self._first + len(self._items)

    @property
    def first(self) -> int:
        """The index of the oldest change kept."""
        return self._first

    @property
    def last_offset(self) -> int:
        """Offset of the newest change, or the floor."""
        return self._offsets[-1] if self._offsets else self.floor

    def offset_before(self, index: int) -> int:
        """Return the offset of the change before `index`, which must not be before `first`; else the floor."""
        place = index - self._first
        return self._offsets[place - 1] if place > 0 else self.floor

    def append(self, changes: Sequence[Change]) -> None:
        """Add the changes of one offset."""
        by_twin = self._by_twin
        for change in changes:
            weight = _weight(change)
            item = RingItem(change, weight)
            self._items.append(item)
            self._offsets.append(change.offset)
            twin_id = change.twin.twin_id
            items = by_twin.get(twin_id)
            if items is None:
                by_twin[twin_id] = [item]
            else:
                items.append(item)
            self._bytes += weight
            if change.before is None and change.after is None:
                self.versions_floor = change.offset
        if len(self._items) > self._max_changes + _TRIM_STEP or self._bytes > self._max_bytes:
            self._trim()

    def forget(self, twin_id: str) -> None:
        """Take what was told of a twin out of its changes up to its erasure; that they were, and revisions, stays.

        No twin before now can be had any more: what was erased would be missing among them without a word.
        """
        for item in self._by_twin.get(twin_id, ()):
            item.change, item.event = without_values(item.change), None
        self.versions_floor = self.last_offset

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

    def first_after(self, twin_id: str, offset: int) -> Change | None:
        """Return the twin's first change after `offset`, which must not be before `floor`; None = there is none."""
        items = self._by_twin.get(twin_id)
        if items is None or items[-1].change.offset <= offset:
            return None
        return items[bisect_right(items, offset, key=_offset_of)].change

    def changed_after(self, offset: int) -> set[str]:
        """Return the twins with changes after `offset`, which must not be before `floor`."""
        start = bisect_right(self._offsets, offset)
        return {item.change.twin.twin_id for item in self._items[start:]}

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
        self.versions_floor = max(self.versions_floor, self.floor)
        self._forget(self._items[:drop])
        del self._items[:drop], self._offsets[:drop]
        self._first += drop
        self._bytes = kept

    def _forget(self, dropped: list[RingItem]) -> None:
        for twin_id, gone in Counter(item.change.twin.twin_id for item in dropped).items():
            items = self._by_twin[twin_id]
            if gone == len(items):
                del self._by_twin[twin_id]
            else:
                del items[:gone]


def _offset_of(item: RingItem) -> int:
    return item.change.offset


def _weight(change: Change) -> int:
    if change.quiet and change.after is not None:
        return _BASE_BYTES + _VALUE_BYTES * len(change.reported) + getsizeof(change.after.replica.reported.values)
    values = len(change.reported) + len(change.desired) + len(change.commands) + len(change.events)
    values += 4 * len(change.alarms)
    if change.replica is not None:
        values += len(change.replica.reported.values)
    numbers = sum(len(prediction.values) for prediction in change.predicted)
    return _BASE_BYTES + _VALUE_BYTES * values + 40 * numbers + _kept(change)


def _kept(change: Change) -> int:
    """Return what the twin after the change holds of its own; the rest is shared with the twin before it."""
    if change.after is None:
        return 0
    replica = change.after.replica
    kept = getsizeof(replica.reported.values) if change.reported else 0
    if change.desired or change.removed:
        kept += getsizeof(replica.desired.values)
    if change.predicted:
        kept += getsizeof(replica.predicted.predictions)
    return kept
