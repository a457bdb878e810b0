"""A watcher that freezes costs nobody anything, and misses nothing when it comes back."""

import asyncio
import time

from tests.integration.statesync.mesh import StateSync, statesync, storage
from tests.unit.statesync.checker import WatchChecker

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import position_pb2

NOW = time.time_ns() // 1_000
TWINS = 20
ROUNDS = 60


async def watch_until(sync: StateSync, checker: WatchChecker, done: asyncio.Event, last: list[int]) -> None:
    request = statesync_pb2.WatchRequest()
    async with sync.watch(request) as frames:
        async for frame in frames:
            checker.take(frame)
            if done.is_set() and checker.through >= last[0]:
                return


async def test_a_frozen_watcher_hurts_nobody_and_catches_up_without_a_gap(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        for i in range(TWINS):
            await sync.make_twin(f"t{i}")
        done, last = asyncio.Event(), [0]
        live = [WatchChecker() for _ in range(5)]
        frozen = WatchChecker()
        async with sync.watch(statesync_pb2.WatchRequest()) as frozen_frames, asyncio.TaskGroup() as group:
            while not frozen.synced:
                frozen.take(await anext(frozen_frames))
            for checker in live:
                group.create_task(watch_until(sync, checker, done, last))
            for round_number in range(ROUNDS):
                times = [NOW + round_number * 1_000 + i for i in range(50)]
                last[0] = await sync.observe(f"t{round_number % TWINS}", "temperature", times, [1.0] * 50)
            done.set()
            async with asyncio.timeout(10):
                while any(checker.through < last[0] for checker in live):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                while frozen.through < last[0]:
                    frozen.take(await anext(frozen_frames))
        for checker in live:
            assert checker.revisions == frozen.revisions
        assert sum(frozen.revisions.values()) >= TWINS + ROUNDS


async def test_watchers_resume_at_every_position_they_were_told(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        for i in range(3):
            await sync.make_twin(f"t{i}")
        checker = WatchChecker()
        async with sync.watch(statesync_pb2.WatchRequest()) as frames:
            while not checker.synced:
                checker.take(await anext(frames))
        last = 0
        for i in range(40):
            last = await sync.observe(f"t{i % 3}", "temperature", [NOW + i], [float(i)])
            if i % 4:
                continue
            resume = position_pb2.LogPosition(offset=checker.through)
            async with sync.watch(statesync_pb2.WatchRequest(resume_after=resume)) as frames, asyncio.timeout(5):
                checker.take(await anext(frames))  # leave again after the first frame, wherever it ends
        resume = position_pb2.LogPosition(offset=checker.through)
        async with sync.watch(statesync_pb2.WatchRequest(resume_after=resume)) as frames, asyncio.timeout(5):
            while checker.through < last:
                checker.take(await anext(frames))
        for i in range(3):
            replica = await sync.replica(f"t{i}", last)
            assert checker.model[f"t{i}"].reported == replica.reported
