"""Protobuf to the domain of ingestion, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh.type.v1 import observation_pb2
from twinmesh_client.registry_mapping import (
    duration_from_message,
    duration_to_message,
    time_from_message,
    time_to_message,
)
from twinmesh_core.errors import invalid_field
from twinmesh_core.observations import SeriesKey
from twinmesh_core.quality import FlagReason, Quality
from twinmesh_core.time import MAX_TIME_UNIX_US, MIN_TIME_UNIX_US
from twinmesh_ingestion.domain.outcomes import Ack, OutcomeCount, Scalar
from twinmesh_ingestion.domain.session import SequencedAck
from twinmesh_ingestion.domain.simple import SimpleObservation


class WriteAckReceipts:
    """Implements `domain.ports.Receipts`: a receipt is the serialized ``WriteAck`` without its position."""

    def encode(self, ack: Ack) -> bytes:
        """Return the acknowledgement as bytes."""
        return ack_to_message(replace(ack, offset=0, incarnation="", replayed=False)).SerializeToString()

    def decode(self, receipt: bytes) -> Ack:
        """Return the acknowledgement that `encode` wrote."""
        return ack_from_message(ingestion_pb2.WriteAck.FromString(receipt))


def ack_to_message(ack: Ack) -> ingestion_pb2.WriteAck:
    """Return the acknowledgement as its message."""
    skew = ack.clock_skew_us
    return ingestion_pb2.WriteAck(
        accepted_count=ack.accepted_count,
        flagged_count=ack.flagged_count,
        quarantined_count=ack.quarantined_count,
        duplicate_count=ack.duplicate_count,
        offset=ack.offset,
        incarnation=ack.incarnation,
        outcomes=(
            ingestion_pb2.OutcomeCount(
                reason=observation_pb2.FlagReason.ValueType(o.reason),
                quality=observation_pb2.Quality.ValueType(o.quality),
                count=o.count,
                example=o.example,
            )
            for o in ack.outcomes
        ),
        replayed=ack.replayed,
        deadbanded_count=ack.deadbanded_count,
        clock_skew=duration_to_message(skew) if skew is not None else None,
    )


def ack_from_message(message: ingestion_pb2.WriteAck) -> Ack:
    """Return the message as an acknowledgement."""
    return Ack(
        accepted_count=message.accepted_count,
        flagged_count=message.flagged_count,
        quarantined_count=message.quarantined_count,
        duplicate_count=message.duplicate_count,
        offset=message.offset,
        incarnation=message.incarnation,
        outcomes=tuple(
            OutcomeCount(reason=FlagReason(o.reason), quality=Quality(o.quality), count=o.count, example=o.example)
            for o in message.outcomes
        ),
        replayed=message.replayed,
        deadbanded_count=message.deadbanded_count,
        clock_skew_us=duration_from_message(message.clock_skew) if message.HasField("clock_skew") else None,
    )


def sequenced_ack_to_message(done: SequencedAck) -> ingestion_pb2.WriteStreamResponse:
    """Return one acknowledgement of a session as its message."""
    return ingestion_pb2.WriteStreamResponse(
        ack=ingestion_pb2.ProducerAck(sequence=done.sequence, ack=ack_to_message(done.ack))
    )


def welcome(
    *, epoch: int, last_sequence: int, incarnation: str, max_in_flight_points: int, now_unix_us: int
) -> ingestion_pb2.WriteStreamResponse:
    """Return the first answer of a session."""
    return ingestion_pb2.WriteStreamResponse(
        welcome=ingestion_pb2.ProducerWelcome(
            epoch=epoch,
            last_sequence=last_sequence,
            incarnation=incarnation,
            max_in_flight_points=max_in_flight_points,
            server_time=time_to_message(now_unix_us),
        )
    )


def simple_observations(
    messages: Sequence[ingestion_pb2.Observation], *, receive_time_unix_us: int
) -> list[SimpleObservation]:
    """Return the simple form's values; a value without event time is of the receive time.

    Raises:
        InvalidArgument: an observation without a value.
    """
    return [_simple(i, message, receive_time_unix_us) for i, message in enumerate(messages)]


def _simple(i: int, message: ingestion_pb2.Observation, receive_time_unix_us: int) -> SimpleObservation:
    field = message.value.WhichOneof("kind")
    if field is None:
        raise invalid_field(f"observations[{i}].value", 'is required, e.g. {"double_value": 21.5}')
    value: Scalar = getattr(message.value, field)
    timed = message.HasField("event_time")
    # Beyond what a Timestamp may hold, the column of times has no number; the nearest is refused for the same reason.
    time = min(max(time_from_message(message.event_time), MIN_TIME_UNIX_US), MAX_TIME_UNIX_US)
    return SimpleObservation(
        key=SeriesKey(twin_id=message.twin_id, channel=message.channel, unit=message.unit),
        time_unix_us=time if timed else receive_time_unix_us,
        value=value,
        json=field == "json_value",
        # An enum of proto3 may hold any number; what does not fit a byte is as invalid as 255.
        quality=message.quality if 0 <= message.quality <= Quality.BAD else 255,
    )
