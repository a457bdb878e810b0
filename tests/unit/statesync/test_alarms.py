"""The rules of a twin type judged in the fold, and the life of their alarms."""

from dataclasses import replace

import pytest
from tests.unit.statesync.alarm_worlds import HOT, ODD, RULES, SILENT, SOON, STUCK, SURGE, Boilers
from tests.unit.statesync.worlds import T0, TENANT, S, prediction

from twinmesh_core.errors import Reason
from twinmesh_core.registry_fold import Outcome
from twinmesh_core.rules import AlarmRule, RateOfChange
from twinmesh_statesync.domain.alarm_clock import AlarmClock
from twinmesh_statesync.domain.alarms.actions import (
    AcknowledgeAlarm,
    EndEvent,
    SetAlarmService,
    ShelveAlarm,
    UnshelveAlarm,
)
from twinmesh_statesync.domain.alarms.alarm import AlarmState, Transition
from twinmesh_statesync.domain.clockwork import Due
from twinmesh_statesync.domain.entries import DeleteTwin, RecordEvent, RecordPrediction, SetDesired
from twinmesh_statesync.domain.events import Event, EventKind
from twinmesh_statesync.domain.fold import Folded

ACTIVE, ACKNOWLEDGED, RETURNED, CLEARED = (
    AlarmState.ACTIVE,
    AlarmState.ACKNOWLEDGED,
    AlarmState.RETURNED,
    AlarmState.CLEARED,
)


def maintenance(event_id: str, start: float, end: float | None = None) -> RecordEvent:
    return RecordEvent(
        event=Event(
            event_id=event_id,
            twin_id="b",
            kind=EventKind.MAINTENANCE,
            start_time_unix_us=T0 + int(start * S),
            end_time_unix_us=None if end is None else T0 + int(end * S),
        )
    )


def raised_hot() -> Boilers:
    world = Boilers(HOT)
    world.at(10).oil(95.0)
    world.at(12).look()
    assert world.alarm("hot").state is ACTIVE
    return world


# --- delays, levels, hysteresis ---


def test_a_limit_must_be_crossed_for_the_on_delay_and_left_for_the_off_delay() -> None:
    world = Boilers(HOT)
    assert world.at(10).oil(95.0).changes[0].alarms == ()
    world.at(11).look()
    assert world.alarm("hot").state is CLEARED, "the delay is not over"
    told = world.at(12).look().changes[0].alarms
    assert [a.transition for a in told] == [Transition.RAISED]
    assert (told[0].level, told[0].value, told[0].limit, told[0].severity) == ("HIGH", 95.0, 90.0, 500)
    assert told[0].message == "Boiler: oil is 95 Cel, limit 90 (HIGH) at {twin}", "what is put in is not read again"
    assert world.at(13).oil(86.0).changes[0].alarms == (), "within the hysteresis"
    world.at(14).oil(84.0)
    world.at(16).look()
    assert world.alarm("hot").state is ACTIVE
    world.at(17).look()
    assert world.alarm("hot").state is RETURNED
    assert world.alarm("hot").return_unix_us == T0 + 17 * S


def test_a_short_crossing_raises_nothing_and_a_flapping_value_raises_once() -> None:
    world = Boilers(HOT)
    world.at(10).oil(95.0)
    world.at(11).oil(50.0)
    for second in range(12, 60):
        world.at(second).oil(95.0 if second % 2 else 50.0)
    assert world.alarm("hot").raise_count == 0
    for second in range(60, 64):
        world.at(second).oil(95.0)
    for second in range(64, 120):
        world.at(second).oil(95.0 if second % 2 else 50.0)
    assert (world.alarm("hot").state, world.alarm("hot").raise_count) == (ACTIVE, 1)


def test_a_worse_level_asks_again_for_an_acknowledgement() -> None:
    world = raised_hot()
    world.do(AcknowledgeAlarm(twin_id="b", rule="hot", note="seen"))
    assert (world.alarm("hot").state, world.alarm("hot").acknowledged_by) == (ACKNOWLEDGED, "ann")
    told = world.at(14).oil(111.0).changes[0].alarms[0]
    assert (told.state, told.level, told.severity, told.transition) == (
        ACTIVE,
        "HIGH_HIGH",
        900,
        Transition.LEVEL_CHANGED,
    )
    world.do(AcknowledgeAlarm(twin_id="b", rule="hot"))
    eased = world.at(15).oil(104.0).changes[0].alarms[0]
    assert (eased.state, eased.level, eased.severity) == (ACKNOWLEDGED, "HIGH", 500)


