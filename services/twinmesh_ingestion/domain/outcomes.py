"""What becomes of a batch: the rows kept aside, and the acknowledgement that accounts for every row."""

from __future__ import annotations

from dataclasses import dataclass

from twinmesh_core.quality import FlagReason, Quality

Scalar = float | int | bool | str
"""A value as sent; bytes that are not UTF-8 are given in escaped form."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCount:
    """How many rows share a reason and a quality (UNSPECIFIED = quarantined), with one example in words."""

    reason: FlagReason
    quality: Quality
    count: int
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """What became of a batch: accepted + quarantined + duplicate = rows sent.

    Attributes:
        accepted_count: rows stored, flagged ones included.
        flagged_count: rows stored with a quality that the pipeline lowered.
        quarantined_count: rows kept aside.
        duplicate_count: repetitions within the batch, dropped.
        outcomes: flags and quarantine by reason.
        offset: of the log entry; 0 until it is durable.
        incarnation: of the log.
        replayed: the answer to an earlier delivery, given again.
    """

    accepted_count: int
    flagged_count: int = 0
    quarantined_count: int = 0
    duplicate_count: int = 0
    outcomes: tuple[OutcomeCount, ...] = ()
    offset: int = 0
    incarnation: str = ""
    replayed: bool = False
