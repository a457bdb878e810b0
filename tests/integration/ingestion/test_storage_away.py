"""Storage killed while batches are on their way: each acknowledged point is there once, nobody fell over."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from tests.integration.ingestion.mesh import Session, ingestion
from tests.unit.ingestion.plant import S, gauges

from twinmesh.type.v1 import observation_pb2 as pb
from twinmesh_core import wire
from twinmesh_core.errors import Unavailable

ROWS = 2_000


class StorageProcess:
    """``python -m twinmesh_storage`` on a port of its own, to be killed and started again."""

    def __init__(self, database_url: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._environment = {
            **os.environ,
            "TWINMESH_STORAGE_DATABASE_URL": database_url,
            "TWINMESH_STORAGE_PORT": str(self.port),
            "TWINMESH_STORAGE_METRICS_PORT": "0",
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "twinmesh_storage", env=self._environment,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            await asyncio.sleep(0.1)
        raise AssertionError("storage does not listen")

    async def kill(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()


@asynccontextmanager
async def storage_process(database_url: str) -> AsyncIterator[StorageProcess]:
    process = StorageProcess(database_url)
    await process.start()
    try:
        yield process
    finally:
        await process.kill()


def rows(n: int):
    """Batch n of an endless run: its values count on, its times do not overlap."""
    start = time.time_ns() // 1_000 // S * S - 40 * 86_400 * S + n * ROWS * S
    return gauges("temperature", np.full(ROWS, 20.0) + n / 1000, start=start)


def message(of):
    return pb.ObservationBatch.FromString(wire.encode(of))


@pytest.mark.faults
@pytest.mark.slow
async def test_killed_storage_loses_and_repeats_nothing(database_url):
    async with storage_process(database_url) as store, ingestion(f"127.0.0.1:{store.port}") as m:
        await m.make_plant("P1")
        session = Session(m)
        await session.open()
        total = 60
        batches = [rows(n) for n in range(1, total + 1)]

        async def send():
            for n, batch in enumerate(batches, start=1):
                await session.send(n, batch)
                await asyncio.sleep(0.02)

        async def receive():
            return [await session.ack() for _ in range(total)]

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            receiving = group.create_task(receive())
            for _ in range(2):
                await asyncio.sleep(0.5)
                await store.kill()
                await asyncio.sleep(0.3)
                await store.start()
        acks = receiving.result()
        assert [a.sequence for a in acks] == list(range(1, total + 1))
        assert sum(a.ack.accepted_count for a in acks) == total * ROWS
        statistics = await m.statistics()
        assert statistics.landed_point_count == total * ROWS
        assert statistics.point_count == total * ROWS
        # The registry's follower is back as well: what is created now is known to the next write.
        await m.make_twin("late")
        ack = await m.write(batch=message(gauges("temperature", [1.0], twin="late", start=time.time_ns() // 1_000)))
        assert ack.accepted_count == 1


@pytest.mark.faults
async def test_a_write_fails_typed_when_storage_stays_away_and_works_when_it_is_back(database_url):
    async with (
        storage_process(database_url) as store,
        ingestion(f"127.0.0.1:{store.port}", storage_patience_s=1.0, append_timeout_s=0.5) as m,
    ):
        await m.make_plant("P1")
        batch = message(rows(1))
        assert (await m.write(batch=batch, request_id="a")).accepted_count == ROWS
        await store.kill()
        with pytest.raises(Unavailable):
            await m.write(batch=message(rows(2)), request_id="b")
        await store.start()
        again = None
        while again is None:
            try:
                again = await m.write(batch=message(rows(2)), request_id="b")
            except Unavailable:
                await asyncio.sleep(0.1)  # as a client does, under the same request_id
        assert again.accepted_count == ROWS
        assert (await m.statistics()).landed_point_count == 2 * ROWS
