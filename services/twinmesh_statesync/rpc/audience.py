"""Watchers with one interest: each change is judged once for all of them, and only those it concerns are woken."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Final

from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.erasing import without_values
from twinmesh_statesync.domain.filter import Anchor
from twinmesh_statesync.domain.filter.lineage import lineage
from twinmesh_statesync.domain.interest import Interest, Judge
from twinmesh_statesync.domain.live import LiveFold
from twinmesh_statesync.domain.ring import Ring, RingItem

_MAX_TOLD: Final = 2_000
"""Changes that an audience remembers having to tell; a watcher further behind has them judged anew from the ring."""
_PER_WATCHER_S: Final = 0.000_2
"""An audience is woken again after so long for each watcher: telling one takes about that, and who is told more often
than all can be told makes everybody late."""
_TOGETHER: Final = 16
"""Watchers woken in one turn of the event loop: a few milliseconds of work."""
_MAX_TWINS: Final = 10_000
"""Twins of which it remembers where it told them last."""


class Told:
    """One change as an audience is told it.

    Attributes:
        index: its place in the ring.
        item: the change itself.
        change: what is told of it.
        previous_offset: no change of the twin between this offset and this change is told; 0 = revisions show that.
        event: its bytes in a frame, if they are not those of the item, and once somebody needed them.
    """

    __slots__ = ("change", "event", "index", "item", "previous_offset")

    def __init__(self, index: int, item: RingItem, change: Change, previous_offset: int) -> None:
        self.index = index
        self.item = item
        self.change = change
        self.previous_offset = previous_offset
        self.event: bytes | None = None


class Audience:
    """All watchers of one interest in one tenant.

    Args:
        interest: theirs.
        ring: the tenant's changes.

    Attributes:
        interest: theirs.
        number: tells it from every other audience of this process, those that are gone included.
        plain: they want every change as it is.
        chosen: see `Interest.chosen`.
        judge: says what changes mean to them.
        ring: the tenant's changes.
        since: from this index on, `told` has every change that concerns them; at the beginning of an offset.
        size: watchers now.
        beats: how often they were woken.
        woken_s: when that was last, on the clock of the event loop.
    """

    _numbers = count()

    def __init__(self, interest: Interest, ring: Ring) -> None:
        self.interest = interest
        self.number = next(self._numbers)
        self.plain = interest.plain
        self.chosen = interest.chosen
        self.judge = Judge(interest)
        self.ring = ring
        self.size = 0
        self.beats = 0
        self.woken_s = float("-inf")
        self._told: list[Told] = []
        self._last: dict[str, int] = {}
        self._waiting: set[asyncio.Future[None]] = set()
        self._begin()

    def _begin(self) -> None:
        self._told.clear()
        self._last.clear()
        self.since = self.ring.end
        self._since_offset = self.ring.last_offset

    def hear(self, index: int, item: RingItem) -> bool:
        """Take a change; return whether it concerns them."""
        if self.plain:
            # Who wants everything reads the ring itself.
            return True
        told = self.judge.told(item.change)
        if told is None:
            return False
        previous = 0
        if self.chosen:
            twin_id = told.twin.twin_id
            previous = self._last.get(twin_id, self._since_offset)
            self._last[twin_id] = told.offset
        self._told.append(Told(index, item, told, previous))
        if len(self._told) > _MAX_TOLD:
            self._shorten()
        return True

    def end(self) -> None:
        """Note that all changes of an offset were heard."""
        if len(self._last) > _MAX_TWINS:
            self._begin()

    def forget(self, twin_id: str) -> None:
        """Take what is remembered of a twin that was erased out of what is told."""
        for told in self._told:
            if told.change.twin.twin_id == twin_id:
                told.change, told.event = without_values(told.change), None

    def _shorten(self) -> None:
        keep = self._told[_MAX_TOLD // 2]
        begin = self.ring.index_after(keep.change.offset - 1)
        self.since = keep.index if begin is None else begin
        del self._told[: bisect_left(self._told, self.since, key=_index_of)]

    def behind(self, index: int) -> bool:
        """Whether there is something to tell, or to look at, for a watcher at `index`."""
        if self.plain or index < self.since:
            return index < self.ring.end
        return bool(self._told) and self._told[-1].index >= index

    def count_after(self, index: int) -> int:
        """Return how many changes a watcher at `index` is behind, at most."""
        if self.plain or index < self.since:
            return self.ring.end - index
        return len(self._told) - bisect_left(self._told, index, key=_index_of)

    def lost(self, index: int) -> bool:
        """Whether what a watcher at `index` has to be told is no longer known."""
        if self.plain:
            return index < self.ring.first
        if index >= self.since:
            return False
        unjudged = self.chosen and self.ring.offset_before(index) < self.ring.versions_floor
        return index < self.ring.first or unjudged

    def read(self, index: int, limit: int) -> list[Told]:
        """Return at least `limit` of what is told from `index` on, which must not be before `since`, offsets whole."""
        start = bisect_left(self._told, index, key=_index_of)
        stop = start + limit
        while stop < len(self._told) and self._told[stop].change.offset == self._told[stop - 1].change.offset:
            stop += 1
        return self._told[start:stop]

    async def wait(self, timeout_s: float, *, since: int) -> None:
        """Return when they were woken since they had been woken `since` times, or after a while."""
        if self.beats != since:
            return
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.add(future)
        timer = loop.call_later(timeout_s, _resolve, future)
        try:
            await future
        finally:
            timer.cancel()
            self._waiting.discard(future)

    def wake(self) -> None:
        """Wake all who wait, and let nobody wait who was about to."""
        self.beats += 1
        _wake_some(list(self._waiting))


def _index_of(told: Told) -> int:
    return told.index


def _wake_some(waiting: list[asyncio.Future[None]]) -> None:
    """Wake a few, and the others in later turns of the event loop: between them the log must be read on.

    Telling a hundred takes tens of milliseconds. In one turn, that would be the time for each frame of the log, however
    many there are to read.
    """
    for future in waiting[:_TOGETHER]:
        _resolve(future)
    if len(waiting) > _TOGETHER:
        asyncio.get_running_loop().call_soon(_wake_some, waiting[_TOGETHER:])


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _House:
    """The audiences of one tenant, found by the twins they can be about."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.audiences: dict[Interest, Audience] = {}
        self._anywhere: dict[Interest, Audience] = {}
        self._by_anchor: dict[Anchor, dict[Interest, Audience]] = {}
        self._attributes: Counter[str] = Counter()
        self._types = 0

    def add(self, audience: Audience) -> None:
        interest = audience.interest
        self.audiences[interest] = audience
        buckets = interest.buckets()
        if buckets is None:
            self._anywhere[interest] = audience
            return
        for anchor in buckets:
            self._by_anchor.setdefault(anchor, {})[interest] = audience
            self._attributes.update([anchor.key] if anchor.rank == 1 else [])
            self._types += anchor.rank == 2

    def remove(self, audience: Audience) -> None:
        interest = audience.interest
        if self.audiences.get(interest) is not audience:
            return
        del self.audiences[interest]
        self._anywhere.pop(interest, None)
        for anchor in interest.buckets() or ():
            held = self._by_anchor[anchor]
            del held[interest]
            if not held:
                del self._by_anchor[anchor]
            if anchor.rank == 1:
                self._attributes[anchor.key] -= 1
                if not self._attributes[anchor.key]:
                    del self._attributes[anchor.key]
            self._types -= anchor.rank == 2

    def concerned(self, change: Change) -> Iterator[Audience]:
        """Yield the audiences that a change may concern, each once."""
        yield from self._anywhere.values()
        if not self._by_anchor:
            return
        found = [held for anchor in self._anchors(change) if (held := self._by_anchor.get(anchor)) is not None]
        if len(found) == 1:
            yield from found[0].values()
        elif found:
            yield from {interest: audience for held in found for interest, audience in held.items()}.values()

    def _anchors(self, change: Change) -> Iterator[Anchor]:
        yield Anchor(0, "", change.twin.twin_id)
        if not self._attributes and not self._types:
            return
        before, after = change.before, change.after
        same = before is not None and after is not None and before.twin is after.twin
        for version in (after,) if same else (before, after):
            if version is None:
                continue
            for key in self._attributes:
                text = version.twin.attributes.get(key)
                if text is not None:
                    yield Anchor(1, key, text)
            if self._types:
                for name in lineage(version.twin_type):
                    yield Anchor(2, "", name)
        if before is None and after is None and self._types:
            yield Anchor(2, "", change.twin.twin_type_id)


