"""Two state-sync processes on one log: each answers everything, one of them writes what time brings about."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from psycopg import sql
from tests.integration.statesync.mesh import TIMEOUT_S, StateSync, statesync, storage
from tests.unit.statesync.checker import WatchChecker, normal

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh.storage.v1.storage_pb2_grpc import StorageServiceStub
from twinmesh.type.v1 import observation_pb2, position_pb2, replica_pb2
from twinmesh_client.aio.verifying import verify_replicas
from twinmesh_client.transport import call, open_channel, stream, tenant_metadata
from twinmesh_client.verification import ReplicaVerification, disagreeing_shards
from twinmesh_statesync.domain.live import LiveFold

NOW = time.time_ns() // 1_000
TWINS = tuple(f"p{i}" for i in range(8))


@asynccontextmanager
async def two(database_url: str, **settings: Any) -> AsyncIterator[tuple[str, StateSync, StateSync]]:
    async with storage(database_url) as target, statesync(database_url, target, lease_beat_s=0.1, **settings) as a:
        await a.make_type()
        for twin_id in TWINS:
            await a.make_twin(twin_id)
        async with statesync(database_url, target, lease_beat_s=0.1, **settings) as b:
            yield target, a, b


async def desire(sync: StateSync, twin_id: str, value: float, **more: Any) -> statesync_pb2.SetDesiredResponse:
    request = statesync_pb2.SetDesiredRequest(
        twin_id=twin_id, values={"target": observation_pb2.Value(double_value=value)}, **more
    )
    return await call(sync.replicas.SetDesired, request, timeout_s=TIMEOUT_S)


async def holders(database_url: str) -> dict[str, int]:
    """Return how many shards each process holds."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        rows = await connection.execute("select holder, count(*) from statesync.lease where duty < 64 group by holder")
        return {str(holder): int(count) for holder, count in await rows.fetchall()}


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not await what():  # noqa: ASYNC110 -- tables and other processes
            await asyncio.sleep(0.05)


class Head:
    """What `verify_replicas` needs of a connection."""

    def __init__(self, channel: Any, *targets: str) -> None:
        self.storage = StorageServiceStub(channel)
        self.endpoints = {"statesync": ",".join(targets)}
        self.timeout_s = TIMEOUT_S


async def verified(storage_target: str, *syncs: StateSync, **more: Any) -> tuple[ReplicaVerification, ...]:
    async with open_channel(storage_target) as channel:
        head: Any = Head(channel, *(sync.target for sync in syncs))
        return await verify_replicas(head, **{"from_checkpoint": False, "patience_s": TIMEOUT_S, **more})


async def test_each_answers_for_the_other_and_a_watcher_moves_between_them(database_url: str) -> None:
    async with two(database_url) as (_, a, b):
        written = await desire(a, "p0", 1.0)
        assert (await b.replica("p0", written.position.offset)).desired.revision == 1
        racing = [desire(sync, "p1", float(i), if_revision=0) for i, sync in enumerate((a, b) * 4)]
        outcomes = await asyncio.gather(*racing, return_exceptions=True)
        assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1
        checker = WatchChecker()
        async with a.watch(statesync_pb2.WatchRequest()) as frames:
            while not checker.synced:
                checker.take(await anext(frames))
        last = 0
        for i, sync in enumerate((b, a, b)):
            last = await sync.observe("p0", "temperature", [NOW + i], [float(i)])
            resume = position_pb2.LogPosition(offset=checker.through)
            async with sync.watch(statesync_pb2.WatchRequest(resume_after=resume)) as frames, asyncio.timeout(10):
                while checker.through < last:
                    checker.take(await anext(frames))
        assert normal(checker.model["p0"]) == normal(await a.replica("p0", last)) == normal(await b.replica("p0", last))


async def test_shards_are_shared_and_what_is_due_is_written_once_also_after_a_hand_over(database_url: str) -> None:
    async with AsyncExitStack() as gone:
        target = await gone.enter_async_context(storage(database_url))
        a = await gone.enter_async_context(statesync(database_url, target, lease_beat_s=0.1))
        await a.make_type()
        for twin_id in TWINS:
            await a.make_twin(twin_id)
        b_life = await gone.enter_async_context(AsyncExitStack())
        b = await b_life.enter_async_context(statesync(database_url, target, lease_beat_s=0.1))
        await until(lambda: _are(database_url, [32, 32]))
        for twin_id in TWINS:
            await desire(a, twin_id, 1.0, deadline=Duration(nanos=300_000_000))
        await until(lambda: _expired(b, TWINS))
        # These come due after the one who would have written half of them is gone.
        for twin_id in TWINS:
            await desire(b, twin_id, 2.0, deadline=Duration(seconds=2))
        await b_life.aclose()
        await until(lambda: _are(database_url, [64]))
        await until(lambda: _expired(a, TWINS))
        entries = await _control_entries(target)
        expired = [e.expire_desired.twin_id for e in entries if e.HasField("expire_desired")]
        assert sorted(expired) == sorted(TWINS * 2)


