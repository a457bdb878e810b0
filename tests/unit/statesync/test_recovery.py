"""The log restored to an earlier point: the fold goes on from what both histories share, revisions and all."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.statesync.test_replay import OFTEN
from tests.unit.statesync.test_watch import Stage, staged
from tests.unit.statesync.worlds import T0, S, World

from twinmesh_statesync.domain.checkpoint import digest, restore
from twinmesh_statesync.domain.fold import Fold


def pumps(changes: int) -> World:
    world = World("a", "b")
    for i in range(changes):
        world.report("ab"[i % 2], "temperature", T0 + i * S, float(i))
    return world


def fork(world: World, length: int, more: int) -> World:
    """Return another history that shares the beginning: other values, committed at other times."""
    other = World()
    other.entries.clear()
    other.fold = Fold()
    for entry in world.entries[:length]:
        other.entries.append(entry)
        other.fold.apply(entry)
    other.now = world.now + 10 * S
    for i in range(more):
        other.report("a", "temperature", T0 + (100 + i) * S, -float(i))
    return other


async def restored(stage: Stage, world: World, length: int, other: World) -> None:
    """Restore the log, appended to before anybody looks, and wait until the fold is there."""
    stage.log.rewind(length)
    stage.log.entries.extend(other.entries[length:])
    stage.log._wake()
    async with asyncio.timeout(10):
        while stage.live.incarnation != stage.log.incarnation or not stage.live.caught_up:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await stage.at(len(other.entries))


@settings(max_examples=8, deadline=None)
@given(saves=st.sets(st.integers(2, 22), max_size=6), length=st.integers(3, 22), more=st.integers(0, 20))
def test_the_fold_goes_on_from_the_newest_generation_that_both_logs_share(
    saves: set[int], length: int, more: int
) -> None:
    world = pumps(20)
    other = fork(world, length, more)

    async def scene() -> None:
        async with staged(world.entries[:1], spacing=OFTEN) as stage:
            await stage.live.save()
            for entry in world.entries[1:]:
                await stage.grow(entry)
                if entry.offset in saves:
                    await stage.live.save()
            await restored(stage, world, length, other)
            assert digest(stage.live.fold) == digest(other.fold)
            shared = sorted(s for s in {1, *saves} if s <= length)
            assert [g.offset for g in stage.live.generations][: len(shared) + 1] == [0, *shared]
            await stage.live.save()
            kept = await stage.replays._store.load()
            assert kept is not None
            assert digest(restore(kept)) == digest(other.fold)

    asyncio.run(scene())


async def test_without_a_common_generation_the_log_is_folded_from_its_beginning() -> None:
    world = pumps(20)
    other = fork(world, 5, 3)
    async with staged(world.entries, spacing=OFTEN) as stage:
        await stage.live.save()
        await restored(stage, world, 5, other)
        assert digest(stage.live.fold) == digest(other.fold)


async def test_revisions_go_on_where_the_beginning_of_the_log_is_gone() -> None:
    world = pumps(20)
    other = fork(world, 18, 3)
    async with staged(world.entries[:10], spacing=OFTEN) as stage:
        await stage.live.save()
        await stage.grow(*world.entries[10:])
        await stage.live.save()
        stage.log.trim(9)
        await restored(stage, world, 18, other)
        assert digest(stage.live.fold) == digest(other.fold)


async def test_a_process_that_starts_after_the_restore_recovers_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    world = pumps(20)
    other = fork(world, 15, 4)
    stores: list[Any] = []
    async with staged(world.entries[:12], spacing=OFTEN) as stage:
        stores.append(stage.replays._store)
        await stage.live.save()
        await stage.grow(*world.entries[12:])
        await stage.live.save()
    monkeypatch.setattr("tests.unit.statesync.test_watch.MemoryCheckpoints", lambda: stores[0])
    async with staged(other.entries, log_incarnation="memory-7") as stage:
        assert digest(stage.live.fold) == digest(other.fold)
        assert [g.offset for g in stage.live.generations] == [0, 12]
