"""A mesh in the test's own process: real gRPC, with faults at the moments a test chooses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status.rpc_status import to_status

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from twinmesh.statesync.v1 import statesync_pb2, statesync_pb2_grpc
from twinmesh_client.rpc_status import status_from_error
from twinmesh_core.errors import FailedPrecondition, Reason, TwinmeshError, Unavailable

SERVICE = "twinmesh.ingestion.v1.IngestionService"


@dataclass
class Producer:
    """What the fake has made durable of one producer."""

    last_sequence: int = 0
    epoch: int = 0
    points: dict[int, int] = field(default_factory=dict)
    values: dict[int, list[float]] = field(default_factory=dict)

    def all_values(self) -> list[float]:
        """What is stored, in the order of the sequences."""
        return [value for sequence in sorted(self.values) for value in self.values[sequence]]

    def restore(self, sequence: int) -> None:
        """Go back to what was there up to a sequence, as a backup does."""
        self.last_sequence = sequence
        for stored in (self.points, self.values):
            for later in [s for s in stored if s > sequence]:
                del stored[later]  # type: ignore[attr-defined]


class FakeIngestion:
    """Keeps producers as the real one does: dense sequences, the last one answered again, gaps refused."""

    def __init__(self) -> None:
        self.producers: dict[str, Producer] = {}
        self.deliveries: list[int] = []
        self.sessions = 0
        self.fault: Callable[[int], str | TwinmeshError | None] = lambda _sequence: None
        """Asked before each batch: None, an error to end with, ``lose`` (store, then break), or ``hang``."""
        self.poison: Callable[[list[float]], TwinmeshError | None] = lambda _values: None
        """Asked for each batch by its values: an error ends the session and moves no sequence."""
        self.acks_per_message = 1
        """Batches that one acknowledgement covers, where the producer asks for ranges."""
        self.acks_sent = 0
        self.lost_welcomes = 0
        """So many sessions are opened, and nobody hears of it."""
        self.knows_epochs = True
        """False = an older server, to which any session is the newest."""
        self.credits = (0, 0)
        """Points and bytes that the welcome grants; 0 = an older server, which says nothing of it."""
        self.refuse: TwinmeshError | None = None
        self.hold = asyncio.Event()
        self.hold.set()

    async def _raise_epoch(self, producer: Producer, last_epoch: int, context: Any) -> None:
        if self.knows_epochs and last_epoch and producer.epoch > last_epoch:
            await abort(context, FailedPrecondition("a newer session took over", reason=Reason.PRODUCER_FENCED))
        producer.epoch += 1
        if self.lost_welcomes:
            self.lost_welcomes -= 1
            await abort(context, Unavailable("the welcome was lost"))

    async def write_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.sessions += 1
        if self.refuse is not None:
            await abort(context, self.refuse)
        hello = ingestion_pb2.WriteStreamRequest.FromString(await anext(requests)).hello
        producer = self.producers.setdefault(hello.producer_id, Producer())
        await self._raise_epoch(producer, hello.last_epoch, context)
        yield ingestion_pb2.WriteStreamResponse(
            welcome=ingestion_pb2.ProducerWelcome(
                epoch=producer.epoch,
                last_sequence=producer.last_sequence,
                max_in_flight_points=self.credits[0],
                max_in_flight_bytes=self.credits[1],
            )
        ).SerializeToString()
        range_points, range_first = 0, 0
        async for data in requests:
            batch = ingestion_pb2.WriteStreamRequest.FromString(data).batch
            await self.hold.wait()
            self.deliveries.append(batch.sequence)
            fault = self.fault(batch.sequence)
            if isinstance(fault, TwinmeshError):
                await abort(context, fault)
            poisoned = self.poison(list(batch.batch.doubles.value))
            if poisoned is not None:
                await abort(context, poisoned)
            if fault == "hang":
                await asyncio.sleep(60)
            if batch.sequence > producer.last_sequence + 1:
                await abort(context, FailedPrecondition("a sequence was skipped", reason=Reason.SEQUENCE_GAP))
            replayed = batch.sequence <= producer.last_sequence
            points = len(batch.batch.doubles.value)
            producer.points[batch.sequence] = points
            if not replayed:
                producer.values[batch.sequence] = list(batch.batch.doubles.value)
            producer.last_sequence = max(producer.last_sequence, batch.sequence)
            if fault == "lose":
                await abort(context, Unavailable("the connection broke"))
            if hello.ack_ranges and not replayed and self.acks_per_message > 1:
                range_points, range_first = range_points + points, range_first or batch.sequence
                if batch.sequence % self.acks_per_message:
                    continue
                points, first = range_points, range_first
                range_points, range_first = 0, 0
            else:
                first = 0
            self.acks_sent += 1
            yield ingestion_pb2.WriteStreamResponse(
                ack=ingestion_pb2.ProducerAck(
                    sequence=batch.sequence,
                    first_sequence=first,
                    ack=ingestion_pb2.WriteAck(accepted_count=points, offset=batch.sequence, replayed=replayed),
                )
            ).SerializeToString()


async def abort(context: Any, error: TwinmeshError) -> None:
    status = to_status(status_from_error(error))
    await context.abort(status.code, status.details, status.trailing_metadata)


class FakeReplicas(statesync_pb2_grpc.ReplicaServiceServicer):
    """Plays one script of frames per Watch call; an error in a script ends the call with it."""

    def __init__(self) -> None:
        self.scripts: list[list[statesync_pb2.WatchResponse | TwinmeshError]] = []
        self.requests: list[statesync_pb2.WatchRequest] = []

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]  # noqa: N802
        self.requests.append(request)
        script = self.scripts.pop(0) if self.scripts else []
        for step in script:
            if isinstance(step, TwinmeshError):
                await abort(context, step)
            yield step
        await asyncio.sleep(60)


class Health(health_pb2_grpc.HealthServicer):
    """Always ready."""

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        await asyncio.sleep(60)


class FakeMesh(mesh_pb2_grpc.MeshServiceServicer):
    """One server that is every service of the mesh."""

    def __init__(self) -> None:
        self.ingestion = FakeIngestion()
        self.replicas = FakeReplicas()  # type: ignore[abstract]  # what no test calls is left to gRPC: UNIMPLEMENTED
        self.target = ""
        self.tokens = ("ingestion", "storage", "statesync", "training", "inference")

    async def GetMesh(self, request: Any, context: Any) -> mesh_pb2.GetMeshResponse:  # type: ignore[override]  # noqa: N802
        return mesh_pb2.GetMeshResponse(
            endpoints=[mesh_pb2.ServiceEndpoint(service=t, target=self.target) for t in self.tokens],
            version="0.0.test",
            mode="open",
        )


@asynccontextmanager
async def fake_mesh() -> AsyncIterator[FakeMesh]:
    """Serve a fake mesh on a free loopback port."""
    mesh = FakeMesh()
    server = grpc.aio.server()
    handler: Any = grpc.stream_stream_rpc_method_handler(mesh.ingestion.write_stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"WriteStream": handler}),))
    mesh_pb2_grpc.add_MeshServiceServicer_to_server(mesh, server)
    health_pb2_grpc.add_HealthServicer_to_server(Health(), server)
    statesync_pb2_grpc.add_ReplicaServiceServicer_to_server(mesh.replicas, server)
    mesh.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield mesh
    finally:
        await server.stop(0)
