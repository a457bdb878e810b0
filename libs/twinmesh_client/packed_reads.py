"""Reads whose answers stay bytes: their columns become arrays without passing through typed messages.

A day of one series at 1 Hz is 1.8 MB; parsing and serialising that takes longer than the server needs to answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import grpc.aio

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import position_pb2
from twinmesh_client.replicas import Position, position
from twinmesh_core import wire
from twinmesh_core.errors import DataLoss, Reason
from twinmesh_core.observations import ObservationBatch

_SERVICE: Final = "/twinmesh.storage.v1.StorageService"
_BATCH, _AS_OF, _ID_OR_AT = 1, 2, 3


class PackedReads:
    """Methods of StorageService that answer observations, with answers as bytes; names as in the proto."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        pb = storage_pb2
        self.ReadRange: Any = channel.unary_stream(
            f"{_SERVICE}/ReadRange", request_serializer=pb.ReadRangeRequest.SerializeToString
        )
        self.Downsample: Any = channel.unary_stream(
            f"{_SERVICE}/Downsample", request_serializer=pb.DownsampleRequest.SerializeToString
        )
        self.ReadLatest: Any = channel.unary_unary(
            f"{_SERVICE}/ReadLatest", request_serializer=pb.ReadLatestRequest.SerializeToString
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedAnswer:
    """A ReadRangeResponse, DownsampleResponse or ReadLatestResponse.

    Attributes:
        batch: its columns are views of the received bytes.
        dictionary_id: of a ReadLatestResponse; 0 = none.
    """

    batch: ObservationBatch
    as_of: Position
    dictionary_id: int = 0


def read_answer(data: bytes) -> PackedAnswer:
    """Return what an answer holds.

    Raises:
        DataLoss: the bytes are no such answer, or its columns contradict each other.
    """
    try:
        found = {number: (wire_type, value, end) for number, wire_type, value, end in wire.fields(data)}
    except wire.NotCanonical:
        raise _malformed() from None
    batch, as_of = ObservationBatch(), position_pb2.LogPosition()
    dictionary_id = 0
    for number, (wire_type, value, end) in found.items():
        if number == _BATCH and wire_type == wire.LEN:
            # By position first: a copy of all columns costs as much as receiving them.
            batch = wire.walk(data, value, end) or columns(data[value:end])
        elif number == _AS_OF and wire_type == wire.LEN:
            as_of.ParseFromString(data[value:end])
        elif number == _ID_OR_AT and wire_type == wire.FIXED64:
            dictionary_id = int.from_bytes(data[value:end], "little")
    return PackedAnswer(batch=batch, as_of=position(as_of), dictionary_id=dictionary_id)


def columns(data: bytes) -> ObservationBatch:
    """Return the columns of a serialized batch; raises `DataLoss` when they contradict each other."""
    batch = wire.walk(data)
    if batch is None:
        raise _malformed()
    return batch


def _malformed() -> DataLoss:
    return DataLoss("The server sent columns that do not fit together.", reason=Reason.MALFORMED_MESSAGE)
