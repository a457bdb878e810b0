"""Killed with -9, and its watchers far behind what memory holds afterwards: all of them are told all of it."""

import asyncio
import signal
import time

import numpy as np
import pytest
from tests.integration.statesync.mesh import TIMEOUT_S, StateSync, storage
from tests.integration.statesync.test_killed import Process, once_ready, process
from tests.unit.statesync.checker import WatchChecker

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2, position_pb2
from twinmesh_client.transport import call, tenant_metadata
from twinmesh_core import wire
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section

NOW = time.time_ns() // 1_000
TWINS = 50
WATCHERS = 20
MEMORY = {"TWINMESH_STATESYNC_RING_BYTES": str(1024 * 1024), "TWINMESH_STATESYNC_RING_CHANGES": "1000"}
"""Holds some thousand changes: far less than are missed."""


async def keys(sync: StateSync) -> tuple[SeriesKey, ...]:
    gauge, names = observation_pb2.CHANNEL_KIND_GAUGE, [f"t{i}" for i in range(TWINS)]
    asked = storage_pb2.ResolveSeriesRequest(
        series=[observation_pb2.SeriesKey(twin_id=t, channel="temperature", unit="Cel", kind=gauge) for t in names]
    )
    found = await call(sync.store.ResolveSeries, asked, timeout_s=TIMEOUT_S, metadata=tenant_metadata("default"))
    return tuple(
        SeriesKey(twin_id=t, channel="temperature", unit="Cel", kind=ChannelKind.GAUGE, series_id=series_id)
        for t, series_id in zip(names, found.series_id, strict=True)
    )


async def report(sync: StateSync, series: tuple[SeriesKey, ...], number: int) -> int:
    """Append an entry with one value of each twin."""
    section = double_section(np.arange(TWINS), np.full(TWINS, NOW + number), np.full(TWINS, number), np.ones(TWINS))
    request = storage_pb2.AppendRequest(observations=wire.encode(ObservationBatch(series=series, doubles=section)))
    answer = await call(sync.store.Append, request, timeout_s=TIMEOUT_S, metadata=tenant_metadata("default"))
    return int(answer.position.offset)


async def resumed(sync: StateSync, checker: WatchChecker, incarnation: str, until: int) -> float:
    """Resume a watch and check it up to an offset; returns the seconds it took."""
    started = time.perf_counter()
    after = position_pb2.LogPosition(incarnation=incarnation, offset=checker.through)
    async with sync.watch(statesync_pb2.WatchRequest(resume_after=after)) as frames, asyncio.timeout(60):
        while checker.through < until:
            checker.take(await anext(frames))
    return time.perf_counter() - started


async def snapshot(sync: StateSync) -> tuple[WatchChecker, str]:
    checker = WatchChecker()
    async with sync.watch(statesync_pb2.WatchRequest()) as frames:
        while not checker.synced:
            frame = await anext(frames)
            checker.take(frame)
    return checker, frame.through.incarnation


@pytest.mark.slow
@pytest.mark.faults
async def test_after_a_kill_a_storm_of_watchers_far_behind_memory_misses_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**MEMORY, "TWINMESH_STATESYNC_GENERATION_INTERVAL_S": "0.5"}.items():
        monkeypatch.setenv(name, value)
    running: Process
    async with storage(database_url) as target, process(database_url, target) as (running, sync):
        await once_ready(sync)
        await sync.make_type()
        for i in range(TWINS):
            await sync.make_twin(f"t{i}")
        series = await keys(sync)
        early, incarnation = await snapshot(sync)
        for number in range(40):
            last = await report(sync, series, number)
        await sync.replica("t0", last)
        await asyncio.sleep(0.5)  # a checkpoint lies between the watchers and the kill
        late, _ = await snapshot(sync)
        await running.end(signal.SIGKILL)
        for number in range(40, 80):
            last = await report(sync, series, number)
        await running.start()
        await once_ready(sync)
        checkers = [(early if i % 2 else late).copy() for i in range(WATCHERS)]
        async with asyncio.TaskGroup() as group:
            for checker in checkers:
                group.create_task(resumed(sync, checker, incarnation, last))
        expected = {f"t{i}": (await sync.replica(f"t{i}")).reported for i in range(TWINS)}
        for checker in checkers:
            assert {twin_id: model.reported for twin_id, model in checker.model.items()} == expected
