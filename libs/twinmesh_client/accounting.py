"""What a mesh holds, counted: quarantine and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.replicas import moment
from twinmesh_client.values import Scalar, from_proto
from twinmesh_core.quality import FlagReason


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedRow:
    """One observation kept aside: as it was sent, why, and what to do."""

    quarantine_id: int
    twin_id: str
    channel: str
    unit: str
    time_unix_us: int
    value: Scalar | None
    reason: FlagReason
    message: str
    offset: int
    commit_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """Quarantined rows, newest first, and how many there are in all."""

    rows: tuple[QuarantinedRow, ...]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counts that account for everything that was sent.

    Attributes:
        landed_points: rows in the log, corrections counted each.
        points: distinct (series, event time) in readable history.
        by_quality: readable rows that are GOOD, UNCERTAIN, BAD.
        disk_bytes: log and history with their indexes.
        fold_offset: entries up to here are folded into history.
        trim_offset: observations up to here may have left the log.
    """

    entries: int
    landed_points: int
    points: int
    series: int
    quarantined: int
    disk_bytes: int
    by_quality: tuple[int, int, int]
    offset: int
    fold_offset: int
    trim_offset: int


def quarantine(message: storage_pb2.ListQuarantineResponse) -> Quarantine:
    """Return quarantined rows."""
    return Quarantine(
        rows=tuple(
            QuarantinedRow(
                quarantine_id=r.quarantine_id,
                twin_id=r.twin_id,
                channel=r.channel,
                unit=r.unit,
                time_unix_us=r.time_unix_us,
                value=from_proto(r.value),
                reason=FlagReason(r.reason),
                message=r.message,
                offset=r.offset,
                commit_time=moment(r.commit_time),
            )
            for r in message.rows
        ),
        total=message.total_count,
    )


def statistics(message: storage_pb2.GetStatisticsResponse) -> Statistics:
    """Return counts."""
    good, uncertain, bad = (*message.point_count_by_quality, 0, 0, 0)[:3]
    return Statistics(
        entries=message.entry_count,
        landed_points=message.landed_point_count,
        points=message.point_count,
        series=message.series_count,
        quarantined=message.quarantined_count,
        disk_bytes=message.disk_bytes,
        by_quality=(good, uncertain, bad),
        offset=message.as_of.offset,
        fold_offset=message.fold_offset,
        trim_offset=message.trim_offset,
    )
