"""What became of the rows that were sent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh_client.offsets import Offset
from twinmesh_client.registry_mapping import duration_from_message
from twinmesh_core.quality import FlagReason, Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How many rows share one outcome; `quality` None = quarantined."""

    reason: FlagReason
    quality: Quality | None
    count: int
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteAck:
    """What became of a write; accepted + quarantined + duplicate + deadbanded = rows sent.

    Attributes:
        accepted: rows stored, flagged ones included.
        flagged: rows stored with a quality that the pipeline lowered.
        quarantined: rows kept aside, with their reason.
        duplicate: repetitions, dropped.
        deadbanded: rows that a channel's deadband kept from being stored.
        offset: use it as `min_offset` to read your write.
        replayed: the stored answer to an earlier delivery of the same batch.
        clock_skew_us: this producer's clock minus the server's, as the server estimates it; None = not known.
    """

    accepted: int = 0
    flagged: int = 0
    quarantined: int = 0
    duplicate: int = 0
    deadbanded: int = 0
    offset: int = 0
    incarnation: str = ""
    outcomes: tuple[Outcome, ...] = ()
    replayed: bool = False
    clock_skew_us: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "offset", Offset(self.offset, self.incarnation))

    @property
    def sent(self) -> int:
        """Rows that this answer accounts for."""
        return self.accepted + self.quarantined + self.duplicate + self.deadbanded

    def __str__(self) -> str:
        deadbanded = f"deadbanded {self.deadbanded:,}  " if self.deadbanded else ""
        return (
            f"accepted {self.accepted:,}  flagged {self.flagged:,}  quarantined {self.quarantined:,}  "
            f"duplicate {self.duplicate:,}  {deadbanded}offset {self.offset:,}"
        )


def write_ack(message: ingestion_pb2.WriteAck) -> WriteAck:
    """Return an acknowledgement."""
    return WriteAck(
        accepted=message.accepted_count,
        flagged=message.flagged_count,
        quarantined=message.quarantined_count,
        duplicate=message.duplicate_count,
        deadbanded=message.deadbanded_count,
        offset=message.offset,
        incarnation=message.incarnation,
        outcomes=tuple(
            Outcome(
                reason=FlagReason(o.reason),
                quality=Quality(o.quality) if o.quality else None,
                count=o.count,
                example=o.example,
            )
            for o in message.outcomes
        ),
        replayed=message.replayed,
        clock_skew_us=duration_from_message(message.clock_skew) if message.HasField("clock_skew") else None,
    )


def total(acks: Iterable[WriteAck]) -> WriteAck:
    """Return one acknowledgement for several writes: counts added, the newest offset, outcomes merged."""
    collected = list(acks)
    merged: dict[tuple[FlagReason, Quality | None], Outcome] = {}
    for outcome in (o for ack in collected for o in ack.outcomes):
        key = (outcome.reason, outcome.quality)
        before = merged.get(key)
        merged[key] = (
            outcome
            if before is None
            else Outcome(
                reason=outcome.reason,
                quality=outcome.quality,
                count=before.count + outcome.count,
                example=before.example,
            )
        )
    return WriteAck(
        accepted=sum(a.accepted for a in collected),
        flagged=sum(a.flagged for a in collected),
        quarantined=sum(a.quarantined for a in collected),
        duplicate=sum(a.duplicate for a in collected),
        deadbanded=sum(a.deadbanded for a in collected),
        offset=max((a.offset for a in collected), default=0),
        incarnation=next((a.incarnation for a in reversed(collected) if a.incarnation), ""),
        outcomes=tuple(merged.values()),
        replayed=bool(collected) and all(a.replayed for a in collected),
        clock_skew_us=next((a.clock_skew_us for a in reversed(collected) if a.clock_skew_us is not None), None),
    )
