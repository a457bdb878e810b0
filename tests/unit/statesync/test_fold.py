"""What the fold decides, case by case."""

import pytest
from tests.unit.statesync.worlds import PUMP, T0, TENANT, S, World, all_kinds, doubles, prediction

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.quality import Quality
from twinmesh_core.registry import Twin
from twinmesh_core.registry_fold import Outcome
from twinmesh_statesync.domain.changes import ChangeKind
from twinmesh_statesync.domain.commands import CommandState
from twinmesh_statesync.domain.entries import (
    Action,
    CreateTwin,
    CreateTwinType,
    DeleteTwin,
    ExpireDesired,
    QueueCommand,
    RecordEvent,
    RecordPrediction,
    SetConnectivity,
    SetDesired,
    UpdateCommand,
)
from twinmesh_statesync.domain.events import Connectivity, Event, EventKind
from twinmesh_statesync.domain.fold import Folded
from twinmesh_statesync.domain.replica import DesiredState
from twinmesh_statesync.domain.values import Json, Value


def error_of(folded: Folded) -> TwinmeshError:
    assert folded.verdict is not None
    assert folded.verdict.outcome is Outcome.REJECTED
    assert folded.verdict.error is not None
    assert folded.changes == ()
    return folded.verdict.error


def desire(world: World, values: dict[str, Value], **more: object) -> Folded:
    return world.do(SetDesired(twin_id="a", values=values, **more))  # type: ignore[arg-type]


def test_every_kind_of_channel_is_reported_as_its_own_python_type() -> None:
    world = World("a")
    world.see(all_kinds("a", T0, 3))
    values = {channel: fact.value for channel, fact in world.replica("a").reported.values.items()}
    assert values == {"temperature": 1.5, "stage": 3, "on": True, "label": "t3", "document": '{"n": 3}'}
    assert isinstance(values["document"], Json)
    assert values["on"] is True
    assert world.replica("a").reported.values["on"].quality is Quality.UNCERTAIN


def test_older_facts_never_move_the_replica_and_make_no_change() -> None:
    world = World("a")
    world.report("a", "temperature", T0 + S, 5.0)
    assert world.report("a", "temperature", T0, 9.0).changes == ()
    assert world.replica("a").reported.values["temperature"].value == 5.0
    assert world.replica("a").reported.revision == 1


def test_a_newer_bad_value_replaces_and_carries_its_quality() -> None:
    world = World("a")
    world.report("a", "temperature", T0, 5.0)
    world.report("a", "temperature", T0 + S, -999.0, Quality.BAD)
    fact = world.replica("a").reported.values["temperature"]
    assert (fact.value, fact.quality) == (-999.0, Quality.BAD)


def test_a_correction_of_the_same_event_time_wins_by_its_offset_and_a_repetition_is_no_change() -> None:
    world = World("a")
    world.report("a", "temperature", T0, 5.0)
    assert world.report("a", "temperature", T0, 5.0).changes == ()
    assert len(world.report("a", "temperature", T0, 6.0).changes) == 1
    assert world.replica("a").reported.values["temperature"].value == 6.0


def test_within_one_batch_the_last_row_of_the_newest_time_wins() -> None:
    world = World("a")
    folded = world.see(
        doubles(
            [
                ("a", "temperature", T0 + S, 1.0, 1),
                ("a", "temperature", T0, 2.0, 1),
                ("a", "temperature", T0 + S, 3.0, 1),
            ]
        )
    )
    assert [fact.value for fact in folded.changes[0].reported] == [3.0]


def test_unknown_twins_channels_and_wrong_kinds_are_passed_over() -> None:
    world = World("a")
    rows = [("ghost", "temperature", T0, 1.0, 1), ("a", "ghost", T0, 1.0, 1), ("a", "stage", T0, 1.0, 1)]
    (change,) = world.see(doubles(rows)).changes
    assert (change.reported, change.connectivity) == ((), Connectivity.ONLINE), "heard from, though nothing was said"
    assert world.see(doubles(rows)).changes == ()


