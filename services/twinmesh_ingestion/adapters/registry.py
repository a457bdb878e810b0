"""The registry, folded from the control entries that storage streams: ingestion needs nobody else to know its twins."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final

import grpc.aio

from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh.type.v1 import position_pb2
from twinmesh_client.registry_mapping import duration_to_message, fold_control_entry, time_from_message
from twinmesh_client.transport import call, stream, tenant_metadata
from twinmesh_core.errors import Reason, TwinmeshError, Unavailable
from twinmesh_core.registry_fold import RegistryFold
from twinmesh_runtime.caller import ALL_TENANTS
from twinmesh_runtime.telemetry import gauge, log

BOOKMARK_US: Final = 50_000
"""Longest silence of the stream: it bounds how long a verdict on an unknown twin takes while others write."""
_SILENCE_S: Final = 15.0
"""A stream that is silent for this long, bookmarks included, is taken for dead."""
_LONGEST_PAUSE_S: Final = 1.0
_START_AGAIN: Final = (Reason.LOG_REWOUND, Reason.COMPACTED, Reason.FUTURE_OFFSET)


class FollowedRegistry:
    """Implements `domain.ports.Registry`; `follow` keeps it current for as long as it runs.

    While storage is away, the last known registry stays in use. When the log was rewound, a new one is built from the
    beginning and replaces the old one once it is complete.

    Args:
        channel: to storage.
        catch_up_timeout_s: how long `catch_up` may wait.

    Attributes:
        forget: told the series of each twin that is erased.
    """

    def __init__(self, channel: grpc.aio.Channel, *, catch_up_timeout_s: float) -> None:
        self.forget: Callable[[str, Sequence[int]], Awaitable[None]] | None = None
        self._stub = storage_pb2_grpc.StorageServiceStub(channel)
        self._timeout_s = catch_up_timeout_s
        self._fold = RegistryFold()
        self._generation = 0
        self._incarnation = ""
        self._moved = asyncio.Condition()
        self._complete = False
        self._catching_up = asyncio.Lock()
        self._asked = 0
        self._answered = 0

    @property
    def fold(self) -> RegistryFold:
        """The registry now; see the port."""
        return self._fold

    @property
    def generation(self) -> int:
        """Changes with every twin or type that is created or deleted."""
        return self._generation

    async def catch_up(self) -> None:
        """Wait until the fold reflects the log's present head; see the port."""
        self._asked += 1
        mine = self._asked
        async with self._catching_up:
            if self._answered >= mine:
                return  # somebody asked for the head after this call came in, and got there
            covers = self._asked
            response = await call(
                self._stub.GetHead,
                storage_pb2.GetHeadRequest(),
                timeout_s=self._timeout_s,
                metadata=tenant_metadata(ALL_TENANTS),
            )
            try:
                async with asyncio.timeout(self._timeout_s), self._moved:
                    await self._moved.wait_for(lambda: self._reflects(response))
            except TimeoutError:
                raise _behind() from None
            self._answered = covers

    async def ready(self) -> None:
        """Raise `Unavailable` until the registry has been complete once."""
        if not self._complete:
            raise _behind()

    async def follow(self) -> None:
        """Follow the log for ever, through every absence of storage."""
        offset_gauge = gauge("ingestion", "registry_offset", "Log offset that the registry reflects.")
        offset_gauge.set_function(lambda: self._fold.offset)
        pause_s = 0.05
        while True:
            started_at = self._fold.offset
            try:
                await self._follow_once()
            except TwinmeshError as error:
                log("registry_follow_ended", level="warning", reason=str(error.reason), offset=self._fold.offset)
                if error.reason in _START_AGAIN:
                    await self._rebuild_from_start()
            pause_s = 0.05 if self._fold.offset > started_at else min(2 * pause_s, _LONGEST_PAUSE_S)
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311  spreads followers, not a secret

    async def _rebuild_from_start(self) -> None:
        """Build a new registry beside the old one; whatever ends it is met again by the next round."""
        fresh = _Building()
        try:
            await self._consume(fresh)
        except TwinmeshError as error:
            log("registry_rebuild_ended", level="warning", reason=str(error.reason), offset=fresh.fold.offset)

    async def _follow_once(self) -> None:
        await self._consume(_Building(fold=self._fold, incarnation=self._incarnation, complete=self._complete))

    async def _consume(self, building: _Building) -> None:
        request = storage_pb2.FollowRequest(
            after=position_pb2.LogPosition(incarnation=building.incarnation, offset=building.fold.offset),
            kinds=[storage_pb2.ENTRY_KIND_CONTROL],
            bookmark_interval=duration_to_message(BOOKMARK_US),
        )
        frames = stream(self._stub.Follow, request, timeout_s=None, metadata=tenant_metadata(ALL_TENANTS))
        async with aclosing(frames):
            while True:
                try:
                    async with asyncio.timeout(_SILENCE_S):
                        frame = await anext(frames)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise Unavailable("The log's stream fell silent; it is opened again.") from None
                await self._take(building, frame)

    async def _take(self, building: _Building, frame: storage_pb2.FollowResponse) -> None:
        changed = False
        for entry in frame.entries:
            if entry.WhichOneof("body") != "control":
                continue
            verdict = fold_control_entry(
                building.fold,
                tenant=entry.tenant,
                offset=entry.offset,
                commit_time_unix_us=time_from_message(entry.commit_time),
                entry=entry.control,
            )
            changed |= verdict is not None and verdict.effective
            if self.forget is not None and entry.control.WhichOneof("action") == "erase_twin":
                await self.forget(entry.tenant, [key.series_id for key in entry.control.erase_twin.series])
        building.fold.advance(frame.through.offset)
        building.incarnation = frame.through.incarnation
        building.complete |= frame.through.offset >= frame.head_offset
        if building.fold is not self._fold and not building.complete:
            return
        async with self._moved:
            if changed or building.fold is not self._fold:
                self._generation += 1
            self._fold = building.fold
            self._incarnation = building.incarnation
            self._complete = building.complete
            self._moved.notify_all()

    def _reflects(self, head: storage_pb2.GetHeadResponse) -> bool:
        # Observations move the head, and nothing here: waiting for the bookmark that tells of them would stall writers.
        needed = head.control_offset if head.HasField("control_offset") else head.position.offset
        return self._incarnation == head.position.incarnation and self._fold.offset >= needed


class _Building:
    """A registry under way, and where in the log it stands."""

    def __init__(self, *, fold: RegistryFold | None = None, incarnation: str = "", complete: bool = False) -> None:
        self.fold = fold if fold is not None else RegistryFold()
        self.incarnation = incarnation
        self.complete = complete


def _behind() -> Unavailable:
    return Unavailable(
        "The registry has not caught up with the log yet; try again.",
        metadata={"dependency": "storage"},
        retry_after_s=0.5,
    )