def test_a_bad_value_proves_nothing_and_ends_a_delay() -> None:
    world = Boilers(HOT)
    world.at(10).oil(95.0)
    world.at(11).oil(95.0, quality=3)
    world.at(20).look()
    assert world.alarm("hot").state is CLEARED
    world = raised_hot()
    world.at(13).oil(10.0, quality=3)
    world.at(60).look()
    assert world.alarm("hot").state is ACTIVE, "a broken sensor clears nothing"


def test_a_late_look_changes_nothing() -> None:
    prompt, late = Boilers(HOT), Boilers(HOT)
    for world, times in ((prompt, (12, 18)), (late, ())):
        world.at(10).oil(95.0)
        if times:
            world.at(times[0]).look()
        world.at(15).oil(20.0)
        if times:
            world.at(times[1]).look()
        world.at(40).oil(30.0)
    assert late.alarm("hot").raise_count == 1
    assert replace(late.alarm("hot"), offset=0) == replace(prompt.alarm("hot"), offset=0)


# --- kinds of conditions ---


def test_silence_is_counted_from_creation_and_from_each_arrival() -> None:
    world = Boilers(SILENT)
    world.at(29).look()
    assert world.alarm("silent").state is CLEARED
    world.at(30).look()
    assert (world.alarm("silent").state, world.alarm("silent").level) == (ACTIVE, "ABSENT")
    world.at(31).oil(1.0, quality=3)
    assert world.alarm("silent").state is RETURNED, "a BAD value is a value"
    world.at(60).look()
    world.at(61).look()
    assert (world.alarm("silent").state, world.alarm("silent").raise_count) == (ACTIVE, 2)


def test_a_rate_is_measured_between_successive_values() -> None:
    world = Boilers(SURGE)
    world.at(10).oil(20.0)
    world.at(20).oil(100.0)
    assert world.alarm("surge").raise_count == 0
    told = world.at(21).oil(115.0).changes[0].alarms[0]
    assert (told.level, told.limit) == ("RISING", 10.0)
    assert told.value == pytest.approx(15.0)
    world.at(22).oil(115.0)
    assert world.alarm("surge").state is RETURNED
    told = world.at(23).oil(90.0).changes[0].alarms[0]
    assert told.level == "FALLING"
    assert told.value == pytest.approx(-25.0)


def test_a_rate_over_a_window_forgives_single_steps() -> None:
    slow = AlarmRule(name="surge", severity=300, rate=RateOfChange(channel="oil", max_rise_per_s=2.0, window_us=60 * S))
    world = Boilers(slow)
    for second in range(200):
        world.at(second).oil(float(second) + (3.0 if second % 2 else 0.0))
    assert world.alarm("surge").raise_count == 0
    state = world.fold.state(TENANT, "b")
    assert state is not None
    assert len(state.alarm_memory.standings["surge"].samples) <= 64
    for second in range(200, 270):
        world.at(second).oil(203.0 + (second - 200) * 3.0)
    assert world.alarm("surge").state is ACTIVE


def test_a_target_that_is_not_met_in_time() -> None:
    world = Boilers(STUCK)
    world.at(10).do(SetDesired(twin_id="b", values={"speed": 5.0}))
    world.at(19).do(SetDesired(twin_id="b", values={"speed": 6.0}))
    world.at(21).look()
    assert world.alarm("stuck").state is CLEARED, "another target has all the time of its own"
    world.at(29).look()
    assert (world.alarm("stuck").state, world.alarm("stuck").level) == (ACTIVE, "NOT_CONVERGING")
    world.at(30).do(SetDesired(twin_id="b", values={}, remove=("speed",)))
    assert world.alarm("stuck").state is RETURNED


