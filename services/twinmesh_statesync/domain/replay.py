"""Replay: what watchers missed, folded again from a generation of the checkpoint and the log.

A watcher behind the changes in memory is not refused: it reads from a replay until it has come so far that memory
reaches back to it. A replay is one fold, shared by all who are at similar places, and pulled along by whoever stands at
its end; it keeps a bounded window of changes, so a reader that is much slower than the others falls out of it and
begins another. So ten thousand watchers that come back at once cost one fold, and a frozen one costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Final

from twinmesh_core.errors import DeadlineExceeded, FailedPrecondition, OutOfRange, Reason, TwinmeshError, Unavailable
from twinmesh_core.time import Clock
from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.checkpoint import UNREADABLE, Checkpoint, Position, restore
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.generations import newest_at
from twinmesh_statesync.domain.live import LiveFold
from twinmesh_statesync.domain.narrow import NeedsOthers, check_alone
from twinmesh_statesync.domain.ports import CheckpointStore, Log, LogFrame
from twinmesh_statesync.domain.ring import Ring

FOLDS: Final = 4
"""Replays that fold at the same time: each holds the replicas of what it folds."""
NARROW_TWINS: Final = 100
"""A watcher of at most so many twins is replayed from the entries of these alone, ..."""
NARROW_REPLAYS: Final = 4
"""... unless so many replays of its tenant are open: then it shares one that folds everything."""
WINDOW_CHANGES: Final = 20_000
WINDOW_BYTES: Final = 64 * 1024 * 1024
PATIENCE_S: Final = 1.0
"""A reader that did not move for so long is not waited for, and a replay that nobody reads gives its place away."""
_SLICE_S: Final = 0.002
_CROWD: Final = 32
_GATHER_S: Final = 0.002
_PAUSE_S: Final = 0.2


def compacted(after: int, compacted_to: int) -> OutOfRange:
    """Return the refusal of a position behind which changes cannot be told any more."""
    return OutOfRange(
        f"The changes after offset {after} are no longer kept (the oldest kept is after {compacted_to}); "
        "start again with a snapshot.",
        reason=Reason.COMPACTED,
        metadata={"compacted_to": str(compacted_to)},
    )


class Reader:
    """A watcher's place in a replay: everything up to `after` was told to it."""

    __slots__ = ("after", "moved_s", "waits")

    def __init__(self, after: int, now_s: float) -> None:
        self.after = after
        self.moved_s = now_s
        self.waits = False


