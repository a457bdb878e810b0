"""Rows kept aside, as storage's messages carry them."""

from __future__ import annotations

from typing import Final

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2, quarantine_pb2
from twinmesh_client.registry_mapping import time_to_message
from twinmesh_core.observations import SeriesKey
from twinmesh_core.quality import FlagReason
from twinmesh_ingestion.domain.outcomes import QuarantinedRow, Scalar
from twinmesh_ingestion.domain.ports import KeptRow, QuarantineChange, QuarantineFilter
from twinmesh_ingestion.domain.simple import SimpleObservation

_INT64: Final = range(-(2**63), 2**63)
_REASONS: Final = frozenset(int(reason) for reason in FlagReason)


def filter_message(wanted: QuarantineFilter) -> quarantine_pb2.QuarantineFilter:
    """Return the conditions as their message."""
    start, end = wanted.start_time_unix_us, wanted.end_time_unix_us
    return quarantine_pb2.QuarantineFilter(
        reasons=[observation_pb2.FlagReason.ValueType(reason) for reason in wanted.reasons],
        twin_id=wanted.twin_id,
        channel=wanted.channel,
        start_time=time_to_message(start) if start is not None else None,
        end_time=time_to_message(end) if end is not None else None,
        start_offset=wanted.start_offset,
        end_offset=wanted.end_offset,
        quarantine_ids=wanted.quarantine_ids,
    )


def kept_row(message: storage_pb2.QuarantinedRow) -> KeptRow:
    """Return a row as it was sent."""
    kind = message.value.WhichOneof("kind") or "double_value"
    value: Scalar | bytes = getattr(message.value, kind)
    return KeptRow(
        quarantine_id=message.quarantine_id,
        observation=SimpleObservation(
            key=SeriesKey(twin_id=message.twin_id, channel=message.channel, unit=message.unit),
            time_unix_us=message.time_unix_us,
            value=message.raw_value or value,
            json=kind == "json_value",
            quality=message.quality,
        ),
        reason=FlagReason(message.reason) if message.reason in _REASONS else FlagReason.UNSPECIFIED,
        message=message.message,
    )


def change_message(change: QuarantineChange) -> storage_pb2.QuarantineChange:
    """Return what happens to rows as its message."""
    return storage_pb2.QuarantineChange(
        replayed_ids=change.replayed,
        discarded_ids=change.discarded,
        kept=(
            storage_pb2.QuarantineVerdict(
                quarantine_id=quarantine_id, reason=observation_pb2.FlagReason.ValueType(reason), message=message
            )
            for quarantine_id, reason, message in change.kept
        ),
        principal=change.principal,
        comment=change.comment,
    )


def row_message(row: QuarantinedRow) -> storage_pb2.QuarantinedRow:
    """Return a row to keep aside as its message."""
    return storage_pb2.QuarantinedRow(
        twin_id=_printable(row.twin_id),
        channel=_printable(row.channel),
        unit=_printable(row.unit),
        time_unix_us=row.time_unix_us,
        value=_value(row),
        quality=row.quality,
        reason=observation_pb2.FlagReason.ValueType(row.reason),
        message=row.message,
        raw_value=row.raw_value,
    )


def _value(row: QuarantinedRow) -> observation_pb2.Value:
    value = row.value
    if isinstance(value, bool):
        return observation_pb2.Value(bool_value=value)
    if isinstance(value, str):
        # Kept as it is, NUL included: the row may be replayed.
        return (
            observation_pb2.Value(json_value=value)
            if row.section == "jsons"
            else observation_pb2.Value(text_value=value)
        )
    if isinstance(value, int) and value in _INT64:
        return observation_pb2.Value(int64_value=value)
    return observation_pb2.Value(double_value=float(value))


def _printable(text: str) -> str:
    """PostgreSQL's text cannot hold NUL; a sender's can."""
    return text.replace("\0", "\\x00")
