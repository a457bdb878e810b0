"""The process killed with -9 under a watch: the next one tells the rest without a gap, and keeps every verdict."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from tests.integration.statesync.mesh import TIMEOUT_S, StateSync, connect, storage
from tests.unit.statesync.checker import WatchChecker

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import observation_pb2, position_pb2
from twinmesh_client.transport import call
from twinmesh_core.errors import TwinmeshError

NOW = time.time_ns() // 1_000


class Process:
    """State-sync in a process of its own, always at the same port."""

    def __init__(self, database_url: str, storage_target: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._environ = {
            **os.environ,
            "TWINMESH_STATESYNC_DATABASE_URL": database_url,
            "TWINMESH_STATESYNC_PORT": str(self.port),
            "TWINMESH_STATESYNC_CHECKPOINT_INTERVAL_S": "0.2",
            "TWINMESH_MESH_STORAGE": storage_target,
        }
        self._running: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._running = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "twinmesh_statesync", env=self._environ, stderr=asyncio.subprocess.DEVNULL
        )

    async def end(self, how: signal.Signals) -> int:
        assert self._running is not None
        self._running.send_signal(how)
        return await asyncio.wait_for(self._running.wait(), 15)


@asynccontextmanager
async def process(database_url: str, storage_target: str) -> AsyncIterator[tuple[Process, StateSync]]:
    async with AsyncExitStack() as stack:
        running = Process(database_url, storage_target)
        await running.start()
        try:
            yield running, await connect(stack, f"127.0.0.1:{running.port}", storage_target)
        finally:
            await running.end(signal.SIGTERM)


async def once_ready(sync: StateSync) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                await call(sync.twins.ListTwins, statesync_pb2.ListTwinsRequest(), timeout_s=TIMEOUT_S)
                return
            except TwinmeshError:
                await asyncio.sleep(0.1)


@pytest.mark.faults
async def test_killed_under_a_watch_and_resumed_without_a_gap(database_url: str) -> None:
    async with storage(database_url) as target, process(database_url, target) as (running, sync):
        await once_ready(sync)
        await sync.make_type()
        await sync.make_twin("p1")
        desire = statesync_pb2.SetDesiredRequest(
            twin_id="p1", values={"speed": observation_pb2.Value(double_value=5.0)}, request_id="once"
        )
        first = await call(sync.replicas.SetDesired, desire, timeout_s=TIMEOUT_S)
        await asyncio.sleep(0.5)  # a checkpoint lies behind what follows
        checker = WatchChecker()
        async with sync.watch(statesync_pb2.WatchRequest()) as frames:
            while not checker.synced:
                checker.take(await anext(frames))
            for i in range(10):
                await sync.observe("p1", "temperature", [NOW + i], [float(i)])
            checker.take(await anext(frames))
            await running.end(signal.SIGKILL)
        last = await sync.observe("p1", "temperature", [NOW + 100], [100.0])
        await running.start()
        await once_ready(sync)
        resume = position_pb2.LogPosition(offset=checker.through)
        async with sync.watch(statesync_pb2.WatchRequest(resume_after=resume)) as frames, asyncio.timeout(10):
            while checker.through < last:
                checker.take(await anext(frames))
        assert checker.model["p1"].reported == (await sync.replica("p1", last)).reported
        again = await call(sync.replicas.SetDesired, desire, timeout_s=TIMEOUT_S)
        assert again.position == first.position
        assert [c.command_id for c in again.commands] == [c.command_id for c in first.commands]
        assert (await sync.replica("p1")).desired.revision == 1
