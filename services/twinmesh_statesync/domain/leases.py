"""Who does the work that writes: shards leased to the living processes, so that each is worked on by one of them.

Every process folds the whole log and answers every read, watch and write alone; no answer depends on a lease. Leases
divide what must be done by somebody and need not be done twice: what time brings about, deliveries, checkpoints. Two
processes that both believe they hold a shard during a hand-over do no harm: they write the same entries under the same
ids. Only a checkpoint is a place rather than an entry; its save checks the epoch in its own transaction (`Fence`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.shards import SHARDS, shard_of
from twinmesh_core.time import Clock

CHECKPOINT: Final = SHARDS
"""The duty to write checkpoints: leased like a shard, to one process."""
DUTIES: Final = SHARDS + 1
"""Shards 0 to 63, and the checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """The right to a duty: void as soon as its row carries another epoch."""

    duty: int
    holder: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """Who lives and who holds what, after a sign of life.

    Attributes:
        living: holders, ordered by name.
        leases: of every duty, in order; the holder may have died since, or be "".
    """

    living: tuple[str, ...]
    leases: tuple[Fence, ...]


class LeaseStore(Protocol):
    """Where processes tell each other that they live and what they hold."""

    async def beat(self, holder: str, *, lease_s: float) -> Roll:
        """Give a sign of life that counts for `lease_s` and return the roll, this holder in it; raises `Unavailable`.

        A process whose session with the store ended counts as dead at once.
        """
        ...

    async def claim(self, holder: str, seen: Sequence[Fence]) -> tuple[Fence, ...]:
        """Take over duties whose epoch is still the one seen; return what was taken, with new epochs."""
        ...

    async def give_up(self, holder: str, duties: Sequence[int]) -> None:
        """Let go of duties, as far as this holder has them."""
        ...

    async def leave(self, holder: str) -> None:
        """Let go of everything and count as dead from now on."""
        ...


class Holding(Protocol):
    """What the parts that write ask: `Leases`, or `Everything` for a process that is alone by construction."""

    @property
    def version(self) -> int:
        """Grows whenever something was gained: look again at everything of the shards held."""
        ...

    def holds(self, duty: int) -> bool:
        """Whether this process does this duty now."""
        ...

    def fence(self, duty: int) -> Fence | None:
        """Return the right to a duty, or None if this process does not hold it now."""
        ...


