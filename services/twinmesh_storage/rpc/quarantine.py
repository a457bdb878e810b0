"""Quarantine on the wire: rows, what an entry does to them, and which of them a list asks for."""

from __future__ import annotations

from typing import Final

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2, quarantine_pb2
from twinmesh_core.errors import invalid_field
from twinmesh_runtime.registry_mapping import time_from_message, time_to_message
from twinmesh_storage.domain.entries import (
    QuarantineChange,
    QuarantinedRow,
    QuarantineFilter,
    QuarantineRow,
    QuarantineState,
    QuarantineVerdict,
)

MAX_ROWS: Final = 100_000
"""Most rows of one entry."""
MAX_COMMENT_LENGTH: Final = 1_000
MAX_PRINCIPAL_LENGTH: Final = 256
MAX_FILTER_IDS: Final = 10_000


def row(message: storage_pb2.QuarantinedRow) -> QuarantineRow:
    """Return a row to keep aside."""
    return QuarantineRow(
        twin_id=printable(message.twin_id),
        channel=printable(message.channel),
        unit=printable(message.unit),
        time_unix_us=message.time_unix_us,
        value=message.value.SerializeToString(deterministic=True),
        quality=min(message.quality, 255),
        reason=message.reason,
        message=printable(message.message),
        raw_value=message.raw_value,
    )


def printable(text: str) -> str:
    """Return the text without NUL: PostgreSQL cannot hold it, and a row kept aside must not be refused for its text."""
    return text.replace("\0", "\\0")


def message(stored: QuarantinedRow) -> storage_pb2.QuarantinedRow:
    """Return a quarantined row as its message."""
    row = stored.row
    return storage_pb2.QuarantinedRow(
        quarantine_id=stored.quarantine_id,
        twin_id=row.twin_id,
        channel=row.channel,
        unit=row.unit,
        time_unix_us=row.time_unix_us,
        value=observation_pb2.Value.FromString(row.value),
        quality=row.quality,
        reason=row.reason,  # type: ignore[arg-type]  # the enum's number, as stored
        message=row.message,
        offset=stored.offset,
        commit_time=time_to_message(stored.commit_time_unix_us),
        raw_value=row.raw_value,
        state=quarantine_pb2.QuarantineState.ValueType(stored.state),
        resolve_offset=stored.resolve_offset,
        principal=stored.principal,
        comment=stored.comment,
    )


def change(message: storage_pb2.QuarantineChange) -> QuarantineChange:
    """Return what an entry does to rows in quarantine.

    Raises:
        InvalidArgument: a row named twice, too many rows, or texts that are too long.
    """
    change = QuarantineChange(
        replayed=tuple(message.replayed_ids),
        discarded=tuple(message.discarded_ids),
        kept=tuple(
            QuarantineVerdict(quarantine_id=v.quarantine_id, reason=v.reason, message=printable(v.message))
            for v in message.kept
        ),
        principal=printable(message.principal[:MAX_PRINCIPAL_LENGTH]),
        comment=printable(message.comment),
    )
    ids = change.ids()
    if len(ids) > MAX_ROWS:
        raise invalid_field("quarantine_change", f"names {len(ids)} rows; at most {MAX_ROWS} go at once")
    if len(set(ids)) != len(ids):
        raise invalid_field("quarantine_change", "names a row twice; each row has one outcome")
    if len(change.comment) > MAX_COMMENT_LENGTH:
        raise invalid_field("quarantine_change.comment", f"is longer than {MAX_COMMENT_LENGTH} characters")
    return change


def wanted(request: storage_pb2.ListQuarantineRequest) -> QuarantineFilter:
    """Return which rows a list asks for, all pages of it.

    Raises:
        InvalidArgument: a bound that crosses another, or a state that is none.
    """
    asked = request.filter
    start = time_from_message(asked.start_time) if asked.HasField("start_time") else None
    end = time_from_message(asked.end_time) if asked.HasField("end_time") else None
    if start is not None and end is not None and end < start:
        raise invalid_field("filter.end_time", "is before start_time")
    if min(asked.start_offset, asked.end_offset) < 0:
        raise invalid_field("filter.start_offset" if asked.start_offset < 0 else "filter.end_offset", "is negative")
    if len(asked.quarantine_ids) > MAX_FILTER_IDS:
        raise invalid_field("filter.quarantine_ids", f"has more than {MAX_FILTER_IDS} entries; ask in parts")
    if request.after_quarantine_id < 0 or (request.after_quarantine_id and not request.oldest_first):
        raise invalid_field("after_quarantine_id", "is 0 or greater, and goes with oldest_first")
    if request.twin_id and asked.twin_id not in ("", request.twin_id):
        raise invalid_field("filter.twin_id", "differs from twin_id; give one of them")
    if request.state not in (0, *QuarantineState):
        raise invalid_field("state", "must be OPEN, REPLAYED or DISCARDED")
    reasons = (*([request.reason] if request.reason else []), *asked.reasons)
    unknown = next((reason for reason in reasons if reason not in observation_pb2.FlagReason.values()), None)
    if unknown is not None:
        raise invalid_field("filter.reasons", f"{unknown} is no FlagReason")
    return QuarantineFilter(
        reasons=tuple(reasons),
        twin_id=printable(request.twin_id or asked.twin_id),  # as it is kept: senders' ids may be anything
        channel=printable(asked.channel),
        start_time_unix_us=start,
        end_time_unix_us=end,
        start_offset=asked.start_offset,
        end_offset=asked.end_offset,
        quarantine_ids=tuple(asked.quarantine_ids),
        state=QuarantineState(request.state or QuarantineState.OPEN),
        after=request.after_quarantine_id,
    )
