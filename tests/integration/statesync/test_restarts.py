"""State-sync and storage come and go; the replicas stay what the log says."""

import asyncio
import base64
import socket
import time
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from tests.integration.statesync.mesh import TIMEOUT_S, StateSync, statesync, storage
from tests.unit.statesync.checker import WatchChecker, normal

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import observation_pb2, position_pb2, replica_pb2
from twinmesh_client.transport import call, open_blocking_channel, open_channel
from twinmesh_core.errors import FailedPrecondition, TwinmeshError, Unavailable
from twinmesh_runtime.postgres import open_pool
from twinmesh_runtime.server import ServiceServer
from twinmesh_statesync.adapters.postgres import PostgresCheckpoints
from twinmesh_statesync.adapters.storage_log import StorageLog
from twinmesh_statesync.domain.checkpoint import Position, digest, restore
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.rpc.mapping.control import control_from_message, control_to_message
from twinmesh_statesync.rpc.mapping.replicas import replica_to_message
from twinmesh_storage.main import compose as compose_storage
from twinmesh_storage.settings import StorageSettings

NOW = time.time_ns() // 1_000


async def fold_from_the_beginning(target: str, offset: int) -> Fold:
    """Fold the whole log exactly up to an offset, by nothing but the log."""
    fold = Fold()
    async with open_channel(target) as channel:
        reading = open_blocking_channel(target)
        log = StorageLog(channel, reading=reading, encode=control_to_message, decode=control_from_message)
        async with aclosing(log.follow(Position(incarnation="", offset=0))) as frames, asyncio.timeout(TIMEOUT_S):
            async for frame in frames:
                for entry in frame.entries:
                    if entry.offset <= offset:
                        fold.apply(entry)
                fold.advance(min(frame.through.offset, offset))
                if fold.offset == offset:
                    break
    return fold


async def live_a_little(sync: StateSync, round_number: int) -> None:
    for i in range(5):
        await sync.observe("p1", "temperature", [NOW + (round_number * 10 + i) * 1_000_000], [float(i)])
    await call(
        sync.replicas.SetDesired,
        statesync_pb2.SetDesiredRequest(
            twin_id="p1", values={"speed": observation_pb2.Value(double_value=10.0 + round_number)}
        ),
        timeout_s=TIMEOUT_S,
    )


@pytest.mark.slow
async def test_over_restarts_checkpoints_equal_a_rebuild_from_the_beginning(database_url: str) -> None:
    async with storage(database_url) as target:
        for round_number in range(3):
            async with statesync(database_url, target, checkpoint_interval_s=0.1) as sync:
                if round_number == 0:
                    await sync.make_type()
                    await sync.make_twin("p1")
                await live_a_little(sync, round_number)
                # Connectivity is written meanwhile; the last process is stopped with a tail behind its checkpoint.
                await asyncio.sleep(1.5 * (round_number < 2))
        async with open_pool(database_url, min_size=1, max_size=1, schema="statesync") as pool:
            kept = await PostgresCheckpoints(pool).load()
        assert kept is not None
        rebuilt = await fold_from_the_beginning(target, kept.position.offset)
        assert digest(restore(kept)) == digest(rebuilt)
        async with statesync(database_url, target) as sync:
            replica = await sync.replica("p1")
            assert replica.desired.revision == 3
            assert replica.reported.values[0].value.double_value == 4.0
            head = await fold_from_the_beginning(target, replica.offset)
            state = head.state("default", "p1")
            assert state is not None
            assert normal(replica_to_message(state.twin, state.replica)) == normal(replica)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class StorageOnAPort:
    """A storage service that can be killed and started again at the same address."""

    def __init__(self, database_url: str) -> None:
        self.port = free_port()
        self.target = f"127.0.0.1:{self.port}"
        self._settings = StorageSettings(database_url=database_url, redis_url="", port=self.port)
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[Any]] = []
        self._server: ServiceServer | None = None

    async def start(self) -> None:
        service = await compose_storage(self._settings, self._stack)
        self._tasks = [asyncio.ensure_future(task()) for task in service.background]
        self._server = ServiceServer("storage", self._settings, service)
        await self._server.start()
        self._tasks.append(asyncio.ensure_future(self._server.keep_ready()))
        await self._server.health.until_ready()

    async def kill(self) -> None:
        assert self._server is not None
        await self._server.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()


async def test_storage_gone_and_back_is_a_pause_and_nothing_else(database_url: str) -> None:
    store = StorageOnAPort(database_url)
    await store.start()
    async with statesync(database_url, store.target) as sync:
        await sync.make_type()
        await sync.make_twin("p1")
        checker = WatchChecker()
        async with sync.watch(statesync_pb2.WatchRequest(bookmark_interval=Duration(nanos=500_000_000))) as frames:
            while not checker.synced:
                checker.take(await anext(frames))
            await sync.observe("p1", "temperature", [NOW], [1.0])
            await store.kill()
            assert (await sync.replica("p1")).twin.twin_id == "p1"  # reads go on
            with pytest.raises(Unavailable):
                await sync.make_twin("p2")
            await store.start()
            offset = await _until_written(sync)
            async with asyncio.timeout(15):
                while checker.through < offset:
                    checker.take(await anext(frames))
            assert checker.model["p1"].reported.values[0].value.double_value == 2.0
    await store.kill()


