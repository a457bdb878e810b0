"""Which twins match a filter, now or at an offset of the near past, exactly; and the index that makes it quick."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence, Set
from typing import Final

from twinmesh_core.errors import OutOfRange, Reason
from twinmesh_core.time import Clock
from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.filter import Expression, compiled, plan
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.index import TwinIndex
from twinmesh_statesync.domain.live import LiveFold
from twinmesh_statesync.domain.ring import Ring
from twinmesh_statesync.domain.version import TwinVersion

_SLICE_S: Final = 0.002
"""A long search hands the event loop back after so long; it stays exact, since it looks at one offset."""
_LOOK: Final = 64
"""Twins looked at between two looks at the clock."""


class AsOf:
    """All living twins of a tenant at one offset; see `twinmesh_statesync.domain.version.Population`.

    Attributes:
        offset: the point in time.
        index: the twins now.

    Args:
        index: the twins now.
        ring: what changed lately.
        offset: the point in the past, or now.
    """

    def __init__(self, index: TwinIndex, ring: Ring, offset: int) -> None:
        self.memo: dict[tuple[int, str], bool] = {}
        self.offset = offset
        self.index = index
        self._ring = ring
        self._changed: tuple[int, set[str]] = (-1, set())

    @property
    def kept(self) -> bool:
        """Whether the past still reaches back to the offset; without it answers mean nothing."""
        return self.offset >= self._ring.versions_floor

    def version(self, twin_id: str) -> TwinVersion | None:
        """Return a twin as it was, or None if it did not live."""
        later = self._ring.first_after(twin_id, self.offset)
        return self.index.version(twin_id) if later is None else later.before

    def changed(self) -> set[str]:
        """Return the twins that changed since; not to be written to."""
        if self._changed[0] != self._ring.end:
            self._changed = (self._ring.end, self._ring.changed_after(self.offset))
        return self._changed[1]

    def twin_ids(self) -> set[str]:
        """Return the ids of all twins that lived, and perhaps of some that did not."""
        return self.changed().union(self.index.twin_ids())

    def sources(self, relation: str, twin_id: str) -> Iterable[TwinVersion]:
        """Return the twins that had an edge of this name to `twin_id`."""
        for source in self.changed() | self.index.pointing_to(relation, twin_id):
            version = self.version(source)
            if version is not None and _points(version, relation, twin_id):
                yield version


class Catalogue:
    """Searches among the twins of the live fold.

    Args:
        live: the fold.
        clock: to hand back the event loop in time.
    """

    def __init__(self, live: LiveFold, clock: Clock) -> None:
        self._live = live
        self._clock = clock
        self._built_from: tuple[Fold, int] | None = None
        self._indexes: dict[str, TwinIndex] = {}
        self._building = asyncio.Lock()
        live.listeners.on_changes(self._follow)

    @property
    def _current(self) -> bool:
        built = self._built_from
        return built is not None and built[0] is self._live.fold and built[1] == self._live.seeded

    async def index(self, tenant: str) -> TwinIndex:
        """Return the index of a tenant's twins as they are now; built when first asked for, while others go on."""
        async with self._building:
            while True:
                if not self._current:
                    # The log began anew, a checkpoint was loaded, or facts were taken from history.
                    self._built_from = (self._live.fold, self._live.seeded)
                    self._indexes.clear()
                index = self._indexes.get(tenant)
                if index is not None:
                    return index
                # Changes reach it from here on, so a twin that is in it already is newer than what is read below.
                index = self._indexes[tenant] = TwinIndex()
                await self._build(index, tenant)

    async def _build(self, index: TwinIndex, tenant: str) -> None:
        states = self._live.fold.states(tenant)
        async for twin_ids in self._slices(list(states)):
            if not self._current:
                return
            for twin_id in twin_ids:
                if twin_id not in index:
                    index.move(twin_id, None, states[twin_id].version)

    async def _slices(self, twin_ids: Sequence[str]) -> AsyncGenerator[Sequence[str], None]:
        """Yield all of them in pieces, and hand back the event loop in time."""
        since_s = self._clock.monotonic_s()
        for at in range(0, len(twin_ids), _LOOK):
            yield twin_ids[at : at + _LOOK]
            if self._clock.monotonic_s() - since_s > _SLICE_S:
                await asyncio.sleep(0)
                since_s = self._clock.monotonic_s()

    async def at(self, tenant: str, offset: int) -> AsOf:
        """Return the twins at an offset; hold on to it over an await only while it is `kept`.

        Raises:
            OutOfRange: PAGE_EXPIRED, the past is not kept that far back.
        """
        population = AsOf(await self.index(tenant), self._live.ring(tenant), offset)
        if not population.kept:
            raise _expired(offset)
        return population

    async def select(self, tenant: str, expression: Expression, offset: int) -> list[TwinVersion]:
        """Return the twins that match at an offset, in no order; others go on meanwhile.

        Raises:
            OutOfRange: PAGE_EXPIRED, the past is not kept that far back.
            FailedPrecondition: LOG_REWOUND, the log began anew meanwhile.
        """
        population = await self.at(tenant, offset)
        test = compiled(expression)
        found: list[TwinVersion] = []
        async for twin_ids in self._slices(self._candidates(expression, population)):
            if not population.kept or not self._current:
                raise _expired(offset)
            for twin_id in twin_ids:
                version = population.version(twin_id)
                if version is not None and test(version, population):
                    found.append(version)
        return found

    def _candidates(self, expression: Expression, population: AsOf) -> Sequence[str]:
        changed: Set[str] = frozenset() if population.offset == self._live.fold.offset else population.changed()
        narrowed = plan(expression, population.index, changed)
        return list(population.twin_ids() if narrowed is None else narrowed)

    def _follow(self, changes: Sequence[Change]) -> None:
        index = self._indexes.get(changes[0].tenant)
        if index is not None and self._current:
            for change in changes:
                index.move(change.twin.twin_id, change.before, change.after)


def _points(version: TwinVersion, relation: str, twin_id: str) -> bool:
    return any(edge.name == relation and edge.target_twin_id == twin_id for edge in version.twin.relationships)


def _expired(offset: int) -> OutOfRange:
    return OutOfRange(
        f"The twins as they were at offset {offset} are no longer kept; begin the list again.",
        reason=Reason.PAGE_EXPIRED,
        metadata={"offset": str(offset)},
    )
