"""Appends to storage, many on their way at once over one stream a tenant.

A unary call costs about half a millisecond of both sides' time, which is more than all the checks of a batch. Over a
stream entries are written as they come and answered in that order. When a stream breaks, or storage does not answer in
time, what became of the entries on their way is open: each of them ends with `Unavailable`, and its owner sends it
again under the same stamp or request id, over a new stream, perhaps to another process.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.rpc_status import error_from_status
from twinmesh_client.transport import rpc_errors, tenant_metadata
from twinmesh_core.errors import DeadlineExceeded, Internal, TwinmeshError, Unavailable, Unimplemented
from twinmesh_core.wire import encode_varint

_PATH: Final = "/twinmesh.storage.v1.StorageService/AppendStream"
_ENTRIES: Final = b"\x0a"  # field 1 of AppendStreamRequest, length-delimited
_TOGETHER_BYTES: Final = 256 << 10
"""Entries that wait are written in one message up to this size."""
_IDLE_S: Final = 60.0
"""A stream without entries is closed after this long."""
MAX_STREAMS: Final = 64
"""Tenants with a stream at once; the one unused for longest gives its place up."""


@dataclass(slots=True, eq=False)
class _Pending:
    """One entry on its way."""

    entry: bytes
    done: asyncio.Future[storage_pb2.AppendResponse] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Appends:
    """Streams of appends, one a tenant.

    Args:
        channel: to storage.
        timeout_s: how long one attempt may take.
    """

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float) -> None:
        self._channel = channel
        self._timeout_s = timeout_s
        self._streams: OrderedDict[str, _Stream] = OrderedDict()
        self._unserved = False

    @property
    def served(self) -> bool:
        """Whether storage has such streams, as far as is known: an older release has not."""
        return not self._unserved

    async def append(self, tenant: str, entry: bytes, *, timeout_s: float | None) -> storage_pb2.AppendResponse:
        """Append one entry.

        Args:
            tenant: the tenant.
            entry: a serialized ``AppendRequest``.
            timeout_s: what the caller's own deadline leaves; None = it has none.

        Raises:
            TwinmeshError: what storage answered.
            Unavailable: the stream broke, or no answer came in time; what became of the entry is open.
            DeadlineExceeded: the caller's own time is over.
        """
        own_end = timeout_s is not None and timeout_s < self._timeout_s
        stream = self._of(tenant)
        pending = stream.add(entry)
        try:
            async with asyncio.timeout(timeout_s if own_end else self._timeout_s):
                return await pending.done
        except TimeoutError:
            if own_end:
                raise DeadlineExceeded("The time for this call ran out before storage answered.") from None
            stream.fail(_unanswered())
            raise _unanswered() from None
        except Unimplemented:
            self._unserved = True
            raise _unanswered() from None

    async def close(self) -> None:
        """End every stream; what is on its way ends with `Unavailable`."""
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            await stream.close()

    def _of(self, tenant: str) -> _Stream:
        stream = self._streams.pop(tenant, None)
        if stream is None or stream.ended:
            stream = _Stream(self._channel, tenant)
        self._streams[tenant] = stream
        while len(self._streams) > MAX_STREAMS:
            _, oldest = self._streams.popitem(last=False)
            oldest.end()
        return stream


class _Stream:
    """One stream; its task begins at once and ends with it."""

    def __init__(self, channel: grpc.aio.Channel, tenant: str) -> None:
        self._channel = channel
        self._tenant = tenant
        self._unsent: deque[_Pending] = deque()
        self._sent: deque[_Pending] = deque()
        self._filled = asyncio.Event()
        self._ending = False
        self.ended = False
        # In a context of its own: it outlives the call that happens to be served now, and has not its deadline.
        self._task = asyncio.create_task(self._run(), context=Context())

    def add(self, entry: bytes) -> _Pending:
        """Send an entry on its way."""
        pending = _Pending(entry)
        self._unsent.append(pending)
        self._filled.set()
        return pending

    def end(self) -> None:
        """Take no more entries, and end once those on their way are answered."""
        self.ended = self._ending = True
        self._filled.set()

    def fail(self, error: TwinmeshError) -> None:
        """Give the stream up: everything on its way ends with this error."""
        self.ended = True
        waiting = [*self._sent, *self._unsent]
        self._sent.clear()
        self._unsent.clear()
        for pending in waiting:
            if not pending.done.done():
                pending.done.set_exception(error)
                pending.done.exception()  # read: whoever waited may have left
        self._task.cancel()

    async def close(self) -> None:
        """Give the stream up and wait for its end."""
        self.fail(_unanswered())
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        method: Any = self._channel.stream_stream(
            _PATH, response_deserializer=storage_pb2.AppendStreamResponse.FromString
        )
        call = method(metadata=tenant_metadata(self._tenant))
        sender = asyncio.create_task(self._send(call))
        error: TwinmeshError = _unanswered()
        try:
            with rpc_errors():
                async for message in call:
                    for outcome in message.outcomes:
                        self._answer(outcome)
        except TwinmeshError as failure:
            error = failure
        finally:
            self.ended = True
            sender.cancel()
            call.cancel()
            self._fail_with(error)

    async def _send(self, call: Any) -> None:
        """Write entries as they come; a call that ends shows where its answers are read."""
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            while True:
                while self._unsent:
                    await call.write(self._take())
                if self._ending:
                    break
                self._filled.clear()
                try:
                    async with asyncio.timeout(_IDLE_S):
                        await self._filled.wait()
                except TimeoutError:
                    if not self._sent and not self._unsent:
                        self.end()
            await call.done_writing()

    def _take(self) -> bytes:
        """Return the next message: entries that wait, as long as they are small."""
        parts: list[bytes] = []
        size = 0
        while self._unsent and (not parts or size + len(self._unsent[0].entry) <= _TOGETHER_BYTES):
            pending = self._unsent.popleft()
            if pending.done.done():  # whoever waited has left, before anything was sent
                continue
            self._sent.append(pending)
            size += len(pending.entry)
            parts += (_ENTRIES, encode_varint(len(pending.entry)), pending.entry)
        return b"".join(parts)

    def _answer(self, outcome: storage_pb2.AppendOutcome) -> None:
        if not self._sent:
            raise Internal("Storage answered an entry that was not sent.")
        pending = self._sent.popleft()
        if pending.done.done():
            return
        if outcome.HasField("appended"):
            pending.done.set_result(outcome.appended)
        else:
            pending.done.set_exception(_refusal(outcome.refusal))

    def _fail_with(self, error: TwinmeshError) -> None:
        """End what is on its way. A defect is that of the oldest entry; the others may be sent again."""
        again = error if isinstance(error, Unimplemented) else _unanswered(error)
        if self._sent and not isinstance(error, Unavailable | Unimplemented):
            oldest = self._sent.popleft()
            if not oldest.done.done():
                oldest.done.set_exception(error)
        self.fail(again)


def entry_bytes(request: storage_pb2.AppendRequest, observations: bytes) -> bytes:
    """Return the serialized request with this batch; its bytes are copied once."""
    return b"".join((b"\x0a", encode_varint(len(observations)), observations, request.SerializeToString()))


def _refusal(status: bytes) -> TwinmeshError:
    try:
        return error_from_status(status_pb2.Status.FromString(status))
    except DecodeError:
        return Internal("Storage's refusal cannot be read.")


def _unanswered(error: TwinmeshError | None = None) -> Unavailable:
    return Unavailable(
        "Storage did not answer; the write is repeated under the same stamp.",
        metadata={"dependency": "storage"},
        retry_after_s=error.retry_after_s if error is not None else None,
    )
