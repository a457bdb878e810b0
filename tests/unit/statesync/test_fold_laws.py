"""The laws of the fold, on random histories."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.statesync.worlds import T0, TENANT, TWINS, S, World, bodies, doubles, grown, twin_ids

from twinmesh_statesync.domain.changes import ChangeKind
from twinmesh_statesync.domain.checkpoint import (
    Checkpoint,
    Position,
    RecentChanges,
    capture,
    capture_all,
    digest,
    restore,
)
from twinmesh_statesync.domain.entries import SetDesired
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.plain import from_text, to_text
from twinmesh_statesync.domain.replica import DesiredState, delta_of


def facts(world: World) -> dict[str, Any]:
    return {
        twin: {
            channel: (value.value, value.quality, value.event_time_unix_us)
            for channel, value in world.replica(twin).reported.values.items()
        }
        for twin in ("a", "b")
    }


distinct_rows = st.lists(
    st.tuples(twin_ids, st.sampled_from(["temperature", "speed"]), st.floats(-50, 50), st.integers(1, 3)),
    min_size=1,
    max_size=24,
).map(lambda rows: [(twin, channel, T0 + i * S, value, q) for i, (twin, channel, value, q) in enumerate(rows)])


@given(rows=distinct_rows, seed=st.randoms(use_true_random=False))
def test_order_batching_and_repetition_of_inputs_do_not_matter(
    rows: list[tuple[str, str, int, float, int]], seed: random.Random
) -> None:
    straight, shuffled = World("a", "b"), World("a", "b")
    for world in (straight, shuffled):
        world.do(SetDesired(twin_id="a", values={"speed": 10.0}, tolerances={"speed": 20.0}))
    straight.see(doubles(rows))
    again = rows + seed.sample(rows, len(rows) // 2)
    seed.shuffle(again)
    while again:
        size = seed.randint(1, 5)
        shuffled.see(doubles(again[:size]))
        again = again[size:]
    assert facts(straight) == facts(shuffled)
    one, other = straight.replica("a"), shuffled.replica("a")
    assert one.delta == other.delta
    assert one.desired.values["speed"].state == other.desired.values["speed"].state


@given(steps=bodies)
def test_revisions_are_dense_and_each_change_names_the_one_before(steps: list[Any]) -> None:
    world = grown(steps)
    fold = Fold()
    seen = dict.fromkeys(TWINS, 0)
    for entry in world.entries:
        touched: set[str] = set()
        for change in fold.apply(entry).changes:
            twin = change.twin.twin_id
            assert twin not in touched, "one entry makes at most one change of a twin"
            touched.add(twin)
            assert change.offset == entry.offset
            assert change.previous_revision == seen[twin]
            assert change.revision == seen[twin] + 1
            seen[twin] = change.revision
    for twin in TWINS:
        state = fold.state(TENANT, twin)
        assert (state.replica.revision if state is not None else 0) == seen[twin]


@given(steps=bodies)
def test_the_delta_is_what_desired_asks_and_reported_does_not_meet(steps: list[Any]) -> None:
    world = World("a", "b")
    for step in steps:
        if hasattr(step, "series"):
            world.see(step)
        else:
            world.do(step)
        for twin in ("a", "b"):
            replica = world.replica(twin)
            state = world.fold.state(TENANT, twin)
            assert state is not None
            expected = {
                channel
                for channel, target in replica.desired.values.items()
                if channel not in replica.reported.values
                or not replica.reported.values[channel].meets(
                    target.value,
                    state.specs[channel].tolerance if target.tolerance is None else target.tolerance,
                )
            }
            assert {item.channel for item in replica.delta} == expected
            applied = {c for c, t in replica.desired.values.items() if t.state is DesiredState.APPLIED}
            assert applied == set(replica.desired.values) - expected


@settings(max_examples=50)
@given(steps=bodies, start=st.integers(0, 20))
def test_a_watcher_that_recomputes_the_delta_from_any_snapshot_agrees_with_every_event(
    steps: list[Any], start: int
) -> None:
    world = grown(steps)
    fold = Fold()
    for entry in world.entries[:start]:
        fold.apply(entry)
    reported: dict[str, dict[str, Any]] = {twin: {} for twin in TWINS}
    desired: dict[str, dict[str, Any]] = {twin: {} for twin in TWINS}
    told: dict[str, Any] = dict.fromkeys(TWINS, ())

    def take(twin: str, replica: Any) -> None:
        reported[twin], desired[twin] = dict(replica.reported.values), dict(replica.desired.values)
        told[twin] = replica.delta

    for twin, state in fold.states(TENANT).items():
        take(twin, state.replica)
    for entry in world.entries[start:]:
        for change in fold.apply(entry).changes:
            twin = change.twin.twin_id
            if change.replica is not None or change.kind is ChangeKind.DELETED:
                take(twin, fold.states(TENANT)[twin].replica)
                continue
            reported[twin] |= {value.channel: value for value in change.reported}
            desired[twin] |= {value.channel: value for value in change.desired}
            for channel in change.removed:
                del desired[twin][channel]
            told[twin] = told[twin] if change.delta is None else change.delta
            assert told[twin] == delta_of(desired[twin], reported[twin]), "in the same event as the change"


@given(steps=bodies)
def test_facet_revisions_never_go_back(steps: list[Any]) -> None:
    world = World("a", "b")
    before = dict.fromkeys(TWINS, (0, 0, 0))
    for step in steps:
        folded = world.see(step) if hasattr(step, "series") else world.do(step)
        for change in folded.changes:
            replica = world.replica(change.twin.twin_id)
            now = (replica.reported.revision, replica.desired.revision, replica.predicted.revision)
            then = before[change.twin.twin_id]
            assert all(new in (old, old + 1) for old, new in zip(then, now, strict=True))
            before[change.twin.twin_id] = now
            if change.kind is not ChangeKind.DELETED and change.reported:
                assert now[0] == then[0] + 1


@settings(max_examples=60)
@given(steps=bodies, cut=st.integers(0, 40))
def test_a_fold_from_a_checkpoint_at_any_point_equals_the_fold_from_the_beginning(steps: list[Any], cut: int) -> None:
    world = grown(steps)
    part = Fold()
    for entry in world.entries[:cut]:
        part.apply(entry)
    position = Position(incarnation="i", offset=part.offset)
    resumed = restore(Checkpoint(position=position, records=tuple(capture_all(part).records())))
    assert digest(resumed) == digest(part)
    for entry in world.entries[cut:]:
        resumed.apply(entry)
    assert digest(resumed) == digest(world.fold)


@settings(max_examples=60)
@given(steps=bodies, cuts=st.sets(st.integers(0, 40)))
def test_checkpoints_saved_piece_by_piece_hold_everything(steps: list[Any], cuts: set[int]) -> None:
    world = grown(steps)
    fold = Fold()
    kept: dict[tuple[str, str, str], Any] = {}
    for i, entry in enumerate(world.entries):
        fold.apply(entry)
        if i in cuts or i == len(world.entries) - 1:
            for record in capture(fold, fold.take_unsaved()).records():
                kept[record.tenant, record.kind, record.key] = record
    position = Position(incarnation="i", offset=fold.offset)
    assert digest(restore(Checkpoint(position=position, records=tuple(kept.values())))) == digest(world.fold)


@given(steps=bodies)
def test_entries_told_again_change_nothing(steps: list[Any]) -> None:
    world = grown(steps)
    before = digest(world.fold)
    for entry in world.entries:
        assert world.fold.apply(entry).changes == ()
    assert digest(world.fold) == before


@given(steps=bodies)
def test_changes_come_back_from_their_text_as_they_were(steps: list[Any]) -> None:
    fold = Fold()
    told = tuple(change for entry in grown(steps).entries for change in fold.apply(entry).changes)
    kept = RecentChanges(floor=0, changes=told)
    assert from_text(RecentChanges, to_text(kept)) == kept
