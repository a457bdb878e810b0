"""The way of one batch: resolve, run the pipeline, append, acknowledge; and the patience when storage is away."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from twinmesh_core.errors import (
    FailedPrecondition,
    Reason,
    ResourceExhausted,
    TwinmeshError,
    Unavailable,
    invalid_field,
)
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import MAX_ROWS, ObservationBatch
from twinmesh_core.quality import FlagReason
from twinmesh_core.time import Clock
from twinmesh_core.units import TABLE, Units
from twinmesh_ingestion.domain import pipeline
from twinmesh_ingestion.domain.directory import Directory
from twinmesh_ingestion.domain.memory import Newest, SeriesMemory
from twinmesh_ingestion.domain.outcomes import Ack, QuarantinedRow
from twinmesh_ingestion.domain.ports import LatestValues, Log, Receipts, Registry, Stamp, Submission
from twinmesh_ingestion.domain.resolution import SeriesTable
from twinmesh_ingestion.domain.simple import MAX_OBSERVATIONS, SimpleObservation, dictionary_of, places, to_batch
from twinmesh_ingestion.domain.skew import Skew, SkewEstimates
from twinmesh_ingestion.domain.unknown_twins import TwinMaker

ResultT = TypeVar("ResultT")

LOOP_ROWS: Final = 20_000
"""Batches above this leave the event loop: about 2 ms of work."""
MAX_REFUSED_BYTES: Final = 1 << 20
"""Largest refused batch whose bytes are kept."""
_ROW_OVERHEAD: Final = 64
"""Bytes of a row kept aside beside its texts, at most."""
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A batch that is ready for the log, and the acknowledgement to give once it is durable."""

    submission: Submission
    ack: Ack
    rows: int
    newest: tuple[Newest, ...] = ()
    evictions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """Who sent a batch, and when by its own clock (None = it does not say): for the estimate of its clock."""

    producer_id: str
    sent_at_unix_us: int | None = None


