"""Ten thousand watchers: opened in one burst, again after a kill, and ten thousand that only look in."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.faults.report import Outcome
from tests.faults.test_watch_kills import TWINS, watched
from tests.faults.watchers import Load, answers

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.statesync.v1.statesync_pb2_grpc import ReplicaServiceStub
from twinmesh.type.v1 import position_pb2
from twinmesh_client.transport import open_channel, stream
from twinmesh_core.errors import TwinmeshError, Unavailable
from twinmesh_local.processes import Guardian

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(580)]
Report = Callable[[Outcome, Path], None]
WATCHERS = int(os.environ.get("TWINMESH_FAULTS_WATCHERS", "10000"))
CHANNELS = 20
VISITS = int(os.environ.get("TWINMESH_FAULTS_VISITS", "10000"))
AT_ONCE = 100
WAVES = 5
OWN_CONNECTIONS = 8
"""Of the test itself: its stubs, writers and readiness checks."""


class Follower:
    """A watcher as light as it can be: proves by revisions that it missed nothing, keeps no frames."""

    def __init__(self, stub: Any, twin_id: str) -> None:
        self.through = -1
        self.revision = -1
        self.gaps = 0
        self.streams = 0
        self._stub = stub
        self._twin_id = twin_id

    async def run(self) -> None:
        """Watch for ever, coming back with jitter as the SDK does."""
        pause_s = 0.05
        while True:
            # Ten thousand signs of life a second would be more than this test's own process can read.
            request = statesync_pb2.WatchRequest(twin_ids=[self._twin_id], bookmark_interval=Duration(seconds=5))
            if self.through >= 0:
                request.resume_after.CopyFrom(position_pb2.LogPosition(offset=self.through))
            try:
                async with aclosing(stream(self._stub.Watch, request, timeout_s=None)) as frames:
                    async for frame in frames:
                        self._take(frame)
                        pause_s = 0.05
            except TwinmeshError:
                pass
            self.streams += 1
            await asyncio.sleep(random.uniform(0, pause_s))  # noqa: S311 -- jitter
            pause_s = min(2 * pause_s, 3.0)

    def _take(self, frame: statesync_pb2.WatchResponse) -> None:
        for event in frame.events:
            snapshot = event.kind == statesync_pb2.WATCH_EVENT_KIND_SNAPSHOT
            self.gaps += not snapshot and event.previous_revision != self.revision
            self.revision = event.revision
        if frame.HasField("through"):
            self.gaps += frame.through.offset < self.through
            self.through = frame.through.offset


async def all_reach(followers: list[Follower], offset: int, longest_s: float) -> float:
    """Wait until every follower was told a position; returns how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(longest_s):
        while any(f.through < offset for f in followers):  # noqa: ASYNC110 -- counters
            await asyncio.sleep(0.1)
    return time.monotonic() - began


async def test_ten_thousand_watchers_open_at_once_and_come_back_after_a_restart_without_a_gap(
    guardian: Guardian, database_url: str, run_dir: Path, report: Report
) -> None:
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(watched(guardian, run_dir, database_url, 1))
        (process,), (sync,) = world.processes, world.syncs
        writes = Load(world.syncs, TWINS)
        await writes.begin(sync)
        empty = _memory(process.pid)
        channels: list[grpc.aio.Channel] = [
            await stack.enter_async_context(open_channel(sync.target)) for _ in range(CHANNELS)
        ]
        followers = [
            Follower(ReplicaServiceStub(channels[i % CHANNELS]), TWINS[i % len(TWINS)]) for i in range(WATCHERS)
        ]
        # Written before the crowd comes: storage shares this process with it.
        goal = await writes.facts(12)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [group.create_task(follower.run()) for follower in followers]
        opened_s = await all_reach(followers, goal, 240)
        full = _memory(process.pid)
        told_s = await all_reach(followers, await writes.facts(12), 60)
        streams = sum(follower.streams for follower in followers)
        await process.kill()
        goal = await writes.facts(12)
        process.start()
        await answers(sync, 100)
        again_s = await all_reach(followers, goal, 240)
        for task in tasks:
            task.cancel()
    gaps = sum(follower.gaps for follower in followers)
    revisions = {f._twin_id: f.revision for f in followers}
    note = (
        f"opened {opened_s:.1f} s, told {told_s:.1f} s, back {again_s:.1f} s after it answered; "
        f"{(full - empty) / WATCHERS / 1024:.1f} KiB each; {streams} streams broke in the burst"
    )
    report(Outcome(name="watch-burst", seed=0, faults=1, ops=WATCHERS, violations=gaps, note=note), run_dir)
    assert gaps == 0
    assert streams == 0, "a burst is served, not dropped"
    assert all(follower.revision == revisions[follower._twin_id] for follower in followers)
    assert (full - empty) / WATCHERS < 100 * 1024


async def test_ten_thousand_visits_leave_nothing_behind(
    guardian: Guardian, database_url: str, run_dir: Path, report: Report
) -> None:
    async with watched(guardian, run_dir, database_url, 1) as world:
        (process,), (sync,) = world.processes, world.syncs
        await Load(world.syncs, TWINS).begin(sync)

        async def visits(count: int) -> None:
            """Connect, look at the first frame, and go; with a connection of one's own each time."""
            left = count
            while left:
                try:
                    async with (
                        open_channel(sync.target) as channel,
                        aclosing(
                            stream(ReplicaServiceStub(channel).Watch, statesync_pb2.WatchRequest(), timeout_s=None)
                        ) as frames,
                    ):
                        await anext(frames)
                    left -= 1
                except Unavailable:  # of a hundred connections at once some have to try again
                    await asyncio.sleep(0.1)

        async def wave(count: int) -> tuple[int, int, int]:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(visits(count // AT_ONCE))
            await asyncio.to_thread(_once_alone, process.pid, sync.target)
            seen = psutil.Process(process.pid)
            return seen.memory_info().rss, seen.num_fds(), seen.num_threads()

        seen = [await wave(VISITS // WAVES) for _ in range(WAVES)]
    (_, warm_fds, warm_threads), (last_rss, last_fds, last_threads) = seen[0], seen[-1]
    note = ", ".join(f"{rss >> 20} MiB {fds} fds {threads} threads" for rss, fds, threads in seen)
    report(Outcome(name="watch-visits", seed=0, ops=VISITS, note=note), run_dir)
    # After the first wave memory is warm; what is left behind by each visit would show in all that follow.
    assert last_rss - seen[1][0] < 16 << 20
    assert last_fds <= warm_fds + 8
    assert last_threads <= warm_threads + 2


def _once_alone(pid: int, target: str, longest_s: float = 30.0) -> None:
    """Return once no more than the test's own connections to a server are open, or after a while."""
    port = int(target.rpartition(":")[2])
    until = time.monotonic() + longest_s
    while time.monotonic() < until:
        found = psutil.Process(pid).net_connections("tcp")
        if sum(c.laddr.port == port and c.status == psutil.CONN_ESTABLISHED for c in found) <= OWN_CONNECTIONS:
            break
        time.sleep(0.2)
    time.sleep(1.0)


def _memory(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)
