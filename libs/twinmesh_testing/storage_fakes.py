"""The log and the catalogue of the storage service in memory; the contract suite holds them to PostgreSQL.

Each fake is honest about what the domain relies on: one commit at a time, a lease epoch checked in every write, and
duplicates decided by the same pure rules. `FakeLog` can be told to fail as a database does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from twinmesh_core.errors import ResourceExhausted, TwinmeshError, Unavailable
from twinmesh_core.time import Clock
from twinmesh_storage.domain.admission import (
    Accept,
    Answer,
    Key,
    ProducerState,
    Refuse,
    RequestState,
    RowKey,
    admit,
    taken_over,
)
from twinmesh_storage.domain.entries import (
    Appended,
    EntryKind,
    Lease,
    LogEntry,
    NewEntry,
    Position,
    ProducerSession,
    QuarantineRow,
)
from twinmesh_storage.domain.ports import (
    ContentRefused,
    GroupOutcome,
    LeaseLost,
    LogPage,
    OutcomeUnknown,
    SeriesFilter,
)
from twinmesh_storage.domain.series import Series, SeriesRequest, check_same


@dataclass(frozen=True, slots=True)
class FakeRow:
    """A readable row; its tenant, series and event time are the key it is kept by."""

    value: Any
    quality: int
    offset: int


@dataclass(frozen=True, slots=True)
class FakeSuperseded:
    """A row that was readable once."""

    key: tuple[str, int, int]
    row: FakeRow
    by_offset: int
    time_unix_us: int


@dataclass(slots=True)
class FakeDatabase:
    """What several fakes share, as tables of one database would be."""

    incarnation: str = field(default_factory=lambda: str(uuid4()))
    epoch: int = 0
    holder: str = ""
    fold_offset: int = 0
    last_group: str = ""
    entries: list[LogEntry] = field(default_factory=list)
    producers: dict[Key, ProducerState] = field(default_factory=dict)
    requests: dict[Key, tuple[RequestState, int | None]] = field(default_factory=dict)
    quarantine: dict[RowKey, QuarantineRow] = field(default_factory=dict)
    last_quarantine_id: int = 0
    readable: dict[tuple[str, int, int], FakeRow] = field(default_factory=dict)
    superseded: list[FakeSuperseded] = field(default_factory=list)
    superseded_floor: int = 0
    series: list[Series] = field(default_factory=list)
    trim_offset: int = 0


class FakeLog:
    """`LogStore` in memory.

    Attributes:
        lose_answers: so many next commits happen, and their answer is lost.
        drop_commits: so many next commits do not happen, and their answer is lost.
        poison: request ids whose entry the database refuses.
        available: False = every call raises `Unavailable`.
        full: True = commits raise `ResourceExhausted`, as on a full disk.
    """

    def __init__(self, database: FakeDatabase, clock: Clock, *, request_keep_s: float = 86_400.0) -> None:
        self._db = database
        self._clock = clock
        self._keep_us = int(request_keep_s * 1e6)
        self.lose_answers = 0
        self.drop_commits = 0
        self.poison: set[str] = set()
        self.available = True
        self.full = False

    async def acquire(self, holder: str) -> Lease | None:
        """See `LogStore.acquire`."""
        self._check_available()
        if self._db.holder not in ("", holder):
            return None
        self._db.holder = holder
        self._db.epoch += 1
        return Lease(holder=holder, epoch=self._db.epoch)

    async def renew(self, lease: Lease) -> bool:
        """See `LogStore.renew`."""
        self._check_available()
        return lease.epoch == self._db.epoch

    def depose(self) -> None:
        """Let the holder's session be gone, as after a kill, so that anybody may take the lease."""
        self._db.holder = ""

    async def commit(self, lease: Lease, head: int, group_id: str, group: Sequence[NewEntry]) -> GroupOutcome:
        """See `LogStore.commit`."""
        self._check_available()
        if self.full:
            raise ResourceExhausted("There is no room.", retry_after_s=5.0)
        db = self._db
        if lease.epoch != db.epoch or head != len(db.entries):
            raise LeaseLost
        if any(entry.request_id in self.poison for entry in group if entry.request_id):
            raise ContentRefused
        verdicts = admit(group, db.producers, {k: state for k, (state, _) in db.requests.items()}, db.quarantine)
        newest = db.entries[-1].commit_time_unix_us if db.entries else 0
        now = max(self._clock.now_unix_us(), newest)
        accepted = [(e, v) for e, v in zip(group, verdicts, strict=True) if isinstance(v, Accept)]
        entries = tuple(
            LogEntry(
                offset=head + 1 + verdict.rank,
                tenant=entry.tenant,
                kind=entry.kind,
                commit_time_unix_us=now,
                point_count=entry.point_count,
                body=entry.body,
                segments=entry.segments,
            )
            for entry, verdict in accepted
        )
        answers: list[Appended | TwinmeshError] = []
        for entry, verdict in zip(group, verdicts, strict=True):
            if isinstance(verdict, Refuse):
                answers.append(verdict.error)
            elif isinstance(verdict, Answer):
                answers.append(verdict.answer)
            else:
                answers.append(
                    Appended(
                        offset=head + 1 + verdict.rank,
                        commit_time_unix_us=now,
                        replayed=not isinstance(verdict, Accept),
                        receipt=entry.receipt,
                    )
                )
        outcome = GroupOutcome(answers=tuple(answers), entries=entries)
        if self.drop_commits:
            self.drop_commits -= 1
            raise OutcomeUnknown(outcome)
        self._write([entry for entry, _ in accepted], entries, group_id)
        if self.lose_answers:
            self.lose_answers -= 1
            raise OutcomeUnknown(outcome)
        return outcome

    def _write(self, accepted: Sequence[NewEntry], entries: Sequence[LogEntry], group_id: str) -> None:
        db = self._db
        for entry, at in zip(accepted, entries, strict=True):
            answer = Appended(offset=at.offset, commit_time_unix_us=at.commit_time_unix_us, receipt=entry.receipt)
            if entry.producer is not None:
                producer = (entry.tenant, entry.producer.producer_id)
                db.producers[producer] = ProducerState(
                    epoch=db.producers[producer].epoch,
                    last_sequence=entry.producer.sequence,
                    last_hash=entry.content_hash,
                    last=answer,
                )
            if entry.request_id:
                expires = at.commit_time_unix_us + self._keep_us if entry.kind is EntryKind.OBSERVATIONS else None
                state = RequestState(content_hash=entry.content_hash, answer=answer)
                db.requests[entry.tenant, entry.request_id] = (state, expires)
            for row in entry.quarantine:
                db.last_quarantine_id += 1
                db.quarantine[entry.tenant, db.last_quarantine_id] = row
            if entry.quarantine_change is not None:
                change = entry.quarantine_change
                for left in (*change.replayed, *change.discarded):
                    del db.quarantine[entry.tenant, left]
                for kept in change.kept:
                    key = (entry.tenant, kept.quarantine_id)
                    db.quarantine[key] = replace(db.quarantine[key], reason=kept.reason, message=kept.message)
        # Like a database, give back bytes and nothing that was decoded from them.
        db.entries.extend(replace(entry, segments=None) for entry in entries)
        if entries:
            db.last_group = group_id

    async def open_producer(self, tenant: str, producer_id: str, last_epoch: int = 0) -> ProducerSession:
        """See `LogStore.open_producer`."""
        self._check_available()
        none = ProducerState(epoch=0, last_sequence=0, last_hash=b"", last=Appended(offset=0, commit_time_unix_us=0))
        state = self._db.producers.get((tenant, producer_id), none)
        if last_epoch and state.epoch > last_epoch:
            raise taken_over(producer_id, last_epoch)
        self._db.producers[tenant, producer_id] = replace(state, epoch=state.epoch + 1)
        return ProducerSession(epoch=state.epoch + 1, last_sequence=state.last_sequence)

    async def position(self) -> Position:
        """See `LogStore.position`."""
        self._check_available()
        db = self._db
        return Position(
            incarnation=db.incarnation,
            head=len(db.entries),
            commit_time_unix_us=db.entries[-1].commit_time_unix_us if db.entries else 0,
            fold_offset=db.fold_offset,
            last_group=db.last_group,
        )

    async def read(
        self, after: int, through: int, *, tenant: str | None, kinds: Collection[EntryKind], max_bytes: int
    ) -> LogPage:
        """See `LogStore.read`."""
        self._check_available()
        taken: list[LogEntry] = []
        size = 0
        for entry in self._db.entries[after:through]:
            if (tenant is not None and entry.tenant != tenant) or (kinds and entry.kind not in kinds):
                continue
            if entry.kind is EntryKind.OBSERVATIONS and entry.offset <= self._db.trim_offset:
                continue
            if size >= max_bytes:
                return LogPage(entries=tuple(taken), through=taken[-1].offset, trim_offset=self._db.trim_offset)
            taken.append(entry)
            size += len(entry.body)
        return LogPage(entries=tuple(taken), through=through, trim_offset=self._db.trim_offset)

    async def prune_requests(self) -> int:
        """See `LogStore.prune_requests`."""
        now = self._clock.now_unix_us()
        gone = [k for k, (_, expires) in self._db.requests.items() if expires is not None and expires < now]
        for key in gone:
            del self._db.requests[key]
        return len(gone)

    def _check_available(self) -> None:
        if not self.available:
            raise Unavailable("The database cannot be reached; try again.", retry_after_s=1.0)


