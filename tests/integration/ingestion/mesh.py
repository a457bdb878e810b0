"""Ingestion on the real storage service, both in the test's process, and the short ways to talk to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
from tests.unit.ingestion.plant import PUMP

from twinmesh.ingestion.v1 import ingestion_pb2, ingestion_pb2_grpc
from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh.type.v1 import entry_pb2, twin_pb2
from twinmesh_client.registry_mapping import twin_type_to_message
from twinmesh_client.transport import call, open_channel, rpc_errors, tenant_metadata
from twinmesh_core import wire
from twinmesh_core.errors import Unavailable
from twinmesh_core.observations import ObservationBatch
from twinmesh_ingestion.main import compose as compose_ingestion
from twinmesh_ingestion.settings import IngestionSettings
from twinmesh_runtime.server import ServiceServer
from twinmesh_storage.main import compose as compose_storage
from twinmesh_storage.settings import StorageSettings
from twinmesh_testing.inprocess import serve, serve_server

TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Mesh:
    """Clients of one ingestion and of the storage below it."""

    target: str
    storage_target: str
    server: ServiceServer
    channel: grpc.aio.Channel
    ingestion: Any
    store: Any

    async def control(self, request_id: str, **action: Any) -> None:
        """Append a control entry as state-sync does."""
        entry = entry_pb2.ControlEntry(request_id=request_id, principal="test", **action)
        await self.ask(self.store.Append, storage_pb2.AppendRequest(control=entry, request_id=request_id))

    async def make_plant(self, *twins: str) -> None:
        """Create the pump type and twins of it."""
        made = entry_pb2.CreateTwinTypeEntry(twin_type=twin_type_to_message(PUMP))
        await self.control("type", create_twin_type=made)
        for twin in twins:
            await self.make_twin(twin)

    async def make_twin(self, twin: str) -> None:
        made = entry_pb2.CreateTwinEntry(twin=twin_pb2.Twin(twin_id=twin, twin_type_id="pump"))
        await self.control(f"twin-{twin}", create_twin=made)

    async def ask(self, method: Any, request: Any, timeout_s: float = TIMEOUT_S) -> Any:
        return await call(method, request, timeout_s=timeout_s, metadata=tenant_metadata("default"))

    async def write(self, **fields: Any) -> ingestion_pb2.WriteAck:
        answer = await self.ask(self.ingestion.Write, ingestion_pb2.WriteRequest(**fields))
        return answer.ack

    async def write_bytes(self, data: bytes, method: str = "Write") -> bytes:
        """Call the method with bytes of our own making."""
        raw: Any = self.channel.unary_unary(f"/twinmesh.ingestion.v1.IngestionService/{method}")
        with rpc_errors():
            answer: bytes = await raw(data, timeout=TIMEOUT_S)
        return answer

    async def statistics(self) -> storage_pb2.GetStatisticsResponse:
        while True:  # the test's own time limit ends it
            try:
                return await self.ask(self.store.GetStatistics, storage_pb2.GetStatisticsRequest())
            except Unavailable:
                await asyncio.sleep(0.1)  # storage was killed a moment ago, and this channel has not noticed its return

    async def quarantine(self) -> list[storage_pb2.QuarantinedRow]:
        answer = await self.ask(self.store.ListQuarantine, storage_pb2.ListQuarantineRequest(page_size=1_000))
        return list(answer.rows)


class Session:
    """A producer session by hand."""

    def __init__(self, mesh: Mesh, producer_id: str = "edge-1", **hello: Any) -> None:
        self.call = mesh.ingestion.WriteStream()
        self._hello = hello
        self._producer_id = producer_id

    async def open(self) -> ingestion_pb2.ProducerWelcome:
        hello = ingestion_pb2.ProducerHello(producer_id=self._producer_id, **self._hello)
        with rpc_errors():
            await self.call.write(ingestion_pb2.WriteStreamRequest(hello=hello))
            return (await self._next()).welcome

    async def send(self, sequence: int, batch: ObservationBatch, *, backfill: bool = False) -> None:
        message = ingestion_pb2.ProducerBatch(sequence=sequence, backfill=backfill)
        message.batch.MergeFromString(wire.encode(batch))
        with rpc_errors():
            await self.call.write(ingestion_pb2.WriteStreamRequest(batch=message))

    async def send_message(self, message: ingestion_pb2.ProducerBatch) -> None:
        with rpc_errors():
            await self.call.write(ingestion_pb2.WriteStreamRequest(batch=message))

    async def ack(self) -> ingestion_pb2.ProducerAck:
        with rpc_errors():
            return (await self._next()).ack

    async def end(self) -> None:
        """Say that no more comes, and wait for the end."""
        with rpc_errors():
            await self.call.done_writing()
            assert await self.call.read() is grpc.aio.EOF

    async def _next(self) -> ingestion_pb2.WriteStreamResponse:
        answer = await self.call.read()
        if answer is grpc.aio.EOF:
            await self.call.read()  # raises what ended the stream
            raise AssertionError("the stream ended in peace")
        return answer


@asynccontextmanager
async def ingestion(storage_target: str, **settings: Any) -> AsyncIterator[Mesh]:
    """Run ingestion on a storage that listens already."""
    async with AsyncExitStack() as stack:
        chosen = IngestionSettings(port=0, metrics_port=0, mesh_storage=storage_target, **settings)
        service = await compose_ingestion(chosen, stack)
        server, target = await stack.enter_async_context(serve_server(service, token="ingestion", settings=chosen))
        channel = await stack.enter_async_context(open_channel(target))
        below = await stack.enter_async_context(open_channel(storage_target))
        yield Mesh(
            target=target,
            storage_target=storage_target,
            server=server,
            channel=channel,
            ingestion=ingestion_pb2_grpc.IngestionServiceStub(channel),
            store=storage_pb2_grpc.StorageServiceStub(below),
        )


@asynccontextmanager
async def mesh(database_url: str, **settings: Any) -> AsyncIterator[Mesh]:
    """Run storage and ingestion."""
    async with AsyncExitStack() as stack:
        chosen = StorageSettings(port=0, metrics_port=0, database_url=database_url)
        service = await compose_storage(chosen, stack)
        target = await stack.enter_async_context(serve(service, token="storage", settings=chosen))
        yield await stack.enter_async_context(ingestion(target, **settings))
