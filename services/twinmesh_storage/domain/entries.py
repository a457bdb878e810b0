"""What goes into the log and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from twinmesh_storage.domain.rows import Segment

HASH_BYTES: Final = 16
"""Length of a content hash (BLAKE2b-16)."""


class EntryKind(IntEnum):
    """The kinds of entries; numbers equal ``twinmesh.storage.v1.EntryKind`` and the database column."""

    OBSERVATIONS = 1
    CONTROL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerStamp:
    """A producer's stamp on one batch: its session's epoch, and the batch's sequence (last + 1)."""

    producer_id: str
    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineRow:
    """One observation kept aside, as sent.

    Attributes:
        value: a serialized ``twinmesh.type.v1.Value``.
        quality: the quality byte as sent.
        reason: number of a `FlagReason`.
        raw_value: the value's bytes where they are not UTF-8; else empty.
    """

    twin_id: str
    channel: str
    unit: str
    time_unix_us: int
    value: bytes
    quality: int
    reason: int
    message: str
    raw_value: bytes = b""

    @property
    def weight(self) -> int:
        """Bytes that it occupies while it waits."""
        return 256 + len(self.value) + len(self.raw_value)


class QuarantineState(IntEnum):
    """Where a row kept aside is now; numbers equal ``twinmesh.type.v1.QuarantineState`` and the database column."""

    OPEN = 1
    REPLAYED = 2
    DISCARDED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedRow:
    """A quarantine row at rest: with its id, the entry it came with, and how it left (offset 0 = it has not)."""

    quarantine_id: int
    offset: int
    commit_time_unix_us: int
    row: QuarantineRow
    state: QuarantineState = QuarantineState.OPEN
    resolve_offset: int = 0
    principal: str = ""
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineVerdict:
    """A row that stays in quarantine, for the reason found anew (number of a `FlagReason`)."""

    quarantine_id: int
    reason: int
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineChange:
    """What an entry does to rows in quarantine: all of it in the entry's transaction, or nothing.

    Attributes:
        replayed: ids of rows that went through the pipeline.
        discarded: ids of rows that are not wanted.
        kept: rows that stay, for another reason.
        principal: who asked for it.
        comment: why, for rows that are discarded.
    """

    replayed: tuple[int, ...] = ()
    discarded: tuple[int, ...] = ()
    kept: tuple[QuarantineVerdict, ...] = ()
    principal: str = ""
    comment: str = ""

    def ids(self) -> tuple[int, ...]:
        """Return every row named."""
        return (*self.replayed, *self.discarded, *(verdict.quarantine_id for verdict in self.kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantineFilter:
    """Which rows of quarantine are meant; a condition that is empty (0, None) is none.

    Attributes:
        reasons: numbers of `FlagReason`.
        twin_id: as sent.
        channel: as sent.
        start_time_unix_us: first event time.
        end_time_unix_us: event time after the last.
        start_offset: first entry.
        end_offset: entry after the last; 0 = no bound.
        quarantine_ids: only these rows.
        state: only rows in this state.
        after: only rows of greater ids.
        before: only rows of smaller ids; 0 = no bound.
    """

    reasons: tuple[int, ...] = ()
    twin_id: str = ""
    channel: str = ""
    start_time_unix_us: int | None = None
    end_time_unix_us: int | None = None
    start_offset: int = 0
    end_offset: int = 0
    quarantine_ids: tuple[int, ...] = ()
    state: QuarantineState = QuarantineState.OPEN
    after: int = 0
    before: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEntry:
    """An entry that waits to be appended.

    Attributes:
        tenant: the tenant it belongs to.
        body: the serialized batch or control entry; followers get these very bytes.
        content_hash: 16 bytes; the same stamp or request id with another hash is refused.
        producer: stamp of a producer session, or None.
        request_id: idempotency key, "" = none; never together with `producer`.
        receipt: opaque bytes answered again to a replay.
        quarantine: rows that commit with the entry.
        quarantine_change: rows that leave quarantine with the entry; needs a request id.
        segments: the decoded rows of an observation batch (of no rows for a control entry).
        at_rest: the body packed (see `packing`); empty = it is stored as it is.
    """

    tenant: str
    kind: EntryKind
    body: bytes
    content_hash: bytes
    producer: ProducerStamp | None = None
    request_id: str = ""
    receipt: bytes = b""
    quarantine: tuple[QuarantineRow, ...] = ()
    quarantine_change: QuarantineChange | None = None
    segments: tuple[Segment, ...] = ()
    at_rest: bytes = b""

    @property
    def point_count(self) -> int:
        """Number of observations in the body."""
        return sum(len(segment) for segment in self.segments)

    @property
    def weight(self) -> int:
        """Bytes that it occupies while it waits."""
        return len(self.body) + len(self.at_rest) + len(self.receipt) + 128 + sum(row.weight for row in self.quarantine)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """A durable entry.

    Attributes:
        commit_time_unix_us: set once by the sequencer; never decreases with the offset.
        segments: the decoded rows if this process has them at hand, else None.
    """

    offset: int
    tenant: str
    kind: EntryKind
    commit_time_unix_us: int
    point_count: int
    body: bytes
    segments: tuple[Segment, ...] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Appended:
    """The entry is durable at `offset`; `replayed` = it was before this call, and `receipt` is that of the first."""

    offset: int
    commit_time_unix_us: int
    replayed: bool = False
    receipt: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerSession:
    """An opened session: its epoch, and the last durable sequence (0 = none)."""

    epoch: int
    last_sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to append: void as soon as the partition row carries another epoch."""

    holder: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far log and fold reach, in one snapshot of the database.

    Attributes:
        incarnation: UUID text; offsets of different incarnations mean nothing to one another.
        head: offset of the newest entry; 0 = empty.
        commit_time_unix_us: of the newest entry; 0 while the log is empty.
        fold_offset: entries up to here are in blocks.
        last_group: id of the newest commit, "" = none: answers "did my commit happen?".
        lease_address: where the lease holder is reached, "" = not known. It may be gone.
    """

    incarnation: str
    head: int
    commit_time_unix_us: int
    fold_offset: int
    last_group: str = ""
    lease_address: str = ""
