"""Control entries between protobuf and the domain: what is written to the log, and what is read from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from twinmesh.type.v1 import command_pb2, entry_pb2, observation_pb2, replica_pb2
from twinmesh_core.errors import InvalidArgument
from twinmesh_runtime.registry_mapping import (
    can_be_kept,
    time_from_message,
    time_to_message,
    twin_from_message,
    twin_to_message,
    twin_type_from_message,
    twin_type_to_message,
    unit_changes_from_message,
    unit_changes_to_message,
)
from twinmesh_statesync.domain.entries import (
    AcknowledgeDesired,
    Action,
    CancelCommand,
    ConnectivityChange,
    ControlEntry,
    CreateTwin,
    CreateTwins,
    CreateTwinType,
    DeleteTwin,
    DesiredAcknowledgement,
    EraseTwin,
    ExpireDesired,
    MigrateTwins,
    QueueCommand,
    RecordEvent,
    RecordPrediction,
    SetConnectivities,
    SetConnectivity,
    SetDesired,
    UpdateCommand,
    UpdateTwin,
)
from twinmesh_statesync.domain.events import Connectivity
from twinmesh_statesync.domain.replica import DesiredState
from twinmesh_statesync.domain.values import Value
from twinmesh_statesync.rpc.mapping.alarms import ALARM_DECODERS, ALARM_ENCODERS
from twinmesh_statesync.rpc.mapping.conditions import conditions_from_messages, conditions_to_messages
from twinmesh_statesync.rpc.mapping.values import (
    command_state_from_message,
    event_from_message,
    event_to_message,
    prediction_from_message,
    prediction_to_message,
    value_to_message,
    values_from_messages,
)

_CONNECTIVITIES: Final = {int(connectivity): connectivity for connectivity in Connectivity}
_DESIRED_STATES: Final = {int(state): state for state in DesiredState}


def control_to_message(entry: ControlEntry) -> entry_pb2.ControlEntry:
    """Return a control entry as the message that goes into the log."""
    message = entry_pb2.ControlEntry(request_id=entry.request_id, principal=entry.principal)
    if entry.action is not None:
        field, action = _ENCODERS[type(entry.action)](entry.action)
        getattr(message, field).CopyFrom(action)
    return message


def control_from_message(message: entry_pb2.ControlEntry) -> ControlEntry:
    """Return a control entry of the log; an action that cannot be read is None, for every fold alike."""
    request_id = message.request_id if message.request_id.isprintable() else ""
    return ControlEntry(request_id=request_id, principal=message.principal, action=_action(message))


def _action(message: entry_pb2.ControlEntry) -> Action | None:
    field = message.WhichOneof("action")
    if field not in _DECODERS or not can_be_kept(message):
        return None
    try:
        return _DECODERS[field](getattr(message, field))
    except InvalidArgument:
        return None  # a value without content: no writer of ours appends one


def desired_items(messages: Iterable[replica_pb2.DesiredAcknowledgement]) -> tuple[DesiredAcknowledgement, ...]:
    """Return what a device says of its targets; nothing is checked."""
    return tuple(
        DesiredAcknowledgement(
            channel=message.channel,
            set_offset=message.set_offset,
            state=_DESIRED_STATES.get(message.state, DesiredState.UNSPECIFIED),
            reason=message.reason,
        )
        for message in messages
    )


def _values(values: Any) -> dict[str, observation_pb2.Value]:
    plain: dict[str, Value] = dict(values)
    return {name: value_to_message(value) for name, value in plain.items()}


def _encode_desired(action: SetDesired) -> tuple[str, entry_pb2.SetDesiredEntry]:
    message = entry_pb2.SetDesiredEntry(
        twin_id=action.twin_id,
        values=_values(action.values),
        remove=action.remove,
        if_revision=action.if_revision,
        units=action.units,
        tolerances=action.tolerances,
        conditions=conditions_to_messages(action.conditions),
    )
    if action.deadline_unix_us is not None:
        message.deadline.CopyFrom(time_to_message(action.deadline_unix_us))
    return "set_desired", message


def _encode_queue(action: QueueCommand) -> tuple[str, entry_pb2.QueueCommandEntry]:
    message = entry_pb2.QueueCommandEntry(
        command_id=action.command_id,
        twin_id=action.twin_id,
        name=action.name,
        args=_values(action.args),
        conditions=conditions_to_messages(action.conditions),
    )
    message.type_version = action.type_version
    if action.expire_time_unix_us is not None:
        message.expire_time.CopyFrom(time_to_message(action.expire_time_unix_us))
    return "queue_command", message


def _encode_update(action: UpdateTwin) -> tuple[str, entry_pb2.UpdateTwinEntry]:
    return "update_twin", entry_pb2.UpdateTwinEntry(
        twin=twin_to_message(action.twin), update_mask=action.paths, if_revision=action.if_revision
    )


def _encode_migrate(action: MigrateTwins) -> tuple[str, entry_pb2.MigrateTwinsEntry]:
    message = entry_pb2.MigrateTwinsEntry(
        twin_type_id=action.twin_type_id,
        to_version=action.to_version,
        twin_ids=action.twin_ids,
        after_twin_id=action.after_twin_id,
        limit=action.limit,
        from_version=action.from_version,
    )
    unit_changes_to_message(action.units, message)
    return "migrate_twins", message


_ENCODERS: Final[dict[type, Callable[[Any], tuple[str, Any]]]] = {
    CreateTwinType: lambda a: (
        "create_twin_type",
        entry_pb2.CreateTwinTypeEntry(twin_type=twin_type_to_message(a.twin_type)),
    ),
    CreateTwin: lambda a: (
        "create_twin",
        entry_pb2.CreateTwinEntry(twin=twin_to_message(a.twin), if_absent=a.if_absent),
    ),
    CreateTwins: lambda a: (
        "create_twins",
        entry_pb2.CreateTwinsEntry(
            twins=map(twin_to_message, a.twins), if_absent=a.if_absent, all_or_nothing=a.all_or_nothing
        ),
    ),
    UpdateTwin: _encode_update,
    MigrateTwins: _encode_migrate,
    DeleteTwin: lambda a: ("delete_twin", entry_pb2.DeleteTwinEntry(twin_id=a.twin_id)),
    SetDesired: _encode_desired,
    RecordPrediction: lambda a: (
        "record_prediction",
        entry_pb2.RecordPredictionEntry(
            twin_id=a.twin_id,
            prediction=prediction_to_message(a.prediction),
            if_revision=a.if_revision,
            conditions=conditions_to_messages(a.conditions),
        ),
    ),
    QueueCommand: _encode_queue,
    UpdateCommand: lambda a: (
        "update_command",
        entry_pb2.UpdateCommandEntry(
            command_id=a.command_id,
            twin_id=a.twin_id,
            state=command_pb2.CommandState.ValueType(a.state),
            message=a.message,
            progress_percent=a.progress_percent,
            progress_message=a.progress_message,
            result=_values(a.result),
        ),
    ),
    CancelCommand: lambda a: (
        "cancel_command",
        entry_pb2.CancelCommandEntry(command_id=a.command_id, twin_id=a.twin_id, message=a.message, force=a.force),
    ),
    AcknowledgeDesired: lambda a: (
        "acknowledge_desired",
        entry_pb2.AcknowledgeDesiredEntry(
            twin_id=a.twin_id,
            items=[
                replica_pb2.DesiredAcknowledgement(
                    channel=item.channel,
                    set_offset=item.set_offset,
                    state=replica_pb2.DesiredState.ValueType(item.state),
                    reason=item.reason,
                )
                for item in a.items
            ],
        ),
    ),
    RecordEvent: lambda a: ("record_event", entry_pb2.RecordEventEntry(event=event_to_message(a.event))),
    ExpireDesired: lambda a: (
        "expire_desired",
        entry_pb2.ExpireDesiredEntry(twin_id=a.twin_id, channels=a.channels, set_offsets=a.set_offsets),
    ),
    SetConnectivity: lambda a: (
        "set_connectivity",
        entry_pb2.SetConnectivityEntry(
            twin_id=a.twin_id,
            connectivity=replica_pb2.Connectivity.ValueType(a.connectivity),
            last_arrival=time_to_message(a.last_arrival_unix_us),
        ),
    ),
    **ALARM_ENCODERS,
}

_ENCODERS[SetConnectivities] = lambda a: (
    "set_connectivities",
    entry_pb2.SetConnectivitiesEntry(
        items=[
            entry_pb2.ConnectivityChange(
                twin_id=item.twin_id,
                connectivity=replica_pb2.Connectivity.ValueType(item.connectivity),
                last_arrival_offset=item.last_arrival_offset,
            )
            for item in a.items
        ]
    ),
)

_DECODERS: Final[dict[str, Callable[[Any], Action]]] = {
    "create_twin_type": lambda m: CreateTwinType(twin_type=twin_type_from_message(m.twin_type)),
    "create_twin": lambda m: CreateTwin(twin=twin_from_message(m.twin), if_absent=m.if_absent),
    "create_twins": lambda m: CreateTwins(
        twins=tuple(map(twin_from_message, m.twins)), if_absent=m.if_absent, all_or_nothing=m.all_or_nothing
    ),
    "update_twin": lambda m: UpdateTwin(
        twin=twin_from_message(m.twin),
        paths=tuple(m.update_mask),
        if_revision=m.if_revision if m.HasField("if_revision") else None,
    ),
    "migrate_twins": lambda m: MigrateTwins(
        twin_type_id=m.twin_type_id,
        to_version=m.to_version,
        twin_ids=tuple(m.twin_ids),
        after_twin_id=m.after_twin_id,
        limit=m.limit,
        from_version=m.from_version,
        units=unit_changes_from_message(m),
    ),
    "delete_twin": lambda m: DeleteTwin(twin_id=m.twin_id),
    "set_desired": lambda m: SetDesired(
        twin_id=m.twin_id,
        values=values_from_messages(m.values, "values"),
        remove=tuple(m.remove),
        if_revision=m.if_revision if m.HasField("if_revision") else None,
        deadline_unix_us=time_from_message(m.deadline) if m.HasField("deadline") else None,
        units=dict(m.units),
        tolerances=dict(m.tolerances),
        conditions=conditions_from_messages(m.conditions),
    ),
    "record_prediction": lambda m: RecordPrediction(
        twin_id=m.twin_id,
        prediction=prediction_from_message(m.prediction),
        if_revision=m.if_revision if m.HasField("if_revision") else None,
        conditions=conditions_from_messages(m.conditions),
    ),
    "queue_command": lambda m: QueueCommand(
        command_id=m.command_id,
        twin_id=m.twin_id,
        name=m.name,
        args=values_from_messages(m.args, "args"),
        expire_time_unix_us=time_from_message(m.expire_time) if m.HasField("expire_time") else None,
        conditions=conditions_from_messages(m.conditions),
        type_version=m.type_version,
    ),
    "update_command": lambda m: UpdateCommand(
        command_id=m.command_id,
        twin_id=m.twin_id,
        state=command_state_from_message(m.state),
        message=m.message,
        progress_percent=m.progress_percent if m.HasField("progress_percent") else None,
        progress_message=m.progress_message,
        result=values_from_messages(m.result, "result"),
    ),
    "cancel_command": lambda m: CancelCommand(
        command_id=m.command_id, twin_id=m.twin_id, message=m.message, force=m.force
    ),
    "acknowledge_desired": lambda m: AcknowledgeDesired(twin_id=m.twin_id, items=desired_items(m.items)),
    "record_event": lambda m: RecordEvent(event=event_from_message(m.event)),
    "expire_desired": lambda m: ExpireDesired(
        twin_id=m.twin_id, channels=tuple(m.channels), set_offsets=tuple(m.set_offsets)
    ),
    "set_connectivity": lambda m: SetConnectivity(
        twin_id=m.twin_id,
        connectivity=_CONNECTIVITIES.get(m.connectivity, Connectivity.UNSPECIFIED),
        last_arrival_unix_us=time_from_message(m.last_arrival),
    ),
    "set_connectivities": lambda m: SetConnectivities(
        items=tuple(
            ConnectivityChange(
                twin_id=item.twin_id,
                connectivity=_CONNECTIVITIES.get(item.connectivity, Connectivity.UNSPECIFIED),
                last_arrival_offset=item.last_arrival_offset,
            )
            for item in m.items
        )
    ),
    "erase_twin": lambda m: EraseTwin(twin_id=m.twin_id),
    **ALARM_DECODERS,
}
