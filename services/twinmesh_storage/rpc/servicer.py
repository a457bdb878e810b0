"""StorageService: what each call means in terms of the domain."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.errors import PermissionDenied, Reason, invalid_field
from twinmesh_core.ids import require_producer_id
from twinmesh_core.time import US_PER_S
from twinmesh_runtime.caller import ALL_TENANTS, Role, current_caller
from twinmesh_runtime.registry_mapping import duration_from_message, time_to_message
from twinmesh_runtime.telemetry import counter
from twinmesh_storage.domain.directory import Directory
from twinmesh_storage.domain.entries import EntryKind
from twinmesh_storage.domain.follow import Follower
from twinmesh_storage.domain.history import History, answers
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.ports import LogStore
from twinmesh_storage.domain.sequencer import Sequencer
from twinmesh_storage.rpc import mapping, raw

SERVICE_NAME: Final = "twinmesh.storage.v1.StorageService"
_MAX_BOOKMARK_S: Final = 5.0
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogServicer:
    """The log: append, follow, positions, producers, series ids."""

    log: LogStore
    view: LogView
    sequencer: Sequencer
    directory: Directory
    follower: Follower

    async def append(self, request: storage_pb2.AppendRequest, _: Any) -> storage_pb2.AppendResponse:
        """Append one entry; answers after the commit."""
        tenant = own_tenant()
        segments = await self.directory.land(tenant, request.observations) if request.observations else ()
        entry = mapping.new_entry(request, tenant, segments)
        appended = await self.sequencer.append(entry)
        if appended.replayed:
            counter("storage", "replayed_entries", "Appends that were durable before.").inc()
        else:
            counter("storage", "appended_entries", "Entries committed.", ("kind",)).labels(entry.kind.name).inc()
            counter("storage", "appended_points", "Observations committed.").inc(entry.point_count)
        return mapping.append_response(appended, self.view.incarnation)

    async def open_producer(self, request: storage_pb2.OpenProducerRequest, _: Any) -> storage_pb2.OpenProducerResponse:
        """Open a producer session."""
        require_producer_id(request.producer_id, "producer_id")
        session = await self.log.open_producer(own_tenant(), request.producer_id)
        return storage_pb2.OpenProducerResponse(
            epoch=session.epoch, last_sequence=session.last_sequence, incarnation=self.view.incarnation
        )

    async def resolve_series(
        self, request: storage_pb2.ResolveSeriesRequest, _: Any
    ) -> storage_pb2.ResolveSeriesResponse:
        """Return series ids, creating those that are new."""
        if len(request.series) > 100_000:
            raise invalid_field("series", f"has {len(request.series)} entries; at most 100,000 go at once")
        series = await self.directory.resolve(own_tenant(), mapping.series_requests(request))
        return storage_pb2.ResolveSeriesResponse(series_id=[s.series_id for s in series])

    async def get_head(self, _request: storage_pb2.GetHeadRequest, _: Any) -> storage_pb2.GetHeadResponse:
        """Return the newest durable position that this process knows."""
        view = self.view
        return storage_pb2.GetHeadResponse(
            position=mapping.position(view.incarnation, view.head),
            commit_time=time_to_message(view.commit_time_unix_us) if view.commit_time_unix_us else None,
        )

    async def follow(self, request: storage_pb2.FollowRequest, _: Any) -> AsyncIterator[bytes]:
        """Stream entries after a position."""
        caller = current_caller()
        if caller.tenant == ALL_TENANTS and caller.role is not Role.SERVICE:
            raise PermissionDenied("Only a service may follow all tenants.")
        kinds = frozenset(_entry_kind(kind, index) for index, kind in enumerate(request.kinds))
        bookmark_s = duration_from_message(request.bookmark_interval) / US_PER_S or 1.0
        if not 0 < bookmark_s <= _MAX_BOOKMARK_S:
            raise invalid_field("bookmark_interval", "must be at most 5 s; 0 = 1 s")
        if request.after.offset < 0:
            raise invalid_field("after.offset", "must not be negative; 0 = from the beginning")
        self.view.check_position(request.after.incarnation, request.after.offset)
        incarnation = self.view.incarnation
        frames = self.follower.follow(
            after=request.after.offset,
            tenant=None if caller.tenant == ALL_TENANTS else caller.tenant,
            kinds=kinds,
            bookmark_s=bookmark_s,
        )
        async for frame in frames:
            yield raw.frame_bytes(frame, incarnation)

    def handlers(self) -> dict[str, Handler]:
        """Return the gRPC handlers of these methods, by name."""
        pb = storage_pb2
        return {
            "Append": unary(self.append, pb.AppendRequest, pb.AppendResponse),
            "OpenProducer": unary(self.open_producer, pb.OpenProducerRequest, pb.OpenProducerResponse),
            "ResolveSeries": unary(self.resolve_series, pb.ResolveSeriesRequest, pb.ResolveSeriesResponse),
            "GetHead": unary(self.get_head, pb.GetHeadRequest, pb.GetHeadResponse),
            "Follow": byte_stream(self.follow, pb.FollowRequest),
        }


def _entry_kind(number: int, index: int) -> EntryKind:
    if number not in (EntryKind.OBSERVATIONS, EntryKind.CONTROL):
        raise invalid_field(f"kinds[{index}]", "must be ENTRY_KIND_OBSERVATIONS or ENTRY_KIND_CONTROL")
    return EntryKind(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadServicer:
    """History: ranges, latest values, windows, aggregates, and what there is."""

    view: LogView
    directory: Directory
    history: History

    async def read_range(self, request: storage_pb2.ReadRangeRequest, _: Any) -> AsyncIterator[bytes]:
        """Stream the rows of series within a time range."""
        tenant = own_tenant()
        start, end = mapping.time_range(request)
        names = mapping.names(request.series, "series", 10_000)
        await self.view.wait_for(request.min_offset)
        as_of = self.view.head
        series = await self.directory.require(tenant, names)
        any_rows = False
        async for parts in self.history.stream(
            tenant, series, start, end, mapping.max_quality(request.min_quality, default=3)
        ):
            for batch in answers(parts):
                any_rows = True
                yield raw.batch_answer(batch, self.view.incarnation, as_of)
        if not any_rows:
            yield storage_pb2.ReadRangeResponse(
                as_of=mapping.position(self.view.incarnation, as_of)
            ).SerializeToString()

    def handlers(self) -> dict[str, Handler]:
        """Return the gRPC handlers of these methods, by name."""
        pb = storage_pb2
        return {"ReadRange": byte_stream(self.read_range, pb.ReadRangeRequest)}


def own_tenant() -> str:
    """Return the caller's tenant.

    Raises:
        PermissionDenied: the caller stands for all tenants, which only Follow allows.
    """
    caller = current_caller()
    if caller.tenant == ALL_TENANTS:
        raise PermissionDenied("Name one tenant; only Follow spans all of them.", reason=Reason.PERMISSION_DENIED)
    return caller.tenant


def unary(call: Callable[..., Any], request: Any, response: Any) -> Handler:
    """Return the handler of a unary method with typed messages."""
    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=request.FromString, response_serializer=response.SerializeToString
    )


def byte_stream(call: Callable[..., Any], request: Any) -> Handler:
    """Return the handler of a streaming method that writes its answers as bytes."""
    return grpc.unary_stream_rpc_method_handler(call, request_deserializer=request.FromString)


def byte_unary(call: Callable[..., Any], request: Any) -> Handler:
    """Return the handler of a unary method that writes its answer as bytes."""
    return grpc.unary_unary_rpc_method_handler(call, request_deserializer=request.FromString)


def register(server: grpc.aio.Server, *parts: LogServicer | ReadServicer) -> None:
    """Add the service to a server."""
    handlers = {name: handler for part in parts for name, handler in part.handlers().items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))
