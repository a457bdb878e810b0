"""The lease port: memory and PostgreSQL keep the same promises; and only PostgreSQL knows when a process is dead."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from twinmesh_core.time import SystemClock
from twinmesh_runtime.postgres import migrate, open_pool
from twinmesh_statesync.adapters.leases import PostgresLeases
from twinmesh_statesync.adapters.memory import MemoryCheckpoints, MemoryLeases
from twinmesh_statesync.adapters.postgres import PostgresCheckpoints
from twinmesh_statesync.domain.checkpoint import Checkpoint, Position
from twinmesh_statesync.domain.leases import CHECKPOINT, DUTIES, Fence, LeaseStore
from twinmesh_statesync.domain.ports import CheckpointStore


class Processes:
    """Stores as several processes see them, and the checkpoints beside them."""

    def __init__(self, stack: AsyncExitStack, url: str | None) -> None:
        self._stack = stack
        self._url = url
        self._memory = MemoryLeases(SystemClock())
        self.checkpoints: CheckpointStore = MemoryCheckpoints(self._memory)

    async def open(self, name: str) -> tuple[LeaseStore, AsyncExitStack]:
        """Return the store of a process, and what ends its session when it is closed."""
        life = await self._stack.enter_async_context(AsyncExitStack())
        if self._url is None:
            return self._memory, life
        line = open_pool(self._url, min_size=1, max_size=1, schema="statesync", autocommit=True, name=name)
        return PostgresLeases(await life.enter_async_context(line)), life


@pytest.fixture(params=["memory", "postgres"])
async def processes(request: pytest.FixtureRequest) -> AsyncIterator[Processes]:
    async with AsyncExitStack() as stack:
        url = None if request.param == "memory" else request.getfixturevalue("database_url")
        made = Processes(stack, url)
        if url is not None:
            await migrate(url, "statesync", "twinmesh_statesync")
            pool = await stack.enter_async_context(open_pool(url, min_size=1, max_size=2, schema="statesync"))
            made.checkpoints = PostgresCheckpoints(pool)
        yield made


async def test_a_claim_wins_once_and_raises_the_epoch(processes: Processes) -> None:
    (one, _), (two, _) = await processes.open("one"), await processes.open("two")
    roll = await one.beat("one", lease_s=60)
    assert [lease.duty for lease in roll.leases] == list(range(DUTIES))
    assert {lease.holder for lease in roll.leases} == {""}
    assert (await two.beat("two", lease_s=60)).living == ("one", "two")
    seen = roll.leases[:3]
    taken, late = await asyncio.gather(one.claim("one", seen), two.claim("two", seen))
    won = (*taken, *late)
    assert sorted(fence.duty for fence in won) == [0, 1, 2]
    assert [fence.epoch for fence in won] == [1, 1, 1]
    assert await two.claim("two", seen) == ()
    assert [f for f in (await one.beat("one", lease_s=60)).leases if f.holder] == sorted(won, key=lambda f: f.duty)


async def test_duties_are_given_up_only_by_their_holder_and_all_at_once_by_who_leaves(processes: Processes) -> None:
    (one, _), (two, _) = await processes.open("one"), await processes.open("two")
    await two.beat("two", lease_s=60)
    await one.claim("one", (await one.beat("one", lease_s=60)).leases)
    await two.give_up("two", [1, 2])
    await one.give_up("one", [2, 3])
    assert [f.duty for f in (await two.beat("two", lease_s=60)).leases if not f.holder] == [2, 3]
    await one.leave("one")
    roll = await two.beat("two", lease_s=60)
    assert roll.living == ("two",)
    assert {f.holder for f in roll.leases} == {""}
    assert {f.epoch for f in roll.leases} == {1}


async def test_a_sign_of_life_expires(processes: Processes) -> None:
    (one, _), (two, _) = await processes.open("one"), await processes.open("two")
    await one.beat("one", lease_s=0.02)
    await asyncio.sleep(0.05)  # the store's own clock
    assert (await two.beat("two", lease_s=60)).living == ("two",)


async def test_a_checkpoint_is_saved_only_under_the_epoch_that_holds(processes: Processes) -> None:
    store, _ = await processes.open("one")
    (mine,) = await store.claim("one", (await store.beat("one", lease_s=60)).leases[CHECKPOINT:])
    assert await processes.checkpoints.save(_at(5), mine)
    assert await processes.checkpoints.position() == _at(5).position
    (theirs,) = await store.claim("two", [mine])
    assert not await processes.checkpoints.save(_at(9), mine)
    assert not await processes.checkpoints.save(_at(9), Fence(duty=CHECKPOINT, holder="one", epoch=theirs.epoch))
    assert await processes.checkpoints.position() == _at(5).position
    assert await processes.checkpoints.save(_at(7), theirs)


async def test_a_process_whose_session_is_gone_is_dead_at_once(database_url: str) -> None:
    await migrate(database_url, "statesync", "twinmesh_statesync")
    async with AsyncExitStack() as stack:
        processes = Processes(stack, database_url)
        (one, life), (two, _) = await processes.open("one"), await processes.open("two")
        await one.beat("one", lease_s=600)
        assert (await two.beat("two", lease_s=600)).living == ("one", "two")
        await life.aclose()
        async with asyncio.timeout(5):
            while "one" in (await two.beat("two", lease_s=600)).living:  # noqa: ASYNC110 -- PostgreSQL's view of it
                await asyncio.sleep(0.01)


async def test_a_duty_that_somebody_locks_is_left_out_of_a_claim_and_nobody_waits(database_url: str) -> None:
    await migrate(database_url, "statesync", "twinmesh_statesync")
    async with AsyncExitStack() as stack:
        store, _ = await Processes(stack, database_url).open("one")
        pool = await stack.enter_async_context(open_pool(database_url, min_size=1, max_size=1, schema="statesync"))
        seen = (await store.beat("one", lease_s=60)).leases
        async with asyncio.timeout(2), pool.connection() as hung:
            await hung.execute("SELECT FROM lease WHERE duty = 64 FOR SHARE")
            assert [fence.duty for fence in await store.claim("one", seen)] == list(range(64))


def _at(offset: int) -> Checkpoint:
    return Checkpoint(position=Position(incarnation="i", offset=offset), records=())
