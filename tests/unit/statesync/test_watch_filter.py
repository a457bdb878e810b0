"""Watches by filter and mask: at SYNCED and at every position the view is what an evaluation of its own says.

The reference folds the log by itself, judges filters by `populations.matches`, and cuts replicas as protobuf.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.statesync.populations import matches
from tests.unit.statesync.test_watch import LATEST, RELIABLE, follow, refused, staged
from tests.unit.statesync.worlds import FILTERS, T0, TENANT, S, World, bodies, grown

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import replica_pb2
from twinmesh_core.errors import InvalidArgument, OutOfRange
from twinmesh_core.registry import Twin
from twinmesh_core.time import SystemClock
from twinmesh_statesync.domain.catalogue import Catalogue
from twinmesh_statesync.domain.entries import CreateTwin, DeleteTwin, EraseTwin
from twinmesh_statesync.domain.filter import parse_filter
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.plain import to_text
from twinmesh_statesync.domain.version import TwinVersion
from twinmesh_statesync.rpc import audience
from twinmesh_statesync.rpc.listing import Listing
from twinmesh_statesync.rpc.mapping.replicas import replica_to_message
from twinmesh_statesync.rpc.reading import Reading

MASKS = (
    (),
    ("reported.temperature",),
    ("delta", "connectivity"),
    ("desired.speed", "delta.speed"),
    ("commands", "twin"),
)
K = statesync_pb2.WatchEventKind
View = dict[str, Any]


def histories(entries: list[Any]) -> dict[int, dict[str, TwinVersion]]:
    """Return the living twins after each offset, folded by a fold of its own."""
    fold = Fold()
    found: dict[int, dict[str, TwinVersion]] = {}
    for entry in entries:
        fold.apply(entry)
        states = fold.states(TENANT).items()
        found[entry.offset] = {twin_id: s.version for twin_id, s in states if s.version is not None}
    return found


def cut(replica: replica_pb2.Replica, paths: tuple[str, ...]) -> Any:
    """Return what a mask leaves of a replica, as plain values without revisions."""

    def wanted(part: str, channel: str) -> bool:
        return not paths or part in paths or f"{part}.{channel}" in paths

    items: dict[str, Any] = {
        "reported": replica.reported.values,
        "desired": replica.desired.values,
        "predicted": replica.predicted.predictions,
        "residuals": replica.residuals,
        "delta": replica.delta.items,
    }
    kept: list[Any] = [
        (part, item.SerializeToString(deterministic=True))
        for part, found in items.items()
        for item in found
        if wanted(part, item.channel)
    ]
    kept.sort()
    if wanted("connectivity", ""):
        kept.append(replica.connectivity)
    if wanted("twin", ""):
        kept.append(replica.twin.SerializeToString(deterministic=True))
    return kept


def expected_view(twins: dict[str, TwinVersion], text: str, paths: tuple[str, ...]) -> View:
    expression = parse_filter(text)
    return {
        twin_id: cut(replica_to_message(version.twin, version.replica), paths)
        for twin_id, version in twins.items()
        if matches(expression, version, twins)
    }


class Viewer:
    """Keeps the view that a watcher's events make, and holds it to the truth at every position told."""

    def __init__(self, truth: dict[int, dict[str, TwinVersion]], text: str, paths: tuple[str, ...]) -> None:
        self.truth, self.text, self.paths = truth, text, paths
        self.model: dict[str, replica_pb2.Replica] = {}
        self.through = -1
        self.synced = False
        self.told: list[statesync_pb2.WatchEvent] = []

    def copy(self) -> Viewer:
        other = Viewer(self.truth, self.text, self.paths)
        for twin_id, replica in self.model.items():
            other.model[twin_id] = replica_pb2.Replica()
            other.model[twin_id].CopyFrom(replica)
        other.through, other.synced = self.through, self.synced
        return other

    def take(self, frame: statesync_pb2.WatchResponse) -> None:
        offset = self.through
        known: dict[str, int] = {}
        for event in frame.events:
            if event.kind != K.WATCH_EVENT_KIND_SNAPSHOT:
                assert self.synced
                assert event.offset > self.through, "told already, or cut in two frames"
                assert event.offset >= offset, "out of order"
                offset = event.offset
                seen = known.get(event.twin_id, self.through)
                if self.text or self.paths:
                    assert event.previous_offset <= seen < event.offset, (
                        "the watch says itself that something is missing"
                    )
                known[event.twin_id] = event.offset
                self.told.append(event)
            self._apply(event)
        self.synced = self.synced or frame.synced
        if frame.HasField("through"):
            assert offset <= frame.through.offset
            assert frame.through.offset >= self.through
            self.through = frame.through.offset
            view = {twin_id: cut(replica, self.paths) for twin_id, replica in self.model.items()}
            assert view == expected_view(self.truth[self.through], self.text, self.paths)

    def _apply(self, event: statesync_pb2.WatchEvent) -> None:
        there = event.twin_id in self.model
        match event.kind:
            case K.WATCH_EVENT_KIND_SNAPSHOT | K.WATCH_EVENT_KIND_CREATED | K.WATCH_EVENT_KIND_ENTERED:
                assert not there or event.merged_count, f"{event.twin_id} came, and was there"
                self.model[event.twin_id] = replica_pb2.Replica()
                self.model[event.twin_id].CopyFrom(event.replica)
            case K.WATCH_EVENT_KIND_LEFT | K.WATCH_EVENT_KIND_DELETED:
                assert there or event.merged_count, f"{event.twin_id} went, and was not there"
                self.model.pop(event.twin_id, None)
            case K.WATCH_EVENT_KIND_CHANGED:
                assert there, f"a change of {event.twin_id}, which is not there"
                self._change(self.model[event.twin_id], event)

    def _change(self, model: replica_pb2.Replica, event: statesync_pb2.WatchEvent) -> None:
        if event.HasField("replica"):
            model.CopyFrom(event.replica)
        if event.HasField("twin"):
            model.twin.CopyFrom(event.twin)
        _merge(model.reported.values, event.reported.values, ())
        _merge(model.desired.values, event.desired.values, event.desired.removed)
        _merge(model.predicted.predictions, event.predicted.predictions, ())
        _merge(model.residuals, event.residuals, ())
        if event.HasField("delta"):
            model.delta.CopyFrom(event.delta)
        if event.connectivity:
            model.connectivity = event.connectivity


