"""What many watchers are told is made once: events, frames and snapshots; and a save leaves the loop its turns."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.statesync.test_watch import Stage, staged
from tests.unit.statesync.worlds import T0, TENANT, World, bodies, grown

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_core.pace import PAUSE_S, WORK_S, Pace
from twinmesh_core.registry import Twin
from twinmesh_statesync.domain.checkpoint import RecentChanges
from twinmesh_statesync.domain.entries import CreateTwin, EraseTwin
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.plain import to_text
from twinmesh_statesync.rpc import frames
from twinmesh_statesync.rpc.mapping.replicas import encode_event, with_previous


async def snapshot(stage: Stage, **request: Any) -> dict[str, Any]:
    """Return the events of a snapshot by twin."""
    told: dict[str, Any] = {}
    async with aclosing(stage.watch(**request)) as watch:
        async for body in watch:
            frame = statesync_pb2.WatchResponse.FromString(body)
            told |= {event.twin_id: event for event in frame.events}
            if frame.synced:
                break
    return told


async def test_a_snapshot_is_encoded_once_until_the_twin_changes_or_is_erased(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def noted(change: Any) -> bytes:
        made.append(change.twin.twin_id)
        return encode_event(change)

    monkeypatch.setattr(frames, "encode_event", noted)
    world = World("a", "b")
    async with staged(world.entries) as stage:
        first = await snapshot(stage)
        assert sorted(made) == ["a", "b"]
        assert await snapshot(stage) == first
        assert len(made) == 2
        await snapshot(stage, read_mask={"paths": ["twin"]})
        assert len(made) == 4, "another mask is another snapshot"
        world.report("a", "temperature", T0, 21.5)
        await stage.grow(world.entries[-1])
        made.clear()
        second = await snapshot(stage)
        assert made == ["a"]
        assert [v.value.double_value for v in second["a"].replica.reported.values] == [21.5]
        assert second["b"] == first["b"]
        world.do(EraseTwin(twin_id="a"))
        await stage.grow(world.entries[-1])
        assert not stage.watches._snapshots._events, "what was erased is kept"
        assert not (await snapshot(stage))["a"].replica.reported.values


async def test_a_snapshot_under_way_keeps_nothing_of_what_was_erased_meanwhile() -> None:
    world = World("a", "b")
    for number in range(150):
        world.do(CreateTwin(twin=Twin(twin_id=f"n{number}", twin_type_id="pump")))
    world.report("n149", "temperature", T0, 21.5)
    async with staged(world.entries) as stage, aclosing(stage.watch()) as watch:
        await anext(watch)  # its second part is still to be made
        world.do(EraseTwin(twin_id="n149"))
        await stage.grow(world.entries[-1])
        frame = statesync_pb2.WatchResponse.FromString(await anext(watch))
        assert "n149" in {event.twin_id for event in frame.events}
        kept = {twin_id for _, twin_id, _ in stage.watches._snapshots._events}
        assert kept
        assert "n149" not in kept


async def test_kept_snapshots_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 4 * frames._SNAPSHOT_BYTES
    monkeypatch.setattr(frames, "_MAX_CACHED_BYTES", most)
    world = World("a", "b")
    for number in range(20):
        world.do(CreateTwin(twin=Twin(twin_id=f"n{number}", twin_type_id="pump")))
    async with staged(world.entries) as stage:
        assert len(await snapshot(stage)) == 22
        kept = stage.watches._snapshots
        assert 1 <= len(kept._events) <= 3
        assert sum(frames._weight(body) for _, body in kept._events.values()) == kept._bytes <= most
        assert len(await snapshot(stage)) == 22


@given(steps=bodies, previous=st.integers(0, 2**40))
def test_the_previous_offset_is_all_that_is_added(steps: list[Any], previous: int) -> None:
    fold = Fold()
    for change in (change for entry in grown(steps).entries for change in fold.apply(entry).changes):
        event = encode_event(change)
        (whole,) = statesync_pb2.WatchResponse.FromString(with_previous(event, previous)).events
        assert whole.previous_offset == previous
        (bare,) = statesync_pb2.WatchResponse.FromString(event).events
        whole.ClearField("previous_offset")
        assert whole == bare


@given(steps=bodies)
def test_changes_written_one_by_one_are_the_text_of_all(steps: list[Any]) -> None:
    fold = Fold()
    told = tuple(change for entry in grown(steps).entries for change in fold.apply(entry).changes)
    bare = tuple(replace(change, before=None, after=None) for change in told)
    record = RecentChanges(floor=7, changes=told).record(TENANT, 9, Pace(0))
    assert record.body == to_text(RecentChanges(floor=7, changes=bare))


def test_work_that_nobody_waits_for_pauses_and_ends() -> None:
    now = 0.0
    pauses: list[float] = []

    def sleep(length_s: float) -> None:
        nonlocal now
        now += length_s
        pauses.append(length_s)

    pace = Pace(10 * PAUSE_S, clock=lambda: now, sleep=sleep)
    for _ in range(40):
        now += WORK_S / 2
        pace.step()
    assert len(pauses) == 10, "after that it is not held up any more"
    assert pauses == [PAUSE_S] * 10
    hurried = Pace(0, clock=lambda: now, sleep=sleep)
    now += 1
    hurried.step()
    assert len(pauses) == 10