class Replay:
    """One fold of a tenant's past; `run` keeps it going while it has readers.

    Args:
        tenant: whose.
        twin_ids: only their entries; empty = all.
        start: where it is expected to begin.
        live: the fold that readers change over to.
        log: what follows.
        store: where it begins.
        places: limits how many fold at once.
        clock: monotonic time.

    Attributes:
        ring: the window of changes.
        failed: why it ended, if not for lack of readers.
        ended: it goes no further.
        entangled: it ended since its twins cannot be folded without others.
        readers: who reads it.
        began: the fold is restored; before, it is only known to begin at or before its readers' places.
    """

    def __init__(
        self,
        *,
        tenant: str,
        twin_ids: frozenset[str],
        start: Position,
        live: LiveFold,
        log: Log,
        store: CheckpointStore,
        places: asyncio.Semaphore,
        clock: Clock,
    ) -> None:
        self.tenant = tenant
        self.twin_ids = twin_ids
        self.ring = Ring(floor=start.offset, max_changes=WINDOW_CHANGES, max_bytes=WINDOW_BYTES)
        self.failed: TwinmeshError | None = None
        self.ended = False
        self.entangled = False
        self.began = False
        self.readers: set[Reader] = set()
        self._incarnation = start.incarnation
        self._fold = Fold()
        self._fold.advance(start.offset)
        self._live = live
        self._log = log
        self._store = store
        self._places = places
        self._clock = clock
        self._news = asyncio.Event()
        self._moved = asyncio.Event()

    @property
    def position(self) -> Position:
        """What the replay has got to."""
        return Position(incarnation=self._incarnation, offset=self._fold.offset)

    def reaches(self, after: int) -> bool:
        """Whether a reader at `after` gets everything from here."""
        return not self.ended and self.ring.floor <= after

    def index_after(self, after: int) -> int | None:
        """Return the index of the first change after an offset; None = the fold has not come so far."""
        return self.ring.index_after(after) if self.began and after <= self._fold.offset else None

    def next(self) -> asyncio.Event:
        """Return the event that is set when there is more; take it before looking, then `wait`."""
        return self._news

    def moved(self, reader: Reader, through: int) -> None:
        """Note how far a reader has read."""
        reader.after = through
        reader.moved_s = self._clock.monotonic_s()
        reader.waits = False
        self._moved.set()

    def wants(self, reader: Reader) -> None:
        """Note that a reader has read all there is."""
        reader.waits = True
        self._moved.set()

    def give_up(self) -> None:
        """Go no further: its readers begin another."""
        self.ended = True
        self._tell()

    async def run(self) -> None:
        """Fold on while somebody reads; ends with `ended`, and `failed` where it cannot go on."""
        try:
            async with self._places:
                await self._restore()
                while await self._asked():
                    await self._follow()
        except TwinmeshError as error:
            self.failed = error
        except NeedsOthers:
            self.entangled = True
        finally:
            self.ended = True
            self._tell()

    async def _restore(self) -> None:
        after = min((reader.after for reader in self.readers), default=self._fold.offset)
        found = await self._loaded(after)
        if found is None:
            raise compacted(after, after)
        if found.position.incarnation != self._incarnation:
            raise _began_anew()
        try:
            self._fold = await asyncio.to_thread(restore, found)
        except UNREADABLE:
            # As the live fold does with a checkpoint that it cannot read: there is no way back to before memory.
            raise compacted(after, self._live.ring(self.tenant).floor) from None
        self.ring = Ring(floor=found.position.offset, max_changes=WINDOW_CHANGES, max_bytes=WINDOW_BYTES)
        self.began = True

    async def _loaded(self, after: int) -> Checkpoint | None:
        while True:
            try:
                return await self._store.load_at(after, self.tenant, self.twin_ids)
            except Unavailable:
                await asyncio.sleep(_PAUSE_S)

    async def _follow(self) -> None:
        try:
            async with aclosing(self._log.replay(self.position, self.tenant, self.twin_ids)) as frames:
                async for frame in frames:
                    await self._take(frame)
                    if not await self._asked():
                        return
        except Unavailable:
            # Storage went away; what it has is there when it is back, and the readers are told bookmarks meanwhile.
            await asyncio.sleep(_PAUSE_S)

    async def _take(self, frame: LogFrame) -> None:
        if frame.through.incarnation != self._incarnation:
            raise _began_anew()
        # Never ahead of the live fold: whoever changes over to it would be told again what it folds afterwards.
        while self._live.fold.offset < frame.through.offset:
            with suppress(DeadlineExceeded):
                await self._live.wait_for(frame.through.offset, timeout_s=PATIENCE_S)
        resumed = self._clock.monotonic_s()
        for entry in frame.entries:
            if self.twin_ids:
                check_alone(entry)
            folded = self._fold.apply(entry)
            if folded.changes:
                self.ring.append(folded.changes)
            if self._clock.monotonic_s() - resumed > _SLICE_S:
                await asyncio.sleep(0)
                resumed = self._clock.monotonic_s()
        self._fold.advance(frame.through.offset)
        told_s = self._clock.monotonic_s()
        for reader in self.readers:
            if reader.waits:
                # Who waited has something to read now, and must not be left behind before it had its turn.
                reader.waits, reader.moved_s = False, told_s
        self._tell()

    async def _asked(self) -> bool:
        """Return once somebody waits for more and nobody who reads would lose what it has not read; False = end."""
        while self.readers and not self.ended:
            now_s = self._clock.monotonic_s()
            reading = [r for r in self.readers if not r.waits and now_s - r.moved_s <= PATIENCE_S]
            waiting = any(reader.waits for reader in self.readers)
            if waiting and not self._would_lose(reading):
                return True
            if not waiting and not reading and self._places.locked():
                return False
            moved = self._moved = asyncio.Event()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await moved.wait()
            except TimeoutError:
                continue
            if len(self.readers) > _CROWD:
                # Thousands move at about the same time; looked at together.
                await asyncio.sleep(_GATHER_S)
        return False

    def _would_lose(self, reading: Collection[Reader]) -> bool:
        if not reading:
            return False
        first = self.ring.index_after(max(min(reader.after for reader in reading), self.ring.floor))
        return first is not None and self.ring.end - first >= WINDOW_CHANGES

    def _tell(self) -> None:
        told, self._news = self._news, asyncio.Event()
        told.set()


