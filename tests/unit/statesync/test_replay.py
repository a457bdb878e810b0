"""Watchers that memory does not reach back to: told every change all the same, once, in order, from the log."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.statesync.checker import WatchChecker
from tests.unit.statesync.test_watch import (
    CLOSE,
    LATEST,
    RELIABLE,
    Stage,
    events_of,
    follow,
    model_of,
    refused,
    staged,
)
from tests.unit.statesync.worlds import T0, TENANT, S, World, bodies, grown

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import position_pb2
from twinmesh_core.errors import FailedPrecondition, OutOfRange
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.registry import ChannelSpec, Relationship, RelationshipSpec, Twin, TwinType
from twinmesh_statesync.adapters.memory import MemoryCheckpoints
from twinmesh_statesync.domain import replay
from twinmesh_statesync.domain.checkpoint import Checkpoint, Record
from twinmesh_statesync.domain.entries import CreateTwin, CreateTwinType, EraseTwin
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.generations import Spacing
from twinmesh_statesync.domain.ring import Ring
from twinmesh_statesync.rpc.mapping.replicas import change_to_message, replica_to_message

OFTEN = Spacing(interval_s=0.0)
NO_RING = 1
"""Bytes: not one change fits, so that every watcher is always behind memory."""
RESNAPSHOT = statesync_pb2.WATCH_LOSS_RESNAPSHOT


@asynccontextmanager
async def saved_at(world: World, saves: Collection[int], **bounds: Any) -> AsyncIterator[Stage]:
    """Stage a log that grew entry by entry, saved now and then, every save a generation."""
    async with staged(world.entries[:1], spacing=OFTEN, **bounds) as stage:
        await stage.live.save()
        for entry in world.entries[1:]:
            await stage.grow(entry)
            if entry.offset in saves:
                await stage.live.save()
        yield stage


def told_after(world: World, place: int) -> list[bytes]:
    """Return the events after a place as a fold tells them that shares nothing with the one under test."""
    fold = Fold()
    changes = [change for entry in world.entries for change in fold.apply(entry).changes]
    return [change_to_message(c).SerializeToString(deterministic=True) for c in changes if c.offset > place]


def checker_at(world: World, place: int) -> WatchChecker:
    """Return a checker that knows what a watcher at this place was told."""
    fold, checker = Fold(), WatchChecker()
    for entry in world.entries[:place]:
        fold.apply(entry)
    for twin_id, state in fold.states(TENANT).items():
        checker.revisions[twin_id] = state.replica.revision
        if state.alive:
            checker.model[twin_id] = replica_to_message(state.twin, state.replica)
    checker.through, checker.synced = place, True
    return checker


@settings(max_examples=20, deadline=None)
@given(
    steps=bodies,
    saves=st.sets(st.integers(1, 40), max_size=4),
    place=st.integers(0, 43),
    policy=st.sampled_from([RELIABLE, LATEST, CLOSE]),
    ring_bytes=st.sampled_from([NO_RING, 4_000, 1_000_000]),
)
def test_a_watch_resumes_anywhere_whatever_memory_holds(
    steps: list[Any], saves: set[int], place: int, policy: int, ring_bytes: int
) -> None:
    world = grown(steps)
    end = len(world.entries)
    place = min(place, end)

    async def scene() -> None:
        async with saved_at(world, saves, ring_bytes=ring_bytes) as stage:
            checker = checker_at(world, place)
            frames = await follow(stage.resume(place, policy=policy), checker, end)
            assert model_of(checker) == stage.replicas()
            if policy != LATEST:
                assert events_of(frames) == told_after(world, place)
            assert stage.replays.count == 0

    asyncio.run(scene())


@settings(max_examples=10, deadline=None)
@given(steps=bodies, piece=st.integers(1, 5), ring_bytes=st.sampled_from([NO_RING, 4_000]))
def test_a_watcher_that_memory_leaves_behind_goes_on_from_the_log(
    steps: list[Any], piece: int, ring_bytes: int
) -> None:
    world = grown(steps)
    end = len(world.entries)

    async def scene() -> None:
        async with saved_at(World(), [], ring_bytes=ring_bytes) as stage:
            checker = WatchChecker()
            following = asyncio.create_task(follow(stage.watch(), checker, end))
            await asyncio.sleep(0)
            for start in range(1, end, piece):
                await stage.grow(*world.entries[start : start + piece])
            frames = await following
            assert model_of(checker) == stage.replicas()
            assert events_of(frames) == told_after(world, 1)

    asyncio.run(scene())


@settings(max_examples=10, deadline=None)
@given(steps=bodies, saves=st.sets(st.integers(1, 40), max_size=3), place=st.integers(3, 20))
def test_a_replay_of_one_twin_tells_what_the_whole_one_does(steps: list[Any], saves: set[int], place: int) -> None:
    world = grown(steps)
    end = len(world.entries)
    place = min(place, end)

    async def scene() -> None:
        async with saved_at(world, saves, ring_bytes=NO_RING) as stage:
            checker = checker_at(world, place)
            frames = await follow(stage.resume(place, twin_ids=["a"]), checker, end)
            assert model_of(checker).get("a") == stage.replicas().get("a")
            expected = [statesync_pb2.WatchEvent.FromString(body) for body in told_after(world, place)]
            wanted = [e.SerializeToString(deterministic=True) for e in expected if e.twin_id == "a"]
            assert events_of(frames) == wanted

    asyncio.run(scene())


def linked() -> World:
    """Return a world in which a twin comes to be only since its edge leads to another that exists."""
    world = World("a")
    gauge = ChannelSpec(name="temperature", kind=ChannelKind.GAUGE)
    feeds = RelationshipSpec(name="feeds")
    kind = TwinType(twin_type_id="linked", version=1, channels=(gauge,), relationships=(feeds,))
    world.do(CreateTwinType(twin_type=kind))
    edge = Relationship(name="feeds", target_twin_id="a")
    world.do(CreateTwin(twin=Twin(twin_id="z", twin_type_id="linked", relationships=(edge,))))
    world.report("z", "temperature", T0, 1.0)
    return world


async def test_a_twin_that_cannot_be_folded_without_another_is_told_as_it_is() -> None:
    world = linked()
    end = len(world.entries)
    async with saved_at(world, [3], ring_bytes=NO_RING) as stage:
        checker = checker_at(world, 3)
        frames = await follow(stage.resume(3, twin_ids=["z"]), checker, end)
        assert events_of(frames) == told_after(world, 3)
        assert len(events_of(frames)) == 2


class CountingCheckpoints(MemoryCheckpoints):
    """Counts how often a fold of the past begins."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = 0

    async def load_at(self, offset: int, tenant: str, twin_ids: Collection[str] = ()) -> Checkpoint | None:
        self.loads += 1
        return await super().load_at(offset, tenant, twin_ids)


