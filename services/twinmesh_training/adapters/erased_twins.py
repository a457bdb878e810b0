"""Following the log for twins that are erased: what learned from them is marked, and never promoted any more."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import Final

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh.type.v1 import position_pb2
from twinmesh_client.transport import stream, tenant_metadata
from twinmesh_core.errors import Reason, TwinmeshError, Unavailable
from twinmesh_core.time import Clock
from twinmesh_runtime.caller import ALL_TENANTS
from twinmesh_runtime.telemetry import counter, log
from twinmesh_training.domain.ports import ErasedTwins
from twinmesh_training.domain.values import ErasedTwin, LogPosition

_BOOKMARK: Final = Duration(seconds=1)
_SILENCE_S: Final = 15.0
"""A stream that is silent for so long, bookmarks included, is taken for dead."""
_NOTE_S: Final = 30.0
"""How often the position is noted while no twin is erased: after a restart so much is looked through again."""
_LONGEST_PAUSE_S: Final = 5.0
_START_AGAIN: Final = (Reason.LOG_REWOUND, Reason.COMPACTED, Reason.FUTURE_OFFSET)


class ErasureFollower:
    """Keeps the erased twins of all tenants current for as long as `run` runs.

    Several processes may do so at once: what they note is the same.

    Args:
        channel: to storage.
        erased: where they are noted.
        clock: for how often the position is.
    """

    def __init__(self, channel: grpc.aio.Channel, erased: ErasedTwins, clock: Clock) -> None:
        self._stub = storage_pb2_grpc.StorageServiceStub(channel)
        self._erased = erased
        self._clock = clock

    async def run(self) -> None:
        """Follow the log for ever, through every absence of storage and of the database."""
        pause_s = 0.1
        while True:
            started_s = self._clock.monotonic_s()
            try:
                await self._follow(await self._erased.followed())
            except TwinmeshError as error:
                log("erasures_follow_ended", level="warning", reason=str(error.reason))
                if error.reason in _START_AGAIN:
                    await self._begin_again()
            lasted = self._clock.monotonic_s() - started_s > _SILENCE_S
            pause_s = 0.1 if lasted else min(2 * pause_s, _LONGEST_PAUSE_S)
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311  spreads followers, not a secret

    async def _begin_again(self) -> None:
        try:
            await self._erased.note((), LogPosition(incarnation="", offset=0))
        except TwinmeshError as error:
            log("erasures_not_noted", level="warning", reason=str(error.reason))

    async def _follow(self, after: LogPosition) -> None:
        request = storage_pb2.FollowRequest(
            after=position_pb2.LogPosition(incarnation=after.incarnation, offset=after.offset),
            kinds=[storage_pb2.ENTRY_KIND_CONTROL],
            bookmark_interval=_BOOKMARK,
        )
        frames = stream(self._stub.Follow, request, timeout_s=None, metadata=tenant_metadata(ALL_TENANTS))
        noted_s = self._clock.monotonic_s()
        async with aclosing(frames):
            while True:
                try:
                    async with asyncio.timeout(_SILENCE_S):
                        frame = await anext(frames)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise Unavailable("The log's stream fell silent; it is opened again.") from None
                erased = _erased(frame)
                if erased or self._clock.monotonic_s() - noted_s > _NOTE_S:
                    through = LogPosition(incarnation=frame.through.incarnation, offset=frame.through.offset)
                    await self._erased.note(erased, through)
                    noted_s = self._clock.monotonic_s()
                for twin in erased:
                    counter("training", "erased_twins", "Erasures of twins heard of.").inc()
                    log("twin_erased", tenant=twin.tenant, twin_id=twin.twin_id, offset=twin.offset)


def _erased(frame: storage_pb2.FollowResponse) -> tuple[ErasedTwin, ...]:
    return tuple(
        ErasedTwin(tenant=entry.tenant, twin_id=entry.control.erase_twin.twin_id, offset=entry.offset)
        for entry in frame.entries
        if entry.WhichOneof("body") == "control" and entry.control.WhichOneof("action") == "erase_twin"
    )
