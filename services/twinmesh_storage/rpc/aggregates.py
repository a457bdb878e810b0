"""Reads that say much in little: aggregates per bucket, and few observations that stand for many."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

from twinmesh.storage.v1 import storage_pb2
from twinmesh_runtime.registry_mapping import time_to_message
from twinmesh_storage.domain.aggregate import MAX_VALUES, Aggregator
from twinmesh_storage.domain.answers import answers
from twinmesh_storage.domain.buckets import CalendarUnit, bucket_edges, calendar_edges, too_many
from twinmesh_storage.domain.directory import Directory
from twinmesh_storage.domain.downsample import Downsampler
from twinmesh_storage.domain.history import Seen
from twinmesh_storage.domain.latest_reader import LatestReader
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.rpc import mapping, questions, raw, seeing
from twinmesh_storage.rpc.serving import Handler, byte_stream, own_tenant, unary

_MAX_SERIES: Final = 1_000
_MAX_DOWNSAMPLED_SERIES: Final = 100
_VALUE_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateServicer:
    """Aggregate and Downsample."""

    view: LogView
    directory: Directory
    latest: LatestReader
    aggregator: Aggregator
    downsampler: Downsampler
    max_answer_bytes: int

    async def aggregate(self, request: storage_pb2.AggregateRequest, _: Any) -> storage_pb2.AggregateResponse:
        """Return aggregates per bucket."""
        tenant = own_tenant()
        names = mapping.names(request.series, "series", _MAX_SERIES)
        bucket_us, unit = questions.bucket(request)
        asked = questions.time_range(request, bounded=True)
        questions.question(request, ())
        as_of = await seeing.settle(self.view, request.min_offset, request.as_of_offset, request.incarnation)
        series = await self.directory.require(tenant, names)
        seeing.require_numeric([series], [s.channel for s in series])
        question = questions.question(request, series)
        start, end, at = await seeing.bounds(self.latest, tenant, series, asked, question.seen)
        response = storage_pb2.AggregateResponse(as_of=mapping.position(self.view.incarnation, as_of))
        if at is not None:
            response.at.CopyFrom(time_to_message(at))
        elif asked.last_us is not None:
            return response
        # Each bucket has its start and a value per series and column; what outgrows a message is never computed.
        columns = len(series) * question.columns
        most = min(MAX_VALUES // columns, self.max_answer_bytes // (_VALUE_BYTES * (columns + 1)))
        if unit is CalendarUnit.NONE:
            edges = bucket_edges(start, end, bucket_us, request.time_zone, most)
        else:
            edges = calendar_edges(start, end, unit, request.time_zone, most)
        if len(edges) - 1 > most:  # a zone's clocks may add some
            raise too_many(most, "bucket")
        values = await self.aggregator.read(tenant, series, edges, question)
        response.bucket_unix_us.extend(edges[:-1].tolist())
        response.end_unix_us = int(edges[-1])
        response.values = values.tobytes()
        return response

    async def downsample(self, request: storage_pb2.DownsampleRequest, _: Any) -> AsyncIterator[bytes]:
        """Stream rows that show the shape of all."""
        tenant = own_tenant()
        names = mapping.names(request.series, "series", _MAX_DOWNSAMPLED_SERIES)
        most, method = questions.max_points(request), questions.downsample_method(request)
        asked = questions.time_range(request)
        seen = questions.seen(request.min_quality, request.as_of_offset, default_quality=2)
        as_of = await seeing.settle(self.view, request.min_offset, request.as_of_offset, request.incarnation)
        # What is read in several passes must be the same in each.
        seen = Seen(max_quality=seen.max_quality, as_of=as_of)
        series = await self.directory.require(tenant, names)
        seeing.require_numeric([series], [s.channel for s in series])
        start, end, at = await seeing.bounds(self.latest, tenant, series, asked, seen)
        any_rows = False
        async for rows in self.downsampler.stream(tenant, series, start, end, method, most, seen):
            for batch in answers([rows]):
                any_rows = True
                yield raw.batch_answer(batch, self.view.incarnation, as_of, at)
        if not any_rows:
            yield raw.empty_answer(self.view.incarnation, as_of, at)

    def handlers(self) -> dict[str, Handler]:
        """Return the gRPC handlers of these methods, by name."""
        pb = storage_pb2
        return {
            "Aggregate": unary(self.aggregate, pb.AggregateRequest, pb.AggregateResponse),
            "Downsample": byte_stream(self.downsample, pb.DownsampleRequest),
        }