def test_of_racers_on_one_revision_exactly_one_wins_and_the_others_learn_the_current_one() -> None:
    world = World("a")
    outcomes = [desire(world, {"target": float(i)}, if_revision=0) for i in range(8)]
    assert [f.verdict.outcome for f in outcomes if f.verdict is not None].count(Outcome.ACCEPTED) == 1
    for loser in outcomes[1:]:
        error = error_of(loser)
        assert error.reason == "REVISION_CONFLICT"
        assert error.metadata["current_revision"] == "1"


def test_a_fast_reporter_never_moves_the_revision_that_an_operator_compares() -> None:
    world = World("a")
    desire(world, {"target": 4.0})
    for i in range(20):
        world.report("a", "target", T0 + i * S, float(i))
    assert world.replica("a").desired.revision == 1
    verdict = desire(world, {"target": 5.0}, if_revision=1).verdict
    assert verdict is not None
    assert verdict.outcome is Outcome.ACCEPTED


@pytest.mark.parametrize(
    ("values", "reason", "words"),
    [
        ({"ghost": 1.0}, "CHANNEL_NOT_FOUND", "it has: temperature"),
        ({"temperature": 1.0}, "NOT_CONTROLLABLE", "controllable channels: speed"),
        ({"speed": 101.0}, "INVALID_FIELD", "from 0 to 100"),
        ({"speed": "fast"}, "INVALID_FIELD", "must be a number"),
        ({"stage": 1.5}, "INVALID_FIELD", "must be a whole number"),
        ({"on": 1}, "INVALID_FIELD", "must be true or false"),
        ({"document": "{"}, "INVALID_FIELD", "must be a JSON document"),
    ],
)
def test_a_target_that_cannot_be_is_refused_whole(values: dict[str, Value], reason: str, words: str) -> None:
    world = World("a")
    error = error_of(desire(world, {"target": 1.0, **values}))
    assert error.reason == reason
    assert words in error.message
    assert world.replica("a").desired.values == {}


def test_whole_numbers_are_taken_for_either_kind_of_number() -> None:
    world = World("a")
    desire(world, {"speed": 10, "stage": 2.0})
    values = {channel: target.value for channel, target in world.replica("a").desired.values.items()}
    assert values == {"speed": 10.0, "stage": 2}
    assert type(values["speed"]) is float
    assert type(values["stage"]) is int


def test_the_delta_closes_within_tolerance_in_the_change_that_reports_it_and_opens_again() -> None:
    world = World("a")
    opened = desire(world, {"speed": 10.0}).changes[0]
    assert opened.delta is not None
    assert opened.delta[0].reported is None
    closed = world.report("a", "speed", T0, 10.4).changes[0]
    assert closed.delta == ()
    assert closed.desired[0].state is DesiredState.APPLIED
    reopened = world.report("a", "speed", T0 + S, 20.0).changes[0]
    assert reopened.delta is not None
    assert reopened.delta[0].reported == 20.0
    assert reopened.desired[0].state is DesiredState.PENDING


def test_a_bad_value_does_not_prove_that_a_target_is_met() -> None:
    world = World("a")
    desire(world, {"target": 10.0})
    world.report("a", "target", T0, 10.0, Quality.BAD)
    assert len(world.replica("a").delta) == 1


def test_json_targets_agree_by_content() -> None:
    world = World("a")
    desire(world, {"document": Json('{ "n" : 3 }')})
    world.see(all_kinds("a", T0, 3))
    assert world.replica("a").delta == ()


def test_a_target_with_a_set_command_queues_it_at_the_same_offset_and_follows_it() -> None:
    world = World("a")
    change = desire(world, {"speed": 30.0}).changes[0]
    (command,) = change.commands
    assert (command.name, command.args, command.create_offset) == ("set_speed", {"value": 30.0}, change.offset)
    assert change.desired[0].command_id == command.command_id
    world.do(UpdateCommand(command_id=command.command_id, twin_id="a", state=CommandState.DELIVERED))
    assert world.replica("a").desired.values["speed"].state is DesiredState.DELIVERED
    world.do(UpdateCommand(command_id=command.command_id, twin_id="a", state=CommandState.SUCCEEDED))
    assert world.replica("a").desired.values["speed"].state is DesiredState.DELIVERED
    world.report("a", "speed", T0, 30.2)
    assert world.replica("a").desired.values["speed"].state is DesiredState.APPLIED


