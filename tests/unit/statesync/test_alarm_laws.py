"""The laws of alarms, on random histories: what the clock writes never decides, and delays are kept."""

import random
from dataclasses import replace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.statesync.alarm_worlds import BOILER, RULES, Boilers
from tests.unit.statesync.worlds import T0, TENANT, S, prediction

from twinmesh_core.rules import AlarmRule, Threshold
from twinmesh_statesync.domain.alarms.actions import (
    AcknowledgeAlarm,
    EndEvent,
    LookAtAlarms,
    SetAlarmService,
    ShelveAlarm,
    UnshelveAlarm,
)
from twinmesh_statesync.domain.alarms.alarm import Alarm
from twinmesh_statesync.domain.changes import Change, ChangeKind
from twinmesh_statesync.domain.checkpoint import Checkpoint, Position, capture, capture_all, digest, restore
from twinmesh_statesync.domain.entries import (
    CreateTwin,
    DeleteTwin,
    EraseTwin,
    RecordEvent,
    RecordPrediction,
    SetConnectivity,
    SetDesired,
)
from twinmesh_statesync.domain.events import Connectivity, Event, EventKind
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.plain import from_text, to_text

names = st.sampled_from([rule.name for rule in RULES])
moments = st.integers(0, 60).map(lambda second: T0 + second * S)
oil = st.tuples(st.just("oil"), st.sampled_from([20.0, 60.0, 86.0, 95.0, 111.0]), st.sampled_from([1, 1, 1, 3]))
actions = st.one_of(
    st.builds(AcknowledgeAlarm, twin_id=st.just("b"), rule=names),
    st.builds(ShelveAlarm, twin_id=st.just("b"), rule=names, until_unix_us=moments),
    st.builds(UnshelveAlarm, twin_id=st.just("b"), rule=names),
    st.builds(SetAlarmService, twin_id=st.just("b"), rule=names, out_of_service=st.booleans()),
    st.builds(
        SetDesired,
        twin_id=st.just("b"),
        values=st.dictionaries(st.just("speed"), st.sampled_from([1.0, 2.0]), max_size=1),
        remove=st.sampled_from([(), ("speed",)]),
    ),
    st.builds(
        SetConnectivity,
        twin_id=st.just("b"),
        connectivity=st.sampled_from([Connectivity.ONLINE, Connectivity.OFFLINE]),
        last_arrival_unix_us=st.just(T0),
    ),
    st.builds(
        RecordPrediction,
        twin_id=st.just("b"),
        prediction=st.builds(
            lambda offset, top: replace(prediction("oil", input_offset=offset), values=(1.0, 2.0, top)),
            st.integers(0, 9),
            st.sampled_from([50.0, 150.0]),
        ),
    ),
    st.builds(
        lambda key, start, length: RecordEvent(
            event=Event(
                event_id=key,
                twin_id="b",
                kind=EventKind.MAINTENANCE,
                start_time_unix_us=start,
                end_time_unix_us=None if length is None else start + length * S,
            )
        ),
        st.sampled_from(["m1", "m2"]),
        moments,
        st.one_of(st.none(), st.integers(1, 20)),
    ),
    st.builds(EndEvent, twin_id=st.just("b"), event_id=st.sampled_from(["m1", "m2"]), end_time_unix_us=moments),
)
lives = st.sampled_from([DeleteTwin(twin_id="b"), CreateTwin(twin=BOILER), EraseTwin(twin_id="b")])
steps = st.lists(st.tuples(st.integers(0, 4), st.one_of(oil, oil, actions)), max_size=30)


def grown(story: list[tuple[int, Any]], looks: list[float]) -> Boilers:
    """Return a world with the story's entries, and the clock's own at other seconds as well; both end with one."""
    world = Boilers(*RULES)
    at, timeline = 1, []
    for i, (pause, step) in enumerate(story):
        at += pause
        timeline.append((float(at), 1, i, step))
    timeline += [(look, 0, i, LookAtAlarms(twin_id="b")) for i, look in enumerate(looks)]
    timeline.append((200.0, 2, 0, LookAtAlarms(twin_id="b")))
    for second, _, number, step in sorted(timeline, key=lambda item: item[:3]):
        world.at(second)
        if isinstance(step, tuple):
            world.oil(step[1], step[2])
        else:
            world.do(step, request_id="" if isinstance(step, LookAtAlarms) else f"step-{number}")
    return world


def told(world: Boilers) -> Any:
    """Return the alarms and what is remembered, without the offsets that the clock's own entries move."""
    state = world.fold.state(TENANT, "b")
    assert state is not None
    alarms = {rule: replace(alarm, offset=0) for rule, alarm in state.replica.alarms.items()}
    memory = state.alarm_memory
    standings = {rule: replace(standing, about=0) for rule, standing in memory.standings.items()}
    return alarms, standings, memory.suppressed_by, memory.due_unix_us


_TOLD_LATE = Event(
    event_id="m1", twin_id="b", kind=EventKind.MAINTENANCE, start_time_unix_us=T0 + S, end_time_unix_us=None
)


