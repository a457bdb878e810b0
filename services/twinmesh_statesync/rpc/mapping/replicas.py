"""Replicas, their facets and changes as protobuf."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import observation_pb2, prediction_pb2, replica_pb2
from twinmesh_core.registry import Twin
from twinmesh_core.time import US_PER_S
from twinmesh_core.wire_fields import decode_varint
from twinmesh_runtime.registry_mapping import time_to_message, twin_to_message
from twinmesh_statesync.domain.changes import Change, ChangeKind
from twinmesh_statesync.domain.events import Prediction
from twinmesh_statesync.domain.replica import DeltaItem, DesiredValue, Replica
from twinmesh_statesync.domain.residuals import Residual
from twinmesh_statesync.domain.values import ReportedValue
from twinmesh_statesync.rpc.mapping.alarms import alarm_to_message
from twinmesh_statesync.rpc.mapping.values import (
    command_to_message,
    event_to_message,
    prediction_to_message,
    value_to_message,
)

_EVENTS_FIELD: Final = b"\x0a"
"""Tag of WatchResponse.events: field 1, length-delimited."""
_PREVIOUS_OFFSET: Final = b"\xa0\x01"
"""Tag of WatchEvent.previous_offset: field 20, varint."""


def replica_to_message(twin: Twin, replica: Replica, *, present_unix_us: int | None = None) -> replica_pb2.Replica:
    """Return a whole replica; with a present, predictions that are past their validity are marked."""
    message = replica_pb2.Replica(
        twin=twin_to_message(twin),
        revision=replica.revision,
        offset=replica.offset,
        reported=_reported(replica.reported.revision, replica.reported.values.values()),
        desired=desired_to_message(replica.desired.revision, replica.desired.values.values()),
        predicted=_predicted(replica.predicted.revision, replica.predicted.predictions.values()),
        delta=delta_to_message(replica.delta),
        connectivity=replica_pb2.Connectivity.ValueType(replica.connectivity),
        residuals=map(residual_to_message, replica.residuals.values()),
        alarms=[alarm_to_message(replica.alarms[rule]) for rule in sorted(replica.alarms) if replica.alarms[rule].open],
    )
    if present_unix_us is not None:
        for told, prediction in zip(message.predicted.predictions, replica.predicted.predictions.values(), strict=True):
            told.expired = prediction.valid_until_unix_us < present_unix_us
    return message


def residual_to_message(residual: Residual) -> prediction_pb2.Residual:
    """Return how a model did."""
    message = prediction_pb2.Residual(
        channel=residual.channel,
        model_id=residual.model_id,
        model_version=residual.model_version,
        since_offset=residual.since_offset,
        count=residual.count,
        mean=residual.mean,
        mae=residual.mae,
        rmse=residual.rmse,
        interval_count=residual.interval_count,
        covered_count=residual.covered_count,
        nominal_coverage=residual.nominal_coverage,
        last_lead_us=residual.last_lead_us,
        last_predicted=residual.last_predicted,
        last_reported=residual.last_reported,
    )
    if residual.last_time_unix_us is not None:
        message.last_time.CopyFrom(time_to_message(residual.last_time_unix_us))
        message.last_step_time.CopyFrom(time_to_message(residual.last_step_unix_us))
    return message


def desired_to_message(
    revision: int, values: Iterable[DesiredValue], removed: Iterable[str] = ()
) -> replica_pb2.DesiredFacet:
    """Return a desired facet, or the part of it that changed."""
    return replica_pb2.DesiredFacet(revision=revision, values=map(_desired_value, values), removed=removed)


def delta_to_message(items: Iterable[DeltaItem]) -> replica_pb2.Delta:
    """Return a delta; without items it says that all is in sync."""
    return replica_pb2.Delta(items=map(_delta_item, items))


def change_to_message(change: Change) -> statesync_pb2.WatchEvent:
    """Return a change as the event that watchers get."""
    event = statesync_pb2.WatchEvent(
        offset=change.offset,
        twin_id=change.twin.twin_id,
        kind=statesync_pb2.WatchEventKind.ValueType(change.kind),
        revision=change.revision,
        previous_revision=change.previous_revision,
        merged_count=change.merged_count,
    )
    if change.replica is not None:
        event.replica.CopyFrom(replica_to_message(change.twin, change.replica))
    if change.identity:
        event.twin.CopyFrom(twin_to_message(change.twin))
    if change.reported:
        reported = event.reported
        reported.revision = change.reported_revision
        for value in change.reported:
            _fill_reported(reported.values.add(), value)
    if change.desired or change.removed:
        event.desired.CopyFrom(desired_to_message(change.desired_revision, change.desired, change.removed))
    if change.predicted:
        event.predicted.CopyFrom(_predicted(change.predicted_revision, change.predicted))
    if change.delta is not None:
        event.delta.CopyFrom(delta_to_message(change.delta))
    if change.connectivity is not None:
        event.connectivity = replica_pb2.Connectivity.ValueType(change.connectivity)
    if change.commands or change.events or change.residuals or change.alarms:
        event.commands.extend(map(command_to_message, change.commands))
        event.events.extend(map(event_to_message, change.events))
        event.residuals.extend(map(residual_to_message, change.residuals))
        event.alarms.extend(map(alarm_to_message, change.alarms))
    return event


def snapshot_change(tenant: str, twin: Twin, replica: Replica) -> Change:
    """Return the change that tells a twin as it is."""
    return Change(
        tenant=tenant,
        twin=twin,
        kind=ChangeKind.SNAPSHOT,
        offset=replica.offset,
        revision=replica.revision,
        previous_revision=replica.revision,
        replica=replica,
    )


def encode_event(change: Change) -> bytes:
    """Return a change as one `events` field of a WatchResponse: frames are made by joining these."""
    body = change_to_message(change).SerializeToString()
    return b"".join((_EVENTS_FIELD, _varint(len(body)), body))


def with_previous(event: bytes, previous_offset: int) -> bytes:
    """Return what `encode_event` returned with the event's `previous_offset`, which depends on who is told."""
    if not previous_offset:
        return event
    _, start = decode_varint(event, len(_EVENTS_FIELD), len(event))
    tail = _PREVIOUS_OFFSET + _varint(previous_offset)
    return b"".join((_EVENTS_FIELD, _varint(len(event) - start + len(tail)), event[start:], tail))


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _reported(revision: int, values: Iterable[ReportedValue]) -> replica_pb2.ReportedFacet:
    facet = replica_pb2.ReportedFacet(revision=revision)
    for value in values:
        _fill_reported(facet.values.add(), value)
    return facet


