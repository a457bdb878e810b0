"""Protobuf to domain and back."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from hashlib import blake2b
from typing import Final, TypeVar

from google.protobuf.duration_pb2 import Duration

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2, position_pb2
from twinmesh_core.errors import InvalidArgument, Reason, invalid_field
from twinmesh_core.ids import require_producer_id, require_request_id
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.time import MAX_TIME_UNIX_US, MIN_TIME_UNIX_US
from twinmesh_runtime.registry_mapping import duration_from_message, time_from_message, time_to_message
from twinmesh_storage.domain.aggregate import Function
from twinmesh_storage.domain.entries import (
    HASH_BYTES,
    Appended,
    EntryKind,
    NewEntry,
    ProducerStamp,
)
from twinmesh_storage.domain.history import MAX_TIME, MIN_TIME
from twinmesh_storage.domain.rows import Segment
from twinmesh_storage.domain.series import Series, SeriesRequest
from twinmesh_storage.domain.window import GapPolicy, StepAggregate, WindowSpec
from twinmesh_storage.rpc import quarantine

MAX_RECEIPT_BYTES: Final = 64 << 10
MAX_NAME_LENGTH: Final = 128
"""Longest name of a twin, channel or unit, in characters."""


def new_entry(
    request: storage_pb2.AppendRequest, tenant: str, segments: tuple[Segment, ...], at_rest: bytes = b""
) -> NewEntry:
    """Return the entry that a request appends; `segments` are the rows decoded from its batch, `at_rest` it packed.

    Raises:
        InvalidArgument: neither or no content, a stamp beside a request id, or a malformed stamp, id or hash.
    """
    kind = request.WhichOneof("body")
    if kind is None:
        raise invalid_field("body", "is missing; set observations or control")
    body = request.observations if kind == "observations" else request.control.SerializeToString(deterministic=True)
    change = quarantine.change(request.quarantine_change) if request.HasField("quarantine_change") else None
    empty = not any(len(s) for s in segments) and not request.quarantine and change is None
    if kind == "observations" and empty:
        raise invalid_field("observations", "holds no row, and nothing is quarantined; there is nothing to append")
    request_id = request.request_id or (request.control.request_id if kind == "control" else "")
    if kind == "control" and request.control.request_id not in ("", request_id):
        raise invalid_field("control.request_id", "differs from request_id; give the same one, or only one of them")
    producer = _stamp(request) if request.HasField("producer") else None
    if request_id:
        if producer is not None:
            raise invalid_field("request_id", "excludes a producer stamp; send one of the two")
        require_request_id(request_id, "request_id")
    if change is not None and (kind != "observations" or not request_id):
        raise invalid_field("quarantine_change", "goes with observations and a request_id, which makes it happen once")
    if len(request.content_hash) not in (0, HASH_BYTES):
        raise invalid_field(
            "content_hash", f"has {len(request.content_hash)} bytes; BLAKE2b of {HASH_BYTES} is asked for"
        )
    if len(request.receipt) > MAX_RECEIPT_BYTES:
        raise invalid_field("receipt", f"has {len(request.receipt)} bytes; at most {MAX_RECEIPT_BYTES} are kept")
    if len(request.quarantine) > quarantine.MAX_ROWS:
        raise invalid_field(
            "quarantine", f"has {len(request.quarantine)} rows; at most {quarantine.MAX_ROWS} go at once"
        )
    return NewEntry(
        tenant=tenant,
        kind=EntryKind.OBSERVATIONS if kind == "observations" else EntryKind.CONTROL,
        body=body,
        content_hash=request.content_hash or blake2b(body, digest_size=HASH_BYTES).digest(),
        producer=producer,
        request_id=request_id,
        receipt=request.receipt,
        quarantine=tuple(quarantine.row(row) for row in request.quarantine),
        quarantine_change=change,
        segments=segments,
        at_rest=at_rest,
    )


def _stamp(request: storage_pb2.AppendRequest) -> ProducerStamp:
    stamp = request.producer
    require_producer_id(stamp.producer_id, "producer.producer_id")
    if stamp.epoch < 1 or stamp.sequence < 1:
        raise invalid_field("producer", "needs the epoch from OpenProducer and a sequence from 1 on")
    return ProducerStamp(producer_id=stamp.producer_id, epoch=stamp.epoch, sequence=stamp.sequence)


def append_response(appended: Appended, incarnation: str) -> storage_pb2.AppendResponse:
    """Return the answer to an append."""
    return storage_pb2.AppendResponse(
        position=position(incarnation, appended.offset),
        replayed=appended.replayed,
        receipt=appended.receipt,
        commit_time=time_to_message(appended.commit_time_unix_us),
    )


def position(incarnation: str, offset: int) -> position_pb2.LogPosition:
    """Return a position as its message."""
    return position_pb2.LogPosition(incarnation=incarnation, offset=offset)


def series_requests(request: storage_pb2.ResolveSeriesRequest) -> list[SeriesRequest]:
    """Return what a ResolveSeries asks for.

    Raises:
        InvalidArgument: columns of unequal length, an empty name, a kind that no channel has.
    """
    intervals = list(request.expected_interval_us) or [0] * len(request.series)
    if len(intervals) != len(request.series):
        raise InvalidArgument(
            f"expected_interval_us has {len(intervals)} entries, series {len(request.series)}; "
            "give one per series, or none at all",
            reason=Reason.UNEQUAL_COLUMNS,
        )
    return [
        _series_request(key, interval, index)
        for index, (key, interval) in enumerate(zip(request.series, intervals, strict=True))
    ]


def _series_request(key: observation_pb2.SeriesKey, interval_us: int, index: int) -> SeriesRequest:
    kind = ChannelKind.of(key.kind)
    for field, text in (("twin_id", key.twin_id), ("channel", key.channel)):
        if not text or len(text) > MAX_NAME_LENGTH or "\0" in text:
            raise invalid_field(f"series[{index}].{field}", f"must be a name of 1 to {MAX_NAME_LENGTH} characters")
    if kind is ChannelKind.UNSPECIFIED:
        raise invalid_field(f"series[{index}].kind", "must be the channel's kind")
    if len(key.unit) > MAX_NAME_LENGTH or "\0" in key.unit:
        raise invalid_field(f"series[{index}].unit", f"must be a unit of at most {MAX_NAME_LENGTH} characters")
    return SeriesRequest(
        twin_id=key.twin_id,
        channel=key.channel,
        kind=kind,
        unit=key.unit,
        expected_interval_us=max(0, interval_us),
    )


def series_message(series: Series) -> observation_pb2.SeriesKey:
    """Return a series as a dictionary entry."""
    return observation_pb2.SeriesKey(
        twin_id=series.twin_id,
        channel=series.channel,
        unit=series.unit,
        series_id=series.series_id,
        kind=int(series.kind),  # type: ignore[arg-type]  # equal numbers
    )


def names(selectors: Sequence[storage_pb2.SeriesSelector], field: str, most: int) -> list[tuple[str, str]]:
    """Return the (twin, channel) pairs of selectors, each once, in order.

    Raises:
        InvalidArgument: none, or more than `most`.
    """
    if not selectors:
        raise invalid_field(field, "is empty; name at least one")
    if len(selectors) > most:
        raise invalid_field(field, f"has {len(selectors)} entries; at most {most} go at once")
    for index, selector in enumerate(selectors):
        require_text(selector.twin_id, f"{field}[{index}].twin_id")
        require_text(selector.channel, f"{field}[{index}].channel")
    return list(dict.fromkeys((s.twin_id, s.channel) for s in selectors))


def require_text(text: str, field: str) -> str:
    """Return a name to look for: names that cannot exist find nothing, only what the database cannot take is refused.

    Raises:
        InvalidArgument: it holds a NUL, or is longer than any name.
    """
    if len(text) > MAX_NAME_LENGTH or "\0" in text:
        raise invalid_field(field, f"must be a name of at most {MAX_NAME_LENGTH} characters")
    return text


def time_range(request: storage_pb2.ReadRangeRequest) -> tuple[int, int]:
    """Return start (included) and end (excluded) in microseconds; an absent bound is beyond every event time.

    Raises:
        InvalidArgument: the end is before the start.
    """
    start = time_from_message(request.start_time) if request.HasField("start_time") else MIN_TIME
    end = time_from_message(request.end_time) if request.HasField("end_time") else MAX_TIME
    if end < start:
        raise invalid_field("end_time", "is before start_time")
    return start, end


def window_end(request: storage_pb2.ReadWindowRequest) -> int | None:
    """Return where windows end, None = at the newest event time.

    Raises:
        InvalidArgument: outside the years 1 to 9999.
    """
    if not request.HasField("at"):
        return None
    at = time_from_message(request.at)
    if not MIN_TIME_UNIX_US <= at <= MAX_TIME_UNIX_US:
        raise invalid_field("at", "must lie within the years 1 to 9999")
    return at


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


def required_range(request: storage_pb2.AggregateRequest) -> tuple[int, int]:
    """Return start and end in microseconds.

    Raises:
        InvalidArgument: one is missing, or lies outside the years 1 to 9999.
    """
    for field in ("start_time", "end_time"):
        if not request.HasField(field):
            raise invalid_field(field, "is required")
    start, end = time_from_message(request.start_time), time_from_message(request.end_time)
    for field, value in (("start_time", start), ("end_time", end)):
        if not MIN_TIME_UNIX_US <= value <= MAX_TIME_UNIX_US:
            raise invalid_field(field, "must lie within the years 1 to 9999")
    return start, end


def functions(request: storage_pb2.AggregateRequest) -> list[Function]:
    """Return the functions asked for.

    Raises:
        InvalidArgument: none, or one that is unknown.
    """
    if not request.functions:
        raise invalid_field("functions", "is empty; name at least one")
    out = []
    for index, number in enumerate(request.functions):
        if number not in _FUNCTIONS:
            raise invalid_field(f"functions[{index}]", "is not a function")
        out.append(Function(number))
    return out


_FUNCTIONS: Final = frozenset(int(f) for f in Function)
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
    max_gap_us = duration_from_message(request.max_gap)
    if max_gap_us < 0:
        raise invalid_field("max_gap", "must not be negative; 0 = no limit")
    # A gap as long as all of time is no limit either.
    max_gap_us = 0 if max_gap_us > MAX_TIME_UNIX_US - MIN_TIME_UNIX_US else max_gap_us
    if request.as_of_offset < 0:
        raise invalid_field("as_of_offset", "must not be negative; 0 = the present")
    return WindowSpec(
        step_us=step_us,
        steps=request.steps,
        aggregate=_of(StepAggregate, request.aggregate, "aggregate"),
        gap_policy=_of(GapPolicy, request.gap_policy, "gap_policy"),
        max_gap_us=max_gap_us,
        max_quality=max_quality(request.min_quality, default=2),
        as_of_offset=request.as_of_offset,
    )


_EnumT = TypeVar("_EnumT", bound=IntEnum)


def _of(kind: type[_EnumT], number: int, field: str) -> _EnumT:
    try:
        return kind(number)
    except ValueError:
        raise invalid_field(field, f"{number} is not one of its values") from None