@given(story=steps, looks=st.lists(st.floats(0, 190), max_size=12), seed=st.randoms(use_true_random=False))
@example(  # a maintenance that is recorded when an alarm is due, and is said to have begun before
    story=[(0, SetDesired(twin_id="b", values={"speed": 1.0})), (10, RecordEvent(event=_TOLD_LATE))],
    looks=[11.0],
    seed=random.Random(1),  # noqa: S311  which looks are repeated, no secret
)
def test_what_the_clock_writes_how_often_and_when_never_decides(
    story: list[tuple[int, Any]], looks: list[float], seed: random.Random
) -> None:
    without = grown(story, [])
    again = [*looks, *seed.sample(looks, len(looks) // 2)]
    assert told(grown(story, again)) == told(without)


@given(
    story=st.lists(st.tuples(st.integers(0, 4), st.one_of(oil, oil, actions, actions, lives)), max_size=30),
    looks=st.lists(st.floats(0, 190), max_size=12),
    cut=st.integers(0, 45),
)
def test_alarms_go_on_from_a_checkpoint_as_if_nothing_had_been(
    story: list[tuple[int, Any]], looks: list[float], cut: int
) -> None:
    world = grown(story, looks)
    fold = Fold()
    for entry in world.entries[: cut // 2]:
        fold.apply(entry)
    kept = {(r.kind, r.key): r for r in capture_all(fold).records()}
    fold.take_unsaved()
    for entry in world.entries[cut // 2 : cut]:
        fold.apply(entry)
    kept |= {(r.kind, r.key): r for r in capture(fold, fold.take_unsaved()).records()}
    position = Position(incarnation="i", offset=fold.offset)
    resumed = restore(Checkpoint(position=position, records=tuple(r for r in kept.values() if r.body)))
    assert digest(resumed) == digest(fold)
    for entry in world.entries[cut:]:
        resumed.apply(entry)
        resumed.apply(entry)
    assert digest(resumed) == digest(world.fold)


def test_many_alarms_suppressed_at_once_are_told_in_one_order_whoever_folds() -> None:
    """Raised against the order of their names; a fold resumed before the maintenance numbers its notices alike."""
    high, low = (
        AlarmRule(name=name, severity=500, threshold=Threshold(channel="oil", high=limit))
        for name, limit in (("z", 50.0), ("a", 90.0))
    )
    world = Boilers(high, low)
    world.at(1).oil(60.0)
    world.at(2).oil(95.0)
    resumed = restore(
        Checkpoint(
            position=Position(incarnation="i", offset=world.fold.offset),
            records=tuple(capture_all(world.fold).records()),
        )
    )
    event = Event(event_id="m", twin_id="b", kind=EventKind.MAINTENANCE, start_time_unix_us=T0, end_time_unix_us=None)
    told = world.at(3).do(RecordEvent(event=event)).changes[0].alarms
    assert [alarm.rule for alarm in told] == ["a", "z"]
    assert resumed.apply(world.entries[-1]).changes[0].alarms == told
    assert digest(resumed) == digest(world.fold)


@settings(max_examples=60)
@given(story=steps)
def test_a_watcher_that_keeps_the_last_of_each_alarm_has_what_the_replica_has(story: list[tuple[int, Any]]) -> None:
    world = grown(story, [float(second) for second in range(1, 60, 3)])
    fold = Fold()
    seen: dict[str, Alarm] = {}
    for entry in world.entries:
        for change in fold.apply(entry).changes:
            assert from_text(Change, to_text(change)) == change
            if change.kind is ChangeKind.CREATED:
                seen = {}
            seen |= {alarm.rule: alarm for alarm in change.alarms}
    state = fold.state(TENANT, "b")
    assert state is not None
    assert seen == dict(state.replica.alarms)


PLAIN = AlarmRule(
    name="plain",
    severity=500,
    on_delay_us=3 * S,
    off_delay_us=5 * S,
    threshold=Threshold(channel="oil", high=90.0),
)


@settings(max_examples=200)
@given(
    story=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["hot", "cold", "bad", "look", "acknowledge"])), max_size=40
    )
)
def test_an_alarm_is_active_exactly_as_its_delays_say(story: list[tuple[int, str]]) -> None:
    """After every entry: never active when over for the off-delay, never quiet when it held for the on-delay."""
    world, at = Boilers(PLAIN), 1
    now: bool | None = None
    since = 0
    for pause, step in story:
        at += pause
        world.at(at)
        if step in ("hot", "cold", "bad"):
            world.oil(95.0 if step == "hot" else 20.0, 3 if step == "bad" else 1)
            found = None if step == "bad" else step == "hot"
            # A fact of the same time as the one before corrects it.
            if found is not now:
                now, since = found, at
        elif step == "look":
            world.look()
        else:
            verdict = world.do(AcknowledgeAlarm(twin_id="b", rule="plain")).verdict
            if verdict is not None and verdict.error is not None:
                continue  # without any effect: what is due waits for the next entry, and the clock writes one
        active = world.alarm("plain").active
        if now is True and at - since >= 3:
            assert active
        if now is False and at - since >= 5:
            assert not active


@given(story=steps)
def test_a_rejected_entry_changes_nothing(story: list[tuple[int, Any]]) -> None:
    world = grown(story, [])
    fold, before = Fold(), None
    for entry in world.entries:
        folded = fold.apply(entry)
        state = fold.state(TENANT, "b")
        after = (state.replica, state.alarm_memory, dict(state.maintenance)) if state is not None else None
        if folded.verdict is not None and folded.verdict.error is not None:
            assert folded.changes == ()
            assert after == before
        before = after