def test_a_device_that_refuses_leaves_its_reason() -> None:
    world = World("a")
    command = desire(world, {"speed": 30.0}).changes[0].commands[0]
    world.do(
        UpdateCommand(command_id=command.command_id, twin_id="a", state=CommandState.FAILED, message="valve stuck")
    )
    target = world.replica("a").desired.values["speed"]
    assert (target.state, target.rejection) == (DesiredState.REJECTED, "valve stuck")


def test_a_newer_target_withdraws_the_undelivered_command_of_the_older() -> None:
    world = World("a")
    first = desire(world, {"speed": 30.0}).changes[0].commands[0]
    second = desire(world, {"speed": 40.0}).changes[0]
    assert [command.state for command in second.commands] == [CommandState.CANCELLED, CommandState.QUEUED]
    assert second.commands[0].command_id == first.command_id
    removed = desire(world, {}, remove=("speed",)).changes[0]
    assert removed.removed == ("speed",)
    assert removed.delta == ()
    assert removed.commands[0].state is CommandState.CANCELLED


def test_a_missed_deadline_is_an_event_once_and_a_late_device_still_applies() -> None:
    world = World("a")
    set_offset = desire(world, {"target": 4.0}, deadline_unix_us=T0 + S).changes[0].offset
    expire = ExpireDesired(twin_id="a", channels=("target",), set_offsets=(set_offset,))
    change = world.do(expire).changes[0]
    assert change.desired[0].state is DesiredState.EXPIRED
    assert [(event.kind, event.channel) for event in change.events] == [(EventKind.NOT_CONVERGED, "target")]
    assert world.do(expire).changes == ()
    world.report("a", "target", T0, 4.0)
    assert world.replica("a").desired.values["target"].state is DesiredState.APPLIED


def test_a_deadline_concerns_neither_a_newer_target_nor_one_that_was_met() -> None:
    world = World("a")
    first = desire(world, {"target": 4.0}, deadline_unix_us=T0).changes[0].offset
    second = desire(world, {"target": 5.0}, deadline_unix_us=T0).changes[0].offset
    assert world.do(ExpireDesired(twin_id="a", channels=("target",), set_offsets=(first,))).changes == ()
    world.report("a", "target", T0, 5.0)
    world.report("a", "target", T0 + S, 9.0)
    assert world.do(ExpireDesired(twin_id="a", channels=("target",), set_offsets=(second,))).changes == ()


def test_predictions_from_older_inputs_never_replace_newer_ones() -> None:
    world = World("a")
    world.do(RecordPrediction(twin_id="a", prediction=prediction(input_offset=5)))
    stale = world.do(RecordPrediction(twin_id="a", prediction=prediction(input_offset=4)))
    assert stale.verdict is not None
    assert stale.verdict.outcome is Outcome.NO_OP
    other = world.do(RecordPrediction(twin_id="a", prediction=prediction(model="n", input_offset=1)))
    assert other.verdict is not None
    assert other.verdict.outcome is Outcome.ACCEPTED
    kept = world.replica("a").predicted.predictions
    assert {key: p.input_offset for key, p in kept.items()} == {("temperature", "m"): 5, ("temperature", "n"): 1}
    assert world.replica("a").predicted.revision == 2