class FakeSeries:
    """`SeriesStore` in memory."""

    def __init__(self, database: FakeDatabase) -> None:
        self._db = database
        self._series = database.series
        self._class_offsets: dict[int, int] = {}

    async def resolve(self, tenant: str, requests: Sequence[SeriesRequest]) -> list[Series]:
        """See `SeriesStore.resolve`."""
        out = []
        for index, request in enumerate(requests):
            known = await self.find(tenant, [(request.twin_id, request.channel)])
            if not known:
                known = [
                    Series(
                        tenant=tenant,
                        series_id=len(self._series) + 1,
                        twin_id=request.twin_id,
                        channel=request.channel,
                        kind=request.kind,
                        unit=request.unit,
                        expected_interval_us=request.expected_interval_us,
                    )
                ]
                self._series += known
            check_same(request, known[0], f"series[{index}]")
            out.append(known[0])
        return out

    async def classify(self, tenant: str, requests: Sequence[SeriesRequest]) -> None:
        """See `SeriesStore.classify`."""
        for request in requests:
            for at, one in enumerate(self._series):
                named = (one.tenant, one.twin_id, one.channel) == (tenant, request.twin_id, request.channel)
                newer = request.registry_offset >= self._class_offsets.get(one.series_id, 0)
                told = request.retention_class
                if named and newer and told is not None and told != one.retention_class:
                    self._series[at] = replace(one, retention_class=told)
                    self._class_offsets[one.series_id] = request.registry_offset

    async def load(self) -> list[Series]:
        """See `SeriesStore.load`."""
        return list(self._series)

    async def find(self, tenant: str, names: Sequence[tuple[str, str]]) -> list[Series]:
        """See `SeriesStore.find`."""
        wanted = set(names)
        return [s for s in self._series if s.tenant == tenant and (s.twin_id, s.channel) in wanted]

    async def find_ids(self, tenant: str, series_ids: Sequence[int]) -> list[Series]:
        """See `SeriesStore.find_ids`."""
        return [s for s in self._series if s.tenant == tenant and s.series_id in set(series_ids)]

    async def list_twins(self, tenant: str, twin_ids: Sequence[str]) -> list[Series]:
        """See `SeriesStore.list_twins`."""
        return [s for s in self._series if s.tenant == tenant and s.twin_id in set(twin_ids)]

    async def page(self, tenant: str, wanted: SeriesFilter, after: tuple[str, str], limit: int) -> list[Series]:
        """See `SeriesStore.page`."""
        mine = [
            s
            for s in self._series
            if s.tenant == tenant
            and wanted.twin_id in ("", s.twin_id)
            and wanted.channel in ("", s.channel)
            and (not wanted.kinds or s.kind in wanted.kinds)
            and (wanted.newest_id is None or s.series_id <= wanted.newest_id)
        ]
        later = sorted((s for s in mine if (s.twin_id, s.channel) > after), key=lambda s: (s.twin_id, s.channel))
        return later[:limit]

    async def newest_id(self, tenant: str) -> int:
        """See `SeriesStore.newest_id`."""
        return max((s.series_id for s in self._series if s.tenant == tenant), default=0)
