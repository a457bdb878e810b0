"""Ten thousand watchers: opened in one burst, and again after a kill, all resumed without a gap."""

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
from twinmesh_core.errors import TwinmeshError
from twinmesh_local.processes import Guardian

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(580)]
Report = Callable[[Outcome, Path], None]
WATCHERS = int(os.environ.get("TWINMESH_FAULTS_WATCHERS", "10000"))
CHANNELS = 20


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
    assert all(follower.revision == revisions[follower._twin_id] for follower in followers)
    assert (full - empty) / WATCHERS < 100 * 1024


def _memory(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)
