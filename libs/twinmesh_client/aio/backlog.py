"""What a producer session has taken and not yet had acknowledged: in memory, or in a spool on disk."""

from __future__ import annotations

import asyncio
import time as clock
from collections import deque
from dataclasses import dataclass, replace
from typing import Final, Protocol

from twinmesh_client.limits import MAX_UNACKED_BYTES, MAX_UNACKED_POINTS
from twinmesh_client.refusals import Refusals, RefusedBatch
from twinmesh_client.spool.state import State
from twinmesh_core.errors import FailedPrecondition, Reason, TwinmeshError
from twinmesh_core.wire import encode_varint


@dataclass(frozen=True, slots=True)
class Item:
    """One batch on its way: its sequence, its encoding, its rows, and whether it is declared as recorded history."""

    sequence: int
    columns: bytes
    points: int
    backfill: bool

    def message(self) -> bytes:
        """Return it as it is sent."""
        return batch_message(self.sequence, self.columns, backfill=self.backfill)


class Window:
    """Batches in order of their sequences: some sent, the rest about to be, as far as the server lets them."""

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.points = 0
        self.bytes = 0
        self.alone_until = 0
        """Up to this sequence batches are sent one at a time, each after the acknowledgement of the one before."""
        self._unsent = 0
        self._sent_points = self._sent_bytes = 0
        self._most_points = self._most_bytes = 0

    def add(self, item: Item) -> None:
        """Put one behind the others."""
        self.items.append(item)
        self.points += item.points
        self.bytes += len(item.columns)
        self._unsent += 1

    def takes(self, points: int, byte_count: int) -> bool:
        """Return whether a batch of this size fits within the bounds; one always does."""
        return not self.items or (
            self.points + points <= MAX_UNACKED_POINTS and self.bytes + byte_count <= MAX_UNACKED_BYTES
        )

    @property
    def unsent(self) -> int:
        """Batches that are not sent in this session."""
        return self._unsent

    @property
    def sent(self) -> int:
        """Batches that are sent in this session and not acknowledged."""
        return len(self.items) - self._unsent

    def grant(self, points: int, byte_count: int) -> None:
        """A session has begun: whatever is here is sent once more, this much at once; 0 = the server sets no bound."""
        self._unsent = len(self.items)
        self._sent_points = self._sent_bytes = 0
        self._most_points, self._most_bytes = points, byte_count

    def next(self) -> Item | None:
        """Return the next that is to be sent; None when all are, or no more may be."""
        if not self._unsent:
            return None
        item = self.items[len(self.items) - self._unsent]
        if self.sent and not self._may_follow(item):
            return None
        self._unsent -= 1
        self._sent_points += item.points
        self._sent_bytes += len(item.columns)
        return item

    def settle(self, sequence: int) -> int:
        """Forget what is durable, up to this sequence; returns its rows."""
        points = 0
        while self.items and self.items[0].sequence <= sequence:
            points += self._drop_first().points
        return points

    def take_out(self, sequence: int) -> Item | None:
        """Take one batch out, so that those behind it move up by one sequence; None where it is not here."""
        found = next((item for item in self.items if item.sequence == sequence), None)
        if found is not None:
            others = [item for item in self.items if item is not found]
            self.clear()
            for item in others:
                self.add(item if item.sequence < sequence else replace(item, sequence=item.sequence - 1))
        return found

    def clear(self) -> None:
        """Forget everything."""
        while self.items:
            self._drop_first()

    def _may_follow(self, item: Item) -> bool:
        if self.items[0].sequence <= self.alone_until:
            return False
        points, size = self._sent_points + item.points, self._sent_bytes + len(item.columns)
        return (not self._most_points or points <= self._most_points) and (
            not self._most_bytes or size <= self._most_bytes
        )

    def _drop_first(self) -> Item:
        sent = self.sent > 0
        first = self.items.popleft()
        self.points -= first.points
        self.bytes -= len(first.columns)
        if sent:
            self._sent_points -= first.points
            self._sent_bytes -= len(first.columns)
        else:
            self._unsent -= 1
        return first


class Backlog(Protocol):
    """Numbers batches from where it begins, hands them out to be sent, and forgets them when they are durable."""

    changed: asyncio.Condition
    """Notified whenever anything below changes."""

    @property
    def window(self) -> Window:
        """What is on its way."""
        ...

    @property
    def taken(self) -> int:
        """Number of the last batch that was taken."""
        ...

    @property
    def durable(self) -> int:
        """Number up to which all are durable in the mesh."""
        ...

    @property
    def started(self) -> bool:
        """Whether the mesh has been met."""
        ...

    async def start(self, durable: int, *, ask_again: bool, points: int = 0, byte_count: int = 0) -> int:
        """Go on after what the mesh says is durable; returns rows of which it will never be heard again.

        Args:
            durable: the last durable sequence.
            ask_again: send that one again where it is still here: it alone is answered again.
            points: most rows that the server lets be on their way; 0 = it sets no bound.
            byte_count: most bytes likewise.

        Raises:
            FailedPrecondition: PRODUCER_FENCED, the mesh has batches that are not ours; LOG_REWOUND, it was restored
                to a moment before what is still here.
        """
        ...

    async def put(self, columns: bytes, points: int, *, backfill: bool) -> int:
        """Take one batch and return its number; waits for room."""
        ...

    async def next(self) -> Item:
        """Return the next batch to send; waits for one."""
        ...

    async def settle(self, sequence: int) -> None:
        """Forget what is durable up to this sequence."""
        ...

    async def set_aside(self, sequence: int, error: TwinmeshError) -> RefusedBatch | None:
        """Let those behind a batch move up, which the mesh refused for good; returns what was refused, None = not here.

        Raises:
            ResourceExhausted: there is no room to keep it.
            Unavailable: the disk failed.
        """
        ...

    @property
    def refusals(self) -> Refusals:
        """What the mesh refused."""
        ...

    async def work(self) -> None:
        """Do what is to be done besides, for ever."""
        ...

    def end(self, failure: TwinmeshError) -> None:
        """Let whoever waits here raise this."""
        ...


