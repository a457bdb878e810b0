"""The wall clock jumps by a day, forth and back: nobody goes offline, no lease is lost, every watch goes on."""

import asyncio
import time
from typing import Any

import pytest
from tests.faults.watch_judge import violations
from tests.faults.watchers import Load, Watcher, truth
from tests.integration.statesync.mesh import statesync, storage

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import replica_pb2
from twinmesh_core.time import SystemClock
from twinmesh_statesync.domain.leases import Leases

DAY_US = 86_400_000_000


class Jumping(SystemClock):
    """The system's clock with a wall that can be moved."""

    shift_us = 0

    def now_unix_us(self) -> int:
        return super().now_unix_us() + Jumping.shift_us


@pytest.mark.faults
async def test_a_wall_clock_that_jumps_changes_nothing_that_is_alive(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases: list[Leases] = []

    class Recorded(Leases):
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            leases.append(self)

    monkeypatch.setattr("twinmesh_statesync.main.SystemClock", Jumping)
    monkeypatch.setattr("twinmesh_statesync.main.Leases", Recorded)
    monkeypatch.setattr(Jumping, "shift_us", 0)
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        writes = Load([sync], ("t0", "t1"))
        await writes.begin(sync)
        watcher, goal = Watcher([sync], "prompt", seed=0), 0
        async with asyncio.timeout(40), asyncio.TaskGroup() as group:
            watching = group.create_task(watcher.run(lambda through: bool(goal) and through >= goal))
            await writes.facts()
            await _online(sync)
            version = leases[0].version
            for shift_us in (DAY_US, -DAY_US, 0):
                monkeypatch.setattr(Jumping, "shift_us", shift_us)
                until_s = time.monotonic() + 1.5
                await writes.run(lambda end=until_s: time.monotonic() < end, pause_s=0.05)  # type: ignore[misc]
                await _online(sync)
            goal = await writes.facts()
            await watching
        assert leases[0].version == version
        judge = await truth(target)
    assert violations(watcher.story, judge) == []
    told = [statesync_pb2.WatchEvent.FromString(e) for events in judge.events.values() for e in events.values()]
    assert len(told) > 20
    assert {event.connectivity for event in told if event.connectivity} == {replica_pb2.CONNECTIVITY_ONLINE}


async def _online(sync: Any) -> None:
    async with asyncio.timeout(30):
        while True:
            replicas = [await sync.replica(twin_id) for twin_id in ("t0", "t1")]
            if all(r.connectivity == replica_pb2.CONNECTIVITY_ONLINE for r in replicas):
                return
            assert all(r.connectivity != replica_pb2.CONNECTIVITY_OFFLINE for r in replicas)
            await asyncio.sleep(0.05)
