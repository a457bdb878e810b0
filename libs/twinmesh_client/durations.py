"""Spans of time as people write them: ``"5min"``, ``"6h"``, ``"1d"``, a `timedelta`, or seconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration as ProtoDuration
from google.protobuf.timestamp_pb2 import Timestamp

from twinmesh_core.errors import invalid_field
from twinmesh_core.time import from_datetime, parse_time

Span = str | timedelta | int | float
"""A span: text such as ``"90s"``, ``"5min"``, ``"6h"``, ``"1d"``, ``"2w"``; a `timedelta`; or a number of seconds."""
Moment = str | datetime | int
"""A moment: RFC 3339 text with a zone, an aware `datetime` (a pandas Timestamp is one), or microseconds since 1970."""

_UNITS_US: Final = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "sec": 1_000_000,
    "m": 60_000_000,
    "min": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
    "day": 86_400_000_000,
    "days": 86_400_000_000,
    "w": 604_800_000_000,
}
_TEXT: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", re.IGNORECASE)


def span_us(span: Span, field: str) -> int:
    """Return a span in microseconds.

    Args:
        span: see `Span`.
        field: what to call it in the error.

    Raises:
        InvalidArgument: not a span, or not positive.
    """
    if isinstance(span, timedelta):
        microseconds = span // timedelta(microseconds=1)
    elif isinstance(span, str):
        match = _TEXT.fullmatch(span)
        unit = _UNITS_US.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise invalid_field(field, f"{span!r} is not a span of time; write for example 30s, 5min, 6h, 1d or 2w")
        microseconds = round(float(match[1]) * unit)
    else:
        microseconds = round(span * 1e6)
    if microseconds <= 0:
        raise invalid_field(field, "must be longer than zero")
    return microseconds


def proto_span(span: Span, field: str) -> ProtoDuration:
    """Return a span as a protobuf Duration; raises as `span_us`."""
    duration = ProtoDuration()
    duration.FromMicroseconds(span_us(span, field))
    return duration


def moment_us(moment: Moment, field: str) -> int:
    """Return a moment in microseconds since the Unix epoch; raises `InvalidArgument` for naive or malformed times."""
    if isinstance(moment, datetime):
        return from_datetime(moment)
    if isinstance(moment, str):
        return parse_time(moment, field)
    return int(moment)


def proto_moment(time_unix_us: int) -> Timestamp:
    """Return microseconds since the Unix epoch as a protobuf Timestamp."""
    timestamp = Timestamp()
    timestamp.FromMicroseconds(time_unix_us)
    return timestamp


def describe_us(microseconds: int) -> str:
    """Return a span for people: ``6 h``, ``15 min``, ``90 s``."""
    for size, name in ((86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "min"), (1_000_000, "s")):
        if microseconds >= size and microseconds % size == 0:
            return f"{microseconds // size} {name}"
    return f"{microseconds / 1e6:g} s"


def moment(timestamp: Timestamp) -> datetime:
    """Return a protobuf Timestamp as an aware datetime, UTC."""
    return timestamp.ToDatetime(tzinfo=UTC)