class Replays:
    """All replays of this process.

    Args:
        live: tells the generations, and the incarnation.
        log: what is folded.
        store: where folds begin.
        clock: monotonic time.
    """

    def __init__(self, *, live: LiveFold, log: Log, store: CheckpointStore, clock: Clock) -> None:
        self._live = live
        self._log = log
        self._store = store
        self._clock = clock
        self._places = asyncio.Semaphore(FOLDS)
        self._open: set[Replay] = set()
        self._begun = asyncio.Queue[Replay]()
        self._tasks: dict[Replay, asyncio.Task[None]] = {}
        self._entangled: set[str] = set()
        live.listeners.on_erasure(self._notice)

    @property
    def count(self) -> int:
        """How many replays are open."""
        return len(self._open)

    async def run(self) -> None:
        """Run replays as they are begun, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                replay = await self._begun.get()
                if replay.readers:
                    self._tasks[replay] = group.create_task(self._whole_life(replay))

    @contextmanager
    def joined(
        self, tenant: str, after: int, twin_ids: Collection[str], *, judged: bool = False
    ) -> Iterator[tuple[Replay, Reader]]:
        """Read a replay that reaches back to `after`, begun if there is none, for as long as the block lasts.

        Raises:
            OutOfRange: COMPACTED, no generation lies at or before `after`.
        """
        replay = self._found(tenant, after, frozenset(twin_ids), judged)
        reader = Reader(after, self._clock.monotonic_s())
        replay.readers.add(reader)
        try:
            yield replay, reader
        finally:
            replay.readers.discard(reader)
            if not replay.readers:
                self._open.discard(replay)
                task = self._tasks.get(replay)
                if task is not None:
                    task.cancel()

    def _found(self, tenant: str, after: int, twin_ids: frozenset[str], judged: bool) -> Replay:
        generation = newest_at(self._live.generations, after)
        if generation is None:
            raise compacted(after, self._live.compacted_to(tenant, judged=judged))
        incarnation = self._live.incarnation
        others = [r for r in self._open if r.tenant == tenant and r.position.incarnation == incarnation]
        for replay in others:
            fits = not replay.twin_ids or replay.twin_ids == twin_ids
            # One that is further back than a new one would begin is not worth waiting for.
            if fits and replay.reaches(after) and replay.position.offset >= generation.offset:
                return replay
        narrow = 0 < len(twin_ids) <= NARROW_TWINS and len(others) < NARROW_REPLAYS and tenant not in self._entangled
        begun = Replay(
            tenant=tenant,
            twin_ids=twin_ids if narrow else frozenset(),
            start=Position(incarnation=incarnation, offset=generation.offset),
            live=self._live,
            log=self._log,
            store=self._store,
            places=self._places,
            clock=self._clock,
        )
        self._open.add(begun)
        self._begun.put_nowait(begun)
        return begun

    def _notice(self, erasure: Change) -> None:
        # What they hold was folded from a log that told more than it may now.
        for replay in [r for r in self._open if r.tenant == erasure.tenant]:
            replay.give_up()
            self._open.discard(replay)

    async def _whole_life(self, replay: Replay) -> None:
        try:
            await replay.run()
        finally:
            if replay.entangled:
                self._entangled.add(replay.tenant)
            self._open.discard(replay)
            self._tasks.pop(replay, None)


def _began_anew() -> FailedPrecondition:
    return FailedPrecondition("The log began anew.", reason=Reason.LOG_REWOUND)
