"""The log's side of StorageService: append, follow, positions, producers, series ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.errors import PermissionDenied, invalid_field
from twinmesh_core.ids import require_producer_id
from twinmesh_core.shards import SHARDS
from twinmesh_core.time import US_PER_S
from twinmesh_runtime.caller import ALL_TENANTS, Role, current_caller
from twinmesh_runtime.registry_mapping import duration_from_message, time_to_message
from twinmesh_runtime.telemetry import counter
from twinmesh_storage.domain.directory import Directory
from twinmesh_storage.domain.entries import EntryKind
from twinmesh_storage.domain.follow import Follower
from twinmesh_storage.domain.follow_filter import Filter
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.packing import Packer
from twinmesh_storage.domain.ports import LogStore
from twinmesh_storage.domain.sequencer import Sequencer
from twinmesh_storage.rpc import mapping
from twinmesh_storage.rpc.append_streams import AppendStreams
from twinmesh_storage.rpc.appends import ReceivedAppend, read_append
from twinmesh_storage.rpc.control_entries import OWN_ACTIONS
from twinmesh_storage.rpc.forwarding import Forward, here_or_there, is_forwarded, may_take_away
from twinmesh_storage.rpc.serving import Handler, byte_conversation, byte_stream, from_bytes, own_tenant, unary

_MAX_BOOKMARK_S: Final = 5.0
_LOOP_BYTES: Final = 512 << 10
"""A batch above this is packed off the event loop: about half a millisecond."""
_MAX_TWINS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LogServicer:
    """Calls on the log."""

    log: LogStore
    view: LogView
    sequencer: Sequencer
    directory: Directory
    follower: Follower
    packer: Packer
    forward: Forward
    streams: AppendStreams

    async def append(self, request: bytes, context: Any) -> storage_pb2.AppendResponse:
        """Append one entry, here or where the lease is; answers after the commit."""
        return await self._append(own_tenant(), read_append(request), forwarded=is_forwarded(context))

    async def append_stream(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """Append entries as they come; each is answered in its turn."""
        tenant, forwarded = own_tenant(), is_forwarded(context)

        async def append(received: ReceivedAppend) -> storage_pb2.AppendResponse:
            return await self._append(tenant, received, forwarded=forwarded)

        await self.streams.serve(requests, context, append)

    async def _append(self, tenant: str, received: ReceivedAppend, *, forwarded: bool) -> storage_pb2.AppendResponse:
        if received.request.control.WhichOneof("action") in OWN_ACTIONS and not may_take_away(forwarded=forwarded):
            raise invalid_field("control", "takes observations away; call DeleteRange or EraseTwin for that")
        if forwarded:
            return await self._append_here(tenant, received)
        return await here_or_there(
            self.sequencer,
            lambda: self._append_here(tenant, received),
            lambda address: self.forward.append(address, tenant, received.whole()),
        )

    async def _append_here(self, tenant: str, received: ReceivedAppend) -> storage_pb2.AppendResponse:
        body = received.observations or b""
        segments = await self.directory.land(tenant, body) if body else ()
        large = len(body) > _LOOP_BYTES
        at_rest = await asyncio.to_thread(self.packer.pack, body) if large else self.packer.pack(body)
        entry = mapping.new_entry(received, tenant, segments, at_rest)
        appended = await self.sequencer.append(entry)
        if appended.replayed:
            counter("storage", "replayed_entries", "Appends that were durable before.").inc()
        else:
            counter("storage", "appended_entries", "Entries committed.", ("kind",)).labels(entry.kind.name).inc()
            counter("storage", "appended_points", "Observations committed.").inc(entry.point_count)
        return mapping.append_response(appended, self.view.incarnation)

    async def open_producer(self, request: storage_pb2.OpenProducerRequest, _: Any) -> storage_pb2.OpenProducerResponse:
        """Open a producer session, on whichever process: commits compare the session in the database."""
        require_producer_id(request.producer_id, "producer_id")
        session = await self.log.open_producer(own_tenant(), request.producer_id, request.last_epoch)
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
            control_offset=view.control_offset,
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
        wanted = Filter(
            tenant=None if caller.tenant == ALL_TENANTS else caller.tenant,
            kinds=kinds,
            twins=_twins(request),
            shards=_shards(request),
        )
        async for data in self.follower.follow(after=request.after.offset, wanted=wanted, bookmark_s=bookmark_s):
            yield data

    def handlers(self) -> dict[str, Handler]:
        """Return the gRPC handlers of these methods, by name."""
        pb = storage_pb2
        return {
            "Append": from_bytes(self.append, pb.AppendResponse),
            "AppendStream": byte_conversation(self.append_stream),
            "OpenProducer": unary(self.open_producer, pb.OpenProducerRequest, pb.OpenProducerResponse),
            "ResolveSeries": unary(self.resolve_series, pb.ResolveSeriesRequest, pb.ResolveSeriesResponse),
            "GetHead": unary(self.get_head, pb.GetHeadRequest, pb.GetHeadResponse),
            "Follow": byte_stream(self.follow, pb.FollowRequest),
        }


def _entry_kind(number: int, index: int) -> EntryKind:
    if number not in (EntryKind.OBSERVATIONS, EntryKind.CONTROL):
        raise invalid_field(f"kinds[{index}]", "must be ENTRY_KIND_OBSERVATIONS or ENTRY_KIND_CONTROL")
    return EntryKind(number)


def _twins(request: storage_pb2.FollowRequest) -> frozenset[str]:
    if len(request.twin_ids) > _MAX_TWINS:
        raise invalid_field("twin_ids", f"has {len(request.twin_ids)} entries; at most {_MAX_TWINS:,} can be followed")
    for index, twin_id in enumerate(request.twin_ids):
        mapping.require_text(twin_id, f"twin_ids[{index}]")
    return frozenset(request.twin_ids)


def _shards(request: storage_pb2.FollowRequest) -> frozenset[int]:
    for index, shard in enumerate(request.shards):
        if shard >= SHARDS:
            raise invalid_field(f"shards[{index}]", f"is {shard}; there are shards 0 to {SHARDS - 1}")
    return frozenset(request.shards)
