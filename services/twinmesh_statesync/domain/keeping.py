"""Keeping the fold over restarts: saves it every so often, and decides which saves it can be taken back to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.pace import Pace
from twinmesh_statesync.domain.backlog import Backlog
from twinmesh_statesync.domain.checkpoint import Captured, Checkpoint, Position, RecentChanges, Record, capture
from twinmesh_statesync.domain.entries import ControlEntry, EraseTwin, LogEntry
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.generations import Generation, Spacing
from twinmesh_statesync.domain.leases import CHECKPOINT, Everything, Holding
from twinmesh_statesync.domain.ports import CheckpointStore, Log

_PAUSES_S: Final = 2.0
Report = Callable[[str, dict[str, Any]], None]
"""Takes the name of something noteworthy and its fields, for the log."""


class Kept(Protocol):
    """What is kept: a fold that goes on meanwhile."""

    fold: Fold

    @property
    def position(self) -> Position:
        """What the fold reflects now; without an incarnation before anything was heard of the log."""
        ...

    def recent(self) -> Mapping[str, RecentChanges]:
        """Return the newest changes by tenant, which travel with a save."""
        ...


class Keeper:
    """Saves one fold; for one event loop.

    Args:
        log: told what is durable.
        store: where the fold is kept.
        spacing: which saves become generations, and for how long.
        report: told about saves that failed.
        leases: whether this process is the one that saves.

    Attributes:
        generations: positions that the checkpoint can be taken back to, in order.
    """

    def __init__(
        self,
        *,
        log: Log,
        store: CheckpointStore,
        spacing: Spacing,
        report: Report,
        leases: Holding | None = None,
    ) -> None:
        self.generations: tuple[Generation, ...] = ()
        self._log = log
        self._store = store
        self._spacing = spacing
        self._report = report
        self._saving = asyncio.Lock()
        self._life = 0
        self._ended = False
        self._on_checkpoint = False
        self._saved: Position | None = None
        self._backlog = Backlog()
        self._estranged = False
        self._leases: Holding = leases or Everything()
        self._whole = True
        self._origin: Generation | None = None
        self._newest: Generation | None = None
        self._erasing = asyncio.Event()
        self._forget_before = 0

    async def begin_anew(self, *, whole: bool = True) -> None:
        """Note that the fold begins from nothing: the next save replaces all that is kept.

        Args:
            whole: the log is folded from its first entry on; if not, there is no way back before the next save.
        """
        async with self._saving:
            self._life += 1
            self.generations = ()
            self._on_checkpoint = False
            self._saved = None
            self._backlog.clear()
            self._estranged = not whole
            self._whole = whole
            self._origin = self._newest = None
            self._forget_before = 0

    def begin_from(self, generations: tuple[Generation, ...], offset: int) -> None:
        """Note that the fold begins from the checkpoint that is kept, at an offset."""
        self.generations = generations
        self._on_checkpoint = True
        # One that was saved before the first entry came is as good as none.
        self._whole = self._whole and not offset
        self._origin = self._newest = None

    def distrust(self) -> None:
        """Note that what is kept is not what this fold would keep: nothing of the two may be mixed."""
        self._estranged = True

    def note(self, entry: LogEntry) -> None:
        """Note an entry that is about to be folded; cheap, since it is called for each."""
        newest = Generation(offset=entry.offset, commit_time_unix_us=entry.commit_time_unix_us)
        if self._newest is None and self._whole:
            self._origin = replace(newest, offset=0)
        self._newest = newest
        if isinstance(entry.body, ControlEntry) and isinstance(entry.body.action, EraseTwin):
            # The log before it is emptied: nothing can be folded from earlier generations that was told before.
            self._forget_before = entry.offset
            self.generations = tuple(g for g in self.generations if g.offset >= entry.offset)
            self._erasing.set()

    async def keep(self, kept: Kept, interval_s: float) -> None:
        """Save every so often and after each erasure, for ever; a failure is reported and made good by the next."""
        while True:
            try:
                async with asyncio.timeout(interval_s):
                    await self._erasing.wait()
            except TimeoutError:
                pass
            self._erasing.clear()
            try:
                await self.save(kept)
                await self._keep_generations()
                await self._register()
            except TwinmeshError as error:
                self._report("checkpoint_failed", {"reason": str(error.reason)})

    async def save(self, kept: Kept, *, last: bool = False) -> None:
        """Save now if that is this process's duty; raises `Unavailable` and keeps what was not saved.

        Args:
            kept: the fold.
            last: no other save shall follow in this process, which is about to end.
        """
        async with self._saving:
            position = kept.position
            if not position.incarnation or self._ended:
                return
            self._ended = last
            if position == self._saved and not self._backlog:
                return
            # All of it belongs to this position: the fold goes on at the first wait.
            self._backlog.add(position, capture(kept.fold, kept.fold.take_unsaved()))
            recent, newest, forget_before = kept.recent(), self._newest, self._forget_before
            await self._look_at_kept(position)
            fence = self._leases.fence(CHECKPOINT)
            if fence is None or not self._backlog:
                return
            captured = self._backlog.whole()
            complete = not self._on_checkpoint
            due = self._due(newest, position.offset, complete, forget_before)
            pace = Pace(0.0 if last else _PAUSES_S)
            records = await asyncio.to_thread(lambda: tuple(_records(captured, recent, position.offset, pace)))
            if position.incarnation != kept.position.incarnation:
                return
            checkpoint = Checkpoint(
                position=position,
                records=records,
                complete=complete,
                generations=due,
                forget_before=forget_before,
            )
            if await self._store.save(checkpoint, fence):
                earlier = () if complete else self.generations
                self.generations = (*(g for g in earlier if g.offset >= forget_before), *due)
                self._backlog.clear()
                self._on_checkpoint = True
                self._estranged = False
                self._saved = position
                if forget_before == self._forget_before:
                    self._forget_before = 0

    async def _look_at_kept(self, position: Position) -> None:
        """Drop what another process has saved already, as far as this one has folded it too."""
        kept = None if self._estranged else await self._store.position()
        if kept is not None and kept.incarnation == position.incarnation:
            self._backlog.forget(kept)
            if kept.offset <= position.offset:
                # It holds what this process captured before, and the backlog what came since.
                self._on_checkpoint = True

    def _due(
        self, newest: Generation | None, offset: int, complete: bool, forget_before: int
    ) -> tuple[Generation, ...]:
        """Return what a save at an offset adds to the generations; a complete one begins them anew."""
        if newest is None or newest.offset != offset:
            return ()
        if complete or not self.generations:
            whole = self._origin is not None and not forget_before
            return (self._origin, newest) if whole and self._origin is not None else (newest,)
        last = self.generations[-1]
        known = last if last.offset >= forget_before else None
        return (newest,) if self._spacing.due(known, newest.commit_time_unix_us) else ()

    async def _keep_generations(self) -> None:
        """Drop generations that lie too close or too far back; other processes add to them as well."""
        if not self._on_checkpoint:
            return
        life = self._life
        known = await self._store.generations()
        kept = self._spacing.kept(known)
        if life != self._life:
            return
        # Told as gone first: nobody shall be promised what is being dropped.
        self.generations = kept
        if len(kept) < len(known) and self._leases.holds(CHECKPOINT):
            await self._store.forget({g.offset for g in known} - {g.offset for g in kept})

    async def _register(self) -> None:
        # Every time, moved or not: a statement that is not renewed expires. From the oldest generation on the log is
        # folded again whenever somebody asks, so it must be whole from there.
        if self._saved is not None and self._leases.holds(CHECKPOINT):
            oldest = self.generations[0].offset if self.generations else self._saved.offset
            await self._log.register_checkpoint(replace(self._saved, offset=min(oldest, self._saved.offset)))


def _records(captured: Captured, recent: Mapping[str, RecentChanges], offset: int, pace: Pace) -> Iterator[Record]:
    for record in captured.records():
        yield record
        pace.step()
    for tenant, changes in recent.items():
        yield changes.record(tenant, offset, pace)
