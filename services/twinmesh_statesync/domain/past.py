"""The past: the fold as it was at an offset or at a time, from a generation of the checkpoint and the log after it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Final

from twinmesh_core.errors import DeadlineExceeded, FailedPrecondition, OutOfRange, Reason
from twinmesh_core.observations import ObservationBatch
from twinmesh_statesync.domain.checkpoint import UNREADABLE, Checkpoint, Position, restore
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.generations import Generation, newest_at, newest_before
from twinmesh_statesync.domain.live import LiveFold, rewound
from twinmesh_statesync.domain.narrow import NeedsOthers, check_alone
from twinmesh_statesync.domain.ports import CheckpointStore, Log
from twinmesh_statesync.domain.reduce import newest_facts
from twinmesh_statesync.domain.replica import Desired, DesiredValue, Replica, Reported, delta_of
from twinmesh_statesync.domain.twin_state import TwinState
from twinmesh_statesync.domain.values import ReportedValue

_AT_ONCE: Final = 2
"""Folds of the past made at the same time; each may hold a whole tenant."""
_KEPT: Final = 2
"""Whole folds kept for the next pages of a list."""
_SLICE_ENTRIES: Final = 64


class Past:
    """Answers what was.

    Args:
        live: tells the generations, and what is.
        log: what follows them.
        store: holds them.
    """

    def __init__(self, *, live: LiveFold, log: Log, store: CheckpointStore) -> None:
        self._live = live
        self._log = log
        self._store = store
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._lookers = asyncio.Semaphore(_AT_ONCE)
        self._kept: OrderedDict[tuple[str, Position], Fold] = OrderedDict()
        live.listeners.on_erasure(lambda _change: self._kept.clear())

    async def at_offset(self, tenant: str, offset: int, twin_ids: Collection[str] = (), *, timeout_s: float) -> Fold:
        """Return the fold exactly as it was at an offset that is folded already.

        Args:
            tenant: whose twins.
            offset: at most the live fold's.
            twin_ids: only these twins; empty = all.
            timeout_s: how long it may take.

        Raises:
            OutOfRange: COMPACTED, naming the oldest offset available.
            DeadlineExceeded: it took longer.
            FailedPrecondition: LOG_REWOUND.
            Unavailable: the log or the database is away.
        """
        if newest_at(self._live.generations, offset) is None:
            raise self._compacted(f"offset {offset}")
        key = (tenant, Position(incarnation=self._live.incarnation, offset=offset))
        if not twin_ids and key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        async with self._place(timeout_s):
            fold = await self._folded(tenant, offset, twin_ids, until=offset)
        if not twin_ids:
            self._kept[key] = fold
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return fold

    async def at_time(
        self, tenant: str, time_unix_us: int, limit: int, twin_ids: Collection[str] = (), *, timeout_s: float
    ) -> Fold:
        """Return the fold after the last entry that was committed by a time, and lies at or before an offset.

        Raises:
            OutOfRange: COMPACTED, naming the oldest offset and time available.
            DeadlineExceeded, FailedPrecondition, Unavailable: as `at_offset`.
        """
        within = [g for g in self._live.generations if g.offset <= limit]
        generation = newest_before(within, time_unix_us)
        if generation is None:
            raise self._compacted("that time")
        # Beyond the next generation everything was committed later; of few twins the log would not tell so by itself.
        until = min([limit, *(g.offset for g in within if g.offset > generation.offset)])
        async with self._place(timeout_s):
            return await self._folded(tenant, generation.offset, twin_ids, until=until, until_unix_us=time_unix_us)

    async def facts_at(
        self, tenant: str, twin_ids: Collection[str], time_unix_us: int, as_of_offset: int
    ) -> dict[str, dict[str, ReportedValue]]:
        """Return the newest fact by event time at most a time, by twin and channel, as known at an offset."""
        batch: ObservationBatch = await self._log.latest(
            tenant, list(twin_ids), at_unix_us=time_unix_us, as_of_offset=as_of_offset
        )
        found = newest_facts(batch, 0)
        return {twin_id: {fact.channel: fact for _, fact in facts} for twin_id, facts in found.items()}

    @asynccontextmanager
    async def place(self, timeout_s: float) -> AsyncIterator[None]:
        """Hold one of the few places of those who look at all twins of a tenant's past; folding it has its own.

        Raises:
            DeadlineExceeded: the block took longer than `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s), self._lookers:
                yield
        except TimeoutError:
            raise DeadlineExceeded("Looking at the past took longer than the call may; ask for less of it.") from None

    @asynccontextmanager
    async def _place(self, timeout_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(timeout_s), self._places:
                yield
        except TimeoutError:
            raise DeadlineExceeded("Folding the past took longer than the call may; ask for newer state.") from None

    async def _folded(
        self, tenant: str, offset: int, twin_ids: Collection[str], *, until: int, until_unix_us: int | None = None
    ) -> Fold:
        try:
            fold = await self._begun(tenant, offset, twin_ids)
            await self._fold_on(fold, tenant, twin_ids, until=until, until_unix_us=until_unix_us)
        except NeedsOthers:
            fold = await self._begun(tenant, offset, ())
            await self._fold_on(fold, tenant, (), until=until, until_unix_us=until_unix_us)
        return fold

    async def _begun(self, tenant: str, offset: int, twin_ids: Collection[str]) -> Fold:
        found: Checkpoint | None = await self._store.load_at(offset, tenant, twin_ids)
        if found is None:
            raise self._compacted(f"offset {offset}")
        if found.position.incarnation != self._live.incarnation:
            raise rewound()
        try:
            return await asyncio.to_thread(restore, found)
        except UNREADABLE:
            raise self._compacted(f"offset {offset}") from None

    async def _fold_on(
        self, fold: Fold, tenant: str, twin_ids: Collection[str], *, until: int, until_unix_us: int | None = None
    ) -> None:
        if fold.offset >= until:
            return
        position = Position(incarnation=self._live.incarnation, offset=fold.offset)
        async with aclosing(self._log.replay(position, tenant, twin_ids)) as frames:
            async for frame in frames:
                if frame.through.incarnation != position.incarnation:
                    raise FailedPrecondition("The log began anew.", reason=Reason.LOG_REWOUND)
                for number, entry in enumerate(frame.entries):
                    late = until_unix_us is not None and entry.commit_time_unix_us > until_unix_us
                    if entry.offset > until or late:
                        return
                    if twin_ids:
                        check_alone(entry)
                    fold.apply(entry)
                    if number % _SLICE_ENTRIES == 0:
                        await asyncio.sleep(0)
                fold.advance(min(frame.through.offset, until))
                if frame.through.offset >= until:
                    return

    def _compacted(self, what: str) -> OutOfRange:
        generations = self._live.generations
        if not generations:
            return OutOfRange(
                f"State as of {what} is not kept: nothing of the past is, yet; only the present can be asked for.",
                reason=Reason.COMPACTED,
                metadata={"compacted_to": str(self._live.fold.offset)},
            )
        oldest: Generation = generations[0]
        return OutOfRange(
            f"State as of {what} is not kept any more; the oldest is as of offset {oldest.offset}. Older values of "
            "channels can be read from history.",
            reason=Reason.COMPACTED,
            metadata={
                "compacted_to": str(oldest.offset),
                "compacted_to_time_unix_us": str(oldest.commit_time_unix_us),
            },
        )


def with_facts(state: TwinState, replica: Replica, facts: dict[str, ReportedValue]) -> Replica:
    """Return a replica with other facts: targets are held against them, the delta follows.

    The reported facet has revision 0, since no fold ever had exactly these facts.

    Args:
        state: the twin, of which the type counts.
        replica: everything else.
        facts: by channel.
    """
    reported = {channel: fact for channel, fact in sorted(facts.items()) if channel in state.specs}
    desired = {channel: _held(state, target, reported) for channel, target in replica.desired.values.items()}
    return replace(
        replica,
        reported=Reported(revision=0, values=reported),
        desired=Desired(revision=replica.desired.revision, values=desired),
        delta=delta_of(desired, reported),
    )


def _held(state: TwinState, target: DesiredValue, facts: dict[str, ReportedValue]) -> DesiredValue:
    fact, spec = facts.get(target.channel), state.specs.get(target.channel)
    tolerance = target.tolerance
    if tolerance is None:
        tolerance = spec.tolerance if spec is not None else 0.0
    return replace(target, in_sync=fact is not None and fact.meets(target.value, tolerance))