class Audiences:
    """All audiences of this process.

    Args:
        live: the fold that they hear.
    """

    def __init__(self, live: LiveFold) -> None:
        self._live = live
        self._houses: dict[str, _House] = {}
        self._stirred: set[Audience] = set()
        self._generation = live.generation
        live.listeners.on_changes(self._hear)
        live.listeners.on_erasure(self._forget)
        live.pulse.listen(self._wake)

    @contextmanager
    def joined(self, tenant: str, interest: Interest) -> Iterator[Audience]:
        """Be one of an audience for as long as the block lasts; it hears everything from the next change on."""
        house = self._house(tenant)
        audience = house.audiences.get(interest)
        if audience is None:
            audience = Audience(interest, house.ring)
            house.add(audience)
        audience.size += 1
        try:
            yield audience
        finally:
            audience.size -= 1
            if not audience.size:
                house.remove(audience)
                self._stirred.discard(audience)

    def wake_all(self) -> None:
        """Wake every watcher, whatever it waits for."""
        for house in self._houses.values():
            for audience in house.audiences.values():
                audience.wake()

    def _house(self, tenant: str) -> _House:
        ring = self._live.ring(tenant)
        house = self._houses.get(tenant)
        if house is None or house.ring is not ring:
            # Those of a log that was rewound have been woken, and leave.
            house = self._houses[tenant] = _House(ring)
        return house

    def _hear(self, changes: Sequence[Change]) -> None:
        house = self._houses.get(changes[0].tenant)
        if house is None or not house.audiences or house.ring is not self._live.ring(changes[0].tenant):
            return
        first = max(house.ring.end - len(changes), house.ring.first)
        concerned: set[Audience] = set()
        for index, item in enumerate(house.ring.read(first, len(changes)), first):
            for audience in house.concerned(item.change):
                if audience.hear(index, item):
                    concerned.add(audience)
        for audience in concerned:
            audience.end()
        self._stirred |= concerned

    def _forget(self, erasure: Change) -> None:
        house = self._houses.get(erasure.tenant)
        if house is not None:
            for audience in house.audiences.values():
                audience.forget(erasure.twin.twin_id)

    def _wake(self) -> None:
        if self._live.generation != self._generation:
            self._generation = self._live.generation
            self.wake_all()
            self._houses.clear()
        now_s = asyncio.get_running_loop().time()
        stirred, self._stirred = self._stirred, set()
        for audience in stirred:
            if now_s - audience.woken_s < audience.size * _PER_WATCHER_S:
                self._stirred.add(audience)
            else:
                audience.woken_s = now_s
                audience.wake()
        if self._stirred:
            self._live.pulse.touch()
