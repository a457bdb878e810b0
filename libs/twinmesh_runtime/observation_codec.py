"""The typed side of the columnar codec: what `twinmesh_core.wire` falls back to, and single values as messages."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from twinmesh.type.v1 import observation_pb2
from twinmesh_core import wire
from twinmesh_core.errors import InvalidArgument, Reason
from twinmesh_core.observations import ObservationBatch
from twinmesh_runtime.telemetry import counter


def decode_batch(data: bytes) -> ObservationBatch:
    """Return the batch that serialized ``twinmesh.type.v1.ObservationBatch`` bytes hold, whatever encoder wrote them.

    Raises:
        InvalidArgument: MALFORMED_MESSAGE for bytes that are no such message; UNEQUAL_COLUMNS and INVALID_FIELD for
            columns that contradict each other.
    """
    return wire.decode(data, canonical_bytes)


def canonical_bytes(data: bytes) -> bytes:
    """Parse the bytes with the typed message and serialise anew: one packed record per column, nothing unknown.

    Raises:
        InvalidArgument: MALFORMED_MESSAGE.
    """
    count_slow_path("ObservationBatch")
    try:
        message = observation_pb2.ObservationBatch.FromString(data)
    except DecodeError:
        raise InvalidArgument(
            "batch: the bytes are not a twinmesh.type.v1.ObservationBatch", reason=Reason.MALFORMED_MESSAGE
        ) from None
    return canonical_message_bytes(message)


def count_slow_path(message: str) -> None:
    """Count a message that was not in the form that can be walked, whether the typed parser could read it or not."""
    counter(
        "wire", "slow_path", "Messages in another than the canonical encoding, left to the typed parser.", ("message",)
    ).labels(message).inc()


def canonical_message_bytes(message: observation_pb2.ObservationBatch) -> bytes:
    """Serialise a parsed batch in the canonical form, dropping fields that this release does not know."""
    message.DiscardUnknownFields()  # type: ignore[attr-defined]  # missing in types-protobuf
    return message.SerializeToString(deterministic=True)


def batch_from_message(message: observation_pb2.ObservationBatch) -> ObservationBatch:
    """Return a parsed batch as numpy columns; it loses its unknown fields. Raises as `decode_batch`."""
    return decode_batch(canonical_message_bytes(message))


def message_from_batch(batch: ObservationBatch) -> observation_pb2.ObservationBatch:
    """Return a batch as the typed message, by way of its bytes (85 times faster than filling the fields)."""
    return observation_pb2.ObservationBatch.FromString(wire.encode(batch))
