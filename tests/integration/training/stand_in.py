"""Storage and state-sync, as much of them as training calls, over generated histories: real gRPC, no database.

Tests of runs and workers need histories in milliseconds; that training reads the real storage is tested beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc.aio
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from twinmesh.statesync.v1 import statesync_pb2, statesync_pb2_grpc
from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh.type.v1 import observation_pb2, position_pb2, twin_pb2
from twinmesh_core.errors import NotFound, Reason
from twinmesh_runtime.service import Service
from twinmesh_training.domain.dataset import History

POSITION = position_pb2.LogPosition(incarnation="stand-in", offset=42)


class StandIn(storage_pb2_grpc.StorageServiceServicer, statesync_pb2_grpc.TwinServiceServicer):
    """Answers from histories whose rows are one `step_us` apart; `hold` delays windows until it is set."""

    def __init__(self, histories: Mapping[str, History], channels: tuple[str, ...], step_us: int) -> None:
        self.histories = dict(histories)
        self.channels = channels
        self.step_us = step_us
        self.hold = asyncio.Event()
        self.hold.set()
        self.asked = 0
        self.windows: list[storage_pb2.ReadWindowRequest] = []

    async def GetHead(self, request, context):  # noqa: N802
        return storage_pb2.GetHeadResponse(position=POSITION)

    async def ReadLatest(self, request, context):  # noqa: N802
        return storage_pb2.ReadLatestResponse(as_of=POSITION)

    async def ListSeries(self, request, context):  # noqa: N802
        answer = storage_pb2.ListSeriesResponse()
        if request.twin_id not in self.histories:
            return answer
        history = self.histories[request.twin_id]
        for channel in self.channels:
            last = history.start_us + (len(history.values) - 1) * self.step_us
            answer.series.add(
                key=observation_pb2.SeriesKey(twin_id=request.twin_id, channel=channel),
                first_time=_time(history.start_us),
                last_time=_time(last),
            )
        return answer

    async def ReadWindow(self, request, context):  # noqa: N802
        self.asked += 1
        await self.hold.wait()
        self.windows.append(request)
        columns = [self.channels.index(c) for c in request.channels]
        parts = []
        for twin_id in request.twin_ids:
            history = self.histories[twin_id]
            last = (request.at.ToMicroseconds() - history.start_us) // self.step_us
            index = np.arange(last - request.steps, last)
            inside = (index >= 0) & (index < len(history.values))
            rows = history.values[np.clip(index, 0, len(history.values) - 1)][:, columns]
            parts.append(np.where(inside[:, None], rows, np.nan))
        return storage_pb2.ReadWindowResponse(
            values=np.stack(parts).astype("<f8").tobytes(),
            units=["Cel"] * len(columns),
            as_of=POSITION,
        )

    async def GetTwin(self, request, context):  # noqa: N802
        if request.twin_id not in self.histories:
            raise NotFound(f"There is no twin {request.twin_id!r}.", reason=Reason.TWIN_NOT_FOUND)
        zone = self.histories[request.twin_id].time_zone
        return statesync_pb2.GetTwinResponse(twin=twin_pb2.Twin(twin_id=request.twin_id, time_zone=zone))

    async def until_asked(self, times: int) -> None:
        """Wait until windows were asked for so many times."""
        async with asyncio.timeout(30):
            while self.asked < times:  # noqa: ASYNC110  a count, not an event
                await asyncio.sleep(0.05)

    def service(self) -> Service:
        def register(server: grpc.aio.Server) -> None:
            storage_pb2_grpc.add_StorageServiceServicer_to_server(self, server)
            statesync_pb2_grpc.add_TwinServiceServicer_to_server(self, server)

        names = ("twinmesh.storage.v1.StorageService", "twinmesh.statesync.v1.TwinService")
        return Service(register=register, service_names=names)


def _time(time_unix_us: int) -> Timestamp:
    message = Timestamp()
    message.FromMicroseconds(time_unix_us)
    return message
