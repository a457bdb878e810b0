"""Messages to bytes and back, inside the call, where a failure can still be told properly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from twinmesh_core.errors import InvalidArgument, Reason, ResourceExhausted

Decode = Callable[[bytes], Any]
Encode = Callable[[Any], bytes]


def decoder(deserialize: Decode | None, limit_bytes: int) -> Decode:
    """Return the function that reads a request; a handler registered without a deserialiser gets the bytes.

    The function raises InvalidArgument (MALFORMED_MESSAGE) for bytes that are no message of the type, and
    ResourceExhausted (MESSAGE_TOO_LARGE) beyond `limit_bytes`.
    """

    def decode(raw: bytes) -> Any:
        if len(raw) > limit_bytes:
            raise _too_large("request", len(raw), limit_bytes, "send less at once")
        if deserialize is None:
            return raw
        try:
            return deserialize(raw)
        except (DecodeError, ValueError, RecursionError):
            raise InvalidArgument(
                f"The {len(raw)} bytes received are not a message of the type that this method takes; "
                "check that client and server use the same method and protos.",
                reason=Reason.MALFORMED_MESSAGE,
            ) from None

    return decode


def encoder(serialize: Encode | None, limit_bytes: int) -> Encode:
    """Return the function that writes an answer; one larger than `limit_bytes` raises ResourceExhausted."""

    def encode(message: Any) -> bytes:
        raw: bytes = message if serialize is None else serialize(message)
        if len(raw) > limit_bytes:
            raise _too_large("answer", len(raw), limit_bytes, "ask for less at once")
        return raw

    return encode


class StreamContext:
    """A streaming call's context whose `read` and `write` speak messages; all else is gRPC's own context."""

    def __init__(self, context: Any, decode: Decode, encode: Encode) -> None:
        self._context = context
        self._decode = decode
        self._encode = encode

    async def read(self) -> Any:
        """Return the next request, or `grpc.aio.EOF`."""
        raw = await self._context.read()
        return raw if raw is grpc.aio.EOF else self._decode(raw)

    async def write(self, message: Any) -> None:
        """Send one answer; waits while the reader is slow, which is what bounds memory."""
        await self._context.write(self._encode(message))

    def requests(self) -> Requests:
        """Return the requests as an asynchronous iterator."""
        return Requests(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class Requests:
    """The requests of a stream, decoded as they are asked for."""

    def __init__(self, stream: StreamContext) -> None:
        self._stream = stream

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> Any:
        request = await self._stream.read()
        if request is grpc.aio.EOF:
            raise StopAsyncIteration
        return request


def _too_large(what: str, size: int, limit: int, remedy: str) -> ResourceExhausted:
    return ResourceExhausted(
        f"The {what} has {size} bytes and the limit is {limit}; {remedy}.",
        reason=Reason.MESSAGE_TOO_LARGE,
        metadata={"size_bytes": str(size), "limit_bytes": str(limit)},
    )
