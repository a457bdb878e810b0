"""A producer session: sequences checked at the door, several batches on their way, acknowledgements in order."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from twinmesh_core.errors import FailedPrecondition, Reason, TwinmeshError, invalid_field
from twinmesh_core.observations import ObservationBatch
from twinmesh_ingestion.domain.intake import Heard, Intake, Prepared
from twinmesh_ingestion.domain.outcomes import Ack
from twinmesh_ingestion.domain.ports import Stamp


class Budget:
    """Bounds how much, in points or in bytes, is on its way at once; one batch always fits, however large.

    Args:
        limit: most at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def fits(self, amount: int) -> bool:
        """Return whether so much may start now, without overtaking anybody who waits."""
        return not self._waiting and (self.in_flight == 0 or self.in_flight + amount <= self.limit)

    async def take(self, amount: int) -> None:
        """Wait until so much may start; give it back with `give`."""
        if self.fits(amount):
            self.in_flight += amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(amount)
            else:
                self._waiting.remove((amount, turn))
            raise

    def give(self, amount: int) -> None:
        """Return what was taken; those who wait are let in, in order."""
        self.in_flight -= amount
        while self._waiting:
            wanted, turn = self._waiting[0]
            if self.in_flight and self.in_flight + wanted > self.limit:
                return
            self._waiting.popleft()
            self.in_flight += wanted
            turn.set_result(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credits:
    """Bounds of what is on its way: rows, and bytes of batches as sent."""

    points: Budget
    bytes: Budget

    def fit(self, points: int, size: int) -> bool:
        """Return whether a batch may start now."""
        return self.points.fits(points) and self.bytes.fits(size)


class Hold:
    """What one batch holds of several bounds; taken in their order, given back once."""

    def __init__(self, bounds: tuple[Credits, ...], points: int, size: int) -> None:
        self._wanted = [pair for c in bounds for pair in ((c.points, points), (c.bytes, size))]
        self._taken: list[tuple[Budget, int]] = []

    async def take(self) -> None:
        """Wait for all of it; cancelled, nothing is held."""
        try:
            for budget, amount in self._wanted:
                await budget.take(amount)
                self._taken.append((budget, amount))
        except asyncio.CancelledError:
            self.give()
            raise

    def give(self) -> None:
        """Give back what is held."""
        taken, self._taken = self._taken, []
        for budget, amount in taken:
            budget.give(amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencedAck:
    """One batch of the session is durable, or a range from `first_sequence` on; or it was refused as a whole."""

    sequence: int
    ack: Ack
    first_sequence: int = 0
    refusal: TwinmeshError | None = None

    def joins(self, before: SequencedAck) -> bool:
        """Return whether one acknowledgement may cover both; a replay or refusal is told by itself."""
        plain = not any(a.refusal or a.ack.replayed for a in (self, before))
        return plain and self.sequence == before.sequence + 1 and self.ack.incarnation == before.ack.incarnation

    def joined(self, before: SequencedAck) -> SequencedAck:
        """Return the acknowledgement of both."""
        first = before.first_sequence or before.sequence
        return SequencedAck(sequence=self.sequence, ack=before.ack.plus(self.ack), first_sequence=first)


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
        bounds: of what is on its way: of the session, of the process.
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
        bounds: tuple[Credits, ...],
    ) -> None:
        self._intake = intake
        self._tenant = tenant
        self._producer_id = producer_id
        self._epoch = epoch
        self._next = last_sequence + 1
        self._group = group
        self._credits = bounds
        self._last: asyncio.Future[SequencedAck] | None = None
        self._deliveries: set[asyncio.Task[None]] = set()

    def abandon(self) -> None:
        """Give up what is still on its way: nobody waits for it, and its producer asks again what became of it."""
        for delivery in self._deliveries:
            delivery.cancel()

    async def submit(
        self,
        sequence: int,
        batch: ObservationBatch,
        *,
        content_hash: bytes,
        backfill: bool,
        size: int = 0,
        sent_at_unix_us: int | None = None,
    ) -> asyncio.Future[SequencedAck]:
        """Send a batch on its way.

        Args:
            sequence: its sequence.
            batch: its rows.
            content_hash: of the bytes as sent.
            backfill: recorded history.
            size: bytes as sent.
            sent_at_unix_us: when, by the producer's clock; None = it does not say.

        Raises:
            FailedPrecondition: SEQUENCE_GAP.
            InvalidArgument: a sequence below 1, an empty or oversized batch; the sequence does not move.
            ResourceExhausted: MESSAGE_TOO_LARGE, if more rows would be quarantined than one entry can carry.
            Unavailable: storage stayed away for longer than the patience.
        """
        self._check(sequence)
        hold = Hold(self._credits, batch.point_count(), size)
        await hold.take()
        try:
            prepared = await self._intake.prepare(
                self._tenant,
                batch,
                content_hash=content_hash,
                backfill=backfill,
                heard=Heard(producer_id=self._producer_id, sent_at_unix_us=sent_at_unix_us),
            )
        except BaseException:
            hold.give()
            raise
        return self._send(sequence, prepared, hold)

    async def refuse(
        self, sequence: int, content: bytes, *, content_hash: bytes, error: TwinmeshError
    ) -> asyncio.Future[SequencedAck]:
        """Use up the sequence of a batch that is refused as a whole; it is kept aside, and the session goes on.

        Raises:
            FailedPrecondition: SEQUENCE_GAP.
            InvalidArgument: a sequence below 1.
        """
        self._check(sequence)
        hold = Hold(self._credits, 0, len(content))
        await hold.take()
        return self._send(sequence, self._intake.refused(content, content_hash, error), hold, refusal=error)

    def _check(self, sequence: int) -> None:
        if sequence < 1:
            raise invalid_field("batch.sequence", "must be 1 for a producer's first batch, and 1 more each time")
        if sequence > self._next:
            raise FailedPrecondition(
                f"batch.sequence: {sequence} skips {self._next}; send from there on",
                reason=Reason.SEQUENCE_GAP,
                metadata={"expected_sequence": str(self._next)},
            )

    def _send(
        self, sequence: int, prepared: Prepared, hold: Hold, refusal: TwinmeshError | None = None
    ) -> asyncio.Future[SequencedAck]:
        repeated = sequence < self._next
        self._next = max(self._next, sequence + 1)
        on_its_way: asyncio.Future[SequencedAck] = asyncio.get_running_loop().create_future()
        before, self._last = self._last, on_its_way
        delivery = self._group.create_task(self._deliver(sequence, prepared, before, repeated, on_its_way, refusal))
        self._deliveries.add(delivery)
        # Not inside the task: one that is cancelled before its first step runs no line of its own.
        delivery.add_done_callback(lambda task: self._ended(task, hold))
        return on_its_way

    def _ended(self, delivery: asyncio.Task[None], hold: Hold) -> None:
        self._deliveries.discard(delivery)
        hold.give()

    async def _deliver(
        self,
        sequence: int,
        prepared: Prepared,
        before: asyncio.Future[SequencedAck] | None,
        repeated: bool,
        done: asyncio.Future[SequencedAck],
        refusal: TwinmeshError | None,
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
                done.set_result(SequencedAck(sequence=sequence, ack=ack, refusal=refusal))
