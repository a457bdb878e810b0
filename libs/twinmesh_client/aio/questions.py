"""What a twin asks and states, as messages: the longer ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from twinmesh.inference.v1 import inference_pb2
from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import event_pb2
from twinmesh_client.durations import Moment, Span, moment_us, proto_moment, proto_span
from twinmesh_client.offsets import incarnation_of
from twinmesh_client.values import enum_name


def forecast_request(
    twin_id: str,
    channel: str,
    *,
    horizon: Span | None,
    quantiles: Sequence[float],
    at: Moment | None,
    model: str,
    record: bool,
    min_offset: int,
    as_of_offset: int,
    max_staleness: Span | None,
) -> inference_pb2.ForecastRequest:
    """Return the request of `Twin.forecast`; raises `InvalidArgument` for spans and moments that cannot be read."""
    name, _, version = model.partition("@")
    request = inference_pb2.ForecastRequest(
        twin_id=twin_id,
        channel=channel,
        model_id=name,
        model_version=int(version or 0),
        quantile_levels=quantiles,
        record=record,
        min_offset=min_offset,
        as_of_offset=as_of_offset,
    )
    if horizon is not None:
        request.horizon.CopyFrom(proto_span(horizon, "horizon"))
    if at is not None:
        request.at.CopyFrom(proto_moment(moment_us(at, "at")))
    if max_staleness is not None:
        request.max_staleness.CopyFrom(proto_span(max_staleness, "max_staleness"))
    return request


def optimize_request(
    twin_id: str,
    control: str,
    *,
    options: Mapping[float, float],
    limit: float,
    model: str,
    limit_quantile: float,
    target: float | None,
    target_weight: float,
    switch_cost: float,
    max_switches: int,
    min_dwell: Span | None,
    at: Moment | None,
    as_of_offset: int,
) -> inference_pb2.OptimizeRequest:
    """Return the request of `Twin.optimize`; raises `InvalidArgument` for spans and moments that cannot be read."""
    request = inference_pb2.OptimizeRequest(
        twin_id=twin_id,
        model_id=model,
        control=control,
        options=[inference_pb2.ControlOption(value=v, cost_per_hour=c) for v, c in options.items()],
        limit=limit,
        limit_quantile=limit_quantile,
        target_weight=target_weight,
        switch_cost=switch_cost,
        max_switches=max_switches,
        as_of_offset=as_of_offset,
    )
    if target is not None:
        request.target = target
    if min_dwell is not None:
        request.min_dwell.CopyFrom(proto_span(min_dwell, "min_dwell"))
    if at is not None:
        request.at.CopyFrom(proto_moment(moment_us(at, "at")))
    return request


def event_message(
    twin_id: str, kind: str, *, start: datetime, end: datetime | None, mode: str, message: str
) -> event_pb2.Event:
    """Return the event of `Twin.record_event`; raises `InvalidArgument` for an unknown kind or a naive time."""
    body = event_pb2.Event(
        twin_id=twin_id,
        kind=event_pb2.EventKind.Value(enum_name(event_pb2.EventKind.keys(), "EVENT_KIND", kind, "kind")),
        start_time=proto_moment(moment_us(start, "start")),
        mode=mode,
        message=message,
    )
    if end is not None:
        body.end_time.CopyFrom(proto_moment(moment_us(end, "end")))
    return body


def ask_past(
    request: statesync_pb2.GetReplicaRequest | statesync_pb2.ListTwinsRequest,
    min_offset: int,
    at_offset: int | None,
    at: Moment | None,
) -> None:
    """Have a request ask for the present from an offset on, or for the past.

    Raises:
        InvalidArgument: the two offsets are of different logs, or the moment cannot be read.
    """
    request.incarnation = incarnation_of(min_offset, at_offset or 0)
    request.min_offset = min_offset
    request.at_offset = at_offset or 0
    if at is not None:
        request.at_event_time.CopyFrom(proto_moment(moment_us(at, "at")))
