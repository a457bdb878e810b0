"""Alarms, and the entries that move them, between protobuf and the domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from twinmesh.type.v1 import alarm_pb2, entry_pb2
from twinmesh_runtime.registry_mapping import time_from_message, time_to_message
from twinmesh_statesync.domain.alarms.actions import (
    AcknowledgeAlarm,
    AlarmAction,
    EndEvent,
    LookAtAlarms,
    SetAlarmService,
    ShelveAlarm,
    UnshelveAlarm,
)
from twinmesh_statesync.domain.alarms.alarm import Alarm, AlarmState
from twinmesh_statesync.rpc.mapping.values import value_to_message

_STATES: Final = {int(state): state for state in AlarmState}
_TIMES: Final = (
    ("first_raise_time", "first_raise_unix_us"),
    ("last_raise_time", "last_raise_unix_us"),
    ("return_time", "return_unix_us"),
    ("acknowledge_time", "acknowledge_unix_us"),
    ("shelved_until", "shelved_until_unix_us"),
    ("transition_time", "transition_unix_us"),
)


def alarm_to_message(alarm: Alarm) -> alarm_pb2.Alarm:
    """Return an alarm as its message."""
    message = alarm_pb2.Alarm(
        twin_id=alarm.twin_id,
        rule=alarm.rule,
        state=alarm_pb2.AlarmState.ValueType(alarm.state),
        severity=alarm.severity,
        level=alarm.level,
        message=alarm.message,
        channel=alarm.channel,
        limit=alarm.limit,
        raise_count=alarm.raise_count,
        acknowledged_by=alarm.acknowledged_by,
        acknowledge_note=alarm.acknowledge_note,
        shelved_by=alarm.shelved_by,
        shelve_note=alarm.shelve_note,
        suppressed_by=alarm.suppressed_by,
        out_of_service_by=alarm.out_of_service_by,
        transition=alarm_pb2.AlarmTransition.ValueType(alarm.transition),
        offset=alarm.offset,
    )
    if alarm.value is not None:
        message.value.CopyFrom(value_to_message(alarm.value))
    for field, attribute in _TIMES:
        time_unix_us = getattr(alarm, attribute)
        if time_unix_us:
            getattr(message, field).CopyFrom(time_to_message(time_unix_us))
    return message


def alarm_state_from_message(number: int) -> AlarmState:
    """Return the state of this number; unknown ones read as UNSPECIFIED."""
    return _STATES.get(number, AlarmState.UNSPECIFIED)


ALARM_ENCODERS: Final[Mapping[type, Callable[[Any], tuple[str, Any]]]] = {
    AcknowledgeAlarm: lambda a: (
        "acknowledge_alarm",
        entry_pb2.AcknowledgeAlarmEntry(twin_id=a.twin_id, rule=a.rule, note=a.note, if_raise_count=a.if_raise_count),
    ),
    ShelveAlarm: lambda a: (
        "shelve_alarm",
        entry_pb2.ShelveAlarmEntry(twin_id=a.twin_id, rule=a.rule, until=time_to_message(a.until_unix_us), note=a.note),
    ),
    UnshelveAlarm: lambda a: ("unshelve_alarm", entry_pb2.UnshelveAlarmEntry(twin_id=a.twin_id, rule=a.rule)),
    SetAlarmService: lambda a: (
        "set_alarm_service",
        entry_pb2.SetAlarmServiceEntry(twin_id=a.twin_id, rule=a.rule, out_of_service=a.out_of_service),
    ),
    LookAtAlarms: lambda a: ("look_at_alarms", entry_pb2.LookAtAlarmsEntry(twin_id=a.twin_id)),
    EndEvent: lambda a: (
        "end_event",
        entry_pb2.EndEventEntry(twin_id=a.twin_id, event_id=a.event_id, end_time=time_to_message(a.end_time_unix_us)),
    ),
}
"""An action of this family to the field of a ControlEntry and its message."""

ALARM_DECODERS: Final[Mapping[str, Callable[[Any], AlarmAction]]] = {
    "acknowledge_alarm": lambda m: AcknowledgeAlarm(
        twin_id=m.twin_id, rule=m.rule, note=m.note, if_raise_count=m.if_raise_count
    ),
    "shelve_alarm": lambda m: ShelveAlarm(
        twin_id=m.twin_id, rule=m.rule, until_unix_us=time_from_message(m.until), note=m.note
    ),
    "unshelve_alarm": lambda m: UnshelveAlarm(twin_id=m.twin_id, rule=m.rule),
    "set_alarm_service": lambda m: SetAlarmService(twin_id=m.twin_id, rule=m.rule, out_of_service=m.out_of_service),
    "look_at_alarms": lambda m: LookAtAlarms(twin_id=m.twin_id),
    "end_event": lambda m: EndEvent(
        twin_id=m.twin_id, event_id=m.event_id, end_time_unix_us=time_from_message(m.end_time)
    ),
}
"""And back."""