def long_world(changes: int) -> World:
    world = World("a", "b", "c")
    for i in range(changes):
        world.report("abc"[i % 3], "temperature", T0 + i * S, float(i))
    return world


async def test_a_storm_of_resuming_watchers_shares_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    world = long_world(80)
    end = len(world.entries)
    store = CountingCheckpoints()
    monkeypatch.setattr("tests.unit.statesync.test_watch.MemoryCheckpoints", lambda: store)
    async with saved_at(world, [30, 55], ring_bytes=NO_RING) as stage:
        places = [20 + i % 50 for i in range(60)]
        checkers = [checker_at(world, place) for place in places]
        async with asyncio.TaskGroup() as group:
            following = [
                group.create_task(follow(stage.resume(place), checker, end))
                for place, checker in zip(places, checkers, strict=True)
            ]
        told = {place: told_after(world, place) for place in set(places)}
        for place, task in zip(places, following, strict=True):
            assert events_of(task.result()) == told[place]
        # One for each generation that somebody was behind; some more where the newest changes pass memory by.
        assert store.loads <= 8
        assert stage.replays.count == 0


async def test_narrow_watchers_share_a_whole_fold_once_they_are_many() -> None:
    world = long_world(60)
    end = len(world.entries)
    async with saved_at(world, [30], ring_bytes=NO_RING) as stage:
        checkers = [checker_at(world, 10) for _ in range(60)]
        open_at_once = 0
        async with asyncio.TaskGroup() as group:
            for i, checker in enumerate(checkers):
                group.create_task(follow(stage.resume(10, twin_ids=["abc"[i % 3], f"other{i}"]), checker, end))
            while any(checker.through < end for checker in checkers):
                await asyncio.sleep(0.005)
                open_at_once = max(open_at_once, stage.replays.count)
        assert 0 < open_at_once <= replay.NARROW_REPLAYS + 1


async def test_a_frozen_reader_is_left_behind_and_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "WINDOW_CHANGES", 40)
    monkeypatch.setattr(replay, "WINDOW_BYTES", 60_000)
    monkeypatch.setattr(replay, "PATIENCE_S", 0.05)
    world = long_world(300)
    end = len(world.entries)
    async with staged(world.entries[:1], spacing=OFTEN, ring_bytes=NO_RING) as stage:
        await stage.live.save()
        await stage.grow(*world.entries[1:])
        frozen, frozen_checker = stage.resume(10), checker_at(world, 10)
        first = statesync_pb2.WatchResponse.FromString(await anext(frozen))
        frozen_checker.take(first)
        assert frozen_checker.through < end
        live_checker = checker_at(world, 20)
        assert events_of(await follow(stage.resume(20), live_checker, end)) == told_after(world, 20)
        rest = await follow(frozen, frozen_checker, end)
        assert events_of([first]) + events_of(rest) == told_after(world, 10)


async def test_positions_before_the_oldest_generation_are_compacted_and_told_where_it_is() -> None:
    world = long_world(30)
    async with staged(world.entries[:20], ring_bytes=NO_RING) as stage:
        # As after a rebuild without the beginning of the log: the first save is the only way back.
        await stage.live._keeper.begin_anew(whole=False)
        await stage.grow(world.entries[20])
        await stage.live.save()
        await stage.grow(*world.entries[21:])
        error = await refused(stage.resume(20))
        assert (type(error), error.reason, error.metadata["compacted_to"]) == (OutOfRange, "COMPACTED", "21")
        checker = checker_at(world, 21)
        await follow(stage.resume(21), checker, len(world.entries))
        assert model_of(checker) == stage.replicas()
        frames = await first_frames(stage.resume(20, when_lost=RESNAPSHOT))
        assert_reset(frames, "COMPACTED", stage)