def test_a_prediction_that_crosses_a_limit_within_the_horizon() -> None:
    world = Boilers(SOON)
    base = prediction("oil")
    later = replace(base, values=(1.0, 50.0, 60.0, 1.0, 60.0, 90.0, 1.0, 99.0, 150.0))
    world.at(1).do(RecordPrediction(twin_id="b", prediction=later))
    assert world.alarm("soon").state is CLEARED, "only the third step crosses, and two count"
    nearer = replace(later, input_offset=5, values=(1.0, 50.0, 60.0, 1.0, 60.0, 101.0, 1.0, 99.0, 150.0))
    world.at(2).do(RecordPrediction(twin_id="b", prediction=nearer))
    assert (world.alarm("soon").state, world.alarm("soon").value, world.alarm("soon").limit) == (ACTIVE, 101.0, 100.0)
    world.at(3).do(RecordPrediction(twin_id="b", prediction=later))
    assert world.alarm("soon").state is ACTIVE, "an older prediction is no news"
    world.at(4).do(RecordPrediction(twin_id="b", prediction=replace(later, input_offset=9)))
    assert world.alarm("soon").state is RETURNED


def test_an_expression_is_asked_when_one_of_its_names_changes() -> None:
    world = Boilers(ODD)
    world.at(1).oil(60.0, quality=3)
    assert world.alarm("odd").state is CLEARED, "the temperature is not known"
    world.at(2).oil(60.0)
    assert world.alarm("odd").state is ACTIVE
    world.at(3).do(SetDesired(twin_id="b", values={"speed": 1.0}))
    assert world.alarm("odd").state is RETURNED


# --- what people do ---


def test_acknowledging_before_and_after_the_return() -> None:
    world = raised_hot()
    stale = world.do(AcknowledgeAlarm(twin_id="b", rule="hot", if_raise_count=2)).verdict
    assert stale is not None
    assert stale.error is not None
    assert stale.error.code == "ABORTED"
    world.do(AcknowledgeAlarm(twin_id="b", rule="hot", note="on it", if_raise_count=1))
    again = world.do(AcknowledgeAlarm(twin_id="b", rule="hot")).verdict
    assert again is not None
    assert again.outcome is Outcome.NO_OP
    world.at(14).oil(20.0)
    world.at(17).look()
    assert (world.alarm("hot").state, world.alarm("hot").acknowledge_note) == (CLEARED, "on it")
    refused = world.do(AcknowledgeAlarm(twin_id="b", rule="hot")).verdict
    assert refused is not None
    assert refused.error is not None
    assert refused.error.reason == Reason.ALARM_STATE
    world.at(20).oil(95.0)
    world.at(22).oil(95.0)
    world.at(23).oil(20.0)
    world.at(26).look()
    assert (world.alarm("hot").state, world.alarm("hot").acknowledged_by) == (RETURNED, "")
    world.do(AcknowledgeAlarm(twin_id="b", rule="hot"))
    assert world.alarm("hot").state is CLEARED


def test_a_shelving_expires_by_itself_and_the_life_goes_on_meanwhile() -> None:
    world = Boilers(HOT)
    world.at(5).do(ShelveAlarm(twin_id="b", rule="hot", until_unix_us=T0 + 60 * S, note="known"))
    world.at(10).oil(95.0)
    world.at(12).look()
    shelved = world.alarm("hot")
    assert (shelved.state, shelved.told, shelved.shelved_by) == (ACTIVE, False, "ann")
    told = world.at(60).look().changes[0].alarms
    assert [(a.transition, a.told, a.state) for a in told] == [(Transition.UNSHELVED, True, ACTIVE)]
    refused = world.do(UnshelveAlarm(twin_id="b", rule="hot")).verdict
    assert refused is not None
    assert refused.error is not None
    assert refused.error.reason == Reason.ALARM_STATE


