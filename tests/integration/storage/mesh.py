"""Storage in this process behind its real gRPC server, and what tests need to talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import grpc.aio
import numpy as np

from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh.type.v1 import observation_pb2
from twinmesh_client.transport import call, open_channel, stream, tenant_metadata
from twinmesh_core import wire
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section
from twinmesh_storage.main import compose
from twinmesh_storage.settings import StorageSettings
from twinmesh_testing.inprocess import serve

T0 = 1_700_000_000_000_000
S = 1_000_000


@dataclass(frozen=True, slots=True)
class Storage:
    """A client of one storage process, with the shortest way to each call."""

    target: str
    channel: grpc.aio.Channel
    stub: storage_pb2_grpc.StorageServiceAsyncStub
    tenant: str = "default"

    async def ask(self, method: str, request: Any, timeout_s: float = 10.0) -> Any:
        return await call(
            getattr(self.stub, method), request, timeout_s=timeout_s, metadata=tenant_metadata(self.tenant)
        )

    def stream(self, method: str, request: Any) -> Any:
        return stream(getattr(self.stub, method), request, timeout_s=None, metadata=tenant_metadata(self.tenant))

    async def series(
        self, twin: str, channels: Sequence[str], kind: ChannelKind = ChannelKind.GAUGE, unit: str = "Cel"
    ) -> tuple[SeriesKey, ...]:
        """Resolve channels of a twin into dictionary entries."""
        keys = [
            observation_pb2.SeriesKey(twin_id=twin, channel=c, kind=int(kind), unit=unit)  # type: ignore[arg-type]
            for c in channels
        ]
        request = storage_pb2.ResolveSeriesRequest(series=keys, expected_interval_us=[S] * len(keys))
        answer = await self.ask("ResolveSeries", request)
        return tuple(
            SeriesKey(twin_id=twin, channel=c, unit=unit, series_id=i, kind=kind)
            for c, i in zip(channels, answer.series_id, strict=True)
        )

    async def append(self, batch: ObservationBatch, **fields: Any) -> storage_pb2.AppendResponse:
        body = wire.encode(batch)
        fields.setdefault("content_hash", blake2b(body, digest_size=16).digest())
        return await self.ask("Append", storage_pb2.AppendRequest(observations=body, **fields))

    async def read(self, names: Sequence[tuple[str, str]], **fields: Any) -> dict[str, list[tuple[int, Any, int]]]:
        """Return {twin/channel: [(time, value, quality)]} of a ReadRange."""
        request = storage_pb2.ReadRangeRequest(
            series=[storage_pb2.SeriesSelector(twin_id=t, channel=c) for t, c in names], **fields
        )
        out: dict[str, list[tuple[int, Any, int]]] = {f"{t}/{c}": [] for t, c in names}
        async for part in self.stream("ReadRange", request):
            collect(part.batch, out)
        return out


def collect(message: observation_pb2.ObservationBatch, out: dict[str, list[tuple[int, Any, int]]]) -> None:
    """Add the rows of a typed batch to {twin/channel: rows}."""
    names = [f"{k.twin_id}/{k.channel}" for k in message.series]
    for section in (message.doubles, message.int64s, message.bools):
        for handle, time, quality, value in zip(
            section.series, section.time_unix_us, section.quality, section.value, strict=True
        ):
            out.setdefault(names[handle], []).append((time, value, quality))
    for texts in (message.texts, message.jsons):
        start = 0
        for handle, time, quality, end in zip(
            texts.series, texts.time_unix_us, texts.quality, texts.end_offset, strict=True
        ):
            out.setdefault(names[handle], []).append((time, texts.heap[start:end], quality))
            start = end


@asynccontextmanager
async def storage(database_url: str, **settings: Any) -> AsyncIterator[Storage]:
    """Run one storage process's service in this process."""
    async with AsyncExitStack() as stack:
        chosen = StorageSettings(database_url=database_url, port=0, **settings)
        service = await compose(chosen, stack)
        target = await stack.enter_async_context(serve(service, token="storage", settings=chosen))
        channel = await stack.enter_async_context(open_channel(target))
        yield Storage(target, channel, storage_pb2_grpc.StorageServiceStub(channel))  # type: ignore[arg-type]


def doubles(keys: tuple[SeriesKey, ...], times: Any, values: Any, handles: Any = None, quality: Any = None) -> Any:
    """Return a batch of doubles; handles default to all of the first series."""
    times = np.asarray(times, np.int64)
    handles = np.zeros(len(times), np.uint32) if handles is None else handles
    quality = np.ones(len(times), np.uint8) if quality is None else quality
    return ObservationBatch(series=keys, doubles=double_section(handles, times, values, quality))
