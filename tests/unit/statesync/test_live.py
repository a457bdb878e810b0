"""The fold kept up with the log: checkpoints that fail, cannot be read, or belong to another log."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.unit.statesync.worlds import T0, TENANT, S, World

from twinmesh_core.errors import DeadlineExceeded, Unavailable
from twinmesh_core.time import SystemClock
from twinmesh_statesync.adapters.memory import MemoryCheckpoints, MemoryLog
from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.checkpoint import Checkpoint, Position, Record, digest, restore
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.generations import Spacing
from twinmesh_statesync.domain.leases import Fence
from twinmesh_statesync.domain.live import LiveFold


class Failing(MemoryCheckpoints):
    """Refuses its first saves."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    async def save(self, checkpoint: Checkpoint, fence: Fence | None = None) -> bool:
        if self.failures:
            self.failures -= 1
            raise Unavailable("no database")
        return await super().save(checkpoint, fence)


def history() -> World:
    world = World("a", "b")
    for i in range(20):
        world.report("ab"[i % 2], "temperature", T0 + i * S, float(i))
    return world


@asynccontextmanager
async def running(log: MemoryLog, checkpoints: MemoryCheckpoints, **more: Any) -> AsyncIterator[LiveFold]:
    reports: list[Any] = []
    live = LiveFold(log=log, checkpoints=checkpoints, clock=SystemClock(), report=lambda *r: reports.append(r), **more)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(live.run())
        async with asyncio.timeout(5):
            while not live.caught_up:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await live.wait_for(len(log.entries), timeout_s=5)
        yield live
        task.cancel()


def log_of(world: World) -> MemoryLog:
    log = MemoryLog(SystemClock())
    log.entries.extend(world.entries)
    return log


def every_change(world: World) -> list[Change]:
    fold = Fold()
    return [change for entry in world.entries for change in fold.apply(entry).changes]


async def loaded_digest(checkpoints: MemoryCheckpoints) -> str:
    kept = await checkpoints.load()
    assert kept is not None
    return digest(restore(kept))


async def test_a_save_that_failed_is_made_good_by_the_next() -> None:
    world, checkpoints = history(), Failing(2)
    log = log_of(world)
    async with running(log, checkpoints) as live:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await live.save()
            world.report("a", "temperature", world.now, 1.0)
            log.entries.append(world.entries[-1])
            log._wake()
            await live.wait_for(len(log.entries), timeout_s=5)
        await live.save()
    assert await loaded_digest(checkpoints) == digest(world.fold)


async def test_the_log_is_told_what_is_durable_and_only_that() -> None:
    world, checkpoints = history(), Failing(2)
    log = log_of(world)
    async with running(log, checkpoints) as live:
        keeping = asyncio.create_task(live.keep_checkpoints(0.02))
        async with asyncio.timeout(10):
            while log.covered is None:  # noqa: ASYNC110 -- told by an attribute
                await asyncio.sleep(0.01)
        kept = await checkpoints.load()
        assert kept is not None
        assert log.covered.offset <= kept.position.offset
        assert checkpoints.failures == 0
        keeping.cancel()


async def test_a_start_goes_on_from_the_checkpoint_and_equals_a_rebuild() -> None:
    world, checkpoints = history(), MemoryCheckpoints()
    async with running(log_of(world), checkpoints) as live:
        await live.save()
    world.report("b", "temperature", world.now, 5.0)
    async with running(log_of(world), checkpoints) as live:
        ring = live.ring("default")
        told = [item.change for item in ring.read(ring.first, 1_000)]
        assert ring.floor == 0
        assert told == every_change(world)
        assert digest(live.fold) == digest(world.fold)


async def test_a_checkpoint_that_cannot_be_read_is_replaced_by_folding_the_log_again() -> None:
    world, checkpoints = history(), MemoryCheckpoints()
    broken = Record(tenant="default", kind="twin", key="a", offset=1, body='{"not": "ours"}')
    position = Position(incarnation="memory-1", offset=5)
    await checkpoints.save(Checkpoint(position=position, records=(broken,)))
    async with running(log_of(world), checkpoints) as live:
        assert digest(live.fold) == digest(world.fold)
        await live.save()
    assert await loaded_digest(checkpoints) == digest(world.fold)


async def test_a_checkpoint_of_another_log_is_forgotten() -> None:
    world, checkpoints = history(), MemoryCheckpoints()
    log = log_of(world)
    async with running(log, checkpoints) as live:
        await live.save()
    log.rewind(4)
    short = World("a", "b")
    short.report("a", "temperature", T0, 0.0)
    async with running(log, checkpoints) as live:
        assert live.incarnation == "memory-2"
        await live.save()
    assert await loaded_digest(checkpoints) == digest(short.fold)


