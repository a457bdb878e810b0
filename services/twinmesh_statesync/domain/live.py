"""The fold kept up with the log: follows it, tells watchers and waiters, and keeps checkpoints."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from twinmesh_core.errors import DeadlineExceeded, FailedPrecondition, Reason, TwinmeshError, Unavailable
from twinmesh_core.time import Clock
from twinmesh_statesync.domain.checkpoint import (
    UNREADABLE,
    Checkpoint,
    Position,
    RecentChanges,
    recent_changes,
    restore,
)
from twinmesh_statesync.domain.entries import ControlEntry, EraseTwin, LogEntry
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.generations import DEFAULT_SPACING, Generation, Spacing
from twinmesh_statesync.domain.holds import Holds
from twinmesh_statesync.domain.keeping import Keeper, Report
from twinmesh_statesync.domain.leases import Holding
from twinmesh_statesync.domain.listeners import Listeners
from twinmesh_statesync.domain.ports import CheckpointStore, Log, LogFrame
from twinmesh_statesync.domain.pulse import Pulse
from twinmesh_statesync.domain.recovery import recovered
from twinmesh_statesync.domain.ring import Ring

_SLICE_S: Final = 0.002
"""The fold hands the event loop back after so long: reads and watches must not wait for a long catch-up."""
_BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
_RECENT: Final = 2_000
"""Newest changes per tenant that travel with a checkpoint, for watchers that were a moment behind it."""
_SEED_TWINS: Final = 500
_CAUGHT_UP: Final = 1_000
"""Ready means: at most so many entries behind the head."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a kept checkpoint describes."""

    position: Position
    fold: Fold
    recent: Mapping[str, RecentChanges]
    generations: tuple[Generation, ...]


