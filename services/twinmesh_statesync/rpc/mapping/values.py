"""Single values, commands, events and predictions between protobuf and the domain."""

from __future__ import annotations

from typing import Final

from twinmesh.type.v1 import command_pb2, event_pb2, position_pb2, prediction_pb2
from twinmesh_runtime.registry_mapping import (
    time_from_message,
    time_to_message,
    value_from_message,
    value_to_message,
    values_from_messages,
)
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.commands import Command, CommandState
from twinmesh_statesync.domain.events import Event, EventKind, Prediction

__all__ = [
    "command_state_from_message",
    "command_to_message",
    "event_from_message",
    "event_kind_from_message",
    "event_to_message",
    "position_to_message",
    "prediction_from_message",
    "prediction_to_message",
    "value_from_message",
    "value_to_message",
    "values_from_messages",
]

_COMMAND_STATES: Final = {int(state): state for state in CommandState}
_EVENT_KINDS: Final = {int(kind): kind for kind in EventKind}


def position_to_message(position: Position) -> position_pb2.LogPosition:
    """Return a position as its message."""
    return position_pb2.LogPosition(incarnation=position.incarnation, offset=position.offset)


def command_to_message(command: Command) -> command_pb2.Command:
    """Return a command as its message."""
    message = command_pb2.Command(
        command_id=command.command_id,
        twin_id=command.twin_id,
        name=command.name,
        args={name: value_to_message(value) for name, value in command.args.items()},
        state=command_pb2.CommandState.ValueType(command.state),
        message=command.message,
        create_time=time_to_message(command.create_time_unix_us),
        create_offset=command.create_offset,
        offset=command.offset,
        update_time=time_to_message(command.update_time_unix_us),
        progress_percent=command.progress_percent,
        progress_message=command.progress_message,
        result={name: value_to_message(value) for name, value in command.result.items()},
        cancel_requested=command.cancel_requested,
        cancel_reason=command.cancel_reason,
    )
    if command.expire_time_unix_us is not None:
        message.expire_time.CopyFrom(time_to_message(command.expire_time_unix_us))
    if command.deliver_time_unix_us is not None:
        message.deliver_time.CopyFrom(time_to_message(command.deliver_time_unix_us))
    return message


def command_state_from_message(number: int) -> CommandState:
    """Return the state of this number; unknown ones read as UNSPECIFIED."""
    return _COMMAND_STATES.get(number, CommandState.UNSPECIFIED)


def event_kind_from_message(number: int) -> EventKind:
    """Return the kind of this number; unknown ones read as UNSPECIFIED."""
    return _EVENT_KINDS.get(number, EventKind.UNSPECIFIED)


def event_to_message(event: Event) -> event_pb2.Event:
    """Return an event as its message."""
    message = event_pb2.Event(
        event_id=event.event_id,
        twin_id=event.twin_id,
        kind=event_pb2.EventKind.ValueType(event.kind),
        start_time=time_to_message(event.start_time_unix_us),
        mode=event.mode,
        message=event.message,
        offset=event.offset,
        channel=event.channel,
    )
    if event.end_time_unix_us is not None:
        message.end_time.CopyFrom(time_to_message(event.end_time_unix_us))
    return message


def event_from_message(message: event_pb2.Event) -> Event:
    """Return an event as a value; nothing is checked."""
    return Event(
        event_id=message.event_id,
        twin_id=message.twin_id,
        kind=event_kind_from_message(message.kind),
        start_time_unix_us=time_from_message(message.start_time),
        end_time_unix_us=time_from_message(message.end_time) if message.HasField("end_time") else None,
        mode=message.mode,
        message=message.message,
        channel=message.channel,
    )


def prediction_to_message(prediction: Prediction) -> prediction_pb2.Prediction:
    """Return a prediction as its message."""
    return prediction_pb2.Prediction(
        channel=prediction.channel,
        model_id=prediction.model_id,
        model_version=prediction.model_version,
        at=time_to_message(prediction.at_unix_us),
        input_offset=prediction.input_offset,
        valid_until=time_to_message(prediction.valid_until_unix_us),
        step_us=prediction.step_us,
        quantile_levels=prediction.quantile_levels,
        values=prediction.values,
        unit=prediction.unit,
    )


def prediction_from_message(message: prediction_pb2.Prediction) -> Prediction:
    """Return a prediction as a value; nothing is checked."""
    return Prediction(
        channel=message.channel,
        model_id=message.model_id,
        model_version=message.model_version,
        at_unix_us=time_from_message(message.at),
        input_offset=message.input_offset,
        valid_until_unix_us=time_from_message(message.valid_until),
        step_us=message.step_us,
        quantile_levels=tuple(message.quantile_levels),
        values=tuple(message.values),
        unit=message.unit,
    )