async def test_waiting_for_an_offset_that_does_not_come_ends_and_leaves_nothing_behind() -> None:
    async with running(log_of(history()), MemoryCheckpoints()) as live:
        with pytest.raises(DeadlineExceeded) as late:
            await live.wait_for(1_000, timeout_s=0.05)
        assert late.value.metadata["waiting_for"] == "offset 1000"
        assert live._waiters == []


async def test_without_a_checkpoint_a_trimmed_log_is_rebuilt_from_control_entries_and_newest_facts() -> None:
    world = history()
    log = log_of(world)
    log.trim(len(world.entries) - 4)
    async with running(log, MemoryCheckpoints()) as live:
        assert live.generation == 1
        for twin_id in "ab":
            facts = _facts(live.fold, twin_id)
            assert facts == _facts(world.fold, twin_id)
            assert facts
        assert live.fold.offset == len(world.entries)


def _facts(fold: Fold, twin_id: str) -> dict[str, Any]:
    state = fold.state(TENANT, twin_id)
    assert state is not None
    return {c: (v.value, v.quality, v.event_time_unix_us) for c, v in state.replica.reported.values.items()}


async def test_saves_become_generations_from_the_beginning_of_the_log_on() -> None:
    world, checkpoints = history(), MemoryCheckpoints()
    log = log_of(world)
    async with running(log, checkpoints) as live:
        await live.save()
        first = len(world.entries)
        assert [g.offset for g in await checkpoints.generations()] == [0, first]
        world.now += 61 * S
        world.report("a", "temperature", T0 + 61 * S, 1.0)
        log.entries.append(world.entries[-1])
        log._wake()
        await live.wait_for(len(log.entries), timeout_s=5)
        await live.save()
        keeping = asyncio.create_task(live.keep_checkpoints(0.01))
        async with asyncio.timeout(5):
            while log.covered is None:  # noqa: ASYNC110 -- told by an attribute
                await asyncio.sleep(0.01)
        keeping.cancel()
        assert [g.offset for g in await checkpoints.generations()] == [0, first, first + 1]
        # The log is needed from the oldest generation on, not from the newest save.
        assert log.covered.offset == 0
        assert live.compacted_to(TENANT) == 0


async def test_each_generation_is_the_fold_as_it_was_there() -> None:
    world, checkpoints = history(), MemoryCheckpoints()
    log = MemoryLog(SystemClock())
    spacing = Spacing(interval_s=0.001)
    async with running(log, checkpoints, spacing=spacing) as live:
        for entry in world.entries:
            log.entries.append(entry)
            log._wake()
            await live.wait_for(entry.offset, timeout_s=5)
            await live.save()
    assert [g.offset for g in await checkpoints.generations()] == list(range(len(world.entries) + 1))
    fold = Fold()
    for entry in world.entries:
        fold.apply(entry)
        kept = await checkpoints.load_at(entry.offset, TENANT)
        assert kept is not None
        assert {t: s.replica for t, s in restore(kept).states(TENANT).items()} == {
            t: s.replica for t, s in fold.states(TENANT).items()
        }


async def test_a_rebuild_without_the_log_s_beginning_offers_no_way_back_before_it() -> None:
    world, checkpoints = history(), MemoryCheckpoints()
    log = log_of(world)
    log.trim(len(world.entries) - 4)
    async with running(log, checkpoints) as live:
        await live.save()
        assert [g.offset for g in await checkpoints.generations()] == [len(world.entries)]


async def test_a_process_left_behind_a_trimmed_log_goes_on_from_the_checkpoint_of_another() -> None:
    world, checkpoints = history(), MemoryCheckpoints()
    log = log_of(world)
    async with running(log, checkpoints) as live:
        await live.save()
    behind = LiveFold(log=log, checkpoints=checkpoints, clock=SystemClock())
    for entry in world.entries[:5]:
        behind._apply(entry)
    log.trim(len(world.entries))
    behind.incarnation = log.incarnation
    assert await behind._begin_further_on()
    assert digest(behind.fold) == digest(world.fold)
    assert not await behind._begin_further_on()


class Busy(MemoryCheckpoints):
    """Lets the log grow, and the fold with it, while a save looks at what is kept."""

    def __init__(self, grow: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self.grow = grow

    async def position(self) -> Position | None:
        await self.grow()
        return await super().position()


async def test_generations_are_made_while_the_fold_goes_on() -> None:
    world = history()
    log = log_of(world)
    lives: list[LiveFold] = []

    async def grow() -> None:
        if lives:
            world.report("a", "temperature", world.now, 1.0)
            log.entries.append(world.entries[-1])
            log._wake()
            await lives[0].wait_for(len(log.entries), timeout_s=5)

    store = Busy(grow)
    async with running(log, store, spacing=Spacing(interval_s=0.0)) as live:
        lives.append(live)
        saved = []
        for _ in range(3):
            saved.append(live.fold.offset)
            await live.save()
            assert live.fold.offset > saved[-1]
    assert [g.offset for g in await store.generations()] == [0, *saved]