async def _are(database_url: str, counts: list[int]) -> bool:
    return sorted((await holders(database_url)).values()) == counts


async def _expired(sync: StateSync, twins: tuple[str, ...]) -> bool:
    replicas = [await sync.replica(twin_id) for twin_id in twins]
    return all(r.desired.values[0].state == replica_pb2.DESIRED_STATE_EXPIRED for r in replicas)


async def _control_entries(target: str) -> list[Any]:
    async with open_channel(target) as channel:
        stub = StorageServiceStub(channel)
        head = await call(
            stub.GetHead, storage_pb2.GetHeadRequest(), timeout_s=TIMEOUT_S, metadata=tenant_metadata("*")
        )
        request = storage_pb2.FollowRequest(kinds=[storage_pb2.ENTRY_KIND_CONTROL])
        found = []
        async for frame in stream(stub.Follow, request, timeout_s=None, metadata=tenant_metadata("*")):
            found += [entry.control for entry in frame.entries]
            if frame.through.offset >= head.position.offset:
                return found
    raise AssertionError


async def test_verification_proves_all_processes_under_load_and_names_a_twin_that_differs(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives: list[LiveFold] = []

    class Recorded(LiveFold):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            lives.append(self)

    monkeypatch.setattr("twinmesh_statesync.main.LiveFold", Recorded)
    async with two(database_url, checkpoint_interval_s=0.2) as (target, a, b):
        stop = asyncio.Event()

        async def load() -> None:
            for i in range(10_000):
                await a.observe(TWINS[i % 8], "temperature", [NOW + i], [float(i)])
                if stop.is_set():
                    return

        async with asyncio.TaskGroup() as group:
            group.create_task(load())
            found = await verified(target, a, b)
            stop.set()
        assert [one.equal for one in found] == [True, True]
        assert found[0].at == found[1].at
        assert found[0].digest == found[1].digest
        assert not disagreeing_shards(found)
        assert found[0].twin_count == len(TWINS)
        assert found[0].start_offset == 0
        (short,) = await verified(target, b, from_checkpoint=True)
        assert short.equal
        assert short.start_offset > 0
        _spoil(lives[0], "p3")
        spoilt, whole = await verified(target, a, b)
        assert [(d.twin_id, d.parts) for d in spoilt.differences] == [("p3", ("reported",))]
        assert spoilt.difference_count == 1
        assert whole.equal
        assert len(disagreeing_shards((spoilt, whole))) == 1


def _spoil(live: LiveFold, twin_id: str) -> None:
    """Change a replica behind the fold's back, as a defect would."""
    state = live.fold.state("default", twin_id)
    assert state is not None
    facts = state.replica.reported
    values = {channel: replace(value, value=-1.0) for channel, value in facts.values.items()}
    state.replica = replace(state.replica, reported=replace(facts, values=values))


@pytest.mark.parametrize("older", ["an older backup", pytest.param("no tables at all", marks=pytest.mark.slow)])
async def test_tables_restored_from_an_older_backup_lead_to_the_same_replicas(database_url: str, older: str) -> None:
    async with storage(database_url) as target:
        async with statesync(database_url, target, checkpoint_interval_s=0.1) as sync:
            await sync.make_type()
            for twin_id in TWINS:
                await sync.make_twin(twin_id)
                await sync.observe(twin_id, "temperature", [NOW], [1.0])
            await until(lambda: _saved(database_url))
            await _tables(database_url, "back up")
            for i, twin_id in enumerate(TWINS):
                await desire(sync, twin_id, float(i))
                await sync.observe(twin_id, "temperature", [NOW + 1 + i], [float(i)])
            before = (await verified(target, sync))[0]
        assert before.equal
        await _tables(database_url, "restore" if older == "an older backup" else "empty")
        async with statesync(database_url, target, checkpoint_interval_s=0.1) as again:
            after = (await verified(target, again))[0]
            assert after.equal
            short = (await verified(target, again, from_checkpoint=True))[0]
            assert short.equal
        if after.at == before.at:
            assert after.digest == before.digest


async def _saved(database_url: str) -> bool:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        row = await (await connection.execute("select log_offset from statesync.checkpoint_position")).fetchone()
        return row is not None and row[0] > len(TWINS)


async def _tables(database_url: str, what: str) -> None:
    """Copy state-sync's tables aside, put the copies back, or empty them: as a restore of its schema alone does."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        names = "select table_name from information_schema.tables where table_schema = 'statesync' order by 1"
        for (name,) in await (await connection.execute(names)).fetchall():
            if name in ("migrations", "worker", "lease"):
                continue
            table, copy = sql.Identifier("statesync", name), sql.Identifier("backup", name)
            if what == "back up":
                await connection.execute("create schema if not exists backup")
                await connection.execute(sql.SQL("create table {} as table {}").format(copy, table))
                continue
            await connection.execute(sql.SQL("delete from {}").format(table))
            if what == "restore":
                await connection.execute(
                    sql.SQL("insert into {} overriding system value select * from {}").format(table, copy)
                )