def _merge(items: Any, news: Any, removed: Any) -> None:
    def key(item: Any) -> Any:
        return item.channel, getattr(item, "model_id", "")

    kept = {key(item): item for item in items if item.channel not in removed} | {key(item): item for item in news}
    copies = [type(item)() for item in kept.values()]
    for made, item in zip(copies, kept.values(), strict=True):
        made.CopyFrom(item)
    del items[:]
    items.extend(copies)


def wish(text: str, paths: tuple[str, ...], policy: int) -> dict[str, Any]:
    return {"filter": text, "read_mask": FieldMask(paths=paths), "policy": policy}


asked = {
    "steps": bodies,
    "text": st.sampled_from(FILTERS),
    "paths": st.sampled_from(MASKS),
    "policy": st.sampled_from([RELIABLE, LATEST]),
}


@settings(max_examples=80, deadline=None)
@given(**asked, cut_at=st.integers(3, 20), piece=st.integers(1, 7))
def test_snapshot_and_events_give_the_matching_twins(
    steps: list[Any], text: str, paths: tuple[str, ...], policy: int, cut_at: int, piece: int
) -> None:
    entries = grown(steps).entries

    async def scene() -> None:
        async with staged(entries[:cut_at]) as stage:
            viewer = Viewer(histories(entries), text, paths)
            following = asyncio.create_task(follow(stage.watch(**wish(text, paths, policy)), viewer, len(entries)))
            await asyncio.sleep(0)
            for start in range(cut_at, len(entries), piece):
                await stage.grow(*entries[start : start + piece])
            await following

    asyncio.run(scene())


