"""What reads ask for: ranges, windows, functions, and which rows they see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.errors import invalid_field
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.time import MAX_SPAN_US, MAX_TIME_UNIX_US, MIN_TIME_UNIX_US
from twinmesh_runtime.registry_mapping import duration_from_message, time_from_message
from twinmesh_storage.domain.aggregate import Question
from twinmesh_storage.domain.buckets import CalendarUnit
from twinmesh_storage.domain.downsample import Method
from twinmesh_storage.domain.history import MAX_TIME, MIN_TIME, Seen
from twinmesh_storage.domain.partials import Function
from twinmesh_storage.domain.series import Series
from twinmesh_storage.domain.window import GapPolicy, StepAggregate, WindowSpec
from twinmesh_storage.rpc.mapping import require_text

RangedRequest = storage_pb2.ReadRangeRequest | storage_pb2.AggregateRequest | storage_pb2.DownsampleRequest
MAX_LAST_ROWS: Final = 1_000_000
_MAX_LAST_COUNT: Final = 100_000
_MAX_COLUMNS: Final = 100
_MAX_DOWNSAMPLED: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Which event times are asked for: start <= time < end, or those of the span `last_us` that ends with `at`.

    Attributes:
        start, end: microseconds; an absent bound is beyond every event time.
        last_us: length of a relative range; None = start and end count.
        at: its end, included; None = the newest event time.
    """

    start: int = MIN_TIME
    end: int = MAX_TIME
    last_us: int | None = None
    at: int | None = None


def time_range(request: RangedRequest, *, bounded: bool = False) -> Range:
    """Return the range of a request.

    Args:
        bounded: start and end, or `last`, are required, within the years 1 to 9999.

    Raises:
        InvalidArgument: the end is before the start, bounds beside `last`, or a bound that is required is missing.
    """
    fields = [f for f in ("start_time", "end_time") if request.HasField(f)]
    at = _moment(request, "at") if request.HasField("at") else None
    if request.HasField("last"):
        if fields:
            raise invalid_field(fields[0], "excludes last; give the one or the other")
        return Range(last_us=positive_duration(request.last, "last"), at=at)
    if at is not None and not getattr(request, "last_count", 0):
        raise invalid_field("at", "is the end of last; give last too, or end_time instead")
    if bounded:
        for field in ("start_time", "end_time"):
            if field not in fields:
                raise invalid_field(field, "is required, unless last is given")
            _moment(request, field)
    # A bound beyond all event times is as good as none, and fits what the database calls a number.
    start = max(time_from_message(request.start_time), MIN_TIME) if "start_time" in fields else MIN_TIME
    end = min(time_from_message(request.end_time), MAX_TIME) if "end_time" in fields else MAX_TIME
    if at is not None:
        if "end_time" in fields:
            raise invalid_field("at", "excludes end_time; give the one or the other")
        return Range(start=start, at=at)
    if end < start:
        raise invalid_field("end_time", "is before start_time")
    return Range(start=start, end=end)


def last_count(request: storage_pb2.ReadRangeRequest) -> int:
    """Return how many newest rows of each series are asked for; 0 = all.

    Raises:
        InvalidArgument: out of range, or too many over all series.
    """
    if not 0 <= request.last_count <= _MAX_LAST_COUNT:
        raise invalid_field("last_count", f"must be 1 to {_MAX_LAST_COUNT}, or 0 for all")
    if request.last_count * len(request.series) > MAX_LAST_ROWS:
        raise invalid_field("last_count", f"times series exceeds {MAX_LAST_ROWS}; ask for fewer at once")
    return request.last_count


def latest_before(request: storage_pb2.ReadLatestRequest) -> int:
    """Return the moment before which newest observations are asked for.

    Raises:
        InvalidArgument: outside the years 1 to 9999.
    """
    return _moment(request, "at") + 1 if request.HasField("at") else MAX_TIME


def seen(min_quality: int, as_of_offset: int, *, default_quality: int) -> Seen:
    """Return which rows a request sees; an unspecified quality is `default_quality`.

    Raises:
        InvalidArgument: not a quality, or a negative offset.
    """
    if as_of_offset < 0:
        raise invalid_field("as_of_offset", "must not be negative; 0 = the present")
    return Seen(max_quality=max_quality(min_quality, default_quality), as_of=as_of_offset)


def _moment(message: RangedRequest | storage_pb2.ReadLatestRequest | storage_pb2.ReadWindowRequest, field: str) -> int:
    moment = time_from_message(getattr(message, field))
    if not MIN_TIME_UNIX_US <= moment <= MAX_TIME_UNIX_US:
        raise invalid_field(field, "must lie within the years 1 to 9999")
    return moment


def window_end(request: storage_pb2.ReadWindowRequest) -> int | None:
    """Return where windows end, None = at the newest event time.

    Raises:
        InvalidArgument: outside the years 1 to 9999.
    """
    if not request.HasField("at"):
        return None
    return _moment(request, "at")


def positive_duration(message: Duration, field: str) -> int:
    """Return a duration in microseconds.

    Raises:
        InvalidArgument: missing, zero or negative.
    """
    duration_us = duration_from_message(message)
    if duration_us <= 0:
        raise invalid_field(field, "must be a positive duration")
    return duration_us


def max_quality(number: int, default: int) -> int:
    """Return the greatest quality number (least trust) wanted; unspecified = `default`.

    Raises:
        InvalidArgument: not a quality.
    """
    if not 0 <= number <= 3:
        raise invalid_field("min_quality", "must be GOOD, UNCERTAIN or BAD")
    return number or default