def _fill_reported(message: replica_pb2.ReportedValue, value: ReportedValue) -> None:
    # Field by field and in place: this runs for every update, and sub-messages built apart are copied.
    message.channel = value.channel
    fact, target = value.value, message.value
    if type(fact) is float:
        target.double_value = fact
    else:
        target.CopyFrom(value_to_message(fact))
    message.quality = observation_pb2.Quality.ValueType(value.quality)
    seconds, rest = divmod(value.event_time_unix_us, US_PER_S)
    event_time = message.event_time
    event_time.seconds = seconds
    event_time.nanos = rest * 1_000
    message.offset = value.offset


def _desired_value(value: DesiredValue) -> replica_pb2.DesiredValue:
    message = replica_pb2.DesiredValue(
        channel=value.channel,
        value=value_to_message(value.value),
        state=replica_pb2.DesiredState.ValueType(value.state),
        offset=value.offset,
        rejection=value.rejection,
        command_id=value.command_id,
        tolerance=value.tolerance,
        drift_count=value.drift_count,
    )
    if value.set_time_unix_us:
        message.set_time.CopyFrom(time_to_message(value.set_time_unix_us))
    if value.deadline_unix_us is not None:
        message.deadline.CopyFrom(time_to_message(value.deadline_unix_us))
    if value.delta_since_unix_us is not None:
        message.delta_since.CopyFrom(time_to_message(value.delta_since_unix_us))
    if value.first_met_unix_us is not None:
        message.first_met_time.CopyFrom(time_to_message(value.first_met_unix_us))
    return message


def _delta_item(item: DeltaItem) -> replica_pb2.DeltaItem:
    message = replica_pb2.DeltaItem(channel=item.channel, desired=value_to_message(item.desired))
    if item.reported is not None:
        message.reported.CopyFrom(value_to_message(item.reported))
    return message


def _predicted(revision: int, predictions: Iterable[Prediction]) -> replica_pb2.PredictedFacet:
    return replica_pb2.PredictedFacet(revision=revision, predictions=map(prediction_to_message, predictions))
