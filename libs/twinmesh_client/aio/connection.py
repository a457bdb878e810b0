"""One mesh as a client sees it: dial one endpoint, find the others, one channel for each service."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import grpc.aio

from twinmesh.inference.v1 import inference_pb2_grpc
from twinmesh.ingestion.v1 import ingestion_pb2_grpc
from twinmesh.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from twinmesh.statesync.v1 import statesync_pb2_grpc
from twinmesh.storage.v1 import storage_pb2_grpc
from twinmesh.training.v1 import training_pb2_grpc
from twinmesh_client.packed_reads import PackedReads
from twinmesh_client.transport import call, open_channel
from twinmesh_core.errors import DeadlineExceeded, Unavailable

SERVICES: Final = ("ingestion", "storage", "statesync", "training", "inference")
DISCOVERY_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """A mesh as one of its services tells it: targets by service token, that service's version, the mesh's mode."""

    endpoints: Mapping[str, str]
    version: str
    mode: str


class Connection:
    """Channels and stubs of one mesh; made by `open_connection`.

    Attributes:
        endpoints: target of each service by token.
        timeout_s: deadline of each call that is not told otherwise.
        version: of the service that was dialled.
        mode: how callers are identified, ``open`` or ``secured``.
    """

    def __init__(self, found: Discovery, channels: dict[str, grpc.aio.Channel], timeout_s: float) -> None:
        self.endpoints = dict(found.endpoints)
        self.version = found.version
        self.mode = found.mode
        self.channels = channels
        self.timeout_s = timeout_s
        self.ingestion = ingestion_pb2_grpc.IngestionServiceStub(channels["ingestion"])
        self.storage = storage_pb2_grpc.StorageServiceStub(channels["storage"])
        self.packed = PackedReads(channels["storage"])
        self.twins = statesync_pb2_grpc.TwinServiceStub(channels["statesync"])
        self.replicas = statesync_pb2_grpc.ReplicaServiceStub(channels["statesync"])
        self.commands = statesync_pb2_grpc.CommandServiceStub(channels["statesync"])
        self.events = statesync_pb2_grpc.EventServiceStub(channels["statesync"])
        self.alarms = statesync_pb2_grpc.AlarmServiceStub(channels["statesync"])
        self.subscriptions = statesync_pb2_grpc.SubscriptionServiceStub(channels["statesync"])
        self.training = training_pb2_grpc.TrainingServiceStub(channels["training"])
        self.models = training_pb2_grpc.ModelServiceStub(channels["training"])
        self.inference = inference_pb2_grpc.InferenceServiceStub(channels["inference"])


@asynccontextmanager
async def open_connection(target: str, *, timeout_s: float) -> AsyncIterator[Connection]:
    """Dial `target` (any service of the mesh), find the others, and close everything at the end.

    Raises:
        Unavailable: nothing answers there; the message says how to start a mesh.
    """
    async with AsyncExitStack() as stack:
        found = await discover(target)
        channels = {s: await stack.enter_async_context(open_channel(found.endpoints[s])) for s in SERVICES}
        yield Connection(found, channels, timeout_s)


async def discover(target: str) -> Discovery:
    """Return the mesh that `target` belongs to; raises `Unavailable`."""
    async with open_channel(target) as channel:
        stub = mesh_pb2_grpc.MeshServiceStub(channel)
        try:
            answer = await call(stub.GetMesh, mesh_pb2.GetMeshRequest(), timeout_s=DISCOVERY_TIMEOUT_S)
        except (Unavailable, DeadlineExceeded) as error:
            raise Unavailable(
                f"No mesh answers at {target}. Start one with `twinmesh up`, or say where it is: "
                "connect('host:7400'), or `twinmesh --target host:7400 ...`.",
                metadata={"target": target},
            ) from error
    endpoints = {e.service: e.target for e in answer.endpoints}
    missing = [s for s in SERVICES if s not in endpoints]
    if missing:
        raise Unavailable(
            f"The mesh at {target} does not say where its {', '.join(missing)} service is; "
            "set TWINMESH_MESH_* on its services."
        )
    return Discovery(endpoints=endpoints, version=answer.version, mode=answer.mode)


def new_request_id() -> str:
    """Return a fresh idempotency key."""
    return str(uuid.uuid4())