def question(request: storage_pb2.AggregateRequest, series: Sequence[Series]) -> Question:
    """Return what an Aggregate asks of each bucket.

    Raises:
        InvalidArgument: no column, or an unknown function, quantile, state or gap policy, or one that does not suit the
            series' kinds.
    """
    functions = []
    for index, number in enumerate(request.functions):
        if number not in _FUNCTIONS:
            raise invalid_field(f"functions[{index}]", "is not a function")
        functions.append(Function(number))
    columns = len(functions) + len(request.quantiles) + len(request.state_values)
    if not columns:
        raise invalid_field("functions", "is empty; name at least one function, quantile or state value")
    if columns > _MAX_COLUMNS:
        raise invalid_field(
            "functions", f"with quantiles and state_values are {columns}; at most {_MAX_COLUMNS} go at once"
        )
    for index, level in enumerate(request.quantiles):
        if not 0 <= level <= 1:
            raise invalid_field(f"quantiles[{index}]", "must be 0 to 1")
    for index, value in enumerate(request.state_values):
        if not math.isfinite(value):
            raise invalid_field(f"state_values[{index}]", "must be a number")
    for index, function in enumerate(functions):
        wrong = next((s for s in series if s.kind is not ChannelKind.COUNTER), None)
        if function in (Function.INCREASE, Function.RATE) and wrong is not None:
            raise invalid_field(
                f"functions[{index}]",
                f"{function.name} is of counters; {wrong.twin_id}/{wrong.channel} is {wrong.kind.name}",
            )
    return Question(
        functions=tuple(functions),
        quantiles=tuple(request.quantiles),
        states=tuple(request.state_values),
        seen=seen(request.min_quality, request.as_of_offset, default_quality=2),
        gap_policy=_of(GapPolicy, request.gap_policy, "gap_policy"),
        max_gap_us=_max_gap(request.max_gap),
    )


_FUNCTIONS: Final = frozenset(int(f) for f in Function)


def bucket(request: storage_pb2.AggregateRequest) -> tuple[int, CalendarUnit]:
    """Return the length of buckets in microseconds, or the calendar unit that they follow.

    Raises:
        InvalidArgument: neither, both, or a length that is not positive or beyond 100 years.
    """
    unit = _of(CalendarUnit, request.calendar_unit, "calendar_unit")
    if unit is CalendarUnit.NONE:
        bucket_us = positive_duration(request.bucket, "bucket")
        if bucket_us > MAX_SPAN_US:
            raise invalid_field("bucket", "must be at most 100 years")
        return bucket_us, unit
    if request.HasField("bucket"):
        raise invalid_field("bucket", "excludes calendar_unit; give the one or the other")
    return 0, unit


def downsample_method(request: storage_pb2.DownsampleRequest) -> Method:
    """Return how rows are chosen; raises `InvalidArgument` for an unknown way."""
    return _of(Method, request.method, "method")


def max_points(request: storage_pb2.DownsampleRequest) -> int:
    """Return the most rows per series; raises `InvalidArgument` when out of range."""
    if not 3 <= request.max_points <= _MAX_DOWNSAMPLED:
        raise invalid_field("max_points", f"must be 3 to {_MAX_DOWNSAMPLED}")
    return request.max_points


def _max_gap(message: Duration) -> int:
    """Return the longest gap filled in microseconds; 0 = no limit.

    Raises:
        InvalidArgument: negative.
    """
    max_gap_us = duration_from_message(message)
    if max_gap_us < 0:
        raise invalid_field("max_gap", "must not be negative; 0 = no limit")
    # A gap as long as all of time is no limit either.
    return 0 if max_gap_us > MAX_TIME_UNIX_US - MIN_TIME_UNIX_US else max_gap_us


_WINDOW_VALUES: Final = 8_000_000


def window_axes(request: storage_pb2.ReadWindowRequest) -> tuple[list[str], list[str]]:
    """Return the twins and the channels of a window request.

    Raises:
        InvalidArgument: none, too many, or one twice.
    """
    twins, channels = list(request.twin_ids), list(request.channels)
    for field, names_, most in (("twin_ids", twins, 1_000), ("channels", channels, 256)):
        if not names_:
            raise invalid_field(field, "is empty; name at least one")
        if len(names_) > most:
            raise invalid_field(field, f"has {len(names_)} entries; at most {most} go at once")
        if len(set(names_)) != len(names_):
            raise invalid_field(field, "names one twice; give each once")
        for index, name in enumerate(names_):
            require_text(name, f"{field}[{index}]")
    if len(twins) * len(channels) * request.steps > _WINDOW_VALUES:
        raise invalid_field("steps", f"times twins and channels exceeds {_WINDOW_VALUES}; ask for fewer at once")
    return twins, channels


def window_spec(request: storage_pb2.ReadWindowRequest, most_steps: int) -> WindowSpec:
    """Return what the windows look like.

    Raises:
        InvalidArgument: a field is missing or out of range.
    """
    if not 1 <= request.steps <= most_steps:
        raise invalid_field("steps", f"must be 1 to {most_steps}")
    step_us = positive_duration(request.step, "step")
    if step_us * request.steps > MAX_TIME_UNIX_US:
        raise invalid_field("step", "times steps is longer than all of time; take a shorter one")
    visible = seen(request.min_quality, request.as_of_offset, default_quality=2)
    return WindowSpec(
        step_us=step_us,
        steps=request.steps,
        aggregate=_of(StepAggregate, request.aggregate, "aggregate"),
        gap_policy=_of(GapPolicy, request.gap_policy, "gap_policy"),
        max_gap_us=_max_gap(request.max_gap),
        max_quality=visible.max_quality,
        as_of_offset=visible.as_of,
    )


_EnumT = TypeVar("_EnumT", bound=IntEnum)


def _of(kind: type[_EnumT], number: int, field: str) -> _EnumT:
    try:
        return kind(number)
    except ValueError:
        raise invalid_field(field, f"{number} is not one of its values") from None
