"""Protobuf to the domain of ingestion, and back."""

from __future__ import annotations

from collections.abc import Sequence

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh_client.registry_mapping import duration_to_message, time_from_message, time_to_message
from twinmesh_core.errors import invalid_field
from twinmesh_core.observations import SeriesKey
from twinmesh_core.quality import Quality
from twinmesh_core.time import MAX_TIME_UNIX_US, MIN_TIME_UNIX_US
from twinmesh_ingestion.domain.outcomes import Scalar
from twinmesh_ingestion.domain.session import SequencedAck
from twinmesh_ingestion.domain.simple import SimpleObservation
from twinmesh_ingestion.domain.skew import Skew
from twinmesh_ingestion.rpc.acks import ack_to_message


def sequenced_ack_to_message(done: SequencedAck) -> ingestion_pb2.WriteStreamResponse:
    """Return one acknowledgement of a session as its message."""
    refusal = done.refusal
    return ingestion_pb2.WriteStreamResponse(
        ack=ingestion_pb2.ProducerAck(
            sequence=done.sequence,
            ack=ack_to_message(done.ack),
            first_sequence=done.first_sequence,
            refusal=(
                ingestion_pb2.BatchRefusal(reason=str(refusal.reason), message=refusal.message)
                if refusal is not None
                else None
            ),
        )
    )


def welcome(
    *,
    epoch: int,
    last_sequence: int,
    incarnation: str,
    max_in_flight_points: int,
    max_in_flight_bytes: int,
    now_unix_us: int,
    skew: Skew | None,
) -> ingestion_pb2.WriteStreamResponse:
    """Return the first answer of a session."""
    return ingestion_pb2.WriteStreamResponse(
        welcome=ingestion_pb2.ProducerWelcome(
            epoch=epoch,
            last_sequence=last_sequence,
            incarnation=incarnation,
            max_in_flight_points=max_in_flight_points,
            max_in_flight_bytes=max_in_flight_bytes,
            server_time=time_to_message(now_unix_us),
            clock_skew=duration_to_message(skew.ahead_us) if skew is not None else None,
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
