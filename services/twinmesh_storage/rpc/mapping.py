"""Protobuf to domain and back."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2, position_pb2
from twinmesh_core.errors import InvalidArgument, Reason, invalid_field
from twinmesh_core.ids import require_producer_id, require_request_id, require_retention_class
from twinmesh_core.kinds import ChannelKind
from twinmesh_runtime.registry_mapping import time_to_message
from twinmesh_storage.domain.entries import (
    HASH_BYTES,
    Appended,
    EntryKind,
    NewEntry,
    ProducerStamp,
)
from twinmesh_storage.domain.rows import Segment
from twinmesh_storage.domain.series import Series, SeriesRequest
from twinmesh_storage.rpc import quarantine
from twinmesh_storage.rpc.appends import ReceivedAppend

MAX_RECEIPT_BYTES: Final = 64 << 10
MAX_NAME_LENGTH: Final = 128
"""Longest name of a twin, channel or unit, in characters."""


def new_entry(received: ReceivedAppend, tenant: str, segments: tuple[Segment, ...], at_rest: bytes = b"") -> NewEntry:
    """Return the entry that a request appends; `segments` are the rows decoded from its batch, `at_rest` it packed.

    Raises:
        InvalidArgument: neither or no content, a stamp beside a request id, or a malformed stamp, id or hash.
    """
    request, batch = received.request, received.observations
    kind = "observations" if batch is not None else request.WhichOneof("body")
    if kind is None:
        raise invalid_field("body", "is missing; set observations or control")
    body = batch if batch is not None else request.control.SerializeToString(deterministic=True)
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
    classes: list[str | None] = list(request.retention_class) or [None] * len(request.series)
    if len(classes) != len(request.series):
        raise InvalidArgument(
            f"retention_class has {len(classes)} entries, series {len(request.series)}; "
            "give one per series, or none at all",
            reason=Reason.UNEQUAL_COLUMNS,
        )
    for index, name in enumerate(classes):
        require_retention_class(name or "", f"retention_class[{index}]")
    if request.registry_offset < 0:
        raise invalid_field("registry_offset", "must be an offset of the log")
    return [
        _series_request(key, interval, index, name, request.registry_offset)
        for index, (key, interval, name) in enumerate(zip(request.series, intervals, classes, strict=True))
    ]


def _series_request(
    key: observation_pb2.SeriesKey, interval_us: int, index: int, retention_class: str | None, registry_offset: int
) -> SeriesRequest:
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
        retention_class=retention_class,
        registry_offset=registry_offset,
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