@settings(max_examples=80, deadline=None)
@given(**asked, places=st.sets(st.integers(0, 43), max_size=4), most=st.sampled_from([1, 4, 2_000]))
def test_a_filtered_watch_resumes_anywhere_exactly(
    steps: list[Any], text: str, paths: tuple[str, ...], policy: int, places: set[int], most: int
) -> None:
    entries = grown(steps).entries
    truth = histories(entries)

    async def scene() -> None:
        async with staged(entries[:1]) as stage:
            whole = Viewer(truth, text, paths)
            following = asyncio.create_task(follow(stage.watch(**wish(text, paths, RELIABLE)), whole, len(entries)))
            await asyncio.sleep(0)
            kept: dict[int, Viewer] = {}
            for entry in entries[1:]:
                await stage.grow(entry)
                await asyncio.sleep(0)
                kept[whole.through] = whole.copy()
            for place in sorted(places & kept.keys()):
                # Some while the audience lives, some of which it forgot, some after it ended.
                if place % 2:
                    await following
                resumed = kept[place].copy()
                await follow(stage.resume(place, **wish(text, paths, policy)), resumed, len(entries))
                if policy == RELIABLE:
                    await following
                    assert plain(resumed.told) == plain([e for e in whole.told if e.offset > place])
            await following

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audience, "_MAX_TOLD", most)
        patch.setattr(audience, "_MAX_TWINS", max(most, 2))
        asyncio.run(scene())


def plain(events: list[statesync_pb2.WatchEvent]) -> list[bytes]:
    """Return events without the one field that depends on where a watch began."""
    copies = [statesync_pb2.WatchEvent.FromString(event.SerializeToString()) for event in events]
    for event in copies:
        event.previous_offset = 0
    return [event.SerializeToString(deterministic=True) for event in copies]


@settings(max_examples=40, deadline=None)
@given(steps=bodies, text=st.sampled_from(FILTERS), paths=st.sampled_from(MASKS[1:]))
def test_any_event_that_is_lost_is_missed_by_the_next_of_its_twin(
    steps: list[Any], text: str, paths: tuple[str, ...]
) -> None:
    entries = grown(steps).entries

    async def scene() -> list[statesync_pb2.WatchEvent]:
        async with staged(entries[:3]) as stage:
            viewer = Viewer(histories(entries), text, paths)
            following = asyncio.create_task(follow(stage.watch(**wish(text, paths, RELIABLE)), viewer, len(entries)))
            await asyncio.sleep(0)
            await stage.grow(*entries[3:])
            await following
            return viewer.told

    told = asyncio.run(scene())
    for lost, event in enumerate(told):
        following = next((e for e in told[lost + 1 :] if e.twin_id == event.twin_id), None)
        if following is not None:
            assert following.previous_offset >= event.offset


async def until_synced(frames: Any) -> list[Any]:
    taken = []
    while True:
        taken.append(statesync_pb2.WatchResponse.FromString(await anext(frames)))
        if taken[-1].synced:
            return taken


async def test_a_twin_that_comes_to_match_and_ceases_to_is_told() -> None:
    world = World("a", "b")
    async with staged(world.entries) as stage:
        frames = stage.watch(filter="reported.temperature > 50", read_mask=FieldMask(paths=["reported.temperature"]))
        async with aclosing(frames), asyncio.timeout(5):
            assert not (await until_synced(frames))[0].events
            for body in (10.0, 60.0, 61.0, 20.0, 30.0, 70.0):
                world.report("a", "temperature", T0 + len(world.entries) * S, body)
            world.report("a", "speed", T0, 1.0)
            world.do(DeleteTwin(twin_id="a"))
            await stage.grow(*world.entries[3:])
            events: list[statesync_pb2.WatchEvent] = []
            while not events or events[-1].kind != K.WATCH_EVENT_KIND_DELETED:
                events += statesync_pb2.WatchResponse.FromString(await anext(frames)).events
            assert [K.Name(e.kind).removeprefix("WATCH_EVENT_KIND_") for e in events] == [
                "ENTERED", "CHANGED", "LEFT", "ENTERED", "DELETED"
            ]  # fmt: skip
            entered, changed, left, again, _ = events
            assert [v.value.double_value for v in entered.replica.reported.values] == [60.0]
            assert (changed.previous_offset, changed.previous_revision) == (entered.offset, entered.revision)
            assert not left.HasField("replica")
            assert again.previous_offset == left.offset


