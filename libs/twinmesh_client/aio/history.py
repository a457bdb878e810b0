"""Reads of history for one twin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np

from twinmesh.storage.v1 import storage_pb2
from twinmesh_client import aggregates
from twinmesh_client.aio.connection import Connection
from twinmesh_client.durations import Moment, Span, moment, moment_us, proto_moment, proto_span
from twinmesh_client.history import Window
from twinmesh_client.offsets import incarnation_of
from twinmesh_client.packed_reads import read_answer
from twinmesh_client.readings import Buckets, Reading, SeriesSummary, split_series
from twinmesh_client.replicas import Position, position
from twinmesh_client.transport import call, stream
from twinmesh_core.errors import invalid_field
from twinmesh_core.observations import ObservationBatch

READ_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which observations a read sees.

    Attributes:
        min_offset: waits until the answer reflects it; 0 = the present.
        as_of: entries of the log after this offset are not seen; 0 = the present.
        min_quality: the worst that is used: ``good``, ``uncertain`` or ``bad``; None = what the read takes by itself.
    """

    min_offset: int = 0
    as_of: int = 0
    min_quality: str | None = None

    @property
    def incarnation(self) -> str:
        """The incarnation of the log that the offsets are of; "" = they do not know."""
        return incarnation_of(self.min_offset, self.as_of)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is wanted of the observations: rows, few rows that stand for all, or aggregates; see `Twin.read`.

    Raises:
        InvalidArgument: more than one of them is asked for.
    """

    every: Span | None = None
    functions: tuple[str, ...] = ("mean",)
    time_zone: str = ""
    fill: str = "none"
    max_gap: Span | None = None
    points: int | None = None
    method: str = "lttb"
    last_count: int = 0

    def __post_init__(self) -> None:
        if sum((self.every is not None, self.points is not None, self.last_count > 0)) > 1:
            raise invalid_field("points", "excludes every and last_count; give one of them")


async def read(
    connection: Connection, twin_id: str, channels: Sequence[str], window: Window, scope: Scope, shape: Shape
) -> Reading | Buckets:
    """Return what is wanted of channels in a range of event time; raises `NotFound` for a channel never heard from."""
    if shape.points is not None:
        few = storage_pb2.DownsampleRequest(
            series=_selectors(twin_id, channels),
            min_offset=scope.min_offset,
            as_of_offset=scope.as_of,
            incarnation=scope.incarnation,
            min_quality=aggregates.lowest_quality(scope.min_quality),
            max_points=shape.points,
            method=aggregates.downsample_method(shape.method),
        )
        _set_range(few, window)
        return await _gathered(stream(connection.packed.Downsample, few, timeout_s=READ_TIMEOUT_S))
    if shape.every is not None:
        return await _read_buckets(connection, twin_id, channels, window, scope, shape, shape.every)
    rows = storage_pb2.ReadRangeRequest(
        series=_selectors(twin_id, channels),
        min_offset=scope.min_offset,
        as_of_offset=scope.as_of,
        incarnation=scope.incarnation,
        min_quality=aggregates.lowest_quality(scope.min_quality),
        last_count=shape.last_count,
    )
    _set_range(rows, window)
    return await _gathered(stream(connection.packed.ReadRange, rows, timeout_s=READ_TIMEOUT_S))


async def _gathered(answers: AsyncIterator[Any]) -> Reading:
    batches: list[ObservationBatch] = []
    as_of = Position(incarnation="", offset=0)
    async with aclosing(answers) as parts:  # type: ignore[type-var]  # an async generator
        async for data in parts:
            answer = read_answer(data)
            batches.append(answer.batch)
            as_of = answer.as_of
    return Reading(series=split_series(batches), as_of=as_of)


async def read_latest(
    connection: Connection, twin_id: str, channels: Sequence[str], scope: Scope, at: Moment | None = None
) -> Reading:
    """Return the newest observation of each channel; no channels = all of the twin."""
    request = storage_pb2.ReadLatestRequest(
        min_offset=scope.min_offset,
        as_of_offset=scope.as_of,
        incarnation=scope.incarnation,
        min_quality=aggregates.lowest_quality(scope.min_quality),
    )
    if at is not None:
        request.at.CopyFrom(proto_moment(moment_us(at, "at")))
    if channels:
        request.series.extend(_selectors(twin_id, channels))
    else:
        request.twin_ids.append(twin_id)
    answer = read_answer(await call(connection.packed.ReadLatest, request, timeout_s=connection.timeout_s))
    return Reading(series=split_series([answer.batch]), as_of=answer.as_of)


async def _read_buckets(
    connection: Connection,
    twin_id: str,
    channels: Sequence[str],
    window: Window,
    scope: Scope,
    shape: Shape,
    every: Span,
) -> Buckets:
    """Return aggregates of numeric channels on a grid; buckets without a value are NaN (count: 0) unless filled."""
    functions = shape.functions
    columns = aggregates.columns(functions)
    if window.start_us is None or window.end_us is None:
        raise invalid_field("every", "needs a bounded range; give `last`, or both `start` and `end`")
    request = storage_pb2.AggregateRequest(
        series=_selectors(twin_id, channels),
        functions=columns.functions,
        quantiles=columns.quantiles,
        state_values=columns.states,
        min_offset=scope.min_offset,
        as_of_offset=scope.as_of,
        incarnation=scope.incarnation,
        min_quality=aggregates.lowest_quality(scope.min_quality),
        time_zone=shape.time_zone,
        gap_policy=aggregates.gap_policy(shape.fill),
    )
    _set_range(request, window)
    aggregates.set_bucket(request, every)
    if shape.max_gap is not None:
        request.max_gap.CopyFrom(proto_span(shape.max_gap, "max_gap"))
    answer = await call(connection.storage.Aggregate, request, timeout_s=connection.timeout_s)
    buckets = np.array(answer.bucket_unix_us, np.int64)
    cube = np.frombuffer(answer.values, "<f8").reshape(len(channels), len(buckets), len(functions))
    cube = cube[:, :, list(columns.order)]
    return Buckets(
        bucket_unix_us=buckets,
        columns=tuple(c if len(functions) == 1 else f"{c}.{f}" for c in channels for f in functions),
        values=cube.transpose(1, 0, 2).reshape(len(buckets), -1),
        as_of=position(answer.as_of),
    )


def _set_range(
    request: storage_pb2.ReadRangeRequest | storage_pb2.AggregateRequest | storage_pb2.DownsampleRequest, window: Window
) -> None:
    if window.start_us is not None:
        request.start_time.CopyFrom(proto_moment(window.start_us))
    if window.end_us is not None:
        request.end_time.CopyFrom(proto_moment(window.end_us))


async def list_series(connection: Connection, twin_id: str, scope: Scope) -> list[SeriesSummary]:
    """Return what history holds of a twin, by channel."""
    found: list[SeriesSummary] = []
    token = ""
    while True:
        request = storage_pb2.ListSeriesRequest(
            twin_id=twin_id,
            page_token=token,
            min_offset=scope.min_offset,
            as_of_offset=scope.as_of,
            incarnation=scope.incarnation,
        )
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


def _selectors(twin_id: str, channels: Sequence[str]) -> list[storage_pb2.SeriesSelector]:
    return [storage_pb2.SeriesSelector(twin_id=twin_id, channel=c) for c in channels]
