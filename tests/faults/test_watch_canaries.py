"""State-sync broken on purpose in eleven ways: each must be caught, and for the right reason."""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_left
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.faults.report import Outcome
from tests.faults.watch_judge import named, violations
from tests.faults.watch_story import load_all, save_all
from tests.faults.watchers import Load, Watcher, truth
from tests.integration.statesync.mesh import statesync, storage

from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.entries import LogEntry
from twinmesh_statesync.domain.fold import Fold, Folded
from twinmesh_statesync.domain.live import LiveFold
from twinmesh_statesync.domain.ring import Ring
from twinmesh_statesync.rpc import frames
from twinmesh_statesync.rpc.watch import Watches

pytestmark = [pytest.mark.faults, pytest.mark.timeout(90)]
Report = Callable[[Outcome, Path], None]
Patch = pytest.MonkeyPatch
TWINS = tuple(f"t{i}" for i in range(6))


def skipped_event(patch: Patch) -> None:
    """Forget one change in thirty."""
    append, count = Ring.append, itertools.count()

    def lossy(self: Ring, changes: Sequence[Change]) -> None:
        append(self, [change for change in changes if next(count) % 30 != 29])

    patch.setattr(Ring, "append", lossy)


def skipped_offset(patch: Patch) -> None:
    """Forget all changes of one offset in twenty."""
    append, count = Ring.append, itertools.count()
    patch.setattr(Ring, "append", lambda self, changes: append(self, changes if next(count) % 20 != 19 else ()))


def resume_off_by_one(patch: Patch) -> None:
    """Resume with the change after the one that is due."""
    index_after = Ring.index_after

    def late(self: Ring, offset: int) -> int | None:
        index = index_after(self, offset)
        if index is None or index >= self.end:
            return index
        following = self._offsets[index - self._first]
        return index_after(self, following)

    patch.setattr(Ring, "index_after", late)


def resume_told_again(patch: Patch) -> None:
    """Resume with the offset that was told last."""
    patch.setattr(Ring, "index_after", lambda self, offset: self._first + bisect_left(self._offsets, offset))


def split_offset(patch: Patch) -> None:
    """Cut frames anywhere, and count an offset as told when its first change was."""
    patch.setattr(frames, "FRAME_CHANGES", 3)
    patch.setattr(
        Ring, "read", lambda self, index, limit: self._items[index - self._first : index - self._first + limit]
    )


def stale_bookmark(patch: Patch) -> None:
    """State the newest position in every frame, also in those that do not lead there."""
    frame, bookmark = frames.Frames.frame, frames.bookmark
    patch.setattr(frames, "FRAME_CHANGES", 4)

    def hasty(self: Any, audience: Any, index: int, position: Position, **options: Any) -> Any:
        made = frame(self, audience, index, position, **options)
        return replace(made, body=made.body + bookmark(position), through=position.offset) if made.body else made

    patch.setattr(frames.Frames, "frame", hasty)


def reordered(patch: Patch) -> None:
    """Tell two offsets of a frame the other way round."""
    joined = frames._joined
    patch.setattr(frames, "_joined", lambda events, end, through: joined(events[::-1], end, through))
    patch.setattr(frames, "FRAME_BYTES", 10**9)


def snapshot_without_a_twin(patch: Patch) -> None:
    """Leave one twin out of every snapshot."""
    snapshot = Watches._snapshot

    async def short(self: Watches, tenant: str, wanted: Any, position: Position) -> AsyncGenerator[bytes, None]:
        states = self._live.fold.states(tenant)
        missing = states.pop("t3", None)
        async for part in snapshot(self, tenant, wanted, position):
            yield part
        if missing is not None:
            states["t3"] = missing

    patch.setattr(Watches, "_snapshot", short)


def snapshot_of_a_moment_ago(patch: Patch) -> None:
    """State a position that the snapshot does not have yet."""
    snapshot = Watches._snapshot

    def ahead(self: Watches, tenant: str, wanted: Any, position: Position) -> AsyncGenerator[bytes, None]:
        return snapshot(self, tenant, wanted, replace(position, offset=position.offset - 2))

    patch.setattr(Watches, "_snapshot", ahead)


def fold_that_skips(patch: Patch) -> None:
    """Leave one entry in forty out of the fold."""
    apply = Fold.apply
    live: set[int] = set()
    remember = LiveFold.__init__

    def begin(self: LiveFold, **arguments: Any) -> None:
        remember(self, **arguments)
        live.add(id(self.fold))

    def lossy(self: Fold, entry: LogEntry) -> Folded:
        if id(self) in live and entry.offset % 40 == 39:
            self.advance(entry.offset)
            return Folded()
        return apply(self, entry)

    patch.setattr(LiveFold, "__init__", begin)
    patch.setattr(Fold, "apply", lossy)