class Everything:
    """Holds every duty for ever: for a fold that shares its log with nobody, as in tests."""

    version: Final = 0

    def holds(self, duty: int) -> bool:
        """Return True."""
        return True

    def fence(self, duty: int) -> Fence | None:
        """Return a fence that no store needs to know."""
        return Fence(duty=duty, holder="", epoch=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """What a process should change about its leases."""

    give_up: tuple[int, ...] = ()
    claim: tuple[Fence, ...] = ()


def divide(me: str, roll: Roll) -> Division:
    """Return what `me` gives up and claims, so that shards come to lie evenly with as few moves as can be.

    Everybody who sees the same roll reckons the same quotas, and they add up to all shards: once each process has acted
    on the same roll once for what is too much and once for what is too little, the numbers differ by at most one.
    """
    rank, crowd = roll.living.index(me), len(roll.living)
    quota = SHARDS // crowd + (rank < SHARDS % crowd)
    mine = [lease.duty for lease in roll.leases if lease.holder == me and lease.duty < SHARDS]
    free = [lease for lease in roll.leases if lease.holder not in roll.living and lease.duty < SHARDS]
    # Each begins elsewhere among the free ones: those who claim at the same time seldom want the same.
    start = len(free) * rank // crowd
    wanted = (free[start:] + free[:start])[: max(0, quota - len(mine))]
    checkpoint = [lease for lease in roll.leases if lease.duty == CHECKPOINT and lease.holder not in roll.living]
    return Division(give_up=tuple(mine[quota:]), claim=(*wanted, *checkpoint))


class Leases:
    """The duties of this process, kept up by signs of life; every answer is from memory.

    A holder stops believing in its leases before anybody else may take them for expired, on its monotonic clock, which
    also passes while it is stopped. (One whose database session breaks may be replaced a moment earlier.) Without its
    database a process therefore lets go after `lease_s`; what was due meanwhile is made good by whoever is next.

    Args:
        store: where the leases are.
        holder: this process, unlike any other of any time.
        clock: its monotonic side measures validity.
        lease_s: seconds a sign of life counts.
        beat_s: seconds between signs of life.
        report: told about what was gained, lost and not renewed.
    """

    def __init__(
        self,
        *,
        store: LeaseStore,
        holder: str,
        clock: Clock,
        lease_s: float,
        beat_s: float,
        report: Callable[[str, dict[str, Any]], None] = lambda _name, _fields: None,
    ) -> None:
        self.version = 0
        self._store = store
        self._holder = holder
        self._clock = clock
        self._lease_s = lease_s
        self._beat_s = beat_s
        self._report = report
        self._held: Mapping[int, Fence] = {}
        self._valid_until_s = float("-inf")
        self._left = False
        self._beating = asyncio.Lock()

    @property
    def held(self) -> frozenset[int]:
        """Every duty held now."""
        return frozenset(self._held) if self._valid else frozenset()

    def holds(self, duty: int) -> bool:
        """Whether this process does this duty now; shards are 0 to 63."""
        return duty in self._held and self._valid

    def holds_twin(self, tenant: str, twin_id: str) -> bool:
        """Whether the shard of a twin (or of anything else with an id, say a subscription) is held now."""
        return self.holds(shard_of(tenant, twin_id))

    def epoch(self, duty: int) -> int:
        """Return the epoch under which a duty is held now; 0 = it is not held. Each new holder has a greater one."""
        fence = self.fence(duty)
        return 0 if fence is None else fence.epoch

    def fence(self, duty: int) -> Fence | None:
        """Return the right to a duty, or None if it is not held now."""
        return self._held.get(duty) if self._valid else None

    async def run(self) -> None:
        """Give signs of life for ever, claiming and giving up as processes come and go."""
        while True:
            try:
                await self.beat()
            except TwinmeshError as error:
                self._report("leases_not_renewed", {"held": len(self.held), "reason": str(error.reason)})
            await asyncio.sleep(self._beat_s)

    async def beat(self) -> None:
        """Give one sign of life and act on the roll; raises what the store raises."""
        async with self._beating:
            if self._left:
                return
            asked_s = self._clock.monotonic_s()
            roll = await self._store.beat(self._holder, lease_s=self._lease_s)
            self._hold([lease for lease in roll.leases if lease.holder == self._holder], asked_s)
            division = divide(self._holder, roll)
            if division.give_up:
                # Believed no longer before it is free for others.
                self._hold([f for f in self._held.values() if f.duty not in division.give_up], asked_s)
                await self._store.give_up(self._holder, division.give_up)
            if division.claim:
                taken = await self._store.claim(self._holder, division.claim)
                self._hold([*self._held.values(), *taken], asked_s)

    async def leave(self) -> None:
        """Hand everything over at once, and take nothing again: the process is about to end."""
        self._left = True
        async with self._beating:
            self._hold([], self._clock.monotonic_s())
            await self._store.leave(self._holder)

    @property
    def _valid(self) -> bool:
        return self._clock.monotonic_s() < self._valid_until_s

    def _hold(self, fences: Sequence[Fence], asked_s: float) -> None:
        before = self._held if self._valid else {}
        self._held = {fence.duty: fence for fence in fences}
        # Counted from before the question: the store counts from later, so nobody takes what is still believed.
        self._valid_until_s = asked_s + self._lease_s
        gained, lost = self._held.keys() - before.keys(), before.keys() - self._held.keys()
        if gained:
            self.version += 1
        if gained or lost:
            self._report("leases_changed", {"gained": len(gained), "lost": len(lost), "held": len(self._held)})
