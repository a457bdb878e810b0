"""Control entries go to the log and come back as they were."""

import pytest
from hypothesis import given
from tests.unit.statesync.alarm_worlds import RULES, boiler
from tests.unit.statesync.worlds import PUMP, T0, actions

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import alarm_pb2, command_pb2, entry_pb2, event_pb2, observation_pb2, replica_pb2, twin_pb2
from twinmesh_core.migration import MigrationEffect, MigrationOutcome
from twinmesh_core.value_specs import ValueKind
from twinmesh_statesync.domain.alarms.actions import (
    AcknowledgeAlarm,
    EndEvent,
    LookAtAlarms,
    SetAlarmService,
    ShelveAlarm,
    UnshelveAlarm,
)
from twinmesh_statesync.domain.alarms.alarm import AlarmState, Transition
from twinmesh_statesync.domain.changes import ChangeKind
from twinmesh_statesync.domain.commands import CommandState
from twinmesh_statesync.domain.entries import Action, ControlEntry, CreateTwinType
from twinmesh_statesync.domain.events import Connectivity, EventKind
from twinmesh_statesync.domain.replica import DesiredState
from twinmesh_statesync.rpc.mapping.control import control_from_message, control_to_message


@given(action=actions)
def test_a_control_entry_comes_back_as_it_was(action: Action) -> None:
    entry = ControlEntry(request_id="r", principal="p", action=action)
    wire = control_to_message(entry).SerializeToString()
    assert control_from_message(entry_pb2.ControlEntry.FromString(wire)) == entry


def test_a_twin_type_comes_back_as_it_was() -> None:
    entry = ControlEntry(request_id="r", principal="p", action=CreateTwinType(twin_type=PUMP))
    assert control_from_message(control_to_message(entry)) == entry


@pytest.mark.parametrize(
    "action",
    [
        AcknowledgeAlarm(twin_id="b", rule="hot", note="n", if_raise_count=3),
        ShelveAlarm(twin_id="b", rule="hot", until_unix_us=T0, note="n"),
        UnshelveAlarm(twin_id="b", rule="hot"),
        SetAlarmService(twin_id="b", rule="hot", out_of_service=True),
        LookAtAlarms(twin_id="b"),
        EndEvent(twin_id="b", event_id="e", end_time_unix_us=T0),
        CreateTwinType(twin_type=boiler(*RULES)),
    ],
)
def test_what_concerns_alarms_comes_back_as_it_was(action: Action) -> None:
    entry = ControlEntry(request_id="r", principal="p", action=action)
    assert control_from_message(control_to_message(entry)) == entry


def test_an_action_without_a_value_or_of_a_newer_release_is_without_effect() -> None:
    empty = entry_pb2.SetDesiredEntry(twin_id="a", values={"target": observation_pb2.Value()})
    assert control_from_message(entry_pb2.ControlEntry(set_desired=empty)).action is None
    assert control_from_message(entry_pb2.ControlEntry(request_id="r")).action is None


def test_our_numbers_are_the_contract_s() -> None:
    pairs = (
        (CommandState, command_pb2.CommandState, "COMMAND_STATE_"),
        (EventKind, event_pb2.EventKind, "EVENT_KIND_"),
        (Connectivity, replica_pb2.Connectivity, "CONNECTIVITY_"),
        (DesiredState, replica_pb2.DesiredState, "DESIRED_STATE_"),
        (AlarmState, alarm_pb2.AlarmState, "ALARM_STATE_"),
        (Transition, alarm_pb2.AlarmTransition, "ALARM_TRANSITION_"),
    )
    for ours, theirs, prefix in pairs:
        assert {prefix + member.name: member.value for member in ours} == dict(theirs.items())
    migration = (
        (MigrationOutcome, statesync_pb2.MigrationOutcome, "MIGRATION_OUTCOME_"),
        (MigrationEffect, statesync_pb2.MigrationEffect, "MIGRATION_EFFECT_"),
        (ValueKind, twin_pb2.ValueKind, "VALUE_KIND_"),
    )
    for mine, other, prefix in migration:
        assert {prefix + member.name: member.value for member in mine} == dict(other.items())
    kinds = {f"WATCH_EVENT_KIND_{member.name}": member.value for member in ChangeKind}
    assert kinds.items() <= dict(statesync_pb2.WatchEventKind.items()).items()
