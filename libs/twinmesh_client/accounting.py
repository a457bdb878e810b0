"""What a mesh holds, counted: quarantine and statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2, quarantine_pb2
from twinmesh_client.acks import WriteAck, total, write_ack
from twinmesh_client.durations import Moment, moment, moment_us, proto_moment
from twinmesh_client.values import Scalar, enum_name, from_proto
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
    state: str = "open"
    """``open``, ``replayed`` or ``discarded``."""
    resolve_offset: int = 0
    """Offset of the entry with which it left quarantine; 0 while it is there."""
    principal: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineReplay:
    """What became of rows that went through the pipeline again.

    Attributes:
        examined: rows looked at.
        left: rows that left quarantine: stored, or dropped as repetitions.
        kept: rows that stay, for the reason found now.
        skipped: rows that a replay leaves alone: those without a series, and, unless asked for, those of the future.
        ack: the account of the others, all pages together.
    """

    examined: int
    left: int
    kept: int
    skipped: int
    ack: WriteAck


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
                state=quarantine_pb2.QuarantineState.Name(r.state).removeprefix("QUARANTINE_STATE_").lower(),
                resolve_offset=r.resolve_offset,
                principal=r.principal,
                comment=r.comment,
            )
            for r in message.rows
        ),
        total=message.total_count,
    )


def quarantine_filter(
    *,
    twin_id: str = "",
    channel: str = "",
    reasons: Iterable[str] = (),
    start: Moment | None = None,
    end: Moment | None = None,
    start_offset: int = 0,
    end_offset: int = 0,
    ids: Iterable[int] = (),
) -> quarantine_pb2.QuarantineFilter:
    """Return which rows of quarantine are meant; raises `InvalidArgument` for reasons and moments that are none."""
    names = observation_pb2.FlagReason.keys()
    return quarantine_pb2.QuarantineFilter(
        reasons=[
            observation_pb2.FlagReason.Value(enum_name(names, "FLAG_REASON", reason, "reasons")) for reason in reasons
        ],
        twin_id=twin_id,
        channel=channel,
        start_time=proto_moment(moment_us(start, "start")) if start is not None else None,
        end_time=proto_moment(moment_us(end, "end")) if end is not None else None,
        start_offset=start_offset,
        end_offset=end_offset,
        quarantine_ids=ids,
    )


def replayed(pages: Iterable[ingestion_pb2.ReplayQuarantineResponse]) -> QuarantineReplay:
    """Return what became of all pages of a replay."""
    collected = list(pages)
    examined, skipped = sum(p.examined_count for p in collected), sum(p.skipped_count for p in collected)
    ack = total(write_ack(p.ack) for p in collected)
    left = examined - skipped - ack.quarantined
    return QuarantineReplay(examined=examined, left=left, kept=ack.quarantined, skipped=skipped, ack=ack)


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
