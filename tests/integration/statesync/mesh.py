"""State-sync and the storage service it stands on, both real, in the test's process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.statesync.v1.statesync_pb2_grpc import (
    AlarmServiceStub,
    CommandServiceStub,
    EventServiceStub,
    ReplicaServiceStub,
    SubscriptionServiceStub,
    TwinServiceStub,
)
from twinmesh.storage.v1 import storage_pb2
from twinmesh.storage.v1.storage_pb2_grpc import StorageServiceStub
from twinmesh.type.v1 import observation_pb2, twin_pb2
from twinmesh_client.transport import call, open_channel, stream, tenant_metadata
from twinmesh_core import wire
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section
from twinmesh_runtime.server import ServiceServer
from twinmesh_statesync.main import compose as compose_statesync
from twinmesh_statesync.settings import StatesyncSettings
from twinmesh_storage.main import compose as compose_storage
from twinmesh_storage.settings import StorageSettings
from twinmesh_testing.inprocess import serve, serve_server

TIMEOUT_S = 10.0


@dataclass
class StateSync:
    """Typed access to one state-sync and to the log below it."""

    target: str
    server: Any
    twins: Any
    replicas: Any
    commands: Any
    events: Any
    alarms: Any
    subscriptions: Any
    store: Any

    async def make_type(self) -> None:
        twin_type = twin_pb2.TwinType(
            twin_type_id="pump",
            version=1,
            channels=[
                twin_pb2.ChannelSpec(name="temperature", kind=observation_pb2.CHANNEL_KIND_GAUGE, unit="Cel"),
                twin_pb2.ChannelSpec(
                    name="speed",
                    kind=observation_pb2.CHANNEL_KIND_GAUGE,
                    min_value=0,
                    max_value=100,
                    tolerance=0.5,
                    controllable=True,
                    set_command="set_speed",
                ),
                twin_pb2.ChannelSpec(name="target", kind=observation_pb2.CHANNEL_KIND_GAUGE, controllable=True),
            ],
            commands=[
                twin_pb2.CommandSpec(name="set_speed", required_args=["value"]),
                twin_pb2.CommandSpec(name="stop"),
            ],
        )
        await call(
            self.twins.CreateTwinType, statesync_pb2.CreateTwinTypeRequest(twin_type=twin_type), timeout_s=TIMEOUT_S
        )

    async def make_lively_type(self) -> None:
        """Create a type whose twins are expected every second, and so are STALE after five."""
        beat = twin_pb2.ChannelSpec(name="temperature", kind=observation_pb2.CHANNEL_KIND_GAUGE, unit="Cel")
        beat.expected_interval.seconds = 1
        request = statesync_pb2.CreateTwinTypeRequest(
            twin_type=twin_pb2.TwinType(twin_type_id="pump", version=1, channels=[beat])
        )
        await call(self.twins.CreateTwinType, request, timeout_s=TIMEOUT_S)

    async def make_twin(self, twin_id: str, **more: Any) -> statesync_pb2.CreateTwinResponse:
        request = statesync_pb2.CreateTwinRequest(twin=twin_pb2.Twin(twin_id=twin_id, twin_type_id="pump"), **more)
        return await call(self.twins.CreateTwin, request, timeout_s=TIMEOUT_S)

    async def observe(
        self, twin_id: str, channel: str, times: Sequence[int], values: Sequence[float], quality: int = 1
    ) -> int:
        """Append as ingestion would; returns the offset."""
        unit = "Cel" if channel in ("temperature", "oil") else "1"
        key = SeriesKey(twin_id=twin_id, channel=channel, unit=unit, kind=ChannelKind.GAUGE)
        asked = storage_pb2.ResolveSeriesRequest(
            series=[
                observation_pb2.SeriesKey(
                    twin_id=twin_id, channel=channel, unit=unit, kind=observation_pb2.CHANNEL_KIND_GAUGE
                )
            ]
        )
        ids = await call(self.store.ResolveSeries, asked, timeout_s=TIMEOUT_S, metadata=tenant_metadata("default"))
        landed = SeriesKey(
            twin_id=key.twin_id,
            channel=key.channel,
            unit=key.unit,
            kind=key.kind,
            series_id=ids.series_id[0],
            twin_type_id="pump",
            twin_type_version=1,
        )
        batch = ObservationBatch(
            series=(landed,), doubles=double_section([0] * len(times), times, values, [quality] * len(times))
        )
        answer = await call(
            self.store.Append,
            storage_pb2.AppendRequest(observations=wire.encode(batch)),
            timeout_s=TIMEOUT_S,
            metadata=tenant_metadata("default"),
        )
        return int(answer.position.offset)

    async def replica(self, twin_id: str, min_offset: int = 0) -> Any:
        request = statesync_pb2.GetReplicaRequest(twin_id=twin_id, min_offset=min_offset)
        return (await call(self.replicas.GetReplica, request, timeout_s=TIMEOUT_S)).replica

    @asynccontextmanager
    async def watch(self, request: statesync_pb2.WatchRequest) -> AsyncIterator[Any]:
        async with aclosing(stream(self.replicas.Watch, request, timeout_s=None)) as frames:
            yield frames


@asynccontextmanager
async def storage(database_url: str, port: int = 0) -> AsyncIterator[str]:
    async with AsyncExitStack() as stack:
        settings = StorageSettings(database_url=database_url, redis_url="", port=0)
        service = await compose_storage(settings, stack)
        yield await stack.enter_async_context(serve(service, token="storage", settings=settings))


@asynccontextmanager
async def statesync(database_url: str, storage_target: str, **settings: Any) -> AsyncIterator[StateSync]:
    async with AsyncExitStack() as stack:
        chosen = StatesyncSettings(database_url=database_url, mesh_storage=storage_target, port=0, **settings)
        service = await compose_statesync(chosen, stack)
        server, target = await stack.enter_async_context(serve_server(service, token="statesync", settings=chosen))
        yield await connect(stack, target, storage_target, server)


async def connect(
    stack: AsyncExitStack, target: str, storage_target: str, server: ServiceServer | None = None
) -> StateSync:
    """Open channels to a state-sync wherever it runs, and to the log below it."""
    channel: grpc.aio.Channel = await stack.enter_async_context(open_channel(target))
    below = await stack.enter_async_context(open_channel(storage_target))
    return StateSync(
        target=target,
        server=server,
        twins=TwinServiceStub(channel),
        replicas=ReplicaServiceStub(channel),
        commands=CommandServiceStub(channel),
        events=EventServiceStub(channel),
        alarms=AlarmServiceStub(channel),
        subscriptions=SubscriptionServiceStub(channel),
        store=StorageServiceStub(below),
    )
