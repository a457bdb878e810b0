"""Erasing a twin: the fold forgets what the erased log could not tell again, and so does whoever was told."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.statesync.checker import WatchChecker, normal
from tests.unit.statesync.worlds import T0, TENANT, TWINS, S, World, actions, batches, grown, prediction, twin_ids

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_core.observations import ObservationBatch
from twinmesh_statesync.adapters.memory import MemoryCheckpoints
from twinmesh_statesync.domain.changes import ChangeKind, merge
from twinmesh_statesync.domain.checkpoint import Captured, Checkpoint, Position, capture, digest, restore
from twinmesh_statesync.domain.entries import (
    ControlEntry,
    DeleteTwin,
    EraseTwin,
    LogEntry,
    RecordEvent,
    RecordPrediction,
    SetDesired,
)
from twinmesh_statesync.domain.erasing import erasable_twin
from twinmesh_statesync.domain.events import Event, EventKind
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.plain import to_text
from twinmesh_statesync.domain.ring import Ring
from twinmesh_statesync.rpc.mapping.replicas import change_to_message, replica_to_message

steps_with_erasures = st.lists(
    st.one_of(batches, batches, actions, actions, st.builds(EraseTwin, twin_id=twin_ids)), max_size=40
)
SECRET = "what-nobody-may-know"


def without(batch: ObservationBatch, twin_id: str) -> ObservationBatch:
    """Return a batch as an erasure leaves it."""
    gone = np.array([key.twin_id == twin_id for key in batch.series], np.bool_)
    sections: dict[str, Any] = {name: part.select(~gone[part.series]) for name, part in batch.sections() if len(part)}
    return replace(batch, **sections)


def erased(entries: list[LogEntry]) -> list[LogEntry]:
    """Return the log after every erasure in it has done its work."""
    left = list(entries)
    for at, entry in enumerate(entries):
        if not (isinstance(entry.body, ControlEntry) and isinstance(entry.body.action, EraseTwin)):
            continue
        twin_id = entry.body.action.twin_id
        for before in range(at):
            body = left[before].body
            if isinstance(body, ObservationBatch):
                left[before] = replace(left[before], body=without(body, twin_id))
            elif isinstance(body, ControlEntry) and erasable_twin(body.action) == twin_id:
                left[before] = replace(left[before], body=replace(body, action=None))
    return left


@settings(max_examples=60)
@given(steps=steps_with_erasures)
def test_a_fold_that_saw_it_all_equals_the_fold_of_the_erased_log(steps: list[Any]) -> None:
    world = grown(steps)
    for twin_id in TWINS:
        world.do(EraseTwin(twin_id=twin_id))
    rebuilt = Fold()
    for entry in erased(world.entries):
        rebuilt.apply(entry)
    assert digest(rebuilt) == digest(world.fold)


@settings(max_examples=40)
@given(steps=steps_with_erasures, cuts=st.sets(st.integers(0, 42)), failed=st.sets(st.integers(0, 42)))
async def test_checkpoints_saved_piece_by_piece_forget_with_the_fold(
    steps: list[Any], cuts: set[int], failed: set[int]
) -> None:
    world, fold, kept = grown(steps), Fold(), MemoryCheckpoints()
    waiting: Captured | None = None
    for i, entry in enumerate(world.entries):
        fold.apply(entry)
        last = i == len(world.entries) - 1
        if i in cuts or last:
            captured = capture(fold, fold.take_unsaved())
            captured = captured if waiting is None else captured.after(waiting)
            waiting = captured if i in failed and not last else None
            if waiting is None:
                position = Position(incarnation="i", offset=fold.offset)
                await kept.save(Checkpoint(position=position, records=tuple(captured.records())))
    checkpoint = await kept.load()
    assert checkpoint is not None
    assert digest(restore(checkpoint)) == digest(world.fold)


@given(steps=steps_with_erasures)
def test_watchers_are_told_so_that_they_hold_what_the_replica_holds(steps: list[Any]) -> None:
    fold, checker = Fold(), WatchChecker()
    checker.take(statesync_pb2.WatchResponse(synced=True))
    for entry in grown(steps).entries:
        for change in fold.apply(entry).changes:
            checker.take(statesync_pb2.WatchResponse(events=[change_to_message(change)]))
    alive = {twin: state for twin, state in fold.states(TENANT).items() if state.alive}
    assert set(checker.model) == set(alive)
    for twin, state in alive.items():
        assert normal(checker.model[twin]) == normal(replica_to_message(state.twin, state.replica))


def told_a_secret() -> World:
    world = World("a", "b")
    world.report("a", "temperature", T0, 36.625)
    world.do(SetDesired(twin_id="a", values={"document": SECRET}), request_id="refused")  # its error names the value
    world.do(SetDesired(twin_id="a", values={"target": 36.625}))
    world.do(RecordPrediction(twin_id="a", prediction=replace(prediction(), values=(36.625, 36.625, 36.625))))
    note = Event(event_id="e", twin_id="a", kind=EventKind.NOTE, start_time_unix_us=T0, message=SECRET)
    world.do(RecordEvent(event=note))
    world.report("b", "temperature", T0, 1.5)
    return world


def test_nothing_told_of_a_twin_is_left_in_fold_or_ring() -> None:
    world = told_a_secret()
    ring = Ring(floor=0, max_changes=1_000, max_bytes=1 << 20)
    replay = Fold()
    for entry in world.entries:
        ring.append(replay.apply(entry).changes)

    def texts() -> str:
        captured = capture(world.fold, world.fold.take_unsaved())
        changes = [item.change for item in ring.read(ring.first, 1_000)]
        return "".join(record.body or "" for record in captured.records()) + to_text(changes)

    before = texts()
    assert "36.625" in before
    assert SECRET in before
    told = world.do(EraseTwin(twin_id="a")).changes
    ring.append(told)
    ring.forget("a")
    after = texts()
    assert "36.625" not in after
    assert SECRET not in after
    assert "1.5" in after  # the other twin's
    # Nothing is missing in the chain of revisions for those who resume from before.
    revisions = [
        (item.change.previous_revision, item.change.revision)
        for item in ring.read(ring.first, 1_000)
        if item.change.twin.twin_id == "a"
    ]
    assert all(now[0] == then[1] for then, now in pairwise(revisions))


def test_a_prediction_made_of_what_was_erased_is_not_taken() -> None:
    world = told_a_secret()
    known = world.fold.offset
    world.do(EraseTwin(twin_id="a"))
    assert world.do(RecordPrediction(twin_id="a", prediction=prediction(input_offset=known))).changes == ()
    world.report("a", "temperature", T0 + S, 20.0)
    fresh = prediction(input_offset=world.fold.offset)
    assert world.do(RecordPrediction(twin_id="a", prediction=fresh)).changes[0].predicted == (fresh,)


def test_a_deleted_twin_is_erased_too_and_its_next_life_follows_on() -> None:
    world = told_a_secret()
    world.do(DeleteTwin(twin_id="a"))
    (change,) = world.do(EraseTwin(twin_id="a")).changes
    assert (change.kind, change.replica, change.revision) == (ChangeKind.DELETED, None, world.fold.offset)
    state = world.fold.state(TENANT, "a")
    assert state is not None
    assert (state.events, state.commands) == ({}, {})
    assert world.create("a").changes[0].previous_revision == change.revision


def test_merged_with_what_came_before_an_erasure_tells_nothing_of_it() -> None:
    world = told_a_secret()
    (note,) = world.do(
        RecordEvent(event=Event(event_id="f", twin_id="a", kind=EventKind.NOTE, start_time_unix_us=T0, message=SECRET))
    ).changes
    (gone,) = world.do(EraseTwin(twin_id="a")).changes
    (later,) = world.report("a", "temperature", T0 + S, 2.0).changes
    merged = merge(merge(note, gone), later)
    assert SECRET not in to_text(merged)
    assert (merged.kind, merged.previous_revision, merged.merged_count) == (
        ChangeKind.ERASED,
        note.previous_revision,
        2,
    )
    assert merged.reported == later.reported
