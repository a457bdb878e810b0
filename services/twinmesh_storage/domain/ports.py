"""What the domain needs of the outside; tenant is the first argument wherever data is of one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch
from twinmesh_storage.domain.entries import (
    Appended,
    EntryKind,
    Lease,
    LogEntry,
    NewEntry,
    Position,
    ProducerSession,
    QuarantinedRow,
    QuarantineFilter,
)
from twinmesh_storage.domain.folding import FoldResult, FoldWork
from twinmesh_storage.domain.parts import Part, PartPage, PartSummaries
from twinmesh_storage.domain.series import Series, SeriesRequest

DecodeBatch = Callable[[bytes], ObservationBatch]
"""Decodes a landed body; raises `InvalidArgument` for bytes that are no batch."""


class LeaseLost(Exception):  # noqa: N818 -- an outcome that the sequencer acts on, never shown to callers
    """Another process is the sequencer now, or nobody is; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOutcome:
    """A committed group.

    Attributes:
        answers: one per entry of the group, in order: where it is, or why it was refused.
        entries: the new entries in order of offset, without gap after the head that was expected.
    """

    answers: tuple[Appended | TwinmeshError, ...]
    entries: tuple[LogEntry, ...]


class OutcomeUnknown(Exception):  # noqa: N818 -- likewise
    """The connection was lost during the commit: it happened wholly, and `outcome` holds, or not at all."""

    def __init__(self, outcome: GroupOutcome) -> None:
        super().__init__()
        self.outcome = outcome


class ContentRefused(Exception):  # noqa: N818 -- likewise
    """The database refused something in the group because of its content; nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    """Entries in order, and `through`: the offset up to which nothing that was asked for is missing.

    Attributes:
        trim_offset: observations at or below this offset may be missing all the same: they have left the log.
    """

    entries: tuple[LogEntry, ...]
    through: int
    trim_offset: int = 0


class LogStore(Protocol):
    """The durable log. Every method has a deadline of its own and raises `Unavailable` when the database is away."""

    async def acquire(self, holder: str) -> Lease | None:
        """Take the lease if it is free, expired, or its holder's database session is gone; None = somebody has it.

        Whatever sessions an earlier holder still has are ended: one that hangs must not hold the log up.

        After it returns, every commit of earlier lease holders is either visible or will never be.
        """
        ...

    async def renew(self, lease: Lease) -> bool:
        """Prolong the lease; False = it is lost."""
        ...

    async def commit(self, lease: Lease, head: int, group_id: str, group: Sequence[NewEntry]) -> GroupOutcome:
        """Append a group in one transaction, with offsets from `head` + 1 on, and answer duplicates.

        Raises:
            LeaseLost: the lease epoch or the head is not the expected one; nothing was written.
            ContentRefused: the database refused content; nothing was written.
            OutcomeUnknown: the commit may or may not have happened.
            Unavailable, ResourceExhausted: nothing was written.
        """
        ...

    async def open_producer(self, tenant: str, producer_id: str, last_epoch: int = 0) -> ProducerSession:
        """Raise the producer's epoch and return it with the last durable sequence.

        Raises:
            FailedPrecondition: PRODUCER_FENCED, the epoch is above `last_epoch`, which is not 0; it is not raised.
        """
        ...

    async def position(self) -> Position:
        """Return head and fold offset in one snapshot."""
        ...

    async def read(
        self, after: int, through: int, *, tenant: str | None, kinds: Collection[EntryKind], max_bytes: int
    ) -> LogPage:
        """Return entries with after < offset <= through, in order: as many as fit `max_bytes`, at least one if any.

        Args:
            tenant: only this tenant's; None = all tenants.
            kinds: only these kinds; empty = all.
        """
        ...

    async def prune_requests(self) -> int:
        """Forget request ids that have expired; returns how many."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimState:
    """Observations at or below `trim_offset` may be gone from the log; up to `swept_offset` they are."""

    trim_offset: int
    swept_offset: int


