"""Aggregates as people name them: ``"mean"``, ``"p95"``, ``"time_at:2"``; buckets: ``"15min"``, ``"month"``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2
from twinmesh_client.durations import Span, proto_span
from twinmesh_core.errors import invalid_field

FUNCTIONS: Final = (
    "count",
    "min",
    "max",
    "mean",
    "sum",
    "first",
    "last",
    "stddev",
    "increase",
    "rate",
    "time_weighted_mean",
)
CALENDAR_UNITS: Final = ("day", "week", "month", "quarter", "year")
FILLS: Final = ("none", "hold", "linear")
METHODS: Final = ("lttb", "min_max")
_QUANTILE: Final = re.compile(r"p(\d{1,2}(?:\.\d+)?|100)")
_CALENDAR_SPAN: Final = re.compile(r"\s*\d+\s*(week|month|quarter|year)s?\s*")
_STATE: Final = re.compile(r"time_at:(-?\d+(?:\.\d+)?)")
_QUALITIES: Final = {
    "good": observation_pb2.QUALITY_GOOD,
    "uncertain": observation_pb2.QUALITY_UNCERTAIN,
    "bad": observation_pb2.QUALITY_BAD,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What is asked of each bucket, as storage orders its columns.

    Attributes:
        order: for each name as the caller gave them, its place among storage's columns.
    """

    functions: tuple[storage_pb2.AggregateFunction.ValueType, ...]
    quantiles: tuple[float, ...]
    states: tuple[float, ...]
    order: tuple[int, ...]


def columns(names: Sequence[str]) -> Columns:
    """Return what names of aggregates ask for; raises `InvalidArgument` for one that is unknown, and for none."""
    functions: list[storage_pb2.AggregateFunction.ValueType] = []
    quantiles: list[float] = []
    states: list[float] = []
    places: list[tuple[int, int]] = []
    for name in names:
        quantile, state = _QUANTILE.fullmatch(name), _STATE.fullmatch(name)
        if name in FUNCTIONS:
            places.append((0, len(functions)))
            functions.append(storage_pb2.AggregateFunction.Value(f"AGGREGATE_FUNCTION_{name.upper()}"))
        elif quantile is not None or name == "median":
            places.append((1, len(quantiles)))
            quantiles.append(float(quantile[1]) / 100 if quantile is not None else 0.5)
        elif state is not None:
            places.append((2, len(states)))
            states.append(float(state[1]))
        else:
            raise _unknown(name)
    if not places:
        raise _unknown("nothing")
    before = (0, len(functions), len(functions) + len(quantiles))
    return Columns(
        functions=tuple(functions),
        quantiles=tuple(quantiles),
        states=tuple(states),
        order=tuple(before[kind] + place for kind, place in places),
    )


def _unknown(name: str) -> Exception:
    choice = ", ".join((*FUNCTIONS, "median", "p95 (any percentage)", "time_at:2 (seconds at a state)"))
    return invalid_field("agg", f"{name!r} is unknown; choose from {choice}")


def set_bucket(request: storage_pb2.AggregateRequest, every: Span) -> None:
    """Put the length of buckets into a request: a span, or a unit of the calendar."""
    if every in CALENDAR_UNITS:
        request.calendar_unit = storage_pb2.CalendarUnit.Value(f"CALENDAR_UNIT_{str(every).upper()}")
    elif isinstance(every, str) and _CALENDAR_SPAN.fullmatch(every):
        raise invalid_field("every", f"{every!r} has no fixed length; of the calendar: {', '.join(CALENDAR_UNITS)}")
    else:
        request.bucket.CopyFrom(proto_span(every, "every"))


def gap_policy(fill: str) -> storage_pb2.GapPolicy.ValueType:
    """Return how empty buckets are filled; raises `InvalidArgument` for an unknown way."""
    if fill not in FILLS:
        raise invalid_field("fill", f"{fill!r} is unknown; choose from {', '.join(FILLS)}")
    return storage_pb2.GapPolicy.Value(f"GAP_POLICY_{fill.upper()}")


def downsample_method(method: str) -> storage_pb2.DownsampleMethod.ValueType:
    """Return how rows are chosen; raises `InvalidArgument` for an unknown way."""
    if method not in METHODS:
        raise invalid_field("method", f"{method!r} is unknown; choose from {', '.join(METHODS)}")
    return storage_pb2.DownsampleMethod.Value(f"DOWNSAMPLE_METHOD_{method.upper()}")


def lowest_quality(name: str | None) -> observation_pb2.Quality.ValueType:
    """Return a quality by name, None = what the read takes by itself; raises `InvalidArgument` for an unknown one."""
    if name is None:
        return observation_pb2.QUALITY_UNSPECIFIED
    if name not in _QUALITIES:
        raise invalid_field("min_quality", f"{name!r} is unknown; choose from {', '.join(_QUALITIES)}")
    return _QUALITIES[name]
