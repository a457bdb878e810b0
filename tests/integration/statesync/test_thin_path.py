"""The thinnest path over the real log: type, twin, observation, replica, watch."""

import asyncio
import time
from typing import Any

from tests.integration.statesync.mesh import statesync, storage

from twinmesh.statesync.v1 import statesync_pb2

NOW = time.time_ns() // 1_000


async def test_an_observation_reaches_the_replica_and_the_watcher(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        created = await sync.make_twin("p1")
        assert created.created
        assert created.twin.twin_type_version == 1
        async with sync.watch(statesync_pb2.WatchRequest()) as frames:
            snapshot = [await anext(frames)]
            while not snapshot[-1].synced:
                snapshot.append(await anext(frames))
            assert [event.twin_id for frame in snapshot for event in frame.events] == ["p1"]
            offset = await sync.observe("p1", "temperature", [NOW, NOW + 1_000, NOW - 5_000], [1.0, 2.0, 3.0])
            replica = await sync.replica("p1", offset)
            assert replica.reported.values[0].value.double_value == 2.0
            seen: list[Any] = []
            async with asyncio.timeout(5):
                while not any(event.reported.values for event in seen):
                    seen += (await anext(frames)).events
            assert seen[0].previous_revision == snapshot[0].events[0].revision
            fact = next(event for event in seen if event.reported.values)
            assert fact.offset == offset
            assert fact.reported.values[0].value.double_value == 2.0