def test_a_command_lives_once_and_ends_once() -> None:
    world = World("a")
    world.do(QueueCommand(command_id="c", twin_id="a", name="stop", args={}))
    again = world.do(QueueCommand(command_id="c", twin_id="a", name="stop", args={}))
    assert error_of(again).reason == "ALREADY_EXISTS"
    for state in (CommandState.DELIVERED, CommandState.DELIVERED, CommandState.SUCCEEDED, CommandState.SUCCEEDED):
        verdict = world.do(UpdateCommand(command_id="c", twin_id="a", state=state)).verdict
        assert verdict is not None
        assert verdict.error is None
    error = error_of(world.do(UpdateCommand(command_id="c", twin_id="a", state=CommandState.CANCELLED)))
    assert error.reason == "COMMAND_STATE"
    assert error.metadata["state"] == "SUCCEEDED"


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (QueueCommand(command_id="c", twin_id="a", name="fly", args={}), "INVALID_FIELD"),
        (QueueCommand(command_id="c", twin_id="a", name="set_speed", args={}), "INVALID_FIELD"),
        (UpdateCommand(command_id="ghost", twin_id="a", state=CommandState.FAILED), "COMMAND_NOT_FOUND"),
        (DeleteTwin(twin_id="ghost"), "TWIN_NOT_FOUND"),
        (SetConnectivity(twin_id="ghost", connectivity=Connectivity.ONLINE, last_arrival_unix_us=1), "TWIN_NOT_FOUND"),
        (SetConnectivity(twin_id="a", connectivity=Connectivity.UNSPECIFIED, last_arrival_unix_us=1), "INVALID_FIELD"),
        (CreateTwin(twin=Twin(twin_id="a", twin_type_id="pump")), "ALREADY_EXISTS"),
        (CreateTwin(twin=Twin(twin_id="x", twin_type_id="ghost")), "TWIN_TYPE_NOT_FOUND"),
        (RecordPrediction(twin_id="a", prediction=prediction(channel="ghost")), "CHANNEL_NOT_FOUND"),
    ],
)
def test_refusals_have_a_reason_and_no_effect(action: Action, reason: str) -> None:
    world = World("a")
    before = world.replica("a")
    assert error_of(world.do(action)).reason == reason
    assert world.replica("a") is before


def test_an_unknown_twin_comes_with_the_command_that_creates_it() -> None:
    error = error_of(World().do(DeleteTwin(twin_id="p9")))
    assert error.metadata["remedy"] == "twinmesh twins create p9 --type pump@1"


def test_the_same_request_again_has_no_second_effect_and_the_first_verdict() -> None:
    world = World("a")
    action = SetDesired(twin_id="a", values={"target": 1.0}, if_revision=0)
    first = world.do(action, request_id="same")
    again = world.do(action, request_id="same")
    assert again.verdict is first.verdict
    assert again.changes == ()
    assert world.replica("a").desired.revision == 1


def test_a_twin_that_lives_again_is_empty_and_its_revisions_go_on() -> None:
    world = World("a")
    desire(world, {"speed": 30.0})
    world.report("a", "temperature", T0, 1.0)
    world.do(
        RecordEvent(
            event=Event(event_id="e", twin_id="a", kind=EventKind.FAILURE, start_time_unix_us=T0, mode="bearing")
        )
    )
    revision = world.replica("a").revision
    deleted = world.do(DeleteTwin(twin_id="a")).changes[0]
    assert (deleted.kind, deleted.revision) == (ChangeKind.DELETED, revision + 1)
    assert deleted.commands[0].state is CommandState.CANCELLED
    assert world.report("a", "temperature", T0 + S, 2.0).changes == ()
    created = world.create("a").changes[0]
    assert (created.kind, created.previous_revision, created.revision) == (
        ChangeKind.CREATED,
        revision + 1,
        revision + 2,
    )
    replica = world.replica("a")
    assert (replica.reported.values, replica.desired.values, replica.delta) == ({}, {}, ())
    assert (replica.reported.revision, replica.desired.revision) == (1, 1)
    state = world.fold.state(TENANT, "a")
    assert state is not None
    assert list(state.events) == ["e"]


def test_connectivity_is_a_change_only_when_it_changes() -> None:
    world = World("a")
    online = SetConnectivity(twin_id="a", connectivity=Connectivity.ONLINE, last_arrival_unix_us=T0)
    assert world.do(online).changes[0].connectivity is Connectivity.ONLINE
    assert world.do(online).changes == ()


def test_the_same_type_again_is_fine_and_another_content_is_not() -> None:
    world = World()
    verdict = world.do(CreateTwinType(twin_type=PUMP)).verdict
    assert verdict is not None
    assert verdict.outcome is Outcome.NO_OP


def test_tenants_do_not_see_one_another() -> None:
    world = World("a")
    assert world.fold.state("other", "a") is None
    assert world.fold.verdict("other", "r1") is None
