"""A log and a registry in memory that keep storage's rules: for tests, and for trying the pipeline without servers.

The contract suite runs the same tests on this and on storage itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from twinmesh_core import wire
from twinmesh_core.errors import FailedPrecondition, InvalidArgument, Reason, TwinmeshError, Unavailable
from twinmesh_core.observations import SeriesKey
from twinmesh_core.registry import Twin, TwinType
from twinmesh_core.registry_fold import RegistryFold
from twinmesh_ingestion.domain.outcomes import QuarantinedRow
from twinmesh_ingestion.domain.ports import (
    Appended,
    KeptPage,
    KeptRow,
    LatestValues,
    NewSeries,
    OpenedProducer,
    QuarantineChange,
    QuarantineFilter,
    Stamp,
    Submission,
)
from twinmesh_ingestion.domain.simple import SimpleObservation


@dataclass(slots=True, kw_only=True)
class _Producer:
    epoch: int = 0
    last_sequence: int = 0
    last_hash: bytes = b""
    last: Appended | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Landed:
    """One entry of the log."""

    offset: int
    tenant: str
    submission: Submission


@dataclass(slots=True, kw_only=True)
class Faults:
    """What goes wrong, on purpose.

    Attributes:
        away: calls raise `Unavailable` while this is set.
        lose_answers: so many appends commit and then raise `Unavailable`.
        refuse_appends: errors that the next appends raise, in order, without an effect.
        delays_s: pauses before the next appends take effect, in order; later ones may overtake.
    """

    away: bool = False
    lose_answers: int = 0
    refuse_appends: list[TwinmeshError] = field(default_factory=list)
    delays_s: list[float] = field(default_factory=list)


class MemoryLog:
    """Implements `domain.ports.Log` with exactly-once by stamp and request_id."""

    def __init__(self) -> None:
        self.entries: list[Landed] = []
        self.faults = Faults()
        self.incarnation = "00000000-0000-4000-8000-000000000001"
        self.appends = 0
        self._producers: dict[tuple[str, str], _Producer] = {}
        self._requests: dict[tuple[str, str], tuple[bytes, Appended]] = {}
        self.created: list[tuple[str, Twin]] = []
        self._kept: dict[tuple[str, int], tuple[int, QuarantinedRow]] = {}
        self._last_kept = 0
        self._series: dict[tuple[str, str, str], int] = {}

    async def create_twin(self, tenant: str, twin: Twin) -> None:
        """Create a twin; see the port."""
        self._answering()
        self.created.append((tenant, twin))

    async def kept(self, tenant: str, wanted: QuarantineFilter, *, after: int, limit: int) -> KeptPage:
        """Return rows in quarantine; see the port."""
        self._answering()
        found = [
            KeptRow(
                quarantine_id=quarantine_id,
                observation=SimpleObservation(
                    key=SeriesKey(twin_id=row.twin_id, channel=row.channel, unit=row.unit),
                    time_unix_us=row.time_unix_us,
                    value=row.raw_value or row.value,
                    json=row.section == "jsons",
                    quality=row.quality,
                ),
                reason=row.reason,
                message=row.message,
            )
            for (owner, quarantine_id), (offset, row) in sorted(self._kept.items())
            if owner == tenant and _meets(wanted, quarantine_id, offset, row)
        ]
        page = [row for row in found if row.quarantine_id > after]
        return KeptPage(rows=tuple(page[:limit]), more=len(page) > limit, total=len(found))

    def quarantined(self) -> list[QuarantinedRow]:
        """Return every row kept aside, oldest first."""
        return [row for entry in self.entries for row in entry.submission.quarantine]

    async def append(self, tenant: str, submission: Submission) -> Appended:
        """Make the entry durable; see the port."""
        self.appends += 1
        if self.faults.delays_s:
            await asyncio.sleep(self.faults.delays_s.pop(0))
        self._answering()
        if self.faults.refuse_appends:
            raise self.faults.refuse_appends.pop(0)
        appended = self._admit(tenant, submission)
        if self.faults.lose_answers:
            self.faults.lose_answers -= 1
            raise Unavailable("The answer was lost.")
        return appended

    async def open_producer(self, tenant: str, producer_id: str, last_epoch: int = 0) -> OpenedProducer:
        """Open a session; see the port."""
        self._answering()
        producer = self._producers.setdefault((tenant, producer_id), _Producer())
        if last_epoch and producer.epoch > last_epoch:
            raise FailedPrecondition("A newer session took over.", reason=Reason.PRODUCER_FENCED)
        producer.epoch += 1
        return OpenedProducer(epoch=producer.epoch, last_sequence=producer.last_sequence, incarnation=self.incarnation)

    async def resolve_series(self, tenant: str, series: Sequence[NewSeries], registry_offset: int) -> list[int]:
        """Return durable ids; see the port."""
        self._answering()
        return [self._series.setdefault((tenant, s.twin_id, s.channel), len(self._series) + 1) for s in series]

    async def latest(self, tenant: str, series: Sequence[SeriesKey]) -> LatestValues:
        """Return newest values; see the port."""
        self._answering()
        wanted = {(s.twin_id, s.channel) for s in series}
        newest: dict[int, tuple[int, float, int]] = {}
        for entry in self.entries:
            batch = wire.walk(entry.submission.body)
            if entry.tenant != tenant or batch is None:
                continue
            for section in (batch.doubles, batch.int64s, batch.bools):
                rows = zip(section.series, section.time_unix_us, section.values, section.quality, strict=True)
                for handle, time, value, quality in rows:
                    key = batch.series[handle]
                    if (key.twin_id, key.channel) in wanted and time >= newest.get(key.series_id, (time,))[0]:
                        newest[key.series_id] = (int(time), float(value), int(quality))
        return LatestValues(
            series_id=np.array(list(newest), np.int64),
            time_unix_us=np.array([n[0] for n in newest.values()], np.int64),
            value=np.array([n[1] for n in newest.values()], np.float64),
            quality=np.array([n[2] for n in newest.values()], np.uint8),
        )

    def _answering(self) -> None:
        if self.faults.away:
            raise Unavailable("Storage is away.", metadata={"dependency": "storage"})

    def _admit(self, tenant: str, submission: Submission) -> Appended:
        if submission.stamp is not None:
            return self._admit_stamped(tenant, submission, submission.stamp)
        seen = self._requests.get((tenant, submission.request_id))
        if seen is None:
            appended = self._commit(tenant, submission)
            if submission.request_id:
                self._requests[tenant, submission.request_id] = (submission.content_hash, appended)
            return appended
        if seen[0] != submission.content_hash:
            raise InvalidArgument(
                "This request_id was used before with other content.", reason=Reason.REQUEST_ID_REUSED
            )
        return replace(seen[1], replayed=True)

    def _admit_stamped(self, tenant: str, submission: Submission, stamp: Stamp) -> Appended:
        producer = self._producers[tenant, stamp.producer_id]
        if stamp.epoch != producer.epoch:
            raise FailedPrecondition("A newer session took over.", reason=Reason.PRODUCER_FENCED)
        expected = producer.last_sequence + 1
        if stamp.sequence > expected:
            raise FailedPrecondition(
                f"Sequence {stamp.sequence} skips {expected}.",
                reason=Reason.SEQUENCE_GAP,
                metadata={"expected_sequence": str(expected)},
            )
        if stamp.sequence == expected:
            producer.last_sequence = stamp.sequence
            producer.last_hash = submission.content_hash
            producer.last = self._commit(tenant, submission)
            return producer.last
        if producer.last is None:
            raise AssertionError("a producer with a sequence has no last answer")
        if stamp.sequence < producer.last_sequence:
            return replace(producer.last, replayed=True, receipt=b"")
        if submission.content_hash != producer.last_hash:
            raise InvalidArgument(
                f"Sequence {stamp.sequence} is committed with other bytes.", reason=Reason.SEQUENCE_REUSED
            )
        return replace(producer.last, replayed=True)

    def _commit(self, tenant: str, submission: Submission) -> Appended:
        offset = len(self.entries) + 1
        if submission.change is not None:
            self._change(tenant, submission.change)
        for row in submission.quarantine:
            self._last_kept += 1
            self._kept[tenant, self._last_kept] = (offset, row)
        self.entries.append(Landed(offset=offset, tenant=tenant, submission=submission))
        return Appended(offset=offset, incarnation=self.incarnation, replayed=False, receipt=submission.receipt)

    def _change(self, tenant: str, change: QuarantineChange) -> None:
        named = [*change.replayed, *change.discarded, *(kept[0] for kept in change.kept)]
        if any((tenant, quarantine_id) not in self._kept for quarantine_id in named):
            raise FailedPrecondition("Some rows are not in quarantine any more.", reason=Reason.QUARANTINE_CHANGED)
        for quarantine_id in (*change.replayed, *change.discarded):
            del self._kept[tenant, quarantine_id]
        for quarantine_id, reason, message in change.kept:
            offset, row = self._kept[tenant, quarantine_id]
            self._kept[tenant, quarantine_id] = (offset, replace(row, reason=reason, message=message))


def _meets(wanted: QuarantineFilter, quarantine_id: int, offset: int, row: QuarantinedRow) -> bool:
    start, end = wanted.start_time_unix_us, wanted.end_time_unix_us
    return (
        (not wanted.reasons or row.reason in wanted.reasons)
        and wanted.twin_id in ("", row.twin_id)
        and wanted.channel in ("", row.channel)
        and (start is None or row.time_unix_us >= start)
        and (end is None or row.time_unix_us < end)
        and offset >= wanted.start_offset
        and (not wanted.end_offset or offset < wanted.end_offset)
        and (not wanted.quarantine_ids or quarantine_id in wanted.quarantine_ids)
    )


class MemoryRegistry:
    """Implements `domain.ports.Registry`; what is created here is seen only after the next `catch_up`."""

    def __init__(self, *, visible: bool = True) -> None:
        self._fold = RegistryFold()
        self._visible = visible
        self._waiting: list[tuple[str, TwinType | Twin]] = []
        self._generation = 0
        self.catch_ups = 0
        self.away = False

    @property
    def fold(self) -> RegistryFold:
        """The registry now; see the port."""
        return self._fold

    @property
    def generation(self) -> int:
        """Changes with every entry."""
        return self._generation

    def create(self, value: TwinType | Twin, *, tenant: str = "default") -> None:
        """Create a type or a twin: at once where `visible`, else on the next `catch_up`."""
        self._waiting.append((tenant, value))
        if self._visible:
            self._apply()

    def delete(self, twin_id: str, *, tenant: str = "default") -> None:
        """Delete a twin at once."""
        self._fold.delete_twin(tenant, self._fold.offset + 1, twin_id)
        self._generation += 1

    async def catch_up(self) -> None:
        """Make visible what was created; see the port."""
        if self.away:
            raise Unavailable("Storage is away.")
        self.catch_ups += 1
        self._apply()

    def _apply(self) -> None:
        for tenant, value in self._waiting:
            offset = self._fold.offset + 1
            if isinstance(value, TwinType):
                verdict = self._fold.create_twin_type(tenant, offset, value)
            else:
                verdict = self._fold.create_twin(tenant, offset, value)
            if verdict.error is not None:
                raise verdict.error
            self._generation += 1
        self._waiting.clear()