async def first_frames(watch: Any) -> list[Any]:
    """Return frames up to the one that is synced."""
    frames = []
    async with aclosing(watch), asyncio.timeout(5):
        async for body in watch:
            frames.append(statesync_pb2.WatchResponse.FromString(body))
            if frames[-1].synced:
                break
    return frames


def assert_reset(frames: list[Any], reason: str, stage: Stage) -> None:
    told = frames[0].events[0]
    assert told.kind == statesync_pb2.WATCH_EVENT_KIND_RESET
    assert (
        statesync_pb2.WatchEvent.DESCRIPTOR.fields_by_name["reset_reason"]
        .enum_type.values_by_number[told.reset_reason]
        .name.endswith(reason)
    )
    assert not frames[0].HasField("through")
    checker = WatchChecker()
    for frame in frames[1:]:
        checker.take(frame)
    assert checker.synced
    assert model_of(checker) == stage.replicas()


async def test_a_rewound_log_ends_in_an_error_or_in_a_reset_with_a_snapshot() -> None:
    world = long_world(20)
    async with saved_at(world, [10]) as stage:
        failing, resetting = stage.watch(), stage.watch(when_lost=RESNAPSHOT)
        for frames in (failing, resetting):
            while not statesync_pb2.WatchResponse.FromString(await anext(frames)).synced:
                pass
        before = stage.live.generation
        stage.log.rewind(12)
        error = await refused(failing)
        assert (type(error), error.reason) == (FailedPrecondition, "LOG_REWOUND")
        assert_reset(await first_frames(resetting), "LOG_REWOUND", stage)
        assert stage.live.generation > before
        other = position_pb2.LogPosition(incarnation="memory-1", offset=5)
        assert_reset(await first_frames(stage.watch(resume_after=other, when_lost=RESNAPSHOT)), "LOG_REWOUND", stage)
        future = await refused(stage.resume(10_000, when_lost=RESNAPSHOT))
        assert future.reason == "FUTURE_OFFSET"


async def test_a_generation_that_cannot_be_read_refuses_and_harms_nobody() -> None:
    world = long_world(30)
    async with saved_at(world, [10], ring_bytes=NO_RING) as stage:
        store: Any = stage.replays._store
        _, records = store._generations[10]
        broken = Record(tenant=TENANT, kind="twin", key="a", offset=1, body='{"not": "ours"}')
        records[TENANT, "twin", "a"] = broken
        error = await refused(stage.resume(12))
        assert error.reason == "COMPACTED"
        assert_reset(await first_frames(stage.resume(12, when_lost=RESNAPSHOT)), "COMPACTED", stage)


async def test_an_erasure_ends_what_was_folded_from_before_it() -> None:
    world = long_world(30)
    async with saved_at(world, [10], ring_bytes=NO_RING) as stage:
        reading = stage.resume(12)
        await anext(reading)
        world.do(EraseTwin(twin_id="a"))
        await stage.grow(world.entries[-1])
        error = await refused(reading)
        assert (error.reason, stage.replays.count) == ("COMPACTED", 0)
        assert stage.live.generations == ()


async def test_bookmarks_tell_how_far_back_one_can_resume_and_how_far_behind_one_is() -> None:
    world = long_world(20)
    async with saved_at(world, [10]) as stage, aclosing(stage.watch()) as frames:
        told: list[Any] = []
        while len(told) < 2:
            frame = statesync_pb2.WatchResponse.FromString(await anext(frames))
            told += [frame] if not frame.events else []
        assert [frame.synced for frame in told] == [True, False]
        for frame in told:
            assert frame.compacted_to == 0
            assert frame.entries_behind == 0
            assert frame.server_time.ToMicroseconds() > T0


@pytest.mark.parametrize("fault", ["a change lost", "one too late", "one too early"])
async def test_the_comparison_catches_a_broken_replay(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """The tests above prove something only because this one passes: a broken replay is really seen."""
    world = long_world(40)
    original = replay.Replay.index_after

    def broken(self: replay.Replay, after: int) -> int | None:
        index = original(self, after)
        shift = {"one too late": 1, "one too early": -1}.get(fault, 0)
        return index if index is None or not 0 < index < self.ring.end - 1 else index + shift

    monkeypatch.setattr(replay.Replay, "index_after", broken)
    if fault == "a change lost":
        append = Ring.append
        monkeypatch.setattr(Ring, "append", lambda ring, c: append(ring, c) if c[0].offset != 30 else None)
    async with saved_at(world, [10], ring_bytes=NO_RING) as stage:

        async def compared() -> None:
            async with asyncio.timeout(2):
                frames = await follow(stage.resume(15), checker_at(world, 15), len(world.entries))
            assert events_of(frames) == told_after(world, 15)

        with pytest.raises((AssertionError, TimeoutError)):
            await compared()