class LiveFold:
    """The replicas as of now; readers use `fold` freely between two awaits, since all happens on one event loop.

    Args:
        log: where entries come from.
        checkpoints: where the fold is kept over restarts.
        clock: for back-off and intervals.
        tick_s: longest time that many watchers wait to be woken together.
        ring_changes: recent changes kept per tenant, for watchers that resume.
        ring_bytes: and their estimated bytes.
        spacing: how far back the checkpoint can be taken, and how finely.
        report: told about connections, resets and checkpoints.
        leases: whether this process is the one that saves checkpoints.
    """

    def __init__(
        self,
        *,
        log: Log,
        checkpoints: CheckpointStore,
        clock: Clock,
        tick_s: float = 0.02,
        ring_changes: int = 200_000,
        ring_bytes: int = 256 * 1024 * 1024,
        spacing: Spacing = DEFAULT_SPACING,
        report: Report = lambda _name, _fields: None,
        leases: Holding | None = None,
    ) -> None:
        self.fold = Fold()
        self.incarnation = ""
        self.generation = 0
        self.seeded = 0
        self.pulse = Pulse(tick_s)
        self.holds = Holds()
        self.listeners = Listeners()
        self._log = log
        self._checkpoints = checkpoints
        self._clock = clock
        self._ring_changes = ring_changes
        self._ring_bytes = ring_bytes
        self._report = report
        self._rings: dict[str, Ring] = {}
        self._ring_floor = 0
        self._control_until = 0
        self._head_offset: int | None = None
        self._following = False
        self._usable = False
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._keeper = Keeper(log=log, store=checkpoints, spacing=spacing, report=report, leases=leases)

    @property
    def position(self) -> Position:
        """What reads reflect now."""
        return Position(incarnation=self.incarnation, offset=self.fold.offset)

    @property
    def caught_up(self) -> bool:
        """Whether the log is being followed and the fold is (nearly) at its head."""
        return self._following and self._head_offset is not None and self._head_offset - self.fold.offset <= _CAUGHT_UP

    @property
    def head_offset(self) -> int:
        """The head of the log as last heard; it may be further by now."""
        return max(self._head_offset or 0, self.fold.offset)

    @property
    def entries_behind(self) -> int:
        """Entries between the fold and the head of the log, as last heard."""
        return max(0, (self._head_offset or 0) - self.fold.offset)

    @property
    def generations(self) -> tuple[Generation, ...]:
        """Positions from which the log can be folded again, in order."""
        return self._keeper.generations

    def compacted_to(self, tenant: str, *, judged: bool = False) -> int:
        """Return the smallest offset after which a watch (`judged`: with a filter or a mask) can be continued."""
        floor = self.ring(tenant).versions_floor if judged else self.ring(tenant).floor
        generations = self._keeper.generations
        return min(floor, generations[0].offset) if generations else floor

    def ring(self, tenant: str) -> Ring:
        """Return the tenant's recent changes."""
        ring = self._rings.get(tenant)
        if ring is None:
            ring = self._rings[tenant] = Ring(
                floor=self._ring_floor, max_changes=self._ring_changes, max_bytes=self._ring_bytes
            )
        return ring

    async def check(self) -> None:
        """Return when reads can be served: once the fold has been at the head of this log.

        It stays so while storage is away: what is known goes on being told, and each answer says as of which offset.

        Raises:
            Unavailable: the fold has not been at the head yet.
        """
        self._usable = self._usable or self.caught_up
        if not self._usable:
            behind = "unknown" if self._head_offset is None else str(self._head_offset - self.fold.offset)
            raise Unavailable(
                f"The fold is not at the head of the log yet (entries behind: {behind}).",
                metadata={"dependency": "storage"},
            )

    async def wait_for(self, offset: int, *, timeout_s: float) -> None:
        """Return once everything up to `offset` is folded.

        Raises:
            DeadlineExceeded: it was not within `timeout_s`.
            FailedPrecondition: LOG_REWOUND, the log began anew meanwhile.
        """
        if offset <= self.fold.offset:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (offset, next(self._numbers), future))
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            # Nobody waits here any more, and that offset may never come.
            self._waiters = [waiter for waiter in self._waiters if waiter[2] is not future]
            heapq.heapify(self._waiters)
            raise DeadlineExceeded(
                f"The replicas reflect offset {self.fold.offset} and did not reach {offset} in time.",
                metadata={"waiting_for": f"offset {offset}", "current_offset": str(self.fold.offset)},
            ) from None

    async def head(self) -> Position:
        """Return the newest durable position of the log."""
        return await self._log.head()

    async def run(self) -> None:
        """Load the checkpoint, then follow the log for ever, across lost connections and a log that began anew."""
        await self._start()
        failures = 0
        while True:
            before = self.fold.offset
            try:
                await self._follow()
            except TwinmeshError as error:
                if error.reason == Reason.LOG_REWOUND:
                    await self._reset()
                    await self._recover()
                elif error.reason == Reason.COMPACTED and not await self._begin_further_on():
                    await self._begin_without(int(error.metadata.get("trim_offset", "0")))
                elif error.reason != Reason.COMPACTED:
                    self._report("log_lost", {"offset": self.fold.offset, "reason": str(error.reason)})
            finally:
                self._following = False
            failures = 0 if self.fold.offset > before else failures + 1
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])

    async def keep_checkpoints(self, interval_s: float) -> None:
        """Save a checkpoint every so often and after each erasure, for ever; a failure is made good by the next."""
        await self._keeper.keep(self, interval_s)

    async def save(self, *, last: bool = False) -> None:
        """Save a checkpoint now if that is this process's duty; raises `Unavailable` and keeps what was not saved.

        Args:
            last: no other save shall follow in this process, which is about to end.
        """
        await self._keeper.save(self, last=last)

    def recent(self) -> dict[str, RecentChanges]:
        """Return the newest changes of each tenant."""
        return {tenant: _recent(ring) for tenant, ring in self._rings.items()}

    async def _start(self) -> None:
        loaded = await self._load(self._checkpoints.load)
        if loaded is not None:
            self._begin_from(loaded)
        self._report("fold_started", {"offset": self.fold.offset})

    async def _recover(self) -> None:
        """Go on from what the restored log still leads to."""
        loaded = await self._load(lambda: recovered(self._log, self._checkpoints))
        if loaded is not None:
            self._begin_from(loaded)
        self._report("fold_recovered", {"offset": self.fold.offset, "incarnation": self.incarnation})

    async def _begin_further_on(self) -> bool:
        """Go on from a checkpoint that another process saved; False if there is none beyond what is folded here."""
        loaded = await self._load(self._checkpoints.load, beyond=self.fold.offset)
        if loaded is None:
            return False
        await self._reset("fold_left_behind")
        self._begin_from(loaded)
        return True

    async def _load(self, load: Callable[[], Awaitable[Checkpoint | None]], *, beyond: int = -1) -> _Loaded | None:
        """Return what a checkpoint describes, if it can be read and its offset is greater than `beyond`."""
        checkpoint = None
        generations: tuple[Generation, ...] = ()
        for attempt in itertools.count():
            try:
                checkpoint = await load()
                generations = await self._checkpoints.generations()
                break
            except Unavailable:
                await asyncio.sleep(_BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)])
        comparable = checkpoint is not None and self.incarnation in ("", checkpoint.position.incarnation)
        if checkpoint is not None and comparable and checkpoint.position.offset > beyond:
            try:
                fold, recent = await asyncio.to_thread(lambda: (restore(checkpoint), recent_changes(checkpoint)))
            except UNREADABLE as error:
                # The log has everything: fold it from the beginning, and replace what cannot be read.
                self._report(
                    "checkpoint_unreadable", {"offset": checkpoint.position.offset, "kind": type(error).__name__}
                )
                self._keeper.distrust()
            else:
                return _Loaded(checkpoint.position, fold, recent, generations)
        return None

    def _begin_from(self, loaded: _Loaded) -> None:
        self.fold = loaded.fold
        self.incarnation = loaded.position.incarnation
        self._keeper.begin_from(loaded.generations, loaded.position.offset)
        self._rings.clear()
        for tenant, kept in loaded.recent.items():
            self._ring_floor = kept.floor
            self.ring(tenant).append(kept.changes)
        self._ring_floor = loaded.position.offset

    async def _begin_without(self, trim_offset: int) -> None:
        """Begin anew without the observations up to `trim_offset`: neither the log nor a checkpoint has them."""
        # What others kept came about otherwise; nothing of the two may be mixed.
        await self._reset(whole=False)
        self._control_until = trim_offset
        self._report("fold_rebuilt", {"trim_offset": trim_offset})

    async def _seed(self) -> None:
        """Take the newest facts from history in place of the observations that are gone."""
        for tenant in self.fold.tenants():
            twins = [twin_id for twin_id, state in self.fold.states(tenant).items() if state.alive]
            for at in range(0, len(twins), _SEED_TWINS):
                batch = await self._log.latest(tenant, twins[at : at + _SEED_TWINS])
                self.fold.seed(tenant, batch)
        self.seeded += 1

    async def _follow(self) -> None:
        if self.fold.offset < self._control_until:
            await self._follow_control()
        async with aclosing(self._log.follow(self.position)) as frames:
            async for frame in frames:
                if not self.incarnation:
                    self.incarnation = frame.through.incarnation
                elif frame.through.incarnation != self.incarnation:
                    raise FailedPrecondition("The log began anew.", reason=Reason.LOG_REWOUND)
                if not self._following:
                    self._following = True
                    self._report("log_followed", {"offset": self.fold.offset, "head": frame.head_offset})
                self._head_offset = max(frame.head_offset, frame.through.offset)
                await self._fold(frame)

    async def _follow_control(self) -> None:
        """Fold control entries alone, up to where the log is whole again."""
        async with aclosing(self._log.follow(self.position, control_only=True)) as frames:
            async for frame in frames:
                self.incarnation = self.incarnation or frame.through.incarnation
                if frame.through.incarnation != self.incarnation:
                    raise FailedPrecondition("The log began anew.", reason=Reason.LOG_REWOUND)
                for entry in frame.entries:
                    if entry.offset <= self._control_until:
                        self._apply(entry)
                if frame.through.offset >= self._control_until:
                    break
                self.fold.advance(frame.through.offset)
        await self._seed()
        self.fold.advance(self._control_until)

    async def _fold(self, frame: LogFrame) -> None:
        resumed = self._clock.monotonic_s()
        for entry in frame.entries:
            if self.holds:
                await self.holds.stop_before(entry.offset, self._reach)
            self._apply(entry)
            if self._clock.monotonic_s() - resumed > _SLICE_S:
                self._wake()
                await asyncio.sleep(0)
                resumed = self._clock.monotonic_s()
        if self.holds:
            await self.holds.stop_before(frame.through.offset, self._reach)
        self._reach(frame.through.offset)

    def _reach(self, offset: int) -> None:
        self.fold.advance(offset)
        self.holds.reach(offset)
        self._wake()

    def _apply(self, entry: LogEntry) -> None:
        self._keeper.note(entry)
        folded = self.fold.apply(entry)
        if folded.changes:
            self.ring(entry.tenant).append(folded.changes)
            self.listeners.tell(folded.changes)
        if isinstance(entry.body, ControlEntry) and isinstance(entry.body.action, EraseTwin):
            self.ring(entry.tenant).forget(entry.body.action.twin_id)

    def _wake(self) -> None:
        self.pulse.touch()
        while self._waiters and self._waiters[0][0] <= self.fold.offset:
            _, _, future = heapq.heappop(self._waiters)
            if not future.done():
                future.set_result(None)

    async def _reset(self, why: str = "log_rewound", *, whole: bool = True) -> None:
        """Begin anew: offsets of the former incarnation mean nothing now."""
        self._report(why, {"offset": self.fold.offset, "incarnation": self.incarnation})
        self.generation += 1
        self._usable = False
        self.fold = Fold()
        self.incarnation = ""
        self._head_offset = None
        self._ring_floor = 0
        self._control_until = 0
        self._rings.clear()
        self.holds.reach(None)
        await self._keeper.begin_anew(whole=whole)
        self.pulse.touch()
        waiters, self._waiters = self._waiters, []
        for _, _, future in waiters:
            if not future.done():
                future.set_exception(rewound())


def _recent(ring: Ring) -> RecentChanges:
    floor, changes = ring.newest(_RECENT)
    return RecentChanges(floor=floor, changes=tuple(changes))


def rewound() -> FailedPrecondition:
    """Return the error for a position of another incarnation."""
    return FailedPrecondition(
        "The log was restored to an earlier point, this position means nothing any more; start again with a snapshot.",
        reason=Reason.LOG_REWOUND,
    )
