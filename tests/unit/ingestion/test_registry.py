"""The registry that ingestion folds from the log: kept through every end of its stream, built anew when it must."""

# mypy: disable-error-code="abstract"
# Why: a servicer may leave methods out; the stubs call it abstract then.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from tests.unit.ingestion.plant import PUMP

from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh.type.v1 import entry_pb2, position_pb2, twin_pb2
from twinmesh_client.registry_mapping import twin_type_to_message
from twinmesh_client.transport import open_channel
from twinmesh_core.errors import FailedPrecondition, OutOfRange, Reason, TwinmeshError
from twinmesh_ingestion.adapters.registry import FollowedRegistry
from twinmesh_runtime.service import Service
from twinmesh_testing.inprocess import serve


class Log(storage_pb2_grpc.StorageServiceServicer):
    """A log that a test rewrites: what follows an older one is told so."""

    def __init__(self) -> None:
        self.incarnation = "first"
        self.trimmed = 0
        self.entries: list[entry_pb2.ControlEntry] = []
        self.follows: list[tuple[str, int]] = []
        self.broken = asyncio.Event()
        self.observed = 0
        self.control_offset: int | None = None

    def restore(self, incarnation: str, *twins: str) -> None:
        """Make it another log, which holds the pump type and these twins."""
        self.incarnation = incarnation
        made = entry_pb2.CreateTwinTypeEntry(twin_type=twin_type_to_message(PUMP))
        self.entries = [entry_pb2.ControlEntry(create_twin_type=made), *map(_twin, twins)]
        self.broken.set()
        self.broken = asyncio.Event()

    async def GetHead(self, request: Any, context: Any) -> storage_pb2.GetHeadResponse:  # noqa: N802
        head = self._position(len(self.entries) + self.observed)
        return storage_pb2.GetHeadResponse(position=head, control_offset=self.control_offset)

    async def Follow(self, request: Any, context: Any) -> AsyncIterator[storage_pb2.FollowResponse]:  # noqa: N802
        after = request.after
        self.follows.append((after.incarnation, after.offset))
        if after.incarnation not in ("", self.incarnation):
            raise FailedPrecondition("The log was restored.", reason=Reason.LOG_REWOUND)
        if 0 < after.offset < self.trimmed:
            raise OutOfRange("Trimmed.", reason=Reason.COMPACTED)
        broken, offset = self.broken, after.offset
        while not broken.is_set():
            fresh = self.entries[offset:]
            yield storage_pb2.FollowResponse(
                entries=[
                    storage_pb2.LogEntry(offset=offset + i + 1, tenant="default", control=entry)
                    for i, entry in enumerate(fresh)
                ],
                through=self._position(len(self.entries)),
                head_offset=len(self.entries),
            )
            offset = len(self.entries)
            await asyncio.sleep(0.01)

    def _position(self, offset: int) -> position_pb2.LogPosition:
        return position_pb2.LogPosition(incarnation=self.incarnation, offset=offset)


def _twin(twin_id: str) -> entry_pb2.ControlEntry:
    twin = twin_pb2.Twin(twin_id=twin_id, twin_type_id="pump", twin_type_version=1)
    return entry_pb2.ControlEntry(create_twin=entry_pb2.CreateTwinEntry(twin=twin))


@asynccontextmanager
async def following(log: Log) -> AsyncIterator[FollowedRegistry]:
    """Run a registry on the log."""
    service = Service(
        register=lambda server: storage_pb2_grpc.add_StorageServiceServicer_to_server(log, server),
        service_names=("twinmesh.storage.v1.StorageService",),
    )
    async with serve(service) as target, open_channel(target) as channel:
        registry = FollowedRegistry(channel, catch_up_timeout_s=5.0)
        following = asyncio.create_task(registry.follow())
        try:
            yield registry
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


def knows(registry: FollowedRegistry, twin_id: str) -> bool:
    try:
        registry.fold.require_twin("default", twin_id)
    except TwinmeshError:
        return False
    return True


async def test_a_rewound_log_is_read_from_its_beginning() -> None:
    """What only the old log knew is forgotten, what the new one knows is learnt, and verdicts are made anew."""
    log = Log()
    log.restore("first", "old", "both")
    async with following(log) as registry:
        await registry.catch_up()
        assert (knows(registry, "old"), knows(registry, "both")) == (True, True)
        generation = registry.generation
        log.restore("second", "both", "new")
        await registry.catch_up()
        assert [knows(registry, t) for t in ("old", "both", "new")] == [False, True, True]
        assert registry.generation != generation
        assert ("first", 3) in log.follows, "it did not try to go on first"
        assert ("", 0) in log.follows[1:], "it was not built from the beginning"
        # And it follows the new log on.
        log.entries.append(_twin("later"))
        await registry.catch_up()
        assert knows(registry, "later")


async def test_catching_up_waits_for_control_entries_and_not_for_news_of_observations() -> None:
    log = Log()
    log.restore("first", "old")
    async with following(log) as registry:
        await registry.catch_up()
        log.observed = 1_000  # beyond anything that the stream will tell
        log.control_offset = len(log.entries)
        await registry.catch_up()
        log.entries.append(_twin("new"))
        log.control_offset += 1
        await registry.catch_up()
        assert knows(registry, "new")


async def test_the_known_registry_serves_until_the_new_one_is_complete() -> None:
    log = Log()
    log.restore("first", "old")
    async with following(log) as registry:
        await registry.catch_up()
        before = registry.fold
        log.trimmed = 1_000  # nobody may go on from offset 2
        log.broken.set()
        log.broken = asyncio.Event()
        async with asyncio.timeout(5):
            while registry.fold is before:
                assert knows(registry, "old")
                await asyncio.sleep(0.005)
        assert knows(registry, "old")
        await registry.ready()


async def test_it_goes_on_where_a_broken_stream_ended() -> None:
    log = Log()
    log.restore("first", "a")
    async with following(log) as registry:
        await registry.catch_up()
        fold = registry.fold
        log.broken.set()
        log.broken = asyncio.Event()
        log.entries.append(_twin("b"))
        await registry.catch_up()
        assert knows(registry, "b")
        assert registry.fold is fold
        assert log.follows == [("", 0), ("first", 2)]


async def test_it_is_not_ready_before_it_knows_the_head() -> None:
    registry = FollowedRegistry(grpc.aio.insecure_channel("127.0.0.1:1"), catch_up_timeout_s=0.1)
    with pytest.raises(TwinmeshError):
        await registry.ready()
