"""What becomes of a batch: the rows kept aside, and the acknowledgement that accounts for every row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from twinmesh_core.quality import FlagReason, Quality

Scalar = float | int | bool | str
"""A value as sent; bytes that are not UTF-8 are given in escaped form."""

DUPLICATE: Final = 255
DEADBANDED: Final = 254
"""Marks of rows that are dropped, beside the `FlagReason` numbers; no reason of the contract has these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedRow:
    """One observation kept aside, as it was sent.

    Attributes:
        twin_id: as sent.
        channel: as sent.
        unit: as sent.
        time_unix_us: event time as sent.
        section: name of the section that held it, which tells JSON from text.
        value: as sent; NaN and infinity included.
        quality: the quality byte as sent.
        reason: why.
        message: what is wrong and what to do.
        row: position in its section.
        raw_value: bytes of a text that is not UTF-8, which `value` shows escaped; else empty.
    """

    twin_id: str
    channel: str
    unit: str
    time_unix_us: int
    section: str
    value: Scalar
    quality: int
    reason: FlagReason
    message: str
    row: int = 0
    raw_value: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCount:
    """How many rows share a reason and a quality (UNSPECIFIED = quarantined), with one example in words."""

    reason: FlagReason
    quality: Quality
    count: int
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """What became of a batch: accepted + quarantined + duplicate + deadbanded = rows sent.

    Attributes:
        accepted_count: rows stored, flagged ones included.
        flagged_count: rows stored with a quality that the pipeline lowered.
        quarantined_count: rows kept aside.
        duplicate_count: repetitions, dropped.
        deadbanded_count: rows that the channel's deadband kept from being stored.
        outcomes: flags and quarantine by reason.
        offset: of the log entry; 0 until it is durable.
        incarnation: of the log.
        replayed: the answer to an earlier delivery, given again.
        clock_skew_us: the sender's clock minus ours, as far as is known.
    """

    accepted_count: int
    flagged_count: int = 0
    quarantined_count: int = 0
    duplicate_count: int = 0
    deadbanded_count: int = 0
    outcomes: tuple[OutcomeCount, ...] = ()
    offset: int = 0
    incarnation: str = ""
    replayed: bool = False
    clock_skew_us: int | None = None

    def plus(self, after: Ack) -> Ack:
        """Return the account of both, at the position of the later one."""
        merged: dict[tuple[FlagReason, Quality], OutcomeCount] = {}
        for outcome in (*self.outcomes, *after.outcomes):
            key = (outcome.reason, outcome.quality)
            known = merged.get(key)
            merged[key] = outcome if known is None else replace(known, count=known.count + outcome.count)
        return replace(
            after,
            accepted_count=self.accepted_count + after.accepted_count,
            flagged_count=self.flagged_count + after.flagged_count,
            quarantined_count=self.quarantined_count + after.quarantined_count,
            duplicate_count=self.duplicate_count + after.duplicate_count,
            deadbanded_count=self.deadbanded_count + after.deadbanded_count,
            outcomes=tuple(merged[key] for key in sorted(merged)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What became of one page of quarantine.

    Attributes:
        examined: rows looked at; of a discard, those that left.
        skipped: rows that a replay leaves alone.
        ack: what became of those that went through the pipeline; quarantined = they stay.
        next_after: where the next page begins; 0 = there is none.
        matched: rows that matched the filter before.
    """

    examined: int
    skipped: int = 0
    ack: Ack
    next_after: int
    matched: int
