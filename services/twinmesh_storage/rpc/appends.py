"""Appends as received: the messages walked so that a body is copied out once, typed parse for whatever is unusual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.rpc_status import status_from_error
from twinmesh_core.errors import InvalidArgument, Reason, TwinmeshError
from twinmesh_core.wire import LEN, NotCanonical, encode_varint, fields

_OBSERVATIONS: Final = 1
_CONTROL: Final = 2
_ENTRIES: Final = 1
_OUTCOMES: Final = b"\x0a"  # field 1, length-delimited


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedAppend:
    """An ``AppendRequest`` whose batch is apart: each look at a bytes field of a message copies it.

    Attributes:
        request: everything but the batch.
        observations: the batch; None where the entry's content is something else, or is missing.
    """

    request: storage_pb2.AppendRequest
    observations: bytes | None

    def whole(self) -> storage_pb2.AppendRequest:
        """Return the request with its batch, to be passed on."""
        if self.observations is None:
            return self.request
        whole = storage_pb2.AppendRequest(observations=self.observations)
        whole.MergeFrom(self.request)
        return whole


def read_append(data: bytes) -> ReceivedAppend:
    """Return a serialized ``AppendRequest``; raises `InvalidArgument` (MALFORMED_MESSAGE) if it is none."""
    try:
        return _walk(data, 0, len(data))
    except NotCanonical:
        return _typed(_parsed(storage_pb2.AppendRequest, data))


def read_appends(data: bytes) -> list[ReceivedAppend]:
    """Return the entries of a serialized ``AppendStreamRequest``; raises as `read_append`."""
    try:
        found = []
        for number, wire_type, start, end in fields(data):
            if number != _ENTRIES or wire_type != LEN:
                raise NotCanonical
            found.append(_walk(data, start, end))
        return found
    except NotCanonical:
        return [_typed(entry) for entry in _parsed(storage_pb2.AppendStreamRequest, data).entries]


def outcome_bytes(outcome: storage_pb2.AppendResponse | TwinmeshError) -> bytes:
    """Return the outcome of one entry as a field of an ``AppendStreamResponse``: fields joined are a message."""
    if isinstance(outcome, TwinmeshError):
        message = storage_pb2.AppendOutcome(refusal=status_from_error(outcome).SerializeToString())
    else:
        message = storage_pb2.AppendOutcome(appended=outcome)
    encoded = message.SerializeToString()
    return b"".join((_OUTCOMES, encode_varint(len(encoded)), encoded))


def _walk(data: bytes, start: int, end: int) -> ReceivedAppend:
    batch: tuple[int, int] | None = None
    before = start  # where the field begins that is looked at
    cut = (start, start)
    for number, wire_type, first, stop in fields(data, start, end):
        if number == _CONTROL or (number == _OBSERVATIONS and (batch is not None or wire_type != LEN)):
            raise NotCanonical
        if number == _OBSERVATIONS:
            batch, cut = (first, stop), (before, stop)
        before = stop
    if batch is None:
        raise NotCanonical
    rest = _parsed(storage_pb2.AppendRequest, data[start : cut[0]] + data[cut[1] : end])
    return ReceivedAppend(request=rest, observations=data[batch[0] : batch[1]])


def _typed(request: storage_pb2.AppendRequest) -> ReceivedAppend:
    observations = request.observations if request.WhichOneof("body") == "observations" else None
    if observations is not None:
        request.ClearField("observations")
    return ReceivedAppend(request=request, observations=observations)


def _parsed(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidArgument(
            f"The {len(data)} bytes received are not a {kind.DESCRIPTOR.full_name}; "
            "check that client and server use the same method and protos.",
            reason=Reason.MALFORMED_MESSAGE,
        ) from None
