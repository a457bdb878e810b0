"""Requests as received: the outer messages walked so that a batch stays bytes, typed parse for whatever is unusual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

from google.protobuf.message import DecodeError

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh_client.registry_mapping import time_from_message
from twinmesh_core.errors import InvalidArgument, Reason
from twinmesh_core.wire import LEN, VARINT, NotCanonical, fields
from twinmesh_runtime.observation_codec import canonical_message_bytes, count_slow_path

MessageT = TypeVar("MessageT", ingestion_pb2.WriteRequest, ingestion_pb2.WriteStreamRequest)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteCall:
    """A ``WriteRequest``: exactly one of `batch` (its bytes) and `observations` is meant to be there."""

    request_id: str = ""
    batch: bytes | None = None
    observations: Sequence[ingestion_pb2.Observation] = ()
    backfill: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMessage:
    """A ``ProducerBatch``, its batch still bytes."""

    sequence: int
    batch: bytes
    backfill: bool
    client_time_unix_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloMessage:
    """A ``ProducerHello``; the time is None where the producer does not say its clock."""

    producer_id: str
    client_time_unix_us: int | None = None
    ack_ranges: bool = False
    continue_after_refusal: bool = False
    last_epoch: int = 0


def content_hash(content: bytes) -> bytes:
    """Return the hash by which storage knows a repeated batch: BLAKE2b, 16 bytes."""
    return blake2b(content, digest_size=16).digest()


def observations_bytes(observations: Sequence[ingestion_pb2.Observation]) -> bytes:
    """Return the simple form as bytes, the same for the same content."""
    return ingestion_pb2.WriteRequest(observations=observations).SerializeToString(deterministic=True)


def read_write(data: bytes) -> WriteCall:
    """Return a serialized ``WriteRequest``; raises `InvalidArgument` (MALFORMED_MESSAGE) if it is none."""
    try:
        return _walk_write(data)
    except NotCanonical:
        message = _typed(ingestion_pb2.WriteRequest, data)
        if message.HasField("batch"):
            count_slow_path("WriteRequest")
        return WriteCall(
            request_id=message.request_id,
            batch=canonical_message_bytes(message.batch) if message.HasField("batch") else None,
            observations=message.observations,
            backfill=message.backfill,
        )


def read_stream(data: bytes) -> HelloMessage | BatchMessage:
    """Return a serialized ``WriteStreamRequest``.

    Raises:
        InvalidArgument: MALFORMED_MESSAGE; INVALID_FIELD if it holds neither hello nor batch.
    """
    try:
        return _walk_stream(data)
    except NotCanonical:
        message = _typed(ingestion_pb2.WriteStreamRequest, data)
    if message.HasField("hello"):
        hello = message.hello
        return HelloMessage(
            producer_id=hello.producer_id,
            client_time_unix_us=time_from_message(hello.client_time) if hello.HasField("client_time") else None,
            ack_ranges=hello.ack_ranges,
            continue_after_refusal=hello.continue_after_refusal,
            last_epoch=max(0, hello.last_epoch),
        )
    if message.HasField("batch"):
        count_slow_path("WriteStreamRequest")
        return BatchMessage(
            sequence=message.batch.sequence,
            batch=canonical_message_bytes(message.batch.batch),
            backfill=message.batch.backfill,
            client_time_unix_us=message.batch.client_time_unix_us,
        )
    raise InvalidArgument("message: holds neither hello nor batch; the first message is hello, all others are batches")


def _walk_write(data: bytes) -> WriteCall:
    request_id, batch, backfill = "", None, False
    seen = 0
    for number, wire_type, value, end in fields(data):
        if seen >> number & 1:
            raise NotCanonical
        seen |= 1 << number
        if number == 1 and wire_type == LEN:
            request_id = _text(data[value:end])
        elif number == 2 and wire_type == LEN:
            batch = data[value:end]
        elif number == 4 and wire_type == VARINT:
            backfill = value != 0
        else:
            raise NotCanonical
    return WriteCall(request_id=request_id, batch=batch, backfill=backfill)


def _walk_stream(data: bytes) -> BatchMessage:
    """Walk a batch; a hello is so rare that the typed parser may have it."""
    outer = list(fields(data))
    if len(outer) != 1 or outer[0][0] != 2 or outer[0][1] != LEN:
        raise NotCanonical
    sequence, batch, backfill, client_time = 0, b"", False, 0
    seen = 0
    for number, wire_type, value, end in fields(data, outer[0][2], outer[0][3]):
        if seen >> number & 1:
            raise NotCanonical
        seen |= 1 << number
        if number == 1 and wire_type == VARINT and value < 1 << 63:
            sequence = value
        elif number == 2 and wire_type == LEN:
            batch = data[value:end]
        elif number == 3 and wire_type == VARINT:
            backfill = value != 0
        elif number == 4 and wire_type == VARINT and value < 1 << 63:
            client_time = value
        else:
            raise NotCanonical
    return BatchMessage(sequence=sequence, batch=batch, backfill=backfill, client_time_unix_us=client_time)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise NotCanonical from None


def _typed(kind: type[MessageT], data: bytes) -> MessageT:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidArgument(
            f"The {len(data)} bytes received are not a {kind.DESCRIPTOR.full_name}; "
            "check that client and server use the same method and protos.",
            reason=Reason.MALFORMED_MESSAGE,
        ) from None
