"""Reads of history for one twin."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

import numpy as np

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2
from twinmesh_client.aio.connection import Connection
from twinmesh_client.durations import Span, proto_moment, proto_span, span_us
from twinmesh_client.history import Window
from twinmesh_client.readings import Buckets, Reading, SeriesSummary, split_series
from twinmesh_client.replicas import Position, moment, position
from twinmesh_client.transport import call, stream
from twinmesh_core.errors import DataLoss, invalid_field
from twinmesh_core.observations import ObservationBatch
from twinmesh_core.wire import walk

READ_TIMEOUT_S = 300.0
_QUALITIES = {
    "good": observation_pb2.QUALITY_GOOD,
    "uncertain": observation_pb2.QUALITY_UNCERTAIN,
    "bad": observation_pb2.QUALITY_BAD,
}
FUNCTIONS = ("count", "min", "max", "mean", "sum", "first", "last", "stddev")


async def read_rows(
    connection: Connection,
    twin_id: str,
    channels: Sequence[str],
    window: Window,
    *,
    min_offset: int,
    min_quality: str,
) -> Reading:
    """Return the rows of channels in a range of event time; raises `NotFound` for a channel never heard from."""
    if min_quality not in _QUALITIES:
        raise invalid_field("min_quality", f"{min_quality!r} is unknown; choose from {', '.join(_QUALITIES)}")
    request = storage_pb2.ReadRangeRequest(
        series=_selectors(twin_id, channels), min_offset=min_offset, min_quality=_QUALITIES[min_quality]
    )
    if window.start_us is not None:
        request.start_time.CopyFrom(proto_moment(window.start_us))
    if window.end_us is not None:
        request.end_time.CopyFrom(proto_moment(window.end_us))
    batches: list[ObservationBatch] = []
    as_of = Position(incarnation="", offset=0)
    async with aclosing(stream(connection.storage.ReadRange, request, timeout_s=READ_TIMEOUT_S)) as answers:
        async for answer in answers:
            batches.append(columns(answer.batch))
            as_of = position(answer.as_of)
    return Reading(series=split_series(batches), as_of=as_of)


async def read_latest(connection: Connection, twin_id: str, channels: Sequence[str], *, min_offset: int) -> Reading:
    """Return the newest observation of each channel; no channels = all of the twin."""
    request = storage_pb2.ReadLatestRequest(min_offset=min_offset)
    if channels:
        request.series.extend(_selectors(twin_id, channels))
    else:
        request.twin_ids.append(twin_id)
    answer = await call(connection.storage.ReadLatest, request, timeout_s=connection.timeout_s)
    return Reading(series=split_series([columns(answer.batch)]), as_of=position(answer.as_of))


async def read_buckets(
    connection: Connection,
    twin_id: str,
    channels: Sequence[str],
    window: Window,
    *,
    every: Span,
    functions: Sequence[str],
    min_offset: int,
    time_zone: str,
) -> Buckets:
    """Return aggregates of numeric channels on a grid; buckets without a value are NaN (count: 0)."""
    unknown = [f for f in functions if f not in FUNCTIONS]
    if unknown or not functions:
        raise invalid_field("agg", f"{(unknown or ['nothing'])[0]!r} is unknown; choose from {', '.join(FUNCTIONS)}")
    if window.start_us is None or window.end_us is None:
        raise invalid_field("every", "needs a bounded range; give `last`, or both `start` and `end`")
    bucket_us = span_us(every, "every")
    request = storage_pb2.AggregateRequest(
        series=_selectors(twin_id, channels),
        start_time=proto_moment(window.start_us),
        end_time=proto_moment(window.end_us),
        bucket=proto_span(bucket_us / 1e6, "every"),
        functions=[storage_pb2.AggregateFunction.Value(f"AGGREGATE_FUNCTION_{name.upper()}") for name in functions],
        min_offset=min_offset,
        time_zone=time_zone,
    )
    answer = await call(connection.storage.Aggregate, request, timeout_s=connection.timeout_s)
    buckets = np.array(answer.bucket_unix_us, np.int64)
    cube = np.frombuffer(answer.values, "<f8").reshape(len(channels), len(buckets), len(functions))
    return Buckets(
        bucket_unix_us=buckets,
        columns=tuple(c if len(functions) == 1 else f"{c}.{f}" for c in channels for f in functions),
        values=cube.transpose(1, 0, 2).reshape(len(buckets), -1),
        as_of=position(answer.as_of),
    )


async def list_series(connection: Connection, twin_id: str) -> list[SeriesSummary]:
    """Return what history holds of a twin, by channel."""
    found: list[SeriesSummary] = []
    token = ""
    while True:
        request = storage_pb2.ListSeriesRequest(twin_id=twin_id, page_token=token)
        answer = await call(connection.storage.ListSeries, request, timeout_s=connection.timeout_s)
        found.extend(
            SeriesSummary(
                twin_id=s.key.twin_id,
                channel=s.key.channel,
                unit=s.key.unit,
                point_count=s.point_count,
                first_time=moment(s.first_time) if s.HasField("first_time") else None,
                last_time=moment(s.last_time) if s.HasField("last_time") else None,
            )
            for s in answer.series
        )
        token = answer.next_page_token
        if not token:
            return found


def columns(message: observation_pb2.ObservationBatch) -> ObservationBatch:
    """Return the columns of a message; raises `DataLoss` when they contradict each other."""
    batch = walk(message.SerializeToString())
    if batch is None:
        raise DataLoss("The server sent columns that do not fit together.", reason="MALFORMED_MESSAGE")
    return batch


def _selectors(twin_id: str, channels: Sequence[str]) -> list[storage_pb2.SeriesSelector]:
    return [storage_pb2.SeriesSelector(twin_id=twin_id, channel=c) for c in channels]
