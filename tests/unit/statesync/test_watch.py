"""Watches over random histories, resumed at random places; and the canaries that the checker must catch."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.statesync.checker import WatchChecker, normal
from tests.unit.statesync.worlds import T0, TENANT, S, World, bodies, doubles, grown

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import position_pb2
from twinmesh_core.errors import FailedPrecondition, OutOfRange, ResourceExhausted, TwinmeshError, Unavailable
from twinmesh_core.time import SystemClock
from twinmesh_statesync.adapters.memory import MemoryCheckpoints, MemoryLog
from twinmesh_statesync.domain.catalogue import Catalogue
from twinmesh_statesync.domain.live import LiveFold
from twinmesh_statesync.domain.replay import Replays
from twinmesh_statesync.rpc.mapping.replicas import replica_to_message
from twinmesh_statesync.rpc.reading import Reading
from twinmesh_statesync.rpc.watch import Watches

RELIABLE = statesync_pb2.WATCH_POLICY_RELIABLE
LATEST = statesync_pb2.WATCH_POLICY_LATEST
CLOSE = statesync_pb2.WATCH_POLICY_CLOSE


@dataclass
class Stage:
    """A live fold on a log in memory, and its watches."""

    log: MemoryLog
    live: LiveFold
    watches: Watches
    replays: Replays

    async def at(self, offset: int) -> None:
        await self.live.wait_for(offset, timeout_s=30)

    def watch(self, **request: Any) -> AsyncGenerator[bytes, None]:
        request.setdefault("bookmark_interval", {"nanos": 20_000_000})
        return self.watches.watch(TENANT, statesync_pb2.WatchRequest(**request))

    def resume(self, offset: int, **request: Any) -> AsyncGenerator[bytes, None]:
        return self.watch(resume_after=position_pb2.LogPosition(offset=offset), **request)

    async def grow(self, *entries: Any) -> None:
        self.log.entries.extend(entries)
        self.log._wake()
        await self.at(len(self.log.entries))

    def replicas(self) -> dict[str, Any]:
        return {
            twin_id: normal(replica_to_message(state.twin, state.replica))
            for twin_id, state in self.live.fold.states(TENANT).items()
            if state.alive
        }


@asynccontextmanager
async def staged(entries: list[Any], *, log_incarnation: str = "memory-1", **bounds: Any) -> AsyncIterator[Stage]:
    clock = SystemClock()
    log = MemoryLog(clock, frame_size=3)
    log.incarnation = log_incarnation
    log.entries.extend(entries)
    checkpoints = MemoryCheckpoints()
    live = LiveFold(log=log, checkpoints=checkpoints, clock=clock, tick_s=0.0, **bounds)
    replays = Replays(live=live, log=log, store=checkpoints, clock=clock)
    stage = Stage(
        log,
        live,
        Watches(Reading(live), Catalogue(live, clock), replays, clock, close_after=5, heartbeat_s=0.01),
        replays,
    )
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work()) for work in (live.run, stage.watches.beat, replays.run)]
        while not live.caught_up:  # noqa: ASYNC110  nothing else tells a test
            await asyncio.sleep(0)
        await stage.at(len(entries))
        yield stage
        for task in tasks:
            task.cancel()


class Taker(Protocol):
    """Takes the frames of a watch and knows how far they lead."""

    through: int
    synced: bool

    def take(self, frame: statesync_pb2.WatchResponse) -> None:
        """Take one frame; raises AssertionError if it breaks a promise."""
        ...


async def follow(frames: AsyncGenerator[bytes, None], checker: Taker, until: int) -> list[Any]:
    """Check frames until they lead to an offset; returns all of them."""
    taken = []
    async with aclosing(frames), asyncio.timeout(10):
        async for body in frames:
            frame = statesync_pb2.WatchResponse.FromString(body)
            checker.take(frame)
            taken.append(frame)
            if checker.synced and checker.through >= until:
                break
    return taken


def events_of(frames: list[Any]) -> list[bytes]:
    return [
        event.SerializeToString(deterministic=True)
        for frame in frames
        for event in frame.events
        if event.kind != statesync_pb2.WATCH_EVENT_KIND_SNAPSHOT
    ]


def model_of(checker: WatchChecker) -> dict[str, Any]:
    return {twin_id: normal(replica) for twin_id, replica in checker.model.items()}


@settings(max_examples=40, deadline=None)
@given(steps=bodies, cut=st.integers(3, 20), piece=st.integers(1, 7), policy=st.sampled_from([RELIABLE, LATEST]))
def test_snapshot_and_events_give_the_replica(steps: list[Any], cut: int, piece: int, policy: int) -> None:
    world = grown(steps)

    async def scene() -> None:
        async with staged(world.entries[:cut]) as stage:
            checker = WatchChecker()
            following = asyncio.create_task(follow(stage.watch(policy=policy), checker, len(world.entries)))
            await asyncio.sleep(0)
            for start in range(cut, len(world.entries), piece):
                await stage.grow(*world.entries[start : start + piece])
            await following
            assert model_of(checker) == stage.replicas()

    asyncio.run(scene())


@settings(max_examples=40, deadline=None)
@given(steps=bodies, places=st.sets(st.integers(0, 43), max_size=4), policy=st.sampled_from([RELIABLE, LATEST]))
def test_a_watch_resumes_anywhere_without_gap_or_duplicate(steps: list[Any], places: set[int], policy: int) -> None:
    world = grown(steps)
    end = len(world.entries)

    async def scene() -> None:
        async with staged([]) as stage:
            checkers = {0: WatchChecker()}
            whole = asyncio.create_task(follow(stage.watch(), checkers[0], end))
            await asyncio.sleep(0)
            kept: dict[int, WatchChecker] = {}
            for entry in world.entries:
                await stage.grow(entry)
                await asyncio.sleep(0)
                kept[checkers[0].through] = checkers[0].copy()
            frames = await whole
            told = [(event.offset, event.SerializeToString(deterministic=True)) for f in frames for event in f.events]
            for place in places & kept.keys():
                resumed = kept[place].copy()
                again = await follow(stage.resume(place, policy=policy), resumed, end)
                assert model_of(resumed) == stage.replicas()
                if policy == RELIABLE:
                    assert events_of(again) == [body for offset, body in told if offset > place]

    asyncio.run(scene())


@settings(max_examples=25, deadline=None)
@given(steps=bodies, twin=st.sampled_from(["a", "b", "c"]))
def test_a_filtered_watch_tells_its_twin_whole_and_no_other(steps: list[Any], twin: str) -> None:
    world = grown(steps)

    async def scene() -> None:
        async with staged(world.entries[:4]) as stage:
            checker = WatchChecker()
            following = asyncio.create_task(follow(stage.watch(twin_ids=[twin]), checker, len(world.entries)))
            await asyncio.sleep(0)
            for entry in world.entries[4:]:
                await stage.grow(entry)
            await following
            assert model_of(checker) == {k: v for k, v in stage.replicas().items() if k == twin}

    asyncio.run(scene())


def long_history() -> World:
    world = World("a", "b")
    for i in range(30):
        world.report("a" if i % 3 else "b", "temperature", T0 + i * S, float(i))
    return world


@pytest.mark.parametrize("fault", ["skip", "repeat", "swap", "off by one"])
async def test_the_checker_catches_a_broken_watch(fault: str) -> None:
    world = long_history()
    async with staged(world.entries[:5]) as stage:
        checker = WatchChecker()
        following = asyncio.create_task(follow(stage.watch(), checker, len(world.entries)))
        await asyncio.sleep(0)
        for entry in world.entries[5:]:
            await stage.grow(entry)
        frames = await following
    events = [event for frame in frames for event in frame.events if event.kind != 1]
    if fault == "skip":
        del events[3]
    elif fault == "repeat":
        events.insert(4, events[3])
    elif fault == "swap":
        events[3], events[4] = events[4], events[3]
    else:
        del events[0]  # a resume that begins one too late
    broken = WatchChecker()
    for frame in frames:
        if not frame.events or frame.events[0].kind == 1:
            broken.take(frame)
        if broken.synced:
            break

    def take_all() -> None:
        for event in events:
            position = position_pb2.LogPosition(offset=event.offset)
            broken.take(statesync_pb2.WatchResponse(events=[event], through=position))

    with pytest.raises(AssertionError):
        take_all()


async def refused(frames: AsyncGenerator[bytes, None]) -> TwinmeshError:
    async with aclosing(frames), asyncio.timeout(5):
        try:
            async for _ in frames:
                pass
        except TwinmeshError as error:
            return error
    raise AssertionError("the watch ended without an error")


async def test_positions_that_cannot_be_resumed_are_refused_at_once_and_typed() -> None:
    async with staged(long_history().entries) as stage:
        future = await refused(stage.resume(10_000))
        assert (type(future), future.reason) == (OutOfRange, "FUTURE_OFFSET")
        other = position_pb2.LogPosition(incarnation="another", offset=3)
        rewound = await refused(stage.watch(resume_after=other))
        assert (type(rewound), rewound.reason) == (FailedPrecondition, "LOG_REWOUND")


async def test_a_position_that_fell_off_the_ring_is_compacted() -> None:
    world = World("a")
    for i in range(3_000):
        world.report("a", "temperature", T0 + i * S, float(i))
    async with staged(world.entries, ring_changes=1_000) as stage:
        error = await refused(stage.resume(2))
        assert (type(error), error.reason) == (OutOfRange, "COMPACTED")
        floor = int(error.metadata["compacted_to"])
        assert floor <= len(world.entries) - 1_000
        checker = WatchChecker()
        checker.synced = True
        checker.through = floor
        checker.revisions["a"] = floor - 1
        checker.model["a"] = replica_to_message(*_state(stage, "a"))
        await follow(stage.resume(floor), checker, len(world.entries))


def _state(stage: Stage, twin: str) -> Any:
    state = stage.live.fold.state(TENANT, twin)
    assert state is not None
    return state.twin, state.replica


async def test_a_watcher_that_does_not_read_is_bounded_by_its_policy_and_hurts_nobody() -> None:
    world = World("a")
    async with staged(world.entries) as stage:
        reliable, latest, close = (stage.watch(policy=p) for p in (RELIABLE, LATEST, CLOSE))
        checkers = {id(frames): WatchChecker() for frames in (reliable, latest, close)}
        for frames in (reliable, latest, close):
            while not checkers[id(frames)].synced:
                checkers[id(frames)].take(statesync_pb2.WatchResponse.FromString(await anext(frames)))
        for i in range(20):
            world.report("a", "temperature", T0 + i * S, float(i))
        await stage.grow(*world.entries[2:])
        end = len(world.entries)
        assert len(events_of(await follow(reliable, checkers[id(reliable)], end))) == 20
        merged = await follow(latest, checkers[id(latest)], end)
        assert [event.merged_count for frame in merged for event in frame.events] == [19]
        error = await refused(close)
        assert (type(error), error.reason) == (ResourceExhausted, "WATCHER_TOO_SLOW")
        assert error.metadata["resume_offset"] == "2"


async def test_frames_are_encoded_once_for_watchers_with_the_same_filter() -> None:
    world = World("a")
    async with staged(world.entries) as stage:
        watchers = [stage.watch() for _ in range(3)]
        for frames in watchers:
            while not statesync_pb2.WatchResponse.FromString(await anext(frames)).synced:
                pass
        world.report("a", "temperature", T0, 1.0)
        await stage.grow(world.entries[-1])
        bodies_told = [await anext(frames) for frames in watchers]
        assert bodies_told[0] is bodies_told[1] is bodies_told[2]
        for frames in watchers:
            await frames.aclose()


async def test_an_idle_or_filtered_watch_gets_bookmarks() -> None:
    world = World("a")
    async with staged(world.entries) as stage:
        frames = stage.watch(twin_ids=["ghost"], bookmark_interval={"nanos": 300_000_000})
        async with aclosing(frames), asyncio.timeout(5):
            assert statesync_pb2.WatchResponse.FromString(await anext(frames)).synced
            world.report("a", "temperature", T0, 1.0)
            await stage.grow(world.entries[-1])
            mark = statesync_pb2.WatchResponse.FromString(await anext(frames))
            assert not mark.events
            assert mark.through.offset == len(world.entries)


async def test_a_drain_ends_every_watch_with_the_position_to_resume_from() -> None:
    async with staged(long_history().entries) as stage:
        frames = stage.watch()
        while not statesync_pb2.WatchResponse.FromString(await anext(frames)).synced:
            pass
        await stage.watches.drain()
        error = await refused(frames)
        assert (type(error), error.reason) == (Unavailable, "DRAINING")
        assert error.metadata["resume_offset"] == str(stage.live.fold.offset)
        assert (await refused(stage.watch())).reason == "DRAINING"


async def test_a_log_that_was_restored_ends_watches_and_begins_anew() -> None:
    world = long_history()
    async with staged(world.entries) as stage:
        frames = stage.watch()
        while not statesync_pb2.WatchResponse.FromString(await anext(frames)).synced:
            pass
        stage.log.rewind(3)
        error = await refused(frames)
        assert (type(error), error.reason) == (FailedPrecondition, "LOG_REWOUND")
        async with asyncio.timeout(5):
            while not (stage.live.caught_up and stage.live.fold.offset == 3):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert stage.live.incarnation == "memory-2"
        checker = WatchChecker()
        await follow(stage.watch(), checker, 3)
        assert model_of(checker) == stage.replicas()


async def test_one_entry_about_many_twins_is_one_atomic_frame() -> None:
    world = World("a", "b")
    async with staged(world.entries) as stage:
        frames = stage.watch()
        while not statesync_pb2.WatchResponse.FromString(await anext(frames)).synced:
            pass
        world.see(doubles([("a", "temperature", T0, 1.0, 1), ("b", "temperature", T0, 2.0, 1)]))
        await stage.grow(world.entries[-1])
        frame = statesync_pb2.WatchResponse.FromString(await anext(frames))
        assert [event.twin_id for event in frame.events] == ["a", "b"]
        await frames.aclose()


async def test_frames_are_bounded_in_bytes_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("a", "b")
    for i in range(100):
        world.see(doubles([(twin, "temperature", T0 + i * S, float(i), 1) for twin in "ab"]))
    async with staged(world.entries) as stage:
        whole = WatchChecker()
        await follow(stage.watch(), whole, len(world.entries))
        monkeypatch.setattr("twinmesh_statesync.rpc.frames.FRAME_BYTES", 300)
        monkeypatch.setattr("twinmesh_statesync.rpc.watch.FRAME_BYTES", 1)
        small = WatchChecker()
        frames = await follow(stage.watch(), small, len(world.entries))
        assert [len(frame.events) for frame in frames] == [1, 1, 0]
        resumed = WatchChecker()
        resumed.synced, resumed.through = True, 0
        told = await follow(stage.resume(0), resumed, len(world.entries))
        assert len(told) > 20
        assert all(len(frame.events) % 2 == 0 for frame in told[2:])
        assert model_of(resumed) == model_of(whole) == model_of(small)