async def _until_written(sync: StateSync) -> int:
    async with asyncio.timeout(15):
        while True:
            try:
                return await sync.observe("p1", "temperature", [NOW + 1_000_000], [2.0])
            except TwinmeshError:
                await asyncio.sleep(0.1)


async def take_all(frames: Any, checker: WatchChecker) -> None:
    async for frame in frames:
        checker.take(frame)


async def test_a_drain_tells_watchers_where_to_resume_and_the_next_process_goes_on(database_url: str) -> None:
    async with storage(database_url) as target:
        async with statesync(database_url, target) as sync:
            await sync.make_type()
            await sync.make_twin("p1")
            checker = WatchChecker()
            async with sync.watch(statesync_pb2.WatchRequest()) as frames:
                while not checker.synced:
                    checker.take(await anext(frames))
                draining = asyncio.ensure_future(sync.server.drain())
                with pytest.raises(Unavailable) as ended:
                    await take_all(frames, checker)
                await draining
            assert ended.value.reason == "DRAINING"
            assert int(ended.value.metadata["resume_offset"]) == checker.through
        async with statesync(database_url, target) as sync:
            offset = await sync.observe("p1", "temperature", [NOW], [5.0])
            request = statesync_pb2.WatchRequest()
            request.resume_after.offset = checker.through
            async with sync.watch(request) as frames, asyncio.timeout(5):
                while checker.through < offset:
                    checker.take(await anext(frames))
            assert checker.model["p1"].reported.values[0].value.double_value == 5.0


async def test_a_restart_takes_nobody_offline_who_still_reports(database_url: str) -> None:
    async with storage(database_url) as target:
        async with statesync(database_url, target, checkpoint_interval_s=0.1) as sync:
            await sync.make_lively_type()
            for twin_id in ("alive", "dead"):
                await sync.make_twin(twin_id)
                await sync.observe(twin_id, "temperature", [time.time_ns() // 1_000], [1.0])
        await asyncio.sleep(1.0)
        async with statesync(database_url, target) as sync, asyncio.timeout(15):
            # Both were silent for as long as state-sync was down; only one of them goes on to be.
            while (await sync.replica("dead")).connectivity != replica_pb2.CONNECTIVITY_STALE:
                offset = await sync.observe("alive", "temperature", [time.time_ns() // 1_000], [2.0])
                assert (await sync.replica("alive", offset)).connectivity == replica_pb2.CONNECTIVITY_ONLINE
                await asyncio.sleep(0.3)
            events: list[Any] = []
            async with sync.watch(
                statesync_pb2.WatchRequest(resume_after=position_pb2.LogPosition(offset=1))
            ) as frames:
                async for frame in frames:
                    events += [event for event in frame.events if event.connectivity]
                    if frame.through.offset >= offset:
                        break
            told = [(event.twin_id, event.connectivity) for event in events if event.twin_id == "alive"]
            assert replica_pb2.CONNECTIVITY_STALE not in [connectivity for _, connectivity in told]


async def test_offsets_and_page_tokens_of_another_incarnation_are_refused(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        for twin in ("p1", "p2"):
            made = await sync.make_twin(twin)
        page = await call(sync.twins.ListTwins, statesync_pb2.ListTwinsRequest(page_size=1), timeout_s=TIMEOUT_S)
        token = base64.urlsafe_b64decode(page.next_page_token).decode()
        assert made.position.incarnation in token
        stale = base64.urlsafe_b64encode(token.replace(made.position.incarnation, "other").encode()).decode()
        offset, pb = made.position.offset, statesync_pb2
        for method, request in (
            (sync.twins.ListTwins, pb.ListTwinsRequest(page_size=1, page_token=stale)),
            (sync.twins.ListTwins, pb.ListTwinsRequest(min_offset=offset, incarnation="other")),
            (sync.twins.GetTwin, pb.GetTwinRequest(twin_id="p1", min_offset=offset, incarnation="other")),
            (sync.replicas.GetReplica, pb.GetReplicaRequest(twin_id="p1", min_offset=offset, incarnation="other")),
            (sync.events.ListEvents, pb.ListEventsRequest(twin_id="p1", min_offset=offset, incarnation="other")),
        ):
            with pytest.raises(FailedPrecondition) as error:
                await call(method, request, timeout_s=TIMEOUT_S)
            assert error.value.reason == "LOG_REWOUND"
        mine = pb.GetReplicaRequest(twin_id="p1", min_offset=offset, incarnation=made.position.incarnation)
        assert (await call(sync.replicas.GetReplica, mine, timeout_s=TIMEOUT_S)).as_of.offset >= offset
        rest = pb.ListTwinsRequest(page_size=1, page_token=page.next_page_token)
        assert [t.twin.twin_id for t in (await call(sync.twins.ListTwins, rest, timeout_s=TIMEOUT_S)).twins] == ["p2"]
