"""A producer session: sequences checked at the door, several batches on their way, acknowledgements in order."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from twinmesh_core.errors import FailedPrecondition, Reason, invalid_field
from twinmesh_core.observations import ObservationBatch
from twinmesh_ingestion.domain.intake import Intake, Prepared
from twinmesh_ingestion.domain.outcomes import Ack
from twinmesh_ingestion.domain.ports import Stamp


class PointBudget:
    """Bounds how many points are on their way at once; one batch always fits, however large.

    Args:
        limit: most points at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def fits(self, points: int) -> bool:
        """Return whether these points may start now, without overtaking anybody who waits."""
        return not self._waiting and (self.in_flight == 0 or self.in_flight + points <= self.limit)

    async def take(self, points: int) -> None:
        """Wait until the points may start; give them back with `give`."""
        if self.fits(points):
            self.in_flight += points
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((points, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(points)
            else:
                self._waiting.remove((points, turn))
            raise

    def give(self, points: int) -> None:
        """Return points; those who wait are let in, in order."""
        self.in_flight -= points
        while self._waiting:
            wanted, turn = self._waiting[0]
            if self.in_flight and self.in_flight + wanted > self.limit:
                return
            self._waiting.popleft()
            self.in_flight += wanted
            turn.set_result(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencedAck:
    """One batch of the session is durable."""

    sequence: int
    ack: Ack


class ProducerSession:
    """One open session of a producer.

    `submit` returns when the batch is on its way, with a future that is done when it is durable; waiting in `submit` is
    the back-pressure.

    Args:
        intake: the way in.
        tenant: the tenant.
        producer_id: the producer.
        epoch: of this session.
        last_sequence: last durable sequence when the session was opened.
        group: owns the tasks of batches on their way.
        budgets: bounds of points on their way: of the session, of the process.
    """

    def __init__(
        self,
        *,
        intake: Intake,
        tenant: str,
        producer_id: str,
        epoch: int,
        last_sequence: int,
        group: asyncio.TaskGroup,
        budgets: tuple[PointBudget, ...],
    ) -> None:
        self._intake = intake
        self._tenant = tenant
        self._producer_id = producer_id
        self._epoch = epoch
        self._next = last_sequence + 1
        self._group = group
        self._budgets = budgets
        self._last: asyncio.Future[SequencedAck] | None = None
        self._deliveries: set[asyncio.Task[None]] = set()

    def abandon(self) -> None:
        """Give up what is still on its way: nobody waits for it, and its producer asks again what became of it."""
        for delivery in self._deliveries:
            delivery.cancel()

    async def submit(
        self, sequence: int, batch: ObservationBatch, *, content_hash: bytes, backfill: bool
    ) -> asyncio.Future[SequencedAck]:
        """Send a batch on its way.

        Raises:
            FailedPrecondition: SEQUENCE_GAP.
            InvalidArgument: a sequence below 1, an empty or oversized batch; the sequence does not move.
            Unavailable: storage stayed away for longer than the patience.
        """
        if sequence < 1:
            raise invalid_field("batch.sequence", "must be 1 for a producer's first batch, and 1 more each time")
        if sequence > self._next:
            raise FailedPrecondition(
                f"batch.sequence: {sequence} skips {self._next}; send from there on",
                reason=Reason.SEQUENCE_GAP,
                metadata={"expected_sequence": str(self._next)},
            )
        prepared = await self._intake.prepare(self._tenant, batch, content_hash=content_hash, backfill=backfill)
        taken = 0
        try:
            for budget in self._budgets:
                await budget.take(prepared.rows)
                taken += 1
        except asyncio.CancelledError:
            self._give(prepared.rows, taken)
            raise
        repeated = sequence < self._next
        self._next = max(self._next, sequence + 1)
        on_its_way: asyncio.Future[SequencedAck] = asyncio.get_running_loop().create_future()
        before, self._last = self._last, on_its_way
        delivery = self._group.create_task(self._deliver(sequence, prepared, before, repeated, on_its_way))
        self._deliveries.add(delivery)
        # Not inside the task: one that is cancelled before its first step runs no line of its own.
        delivery.add_done_callback(lambda task: self._ended(task, prepared.rows))
        return on_its_way

    def _ended(self, delivery: asyncio.Task[None], rows: int) -> None:
        self._deliveries.discard(delivery)
        self._give(rows, len(self._budgets))

    def _give(self, rows: int, taken: int) -> None:
        for budget in self._budgets[:taken]:
            budget.give(rows)

    async def _deliver(
        self,
        sequence: int,
        prepared: Prepared,
        before: asyncio.Future[SequencedAck] | None,
        repeated: bool,
        done: asyncio.Future[SequencedAck],
    ) -> None:
        stamp = Stamp(producer_id=self._producer_id, epoch=self._epoch, sequence=sequence)
        try:
            if repeated and before is not None:
                await asyncio.shield(before)  # a repetition may be of the batch that is on its way just now
            ack = await self._intake.append_stamped(self._tenant, prepared, stamp, before)
        except asyncio.CancelledError:
            done.cancel()
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the one who reads the acknowledgements gets it
            if not done.cancelled():
                done.set_exception(error)
                done.exception()  # read: when an earlier batch fails first, nobody else will
        else:
            if not done.cancelled():
                done.set_result(SequencedAck(sequence=sequence, ack=ack))
