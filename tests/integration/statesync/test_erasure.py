"""A twin is erased in storage: state-sync's replicas, watchers, events, checkpoint and rebuilds know nothing of it."""

import asyncio
import time
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.integration.statesync.mesh import TIMEOUT_S, StateSync, statesync, storage
from tests.integration.statesync.test_restarts import fold_from_the_beginning
from tests.unit.statesync.checker import WatchChecker

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import event_pb2, observation_pb2, prediction_pb2
from twinmesh_client.transport import call, tenant_metadata
from twinmesh_core.errors import NotFound
from twinmesh_runtime.postgres import open_pool
from twinmesh_statesync.adapters.postgres import PostgresCheckpoints
from twinmesh_statesync.domain.checkpoint import Checkpoint, digest, restore

NOW = time.time_ns() // 1_000
SECRET = "lives_in_room_12"
NUMBER = 36.69921875


async def tell(sync: StateSync, twin_id: str) -> None:
    """Write a fact, a target, a prediction, an event and a refused target, all with the canaries in them."""
    await sync.observe(twin_id, "temperature", [NOW], [NUMBER])
    target = statesync_pb2.SetDesiredRequest(
        twin_id=twin_id, values={"target": observation_pb2.Value(double_value=NUMBER)}
    )
    await call(sync.replicas.SetDesired, target, timeout_s=TIMEOUT_S)
    # The verdict on this one is remembered too, and names what was asked for.
    refused = statesync_pb2.SetDesiredRequest(twin_id=twin_id, remove=[SECRET])
    with pytest.raises(NotFound, match=SECRET):
        await call(sync.replicas.SetDesired, refused, timeout_s=TIMEOUT_S)
    prediction = prediction_pb2.Prediction(
        channel="temperature",
        model_id="m",
        model_version=1,
        at=Timestamp(seconds=NOW // 1_000_000),
        quantile_levels=[0.5],
        values=[NUMBER],
        unit="Cel",
        step_us=1_000_000,
    )
    prediction.valid_until.FromSeconds(NOW // 1_000_000 + 60)
    asked = statesync_pb2.RecordPredictionRequest(twin_id=twin_id, prediction=prediction)
    await call(sync.replicas.RecordPrediction, asked, timeout_s=TIMEOUT_S)
    event = event_pb2.Event(
        twin_id=twin_id,
        kind=event_pb2.EVENT_KIND_NOTE,
        message=SECRET,
        start_time=Timestamp(seconds=NOW // 1_000_000),
    )
    await call(sync.events.RecordEvent, statesync_pb2.RecordEventRequest(event=event), timeout_s=TIMEOUT_S)


async def erase(sync: StateSync, twin_id: str) -> int:
    """Have storage erase a twin; returns the offset of its entry once the job is over."""
    request = storage_pb2.EraseTwinRequest(request_id=f"forget {twin_id}", twin_id=twin_id)
    own = tenant_metadata("default")
    begun = await call(sync.store.EraseTwin, request, timeout_s=TIMEOUT_S, metadata=own)
    async with asyncio.timeout(20):
        while True:
            asked = storage_pb2.GetErasureRequest(erasure_id=begun.erasure.erasure_id)
            now = await call(sync.store.GetErasure, asked, timeout_s=TIMEOUT_S, metadata=own)
            if now.erasure.state != storage_pb2.ERASURE_STATE_RUNNING:
                assert now.erasure.state == storage_pb2.ERASURE_STATE_SUCCEEDED, now.erasure.message
                return int(now.erasure.offset)
            await asyncio.sleep(0.05)


async def checkpoint(database_url: str, offset: int) -> Checkpoint:
    """Return the first checkpoint that reaches an offset."""
    async with open_pool(database_url, min_size=1, max_size=1, schema="statesync") as pool, asyncio.timeout(20):
        while True:
            kept = await PostgresCheckpoints(pool).load()
            if kept is not None and kept.position.offset >= offset:
                return kept
            await asyncio.sleep(0.05)


def texts(kept: Checkpoint) -> str:
    return "".join(record.body or "" for record in kept.records)


async def generations(database_url: str) -> list[int]:
    """Return the offsets to which the checkpoint can be taken back; no row is kept for another."""
    async with open_pool(database_url, min_size=1, max_size=1, schema="statesync") as pool:
        offsets = [generation.offset for generation in await PostgresCheckpoints(pool).generations()]
        async with pool.connection() as conn:
            rows = await (await conn.execute("select since_offset, until_offset from checkpoint_superseded")).fetchall()
    assert all(any(since <= offset < until for offset in offsets) for since, until in rows)
    return offsets


async def test_an_erased_twin_is_gone_from_replicas_watches_checkpoints_and_rebuilds(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target, checkpoint_interval_s=0.2) as sync:
        await sync.make_type()
        await sync.make_twin("patient")
        await sync.make_twin("bed")
        checker = WatchChecker()
        async with sync.watch(statesync_pb2.WatchRequest()) as frames:
            while not checker.synced:
                checker.take(await anext(frames))
            before = checker.through
            await tell(sync, "patient")
            await tell(sync, "bed")
            told_at = (await sync.replica("bed")).offset
            assert SECRET in texts(await checkpoint(database_url, told_at))
            assert await generations(database_url)
            offset = await erase(sync, "patient")
            async with asyncio.timeout(10):
                while checker.through < offset:
                    checker.take(await anext(frames))
        told: Any = checker.model["patient"]
        assert (list(told.reported.values), list(told.desired.values), list(told.predicted.predictions)) == ([], [], [])
        assert checker.model["bed"].reported.values[0].value.double_value == NUMBER
        assert (await sync.replica("patient", offset)) == told
        listed = {
            twin: await call(sync.events.ListEvents, statesync_pb2.ListEventsRequest(twin_id=twin), timeout_s=TIMEOUT_S)
            for twin in ("patient", "bed")
        }
        assert [len(listed[twin].events) for twin in ("patient", "bed")] == [0, 1]
        # Whoever resumes from before is told the same, and nothing of what it was.
        late = statesync_pb2.WatchRequest(twin_ids=["patient"])
        late.resume_after.offset = before
        async with sync.watch(late) as frames, asyncio.timeout(10):
            through = 0
            while through < offset:
                frame = await anext(frames)
                through = frame.through.offset
                assert SECRET.encode() not in frame.SerializeToString()
                assert all(not event.HasField("reported") for event in frame.events)
        kept = await checkpoint(database_url, offset)
        state = restore(kept).state("default", "patient")
        assert state is not None
        assert (state.replica.reported.values, state.events, state.erase_offset) == ({}, {}, offset)
        assert digest(restore(kept)) == digest(await fold_from_the_beginning(target, kept.position.offset))
        assert min(await generations(database_url), default=offset) >= offset
        # With the other one gone too, no byte of either is left in it.
        assert SECRET in texts(kept)
        assert str(NUMBER) in texts(kept)
        kept = await checkpoint(database_url, await erase(sync, "bed"))
        assert SECRET not in texts(kept)
        assert str(NUMBER) not in texts(kept)
        assert digest(restore(kept)) == digest(await fold_from_the_beginning(target, kept.position.offset))