class MemoryBacklog:
    """Keeps batches in memory: they are lost with the process.

    Numbers are the producer's sequences, until a batch is refused: it keeps its number and has no sequence.
    """

    def __init__(self, producer_id: str) -> None:
        self.changed = asyncio.Condition()
        self.window = Window()
        self.started = False
        self.taken = 0
        self.refusals = Refusals()
        self._numbers = State(producer_id=producer_id, base=0)
        self._producer_id = producer_id
        self._failure: TwinmeshError | None = None

    @property
    def durable(self) -> int:
        """Number up to which all are durable in the mesh, or were refused."""
        return self._numbers.number_of(self.window.items[0].sequence - 1) if self.window.items else self.taken

    async def start(self, durable: int, *, ask_again: bool, points: int = 0, byte_count: int = 0) -> int:
        """Go on after what the mesh says is durable."""
        async with self.changed:
            if not self.started:
                self.taken = durable
            elif durable > self._numbers.sequence_of(self.taken):
                raise fenced(self._producer_id, durable)
            elif durable < (had := self._numbers.sequence_of(self.durable)):
                raise rewound(durable, had)
            unheard = self.window.settle(durable - ask_again)
            self.window.grant(points, byte_count)
            self.started = True
            self.changed.notify_all()
            return unheard

    async def set_aside(self, sequence: int, error: TwinmeshError) -> RefusedBatch | None:
        """Take a refused batch out; it is the caller's alone from now on."""
        async with self.changed:
            number = self._numbers.number_of(sequence - 1) + 1
            item = self.window.take_out(sequence)
            if item is None:
                return None
            self._numbers.lose(number, number)
            refused = RefusedBatch(
                number=number,
                points=item.points,
                backfill=item.backfill,
                time_unix_us=clock.time_ns() // 1_000,
                error=error,
                columns=item.columns,
            )
            self.refusals.add(refused)
            self._numbers.forget(self.durable)
            self.changed.notify_all()
            return refused

    async def put(self, columns: bytes, points: int, *, backfill: bool) -> int:
        """Take one batch; waits for the first session, which tells the sequence, and while too much is on its way."""
        async with self.changed:
            await self.changed.wait_for(
                lambda: self._failure is not None or (self.started and self.window.takes(points, len(columns)))
            )
            if self._failure is not None:
                raise copied(self._failure)
            self.taken += 1
            self.window.add(Item(self._numbers.sequence_of(self.taken), columns, points, backfill))
            self.changed.notify_all()
            return self.taken

    async def next(self) -> Item:
        """Return the next batch to send."""
        async with self.changed:
            while (item := self.window.next()) is None:
                await self.changed.wait()
            return item

    async def settle(self, sequence: int) -> None:
        """Forget what is durable up to this sequence."""
        async with self.changed:
            self.window.settle(sequence)
            self.changed.notify_all()

    async def work(self) -> None:
        """Nothing is to be done."""

    def end(self, failure: TwinmeshError) -> None:
        """Let whoever waits here raise this."""
        self._failure = failure


def fenced(producer_id: str, durable: int) -> FailedPrecondition:
    """Return the error for batches in the mesh that are not ours."""
    return FailedPrecondition(
        f"Another writer uses the producer id {producer_id!r} and has written up to sequence {durable}; give each "
        "source of batches an id of its own, and use a spool in one place only, never a copy of it.",
        reason=Reason.PRODUCER_FENCED,
    )


def rewound(durable: int, had: int) -> FailedPrecondition:
    """Return the error for a mesh that was restored to a moment before what is still here."""
    return FailedPrecondition(
        f"The mesh was restored: it has this producer's batches up to {durable} and had acknowledged them up to {had}, "
        f"which are no longer here. Write batches {durable + 1} to {had} again from their source with a new session, "
        "or go on without them: accept_gap=True.",
        reason=Reason.LOG_REWOUND,
        metadata={"first_missing": str(durable + 1), "last_missing": str(had)},
    )


def copied(error: TwinmeshError) -> TwinmeshError:
    """Return a copy: each caller gets its own, as raising one object twice would chain their tracebacks."""
    rebuild, state = error.__reduce__()
    return rebuild(*state)  # type: ignore[operator,misc,no-any-return]  # the pickle protocol's untyped pair


_BACKFILL: Final = b"\x18\x01"


def batch_message(sequence: int, batch: bytes, *, backfill: bool) -> bytes:
    """Encode WriteStreamRequest{batch: ProducerBatch{sequence, batch, backfill}} around encoded columns."""
    head = b"".join((b"\x08", encode_varint(sequence), b"\x12", encode_varint(len(batch))))
    tail = _BACKFILL if backfill else b""
    length = len(head) + len(batch) + len(tail)
    return b"".join((b"\x12", encode_varint(length), head, batch, tail))