class Intake:
    """Takes batches in for all callers of the process.

    Args:
        log: where batches become durable.
        registry: twin types and twins.
        receipts: acknowledgements as bytes.
        clock: receive times.
        patience_s: how long storage may be away before a call fails.
        remembered_series: how many series the history checks remember.
        units: which units there are.
        maker: creates twins that a rule covers; None = unknown twins' rows are kept aside.
        max_entry_bytes: most bytes that land and are kept aside of one batch: they travel in one message to storage.

    Attributes:
        skews: estimates of the producers' clocks.
    """

    def __init__(
        self,
        *,
        log: Log,
        registry: Registry,
        receipts: Receipts,
        clock: Clock,
        patience_s: float,
        remembered_series: int = 65_536,
        units: Units = TABLE,
        maker: TwinMaker | None = None,
        max_entry_bytes: int = 15 << 20,
    ) -> None:
        self._log = log
        self._receipts = receipts
        self._clock = clock
        self._patience_s = patience_s
        self._directory = Directory(log, registry, units, maker)
        self._memory = SeriesMemory(remembered_series)
        self._turn = asyncio.Lock()
        self._max_entry_bytes = max_entry_bytes
        self.skews = SkewEstimates()

    async def prepare(
        self, tenant: str, batch: ObservationBatch, *, content_hash: bytes, backfill: bool, heard: Heard | None = None
    ) -> Prepared:
        """Take a batch through the pipeline; what is prepared must be appended, or given up with `abandon`.

        Raises:
            InvalidArgument: it has no row, or too many.
            Unavailable: storage stayed away for longer than the patience.
            ResourceExhausted: more rows would be quarantined than one entry can carry.
        """
        _check_size(batch.point_count(), "batch", MAX_ROWS)
        table = await self.patiently(lambda: self._directory.table(tenant, batch.series))
        return await self._prepare(tenant, batch, table, content_hash, backfill, heard)

    async def prepare_simple(
        self, tenant: str, observations: list[SimpleObservation], *, content_hash: bytes, backfill: bool
    ) -> Prepared:
        """Take values of the simple form through the pipeline; raises as `prepare`."""
        _check_size(len(observations), "observations", MAX_OBSERVATIONS)
        keys = dictionary_of(observations)
        table = await self.patiently(lambda: self._directory.table(tenant, keys))
        batch = to_batch(observations, keys, [ChannelKind.of(int(kind)) for kind in table.kind])
        return await self._prepare(tenant, batch, table, content_hash, backfill)

    async def prepare_again(
        self, tenant: str, observations: list[SimpleObservation], *, backfill: bool
    ) -> tuple[Prepared, dict[tuple[str, int], int]]:
        """Take rows that were kept aside through the pipeline again, and say which row is which observation.

        The rows that it keeps aside this time are in the submission's quarantine. Raises as `prepare`.
        """
        keys = dictionary_of(observations)
        table = await self.patiently(lambda: self._directory.table(tenant, keys))
        kinds = [ChannelKind.of(int(kind)) for kind in table.kind]
        batch = to_batch(observations, keys, kinds)
        prepared = await self._prepare(tenant, batch, table, b"", backfill)
        return prepared, places(observations, keys, kinds)

    async def _prepare(
        self,
        tenant: str,
        batch: ObservationBatch,
        table: SeriesTable,
        content_hash: bytes,
        backfill: bool,
        heard: Heard | None = None,
    ) -> Prepared:
        rows = batch.point_count()
        receive_time = self._clock.now_unix_us()
        skew = self._skew(tenant, batch, heard, receive_time, backfill)
        memory = self._memory
        latest = await self._unknown(tenant, table) if table.remembers else None
        slots = np.empty(0, np.intp)

        def work() -> pipeline.Result:
            return pipeline.run(
                batch, table, slots, memory, receive_time_unix_us=receive_time, backfill=backfill, skew=skew
            )

        # One batch at a time: the memory has one writer, and a producer's batches keep their order.
        async with self._turn:
            if table.remembers:
                memory.apply_settled()
                slots = memory.slots(tenant, table.landed)
                if latest is not None:
                    memory.warm(_by_slot(latest, table, slots))
            result = work() if rows <= LOOP_ROWS else await asyncio.to_thread(work)
            evictions = memory.evictions
        if result.quarantine and len(result.body) + _kept_bytes(result.quarantine) > self._max_entry_bytes:
            memory.settle(result.newest, durable=False, evictions=evictions)
            raise ResourceExhausted(
                f"{len(result.quarantine)} rows of this batch would be quarantined, and with the others they are more "
                f"than one entry can carry; send fewer rows at once; the first: {result.quarantine[0].message}",
                reason=Reason.MESSAGE_TOO_LARGE,
            )
        return Prepared(
            submission=Submission(
                body=result.body,
                content_hash=content_hash,
                receipt=self._receipts.encode(result.ack),
                quarantine=result.quarantine,
            ),
            ack=result.ack,
            rows=rows,
            newest=result.newest,
            evictions=evictions,
        )

    async def forget(self, tenant: str, series_ids: Sequence[int]) -> None:
        """Forget what the checks remember of series: their twin was erased."""
        async with self._turn:
            self._memory.apply_settled()
            self._memory.forget(tenant, series_ids)

    def refused(self, content: bytes, content_hash: bytes, error: TwinmeshError) -> Prepared:
        """Return what stands in the log for a batch that is refused as a whole: no row, and its bytes kept aside."""
        ack = Ack(accepted_count=0)
        row = QuarantinedRow(
            twin_id="",
            channel="",
            unit="",
            time_unix_us=self._clock.now_unix_us(),
            section="texts",
            value=f"{len(content)} bytes",
            quality=0,
            reason=FlagReason.REFUSED_BATCH,
            message=error.message,
            raw_value=content if len(content) <= MAX_REFUSED_BYTES else b"",
        )
        return Prepared(
            submission=Submission(
                body=b"", content_hash=content_hash, receipt=self._receipts.encode(ack), quarantine=(row,)
            ),
            ack=ack,
            rows=0,
        )

    def _skew(
        self, tenant: str, batch: ObservationBatch, heard: Heard | None, receive_time: int, backfill: bool
    ) -> Skew | None:
        if heard is None:
            return None
        newest = max((int(section.time_unix_us.max()) for _, section in batch.sections() if len(section)), default=None)
        self.skews.observe(
            tenant,
            heard.producer_id,
            receive_time=receive_time,
            sent_at=heard.sent_at_unix_us,
            newest_event=None if backfill else newest,
        )
        return self.skews.of(tenant, heard.producer_id)

    async def _unknown(self, tenant: str, table: SeriesTable) -> LatestValues | None:
        """Ask storage for the newest values of series that this process meets for the first time; once, at most."""
        numbers = table.landed_numbers
        missing = self._memory.unasked(self._memory.slots(tenant, numbers))
        if not len(missing):
            return None
        try:
            return await self._log.latest(tenant, [numbers[i] for i in missing])
        except TwinmeshError:
            return None  # the checks begin anew for these series, as for new ones

    def abandon(self, prepared: Prepared) -> None:
        """Forget, for the checks, a batch that will not become durable, or of which that is not known."""
        self._memory.settle(prepared.newest, durable=False, evictions=prepared.evictions)

    def settle(self, prepared: Prepared, ack: Ack) -> None:
        """Let the checks rely on a batch that is durable."""
        # Of a replay the first delivery's rows are durable, and another process may have chosen them.
        self._memory.settle(prepared.newest, durable=not ack.replayed, evictions=prepared.evictions)

    async def open_producer(self, tenant: str, producer_id: str, last_epoch: int = 0) -> tuple[int, int, str]:
        """Open a producer session; returns its epoch, the last durable sequence and the log's incarnation.

        Raises:
            FailedPrecondition: PRODUCER_FENCED, a newer session than `last_epoch` (where it is not 0) was opened.
            Unavailable: storage stayed away for longer than the patience.
        """
        # An attempt that was not answered may have opened a session: it is ours.
        attempts = itertools.count()
        opened = await self.patiently(
            lambda: self._log.open_producer(tenant, producer_id, last_epoch and last_epoch + next(attempts))
        )
        return opened.epoch, opened.last_sequence, opened.incarnation

    async def append(self, tenant: str, prepared: Prepared, *, request_id: str) -> Ack:
        """Make a unary write durable; repeated under the same request_id while storage is away.

        Raises:
            InvalidArgument: REQUEST_ID_REUSED.
            ResourceExhausted: OVERLOADED; the caller should come back.
            Unavailable: storage stayed away for longer than the patience. Whether the write took effect is unknown
                unless it is repeated with the same request_id.
        """
        submission = replace(prepared.submission, request_id=request_id)
        try:
            ack = await self.patiently(lambda: self._append(tenant, submission, prepared.ack))
        except BaseException:
            self.abandon(prepared)
            raise
        self.settle(prepared, ack)
        return ack

    async def append_stamped(
        self, tenant: str, prepared: Prepared, stamp: Stamp, before: asyncio.Future[Any] | None
    ) -> Ack:
        """Make a producer's batch durable, in its order.

        Batches are sent ahead of the answers to those before them. Where one is refused only because an earlier one
        is still missing, it waits for that one, and then goes again under the same stamp.

        Args:
            tenant: the tenant.
            prepared: the batch.
            stamp: its stamp.
            before: done when the session's batch before is durable; None for the first.

        Raises:
            FailedPrecondition: PRODUCER_FENCED, SEQUENCE_GAP.
            InvalidArgument: SEQUENCE_REUSED.
            Unavailable: storage stayed away for longer than the patience.
        """
        try:
            ack = await self._append_in_order(tenant, prepared, stamp, before)
        except BaseException:
            self.abandon(prepared)
            raise
        self.settle(prepared, ack)
        return ack

    async def _append_in_order(
        self, tenant: str, prepared: Prepared, stamp: Stamp, before: asyncio.Future[Any] | None
    ) -> Ack:
        submission = replace(prepared.submission, stamp=stamp)

        async def attempt() -> Ack:
            return await self._append(tenant, submission, prepared.ack)

        try:
            return await attempt()
        except TwinmeshError as error:
            early = error.reason == Reason.SEQUENCE_GAP and before is not None
            if not (early or _passes_by_itself(error) or isinstance(error, ResourceExhausted)):
                raise
        if before is not None:
            await asyncio.shield(before)
        return await self.patiently(attempt, wait_when_overloaded=True)

    async def _append(self, tenant: str, submission: Submission, ack: Ack) -> Ack:
        appended = await self._log.append(tenant, submission)
        if appended.replayed and appended.receipt:
            ack = self._receipts.decode(appended.receipt)
        return replace(ack, offset=appended.offset, incarnation=appended.incarnation, replayed=appended.replayed)

    async def patiently(
        self, attempt: Callable[[], Awaitable[ResultT]], *, wait_when_overloaded: bool = False
    ) -> ResultT:
        """Repeat `attempt` while storage is away, with growing pauses, up to the patience of this process."""
        deadline = self._clock.monotonic_s() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await attempt()
            except TwinmeshError as error:
                waits = _passes_by_itself(error) or (wait_when_overloaded and error.retryable)
                if not waits or self._clock.monotonic_s() + pause_s > deadline:
                    raise
                told_s = error.retry_after_s
            # Full jitter: many producers must not come back in step.
            await asyncio.sleep(max(told_s or 0.0, random.uniform(pause_s / 2, pause_s)))  # noqa: S311  not a secret
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _passes_by_itself(error: TwinmeshError) -> bool:
    moved = isinstance(error, FailedPrecondition) and error.reason == Reason.NOT_SEQUENCER
    return moved or isinstance(error, Unavailable)


def _kept_bytes(rows: Iterable[QuarantinedRow]) -> int:
    return sum(
        _ROW_OVERHEAD
        + len(row.message.encode())
        + 3 * (len(row.twin_id) + len(row.channel) + len(row.unit))
        + (len(row.value.encode()) if isinstance(row.value, str) else 0)
        + len(row.raw_value)
        for row in rows
    )


def _by_slot(latest: LatestValues, table: SeriesTable, slots: npt.NDArray[np.intp]) -> Newest:
    slot_of = {key.series_id: slot for key, slot in zip(table.landed, slots.tolist(), strict=True)}
    slot = np.array([slot_of.get(series_id, -1) for series_id in latest.series_id.tolist()], np.intp)
    there = slot >= 0
    return Newest(
        slot=slot[there], time=latest.time_unix_us[there], value=latest.value[there], quality=latest.quality[there]
    )


def _check_size(rows: int, field: str, most: int) -> None:
    if rows == 0:
        raise invalid_field(field, "holds no row; send at least one observation")
    if rows > most:
        raise invalid_field(field, f"holds {rows} rows; send at most {most} at once")
