"""The log, as storage serves it over gRPC."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Final, TypeVar
from uuid import uuid4

import grpc.aio
import numpy as np
import numpy.typing as npt

from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh.type.v1 import entry_pb2, observation_pb2
from twinmesh_client.registry_mapping import twin_to_message
from twinmesh_client.transport import call, tenant_metadata
from twinmesh_core.call_context import remaining_s
from twinmesh_core.errors import DeadlineExceeded, Unavailable
from twinmesh_core.observations import Section, SeriesKey
from twinmesh_core.registry import Twin
from twinmesh_ingestion.adapters import quarantine
from twinmesh_ingestion.adapters.appends import Appends, entry_bytes
from twinmesh_ingestion.domain.ports import (
    Appended,
    KeptPage,
    LatestValues,
    NewSeries,
    OpenedProducer,
    QuarantineFilter,
    Submission,
)
from twinmesh_runtime.observation_codec import batch_from_message

ResponseT = TypeVar("ResponseT")

_RESOLVE_TIMEOUT_S: Final = 10.0
_LATEST_TIMEOUT_S: Final = 2.0
_LATEST_AT_ONCE: Final = 10_000


class StorageLog:
    """Implements `domain.ports.Log`.

    Args:
        channel: to storage.
        append_timeout_s: how long one attempt may take; the caller makes another one.
    """

    def __init__(self, channel: grpc.aio.Channel, *, append_timeout_s: float) -> None:
        self._stub = storage_pb2_grpc.StorageServiceStub(channel)
        self._append_timeout_s = append_timeout_s
        self._appends = Appends(channel, timeout_s=append_timeout_s)

    async def close(self) -> None:
        """End the streams of appends."""
        await self._appends.close()

    async def append(self, tenant: str, submission: Submission) -> Appended:
        """Make the entry durable; see the port."""
        request = storage_pb2.AppendRequest(
            content_hash=submission.content_hash,
            receipt=submission.receipt,
            request_id=submission.request_id,
            quarantine=map(quarantine.row_message, submission.quarantine),
            quarantine_change=quarantine.change_message(submission.change) if submission.change is not None else None,
        )
        if submission.stamp is not None:
            request.producer.producer_id = submission.stamp.producer_id
            request.producer.epoch = submission.stamp.epoch
            request.producer.sequence = submission.stamp.sequence
        if self._appends.served:
            entry = entry_bytes(request, submission.body)
            response = await self._appends.append(tenant, entry, timeout_s=remaining_s())
        else:
            request.observations = submission.body
            response = await _attempt(
                call(self._stub.Append, request, timeout_s=self._append_timeout_s, metadata=tenant_metadata(tenant))
            )
        return Appended(
            offset=response.position.offset,
            incarnation=response.position.incarnation,
            replayed=response.replayed,
            receipt=response.receipt,
        )

    async def open_producer(self, tenant: str, producer_id: str, last_epoch: int = 0) -> OpenedProducer:
        """Open a session; see the port."""
        response = await _attempt(
            call(
                self._stub.OpenProducer,
                storage_pb2.OpenProducerRequest(producer_id=producer_id, last_epoch=last_epoch),
                timeout_s=self._append_timeout_s,
                metadata=tenant_metadata(tenant),
            )
        )
        return OpenedProducer(
            epoch=response.epoch, last_sequence=response.last_sequence, incarnation=response.incarnation
        )

    async def resolve_series(self, tenant: str, series: Sequence[NewSeries], registry_offset: int) -> list[int]:
        """Return durable ids; see the port."""
        request = storage_pb2.ResolveSeriesRequest(
            series=(
                observation_pb2.SeriesKey(
                    twin_id=s.twin_id,
                    channel=s.channel,
                    unit=s.unit,
                    kind=observation_pb2.ChannelKind.ValueType(s.kind),
                )
                for s in series
            ),
            expected_interval_us=(s.expected_interval_us for s in series),
            retention_class=(s.retention_class for s in series),
            registry_offset=registry_offset,
        )
        response = await _attempt(
            call(self._stub.ResolveSeries, request, timeout_s=_RESOLVE_TIMEOUT_S, metadata=tenant_metadata(tenant))
        )
        return list(response.series_id)

    async def latest(self, tenant: str, series: Sequence[SeriesKey]) -> LatestValues:
        """Return newest values; see the port."""
        found: list[Section] = []
        ids: list[npt.NDArray[np.int64]] = []
        for start in range(0, len(series), _LATEST_AT_ONCE):
            part = series[start : start + _LATEST_AT_ONCE]
            request = storage_pb2.ReadLatestRequest(
                series=(storage_pb2.SeriesSelector(twin_id=s.twin_id, channel=s.channel) for s in part)
            )
            response = await _attempt(
                call(self._stub.ReadLatest, request, timeout_s=_LATEST_TIMEOUT_S, metadata=tenant_metadata(tenant))
            )
            batch = batch_from_message(response.batch)
            by_handle = np.array([key.series_id for key in batch.series], np.int64)
            for section in (batch.doubles, batch.int64s, batch.bools):
                found.append(section)
                ids.append(by_handle[section.series])
        return LatestValues(
            series_id=np.concatenate([*ids, np.empty(0, np.int64)]),
            time_unix_us=np.concatenate([*(s.time_unix_us for s in found), np.empty(0, np.int64)]),
            value=np.concatenate([*(s.values.astype(np.float64) for s in found), np.empty(0)]),
            quality=np.concatenate([*(s.quality for s in found), np.empty(0, np.uint8)]),
        )

    async def create_twin(self, tenant: str, twin: Twin) -> None:
        """Create a twin; see the port."""
        entry = entry_pb2.ControlEntry(
            request_id=f"ingestion-{uuid4().hex}",
            principal="ingestion",
            create_twin=entry_pb2.CreateTwinEntry(twin=twin_to_message(twin), if_absent=True),
        )
        request = storage_pb2.AppendRequest(control=entry, request_id=entry.request_id)
        await _attempt(
            call(self._stub.Append, request, timeout_s=self._append_timeout_s, metadata=tenant_metadata(tenant))
        )

    async def kept(self, tenant: str, wanted: QuarantineFilter, *, after: int, limit: int) -> KeptPage:
        """Return rows in quarantine; see the port."""
        request = storage_pb2.ListQuarantineRequest(
            filter=quarantine.filter_message(wanted),
            oldest_first=True,
            after_quarantine_id=after,
            page_size=limit,
        )
        response = await _attempt(
            call(self._stub.ListQuarantine, request, timeout_s=_RESOLVE_TIMEOUT_S, metadata=tenant_metadata(tenant))
        )
        return KeptPage(
            rows=tuple(map(quarantine.kept_row, response.rows)),
            more=bool(response.next_page_token),
            total=response.total_count,
        )


async def _attempt(answer: Awaitable[ResponseT]) -> ResponseT:
    """Tell an attempt that took too long from a call whose time is over: the former may be made again."""
    try:
        return await answer
    except DeadlineExceeded as error:
        left = remaining_s()
        if left is not None and left <= 0.0:
            raise
        raise Unavailable(
            "Storage did not answer in time; the write is repeated under the same stamp.",
            metadata={"dependency": "storage"},
        ) from error
