"""The log restored from an older copy of its database: revisions go on, watchers are told to begin anew."""

import asyncio
import time
from contextlib import aclosing

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tests.integration.statesync.mesh import StateSync, statesync, storage
from tests.integration.statesync.test_restarts import fold_from_the_beginning
from tests.unit.statesync.checker import WatchChecker, normal

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import error_pb2, position_pb2
from twinmesh_client.transport import stream
from twinmesh_core.errors import FailedPrecondition
from twinmesh_statesync.rpc.mapping.replicas import replica_to_message

NOW = time.time_ns() // 1_000
OFTEN = {"checkpoint_interval_s": 0.1, "generation_interval_s": 0.1}


async def database(url: str, name: str, *, like: str = "") -> str:
    """Create another database on the same server, empty or as a copy; return its URL."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as conn:
        template = sql.SQL("TEMPLATE {}").format(sql.Identifier(like)) if like else sql.SQL("")
        await conn.execute(sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), template))
    return make_conninfo(url, dbname=name)


async def report(sync: StateSync, values: range, sign: float = 1.0) -> int:
    offset = 0
    for i in values:
        offset = await sync.observe("p1", "temperature", [NOW + i], [sign * i])
        await asyncio.sleep(0.05)
    return offset


async def first_life(sync: StateSync, checker: WatchChecker) -> position_pb2.LogPosition:
    """Report some more under a watch; returns the position that the watch was told."""
    async with sync.watch(statesync_pb2.WatchRequest()) as frames, asyncio.timeout(20):
        last = await report(sync, range(10, 20))
        position = position_pb2.LogPosition()
        while checker.through < last:
            frame = await anext(frames)
            checker.take(frame)
            position.CopyFrom(frame.through)
    return position


async def test_a_restored_log_keeps_revisions_and_resets_every_watcher(database_url: str) -> None:
    name = conninfo_to_dict(database_url)["dbname"]
    assert isinstance(name, str)
    # State-sync's own tables are not restored: they are ahead of the log afterwards.
    ours = await database(database_url, f"{name}_ours")
    async with storage(database_url) as target, statesync(ours, target, **OFTEN) as sync:
        await sync.make_type()
        await sync.make_twin("p1")
        await report(sync, range(10))
        await asyncio.sleep(0.5)
    copy = await database(database_url, f"{name}_copy", like=name)
    checker = WatchChecker()
    async with storage(database_url) as target, statesync(ours, target, **OFTEN) as sync:
        told = await first_life(sync, checker)
        before = await sync.replica("p1")
    async with await psycopg.AsyncConnection.connect(copy, autocommit=True) as conn:
        await conn.execute("SELECT storage.renew_incarnation()")
    async with storage(copy) as target, statesync(ours, target, **OFTEN) as sync:
        last = await sync.observe("p1", "temperature", [NOW + 1_000], [-1.0])
        replica = await sync.replica("p1", last)
        assert 10 < replica.revision < before.revision
        fold = await fold_from_the_beginning(target, replica.offset)
        state = fold.state("default", "p1")
        assert state is not None
        assert normal(replica_to_message(state.twin, state.replica)) == normal(replica)
        failing = statesync_pb2.WatchRequest(resume_after=told)
        async with aclosing(stream(sync.replicas.Watch, failing, timeout_s=10)) as frames:
            with pytest.raises(FailedPrecondition) as refused:
                await anext(frames)
            assert refused.value.reason == "LOG_REWOUND"
        resetting = statesync_pb2.WatchRequest(resume_after=told, when_lost=statesync_pb2.WATCH_LOSS_RESNAPSHOT)
        fresh = WatchChecker()
        async with sync.watch(resetting) as frames, asyncio.timeout(10):
            reset = (await anext(frames)).events[0]
            assert reset.kind == statesync_pb2.WATCH_EVENT_KIND_RESET
            assert reset.reset_reason == error_pb2.ERROR_REASON_LOG_REWOUND
            while not fresh.synced:
                fresh.take(await anext(frames))
        assert normal(fresh.model["p1"]) == normal(await sync.replica("p1"))