class LogRetention(Protocol):
    """What followers have made durable on their side, and what may therefore leave the log."""

    async def register(self, consumer: str, incarnation: str, offset: int, keep_s: float) -> TrimState:
        """Note that the consumer needs nothing at or below `offset` again; void after `keep_s` unless renewed."""
        ...

    async def advance(self, keep_s: float) -> TrimState:
        """Move the mark to what is folded, covered by every valid checkpoint (at least one) and older than `keep_s`.

        A bounded number of entries at a time.
        """
        ...

    async def sweep(self) -> TrimState:
        """Delete a bounded number of observation entries at or below the mark; their counts are kept."""
        ...


class SupersededPruned(Exception):  # noqa: N818 -- likewise
    """Superseded rows that the question needs are gone; as-of reads are complete from offset `floor` on."""

    def __init__(self, floor: int) -> None:
        super().__init__()
        self.floor = floor


class HistoryStore(Protocol):
    """Readable history, folded from the log, and the rows that were readable once; neutral to how it is kept.

    Reads unpack nothing: they give `Part`s, in the order asked, bounded. All series of a call are of the tenant.

    Whoever needs an answer as of an earlier offset reads the tail first, then what is readable, then what is
    superseded: a row that a fold moves meanwhile is then seen twice, which merging does not mind, and never missed.
    """

    @property
    def form(self) -> str:
        """How rows are kept: "blocks" or "hypertable"."""
        ...

    async def read(self, tenant: str, series: Sequence[Series], start: int, end: int, max_rows: int) -> PartPage:
        """Return parts with rows of start <= event time < end, up to about `max_rows` rows; see `PartPage`."""
        ...

    async def summaries(
        self, tenant: str, series: Sequence[Series], start: int, end: int, limit: int
    ) -> PartSummaries | None:
        """Return counts and statistics of the parts with rows of start <= event time < end, up to `limit` (2 or more).

        None = this form keeps none for its parts: read the rows.
        """
        ...

    async def read_last(self, tenant: str, series: Sequence[Series]) -> list[Part]:
        """Return, of each series that has rows, a part that ends with its newest one."""
        ...

    async def read_before(self, tenant: str, series: Sequence[Series], before: Sequence[int]) -> list[Part]:
        """Return, of each series with rows before its moment (one per series), a part that begins before it.

        The part holds every row from its `t0` up to the moment, and maybe later ones.
        """
        ...

    async def read_superseded(
        self, tenant: str, series: Sequence[Series], start: int, end: int, as_of_offset: int, max_rows: int
    ) -> PartPage:
        """Return the rows that were readable as of an offset and have been superseded or hidden since.

        That is: own offset <= `as_of_offset` < the offset that superseded them. Parts have no statistics.

        Raises:
            SupersededPruned: rows that the answer needs have been pruned.
        """
        ...

    async def fold(self, lease: Lease, work: FoldWork) -> FoldResult:
        """Merge fresh rows, apply hides, move losers aside, and move the fold offset: all in one transaction.

        A fold up to an offset that is reached already changes nothing. Series of fresh rows are in the catalogue.

        Raises:
            LeaseLost: the lease epoch is not the current one; nothing was written.
        """
        ...

    async def prune_superseded(self, before_unix_us: int, limit: int) -> int:
        """Forget rows that were superseded before a moment, and remember that; returns how many.

        At most `limit` pieces (of up to some thousand rows of one series) go in one transaction: call it until it
        returns 0.
        """
        ...

    async def superseded_floor(self) -> int:
        """Return the lowest offset that as-of reads are complete for; 0 = nothing was pruned yet."""
        ...

    async def erase(self, tenant: str, series: Sequence[Series]) -> int:
        """Forget every row of these series, superseded ones too; returns how many readable ones there were.

        A fold that runs at the same time does not bring back what had been folded before.
        """
        ...

    async def drop_before(self, tenant: str, series: Sequence[Series], time_unix_us: int) -> int:
        """Forget the rows of these series before an event time, superseded ones too; returns how many readable ones.

        What nobody else has rows in is dropped as a whole, so give all series of one retention at once.
        """
        ...

    async def spans(self, tenant: str, series: Sequence[Series]) -> dict[int, SeriesSpan]:
        """Return what there is of each of the series that has rows, by id."""
        ...

    async def counts(self, tenant: str, twin_id: str) -> HistoryCounts:
        """Return what log, history and quarantine of the tenant (of one twin, "" = all) count, in one snapshot."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesSpan:
    """Readable rows of a series: how many, and first and last event time, included."""

    point_count: int
    first_time_unix_us: int
    last_time_unix_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryCounts:
    """Exact counts of what is at rest in the database.

    Attributes:
        folded_points: readable rows by quality GOOD, UNCERTAIN, BAD.
        disk_bytes: of the whole schema, with indexes.
    """

    entry_count: int
    landed_point_count: int
    folded_points: tuple[int, int, int]
    series_count: int
    quarantined_count: int
    disk_bytes: int
    fold_offset: int
    trim_offset: int = 0


class SeriesStore(Protocol):
    """The durable series catalogue."""

    async def resolve(self, tenant: str, requests: Sequence[SeriesRequest]) -> list[Series]:
        """Return the series asked for, creating those that are new; in the order asked."""
        ...

    async def classify(self, tenant: str, requests: Sequence[SeriesRequest]) -> None:
        """Give series that exist the class of retention asked for, unless theirs was told as of a later offset."""
        ...

    async def load(self) -> list[Series]:
        """Return the catalogue of all tenants."""
        ...

    async def find(self, tenant: str, names: Sequence[tuple[str, str]]) -> list[Series]:
        """Return those of the (twin, channel) pairs that exist."""
        ...

    async def find_ids(self, tenant: str, series_ids: Sequence[int]) -> list[Series]:
        """Return those of the ids that exist in the tenant."""
        ...

    async def list_twins(self, tenant: str, twin_ids: Sequence[str]) -> list[Series]:
        """Return all series of these twins."""
        ...

    async def page(self, tenant: str, wanted: SeriesFilter, after: tuple[str, str], limit: int) -> list[Series]:
        """Return series after (twin, channel), by twin and channel."""
        ...

    async def newest_id(self, tenant: str) -> int:
        """Return the highest id of the tenant's series; 0 = there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesFilter:
    """Which series are wanted.

    Attributes:
        twin_id, channel: "" = all.
        kinds: empty = all.
        newest_id: only series with at most this id; None = all.
    """

    twin_id: str = ""
    channel: str = ""
    kinds: tuple[ChannelKind, ...] = ()
    newest_id: int | None = None


class QuarantineStore(Protocol):
    """Rows kept aside."""

    async def page(
        self, tenant: str, wanted: QuarantineFilter, *, oldest_first: bool, limit: int, max_bytes: int
    ) -> tuple[list[QuarantinedRow], bool, int]:
        """Return a page of rows by id, whether there are more, and how many rows match the filter in all.

        A page holds fewer than `limit` rows where these would be more than `max_bytes`, but at least one. The filter's
        `after` and `before` cut the page and not the count.
        """
        ...


class RecordStore(Protocol):
    """Bytes by name that may vanish, lag or lie; shared with other processes. Never fails and never takes long."""

    @property
    def enabled(self) -> bool:
        """Whether asking is worth it now."""
        ...

    async def get(self, names: Sequence[str], most: Sequence[int]) -> list[bytes | None]:
        """Return what is kept under each name, None where nothing is, or nothing was answered in time.

        Args:
            most: bytes expected of each at most; a longer value is not fetched whole.
        """
        ...

    async def put(self, records: Mapping[str, bytes]) -> bool:
        """Keep records for a while; False = some may not have arrived."""
        ...

    async def drop(self, names: Collection[str]) -> bool:
        """Remove records; False = some may still be there."""
        ...
