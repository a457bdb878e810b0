"""What a twin asks and states, as messages: the longer ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from twinmesh.inference.v1 import inference_pb2
from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import event_pb2, twin_pb2
from twinmesh_client.durations import Moment, Span, moment_us, proto_moment, proto_span
from twinmesh_client.offsets import incarnation_of
from twinmesh_client.spec_mapping import geometry_to_message
from twinmesh_client.values import enum_name, to_proto
from twinmesh_core.errors import invalid_field
from twinmesh_core.geometry import Geometry


def update_request(
    twin_id: str,
    *,
    display_name: str | None,
    time_zone: str | None,
    attributes: Mapping[str, str | None] | None,
    properties: Mapping[str, Any] | None,
    relationships: Mapping[str, Sequence[str]] | None,
    geometry: Geometry | None,
) -> statesync_pb2.UpdateTwinRequest:
    """Return the request of `Twin.update`: the mask names what is given, and nothing else."""
    request = statesync_pb2.UpdateTwinRequest(twin=twin_pb2.Twin(twin_id=twin_id))
    twin, paths = request.twin, request.update_mask.paths
    if display_name is not None:
        twin.display_name = display_name
        paths.append("display_name")
    if time_zone is not None:
        twin.time_zone = time_zone
        paths.append("time_zone")
    if geometry is not None:
        twin.geometry.CopyFrom(geometry_to_message(geometry))
        paths.append("geometry")
    for key, text in (attributes or {}).items():
        paths.append(f"attributes.`{key}`")
        if text is not None:
            twin.attributes[key] = text
    for name, value in (properties or {}).items():
        paths.append(f"properties.{name}")
        if value is not None:
            twin.properties[name].CopyFrom(to_proto(value, f"properties[{name}]"))
    for name, targets in (relationships or {}).items():
        paths.append(f"relationships.{name}")
        twin.relationships.extend(twin_pb2.Relationship(name=name, target_twin_id=target) for target in targets)
    if not paths:
        raise invalid_field("update", "changes nothing; give at least one of the twin's fields")
    return request


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
        incarnation=incarnation_of(min_offset, as_of_offset),
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
    min_offset: int,
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
        min_offset=min_offset,
        as_of_offset=as_of_offset,
        incarnation=incarnation_of(min_offset, as_of_offset),
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
