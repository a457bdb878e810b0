"""The log as the storage service serves it: control entries appended, all tenants followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from twinmesh.storage.v1 import storage_pb2
from twinmesh.storage.v1.storage_pb2_grpc import StorageServiceStub
from twinmesh.type.v1 import entry_pb2, position_pb2
from twinmesh_client.read_ahead import read_ahead
from twinmesh_client.transport import call, tenant_metadata
from twinmesh_core.call_context import remaining_s
from twinmesh_core.errors import InvalidArgument, Unavailable
from twinmesh_core.observations import ObservationBatch
from twinmesh_runtime.caller import ALL_TENANTS
from twinmesh_runtime.observation_codec import decode_batch
from twinmesh_runtime.telemetry import log
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.entries import ControlEntry, LogEntry
from twinmesh_statesync.domain.ports import LogFrame

_PATIENCE_S: Final = 3.0
"""So long storage may be away, which is a restart of it, before a caller is told; its log takes a request once."""
_BOOKMARK: Final = Duration(seconds=1)
_REPLAY_BOOKMARK: Final = Duration(nanos=20_000_000)
"""Somebody waits for how far the filtered log has come."""
_CONSUMER: Final = "statesync"

EncodeControl = Callable[[ControlEntry], entry_pb2.ControlEntry]
DecodeControl = Callable[[entry_pb2.ControlEntry], ControlEntry]


class StorageLog:
    """The log behind a channel to storage.

    Args:
        channel: to the storage service.
        reading: another one to it, for the streams that threads read.
        encode: a control entry to its message.
        decode: and back.
        timeout_s: of one append or head.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        reading: grpc.Channel,
        encode: EncodeControl,
        decode: DecodeControl,
        timeout_s: float = 10.0,
    ) -> None:
        self._stub = StorageServiceStub(channel)
        self._follow: Any = StorageServiceStub(reading).Follow
        self._encode = encode
        self._decode = decode
        self._timeout_s = timeout_s

    async def append(self, tenant: str, entry: ControlEntry, *, content_hash: bytes) -> Position:
        """Append a control entry; see the port."""
        request = storage_pb2.AppendRequest(
            control=self._encode(entry), request_id=entry.request_id, content_hash=content_hash
        )
        clock, left_s = asyncio.get_running_loop().time, remaining_s()
        # Without a request id it could be there twice; who is in a hurry is told what is wrong, not that time ran out.
        patience_s = 0.0 if not entry.request_id else _PATIENCE_S if left_s is None else min(_PATIENCE_S, left_s / 2)
        until_s, pause_s = clock() + patience_s, 0.05
        while True:
            try:
                answer = await call(
                    self._stub.Append, request, timeout_s=self._timeout_s, metadata=tenant_metadata(tenant)
                )
                return Position(incarnation=answer.position.incarnation, offset=answer.position.offset)
            except Unavailable:
                if clock() + pause_s > until_s:
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.5)

    async def follow(self, after: Position, *, control_only: bool = False) -> AsyncGenerator[LogFrame, None]:
        """Yield frames after a position; see the port."""
        request = storage_pb2.FollowRequest(
            kinds=[storage_pb2.ENTRY_KIND_CONTROL] if control_only else [], bookmark_interval=_BOOKMARK
        )
        async with aclosing(self._frames(after, request, ALL_TENANTS)) as frames:
            async for frame in frames:
                yield frame

    async def replay(
        self, after: Position, tenant: str, twin_ids: Collection[str] = ()
    ) -> AsyncGenerator[LogFrame, None]:
        """Yield one tenant's frames after a position; see the port."""
        request = storage_pb2.FollowRequest(twin_ids=sorted(twin_ids), bookmark_interval=_REPLAY_BOOKMARK)
        async with aclosing(self._frames(after, request, tenant)) as frames:
            async for frame in frames:
                yield frame

    async def _frames(
        self, after: Position, request: storage_pb2.FollowRequest, tenant: str
    ) -> AsyncGenerator[LogFrame, None]:
        request.after.CopyFrom(position_pb2.LogPosition(incarnation=after.incarnation, offset=after.offset))
        frames = read_ahead(self._follow(request, metadata=tenant_metadata(tenant)), self._frame)
        async with aclosing(frames):
            async for frame in frames:
                yield frame

    def _frame(self, frame: storage_pb2.FollowResponse) -> LogFrame:
        return LogFrame(
            entries=self._entries(frame.entries),
            through=Position(incarnation=frame.through.incarnation, offset=frame.through.offset),
            head_offset=frame.head_offset,
        )

    async def latest(
        self, tenant: str, twin_ids: Sequence[str], *, at_unix_us: int | None = None, as_of_offset: int = 0
    ) -> ObservationBatch:
        """Return newest observations; see the port."""
        request = storage_pb2.ReadLatestRequest(twin_ids=twin_ids, min_offset=as_of_offset, as_of_offset=as_of_offset)
        if at_unix_us is not None:
            request.at.FromMicroseconds(at_unix_us)
        answer = await call(self._stub.ReadLatest, request, timeout_s=self._timeout_s, metadata=tenant_metadata(tenant))
        return decode_batch(answer.batch.SerializeToString())

    async def register_checkpoint(self, covered: Position) -> None:
        """State that a checkpoint is durable; see the port."""
        request = storage_pb2.RegisterCheckpointRequest(
            consumer=_CONSUMER,
            covered=position_pb2.LogPosition(incarnation=covered.incarnation, offset=covered.offset),
        )
        await call(
            self._stub.RegisterCheckpoint, request, timeout_s=self._timeout_s, metadata=tenant_metadata(ALL_TENANTS)
        )

    async def head(self) -> Position:
        """Return the newest durable position; see the port."""
        answer = await call(
            self._stub.GetHead,
            storage_pb2.GetHeadRequest(),
            timeout_s=self._timeout_s,
            metadata=tenant_metadata(ALL_TENANTS),
        )
        return Position(incarnation=answer.position.incarnation, offset=answer.position.offset)

    def _entries(self, entries: Iterable[storage_pb2.LogEntry]) -> tuple[LogEntry, ...]:
        return tuple(
            LogEntry(
                offset=entry.offset,
                tenant=entry.tenant,
                commit_time_unix_us=entry.commit_time.ToMicroseconds(),
                body=self._body(entry),
            )
            for entry in entries
        )

    def _body(self, entry: storage_pb2.LogEntry) -> ObservationBatch | ControlEntry | None:
        kind = entry.WhichOneof("body")
        if kind == "control":
            return self._decode(entry.control)
        if kind != "observations":
            return None
        try:
            return decode_batch(entry.observations)
        except InvalidArgument as error:
            # Every fold skips it alike, so replicas stay equal; the bytes stay in the log for whoever mends them.
            log("entry_not_readable", level="error", offset=entry.offset, reason=str(error.reason))
            return None