async def test_only_those_whom_a_change_concerns_are_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("a", "b")
    for twin, site in (("n1", "north"), ("n2", "north"), ("s1", "south")):
        world.do(CreateTwin(twin=Twin(twin_id=twin, twin_type_id="pump", attributes={"site": site})))
    woken: list[str] = []
    wake = audience.Audience.wake

    def noted(self: audience.Audience) -> None:
        woken.append(str(self.interest.expression))
        wake(self)

    monkeypatch.setattr(audience.Audience, "wake", noted)
    async with staged(world.entries) as stage:
        texts = ["twin_id = a", "twin_id = b", "attributes.site = north", "attributes.site = south", "delta:*"]
        watches = [stage.watch(filter=text) for text in texts]
        for frames in watches:
            await until_synced(frames)
        world.report("n1", "temperature", T0, 1.0)
        await stage.grow(world.entries[-1])
        heard = statesync_pb2.WatchResponse.FromString(await anext(watches[2]))
        assert [event.twin_id for event in heard.events] == ["n1"]
        assert set(woken) == {str(parse_filter("attributes.site = north"))}
        for frames in watches:
            await frames.aclose()
        assert not stage.watches._audiences._houses[TENANT]._by_anchor, "an audience that nobody is in was kept"


async def next_events(frames: Any) -> list[Any]:
    while True:
        frame = statesync_pb2.WatchResponse.FromString(await anext(frames))
        if frame.events:
            return list(frame.events)


async def test_an_idle_watcher_outlives_the_ring() -> None:
    world = World("a", "b")
    async with staged(world.entries, ring_changes=1_000) as stage:
        frames = stage.watch(filter="twin_id = a", bookmark_interval={"seconds": 5})
        async with aclosing(frames), asyncio.timeout(20):
            await until_synced(frames)
            waiting = asyncio.create_task(next_events(frames))
            await asyncio.sleep(0)
            for i in range(3_000):
                world.report("b", "temperature", T0 + i * S, float(i))
            world.report("a", "temperature", T0, 1.0)
            await stage.grow(*world.entries[3:])
            assert [event.twin_id for event in await waiting] == ["a"]


async def test_what_a_watch_cannot_do_is_said_at_once() -> None:
    async with staged(World("a").entries) as stage:
        hop = await refused(stage.watch(filter="feeds.delta:*"))
        assert (type(hop), hop.field_violations[0].field) == (InvalidArgument, "filter")
        typo = await refused(stage.watch(filter="conectivity = ONLINE"))
        assert (typo.metadata["column"], typo.reason) == ("1", "INVALID_FIELD")
        mask = await refused(stage.watch(read_mask=FieldMask(paths=["nothing"])))
        assert mask.field_violations[0].field == "read_mask.paths[0]"


async def test_a_filtered_watch_of_before_a_restart_is_compacted_where_twins_were_not_kept() -> None:
    world = World("a")
    world.report("a", "temperature", T0, 1.0)
    async with staged(world.entries) as stage:
        ring = stage.live.ring(TENANT)
        ring.versions_floor = 3
        error = await refused(stage.resume(2, filter="delta:*"))
        assert (type(error), error.reason, error.metadata["compacted_to"]) == (OutOfRange, "COMPACTED", "3")
        frames = stage.resume(2)
        assert statesync_pb2.WatchResponse.FromString(await anext(frames)).events
        await frames.aclose()


async def test_an_erasure_ends_old_pages_and_leaves_nothing_with_audiences() -> None:
    world = World("a", "b")
    world.report("a", "temperature", T0, 36.625)
    async with staged(world.entries) as stage:
        listing = Listing(Reading(stage.live), Catalogue(stage.live, SystemClock()))
        page = await listing.list(TENANT, statesync_pb2.ListTwinsRequest(page_size=1))
        frames = stage.watch(filter="reported.temperature > 30", read_mask=FieldMask(paths=["reported"]))
        async with aclosing(frames), asyncio.timeout(20):
            assert [event.twin_id for event in (await until_synced(frames))[0].events] == ["a"]
            world.report("a", "temperature", T0 + S, 36.75)
            world.do(EraseTwin(twin_id="a"))
            await stage.grow(*world.entries[4:])
            (heard,) = stage.watches._audiences._houses[TENANT].audiences.values()
            kept = to_text([told.change for told in heard._told])
            assert "36.75" not in kept
            assert "36.625" not in kept
            events: list[Any] = []
            while len(events) < 2:
                events += await next_events(frames)
            assert [event.kind for event in events] == [K.WATCH_EVENT_KIND_CHANGED, K.WATCH_EVENT_KIND_LEFT]
            assert not events[0].reported.values
        with pytest.raises(OutOfRange, match="begin the list again"):
            await listing.list(TENANT, statesync_pb2.ListTwinsRequest(page_size=1, page_token=page.next_page_token))
        assert (await refused(stage.resume(4, filter="delta:*"))).reason == "COMPACTED"
