"""What the tests of connectors share: a broker, the mesh behind a producer session, and its read-back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from tests.integration.connectors.mosquitto import Mosquitto
from tests.integration.ingestion.mesh import Mesh, mesh
from tests.integration.storage.mesh import collect

from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.aio.writer import Writer
from twinmesh_client.transport import tenant_metadata
from twinmesh_connectors.connector import Connector
from twinmesh_connectors.runner import Runner


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    directory = tmp_path / "mosquitto"
    directory.mkdir()
    made = Mosquitto(directory)
    made.start()
    yield made
    made.stop()


@pytest.fixture
async def plant(database_url: str) -> AsyncIterator[Mesh]:
    async with mesh(database_url) as running:
        await running.make_plant("P1", "P2")
        yield running


@asynccontextmanager
async def running(
    connector: Connector, channel: grpc.aio.Channel, producer: str = "connector"
) -> AsyncIterator[Runner]:
    """Run a connector until the block is left; its restarts come quickly."""

    def open_writer(on_ack: Any) -> Writer:
        return Writer(channel, producer, on_ack=on_ack)

    runner = Runner(connector, open_writer, first_pause_s=0.1, longest_pause_s=0.5, grace_s=3.0)
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        runner.stop()
        await task


async def history(plant: Mesh, *channels: str, twin: str = "P1") -> dict[str, list[tuple[int, Any, int]]]:
    """Return (time, value, quality) of everything stored, by channel; channels never written are absent."""
    found: dict[str, list[tuple[int, Any, int]]] = {}
    head = await plant.ask(plant.store.GetHead, storage_pb2.GetHeadRequest())
    catalogue = await plant.ask(plant.store.ListSeries, storage_pb2.ListSeriesRequest(twin_id=twin))
    known = {s.key.channel for s in catalogue.series}
    request = storage_pb2.ReadRangeRequest(
        series=[storage_pb2.SeriesSelector(twin_id=twin, channel=c) for c in channels if c in known],
        min_offset=head.position.offset,
    )
    if not request.series:
        return found
    answers = plant.store.ReadRange(request, timeout=20, metadata=tenant_metadata("default"))
    async for answer in answers:
        collect(answer.batch, found)
    return {name.partition("/")[2]: rows for name, rows in found.items()}


async def until(what: Callable[[], Any], timeout_s: float = 25.0) -> Any:
    """Ask again until the answer is true; returns it."""
    async with asyncio.timeout(timeout_s):
        while True:
            answer = what()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(0.05)