def ring_without_floor(patch: Patch) -> None:
    """Promise after a restart to know every change since the beginning."""
    begin = LiveFold._begin_from

    def forgetful(self: LiveFold, loaded: Any) -> None:
        begin(self, replace(loaded, recent={}))
        self._ring_floor = 0

    patch.setattr(LiveFold, "_begin_from", forgetful)


CANARIES: dict[Callable[[Patch], None], str] = {
    skipped_event: "atomic",
    skipped_offset: "reliable",
    resume_off_by_one: "resumable",
    resume_told_again: "unique",
    split_offset: "atomic",
    stale_bookmark: "bookmarkable",
    reordered: "ordered",
    snapshot_without_a_twin: "snapshot",
    snapshot_of_a_moment_ago: "snapshot",
    fold_that_skips: "truth",
    ring_without_floor: "resumable",
}
"""What is broken, and the property whose check must notice."""
QUICK = (resume_off_by_one,)


async def a_little_while(database_url: str, directory: Path) -> tuple[set[str], int]:
    """Run real servers under load and watch, restart state-sync once; returns the properties violated, and events."""
    async with storage(database_url) as target:
        seen: list[Watcher] = []
        async with statesync(database_url, target, checkpoint_interval_s=0.1) as sync:
            writes = Load([sync], TWINS)
            await writes.begin(sync)
            seen += [Watcher([sync], temper, seed=i) for i, temper in enumerate(("prompt", "vanishing", "slow"))]
            await _watched(seen, writes, entries=150)
            # Those who stop here come back to a process that has folded on without them.
            for _ in range(30):
                await writes.facts()
            await _kept(database_url, writes.offset)
        async with statesync(database_url, target, checkpoint_interval_s=60) as sync:
            again = [_continued(watcher, [sync]) for watcher in seen]
            await _watched(again, Load([sync], TWINS), entries=0, last=writes.offset)
        stories = [watcher.story for watcher in seen]
        save_all(stories, directory)
        judge = await truth(target)
    kept = load_all(directory)
    assert [story.events for story in kept] == [story.events for story in stories]
    found = [violation for story in kept for violation in violations(story, judge)]
    (directory / "violations.txt").write_text("\n".join(found))
    return named(found), sum(story.events for story in stories)


async def _kept(database_url: str, offset: int) -> None:
    """Return once a checkpoint is kept that is beyond where the watchers are."""
    async with asyncio.timeout(10), await psycopg.AsyncConnection.connect(database_url, autocommit=True) as conn:
        while True:
            row = await (await conn.execute("select max(log_offset) from statesync.checkpoint_position")).fetchone()
            if row is not None and row[0] is not None and row[0] >= offset:
                return
            await asyncio.sleep(0.05)


def _continued(watcher: Watcher, syncs: Sequence[Any]) -> Watcher:
    """Return a watcher that goes on with another's story where it stopped."""
    after = Watcher(syncs, "prompt", seed=1)
    after.story, after.through = watcher.story, watcher.through
    return after


async def _watched(watchers: Sequence[Watcher], writes: Load, *, entries: int, last: int = 0) -> None:
    goal = last
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        tasks = [group.create_task(w.run(lambda through: bool(goal) and through >= goal)) for w in watchers]
        await writes.run(lambda: writes.entries < entries, pause_s=0.0)
        goal = goal or writes.offset
        for task in tasks:
            await task


@pytest.mark.parametrize(
    "broken",
    [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow, id=c.__name__) for c in CANARIES],
)
async def test_a_broken_server_is_caught(
    broken: Callable[[Patch], None], database_url: str, tmp_path: Path, monkeypatch: Patch, report: Report
) -> None:
    broken(monkeypatch)
    caught, events = await a_little_while(database_url, tmp_path)
    monkeypatch.undo()
    wanted = CANARIES[broken]
    report(
        Outcome(
            name=f"watch-{broken.__name__}"[:28], seed=0, ops=events, caught=wanted in caught, canaries=1,
            note=f"violated: {', '.join(sorted(caught))}",
        ),
        tmp_path,
    )  # fmt: skip
    assert wanted in caught


@pytest.mark.slow
async def test_the_server_as_it_is_passes(database_url: str, tmp_path: Path, report: Report) -> None:
    caught, events = await a_little_while(database_url, tmp_path)
    report(Outcome(name="watch-sound", seed=0, ops=events, violations=len(caught)), tmp_path)
    assert caught == set()
    assert events > 500