def test_maintenance_suppresses_while_it_lasts_whether_its_end_is_known_or_not() -> None:
    world = Boilers(HOT)
    world.at(5).do(maintenance("m1", 8, 30))
    world.at(10).oil(95.0)
    world.at(12).look()
    assert (world.alarm("hot").state, world.alarm("hot").suppressed_by) == (ACTIVE, "m1")
    told = world.at(30).look().changes[0].alarms
    assert [(a.transition, a.told) for a in told] == [(Transition.UNSUPPRESSED, True)]
    world.at(40).do(maintenance("m2", 35))
    assert world.alarm("hot").suppressed_by == "m2"
    world.at(5_000).look()
    assert world.alarm("hot").suppressed_by == "m2"
    ended = world.at(5_001).do(EndEvent(twin_id="b", event_id="m2", end_time_unix_us=T0 + 5_001 * S))
    assert world.alarm("hot").told
    assert ended.changes[0].events[0].end_time_unix_us == T0 + 5_001 * S
    again = world.do(EndEvent(twin_id="b", event_id="m2", end_time_unix_us=T0 + 5_002 * S)).verdict
    assert again is not None
    assert again.error is not None
    assert again.error.code == "ABORTED"


def test_out_of_service_and_back() -> None:
    world = Boilers(HOT)
    world.do(SetAlarmService(twin_id="b", rule="hot", out_of_service=True))
    world.at(10).oil(95.0)
    world.at(12).look()
    assert (world.alarm("hot").state, world.alarm("hot").told) == (ACTIVE, False)
    world.do(SetAlarmService(twin_id="b", rule="hot", out_of_service=False))
    assert world.alarm("hot").told


def test_a_rule_that_the_type_does_not_have() -> None:
    verdict = Boilers(HOT).do(AcknowledgeAlarm(twin_id="b", rule="cold")).verdict
    assert verdict is not None
    assert verdict.error is not None
    assert (verdict.error.reason, verdict.error.metadata["rules"]) == (Reason.RULE_NOT_FOUND, "hot")


def test_a_refused_action_leaves_what_is_due_to_the_next_entry() -> None:
    world = Boilers(HOT)
    world.at(10).oil(95.0)
    world.at(20).do(UnshelveAlarm(twin_id="b", rule="hot"))
    world.at(21).oil(95.0)
    assert world.alarm("hot").last_raise_unix_us == T0 + 12 * S


def test_deleting_a_twin_clears_its_alarms_and_another_life_begins_without() -> None:
    world = raised_hot()
    change = world.do(DeleteTwin(twin_id="b")).changes[0]
    assert [a.state for a in change.alarms] == [CLEARED]
    state = world.fold.state(TENANT, "b")
    assert state is not None
    assert state.replica.alarms == {}


# --- the clock ---


def test_the_clock_writes_when_something_is_due_and_not_before() -> None:
    world = Boilers(*RULES)
    clock = AlarmClock()

    def due(second: float) -> list[Due]:
        return clock.due(world.fold, now_unix_us=T0 + int(second * S), monotonic_s=second)

    def notice(folded: Folded, second: float) -> None:
        clock.notice(folded.changes, world.fold, now_unix_us=T0 + int(second * S), monotonic_s=second)

    clock.wind_up(world.fold, now_unix_us=T0, monotonic_s=0)
    notice(world.at(10).oil(95.0), 10)
    assert due(11) == []
    (first,) = due(12)
    assert due(13) == [], "written already"
    (again,) = due(17)
    assert again[1].request_id != first[1].request_id, "the first may have come too early for the log's clock"
    notice(world.at(18).add(again[1]), 18)
    assert world.alarm("hot").state is ACTIVE
    assert due(39) == []
    (silence,) = due(40)
    world.at(40).add(silence[1])
    assert world.alarm("silent").state is ACTIVE


def test_a_wall_clock_set_forth_raises_nothing() -> None:
    world = Boilers(HOT)
    clock = AlarmClock()
    clock.notice(world.at(10).oil(95.0).changes, world.fold, now_unix_us=world.now, monotonic_s=10)
    assert clock.due(world.fold, now_unix_us=world.now + 3_600 * S, monotonic_s=11) == []


def test_two_clocks_write_the_same_id_and_only_for_their_twins() -> None:
    world = Boilers(HOT)
    world.at(10).oil(95.0)
    found = []
    for _ in range(2):
        clock = AlarmClock()
        clock.wind_up(world.fold, now_unix_us=world.now, monotonic_s=10)
        assert clock.due(world.fold, now_unix_us=T0 + 12 * S, monotonic_s=12, mine=lambda _t, _i: False) == []
        found.append(clock.due(world.fold, now_unix_us=T0 + 13 * S, monotonic_s=13)[0][1].request_id)
    assert found[0] == found[1]
