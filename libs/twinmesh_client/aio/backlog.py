"""What a producer session has taken and not yet had acknowledged: in memory, or in a spool on disk."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

from twinmesh_client.limits import MAX_UNACKED_BYTES, MAX_UNACKED_POINTS
from twinmesh_core.errors import FailedPrecondition, Reason, TwinmeshError
from twinmesh_core.wire import encode_varint


@dataclass(frozen=True, slots=True)
class Item:
    """One batch as it is sent: its sequence, the whole message, and its rows."""

    sequence: int
    message: bytes
    points: int


class Window:
    """Batches on their way, in order of their sequences: some sent, the rest about to be."""

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.points = 0
        self.bytes = 0
        self._unsent = 0

    def add(self, item: Item) -> None:
        """Put one behind the others."""
        self.items.append(item)
        self.points += item.points
        self.bytes += len(item.message)
        self._unsent += 1

    def takes(self, points: int, byte_count: int) -> bool:
        """Return whether a batch of this size fits within the bounds; one always does."""
        return not self.items or (
            self.points + points <= MAX_UNACKED_POINTS and self.bytes + byte_count <= MAX_UNACKED_BYTES
        )

    def next(self) -> Item | None:
        """Return the next that is to be sent; None when all are."""
        if not self._unsent:
            return None
        self._unsent -= 1
        return self.items[len(self.items) - self._unsent - 1]

    def settle(self, sequence: int) -> int:
        """Forget what is durable, up to this sequence; returns its rows."""
        points = 0
        while self.items and self.items[0].sequence <= sequence:
            first = self.items.popleft()
            points += first.points
            self.points -= first.points
            self.bytes -= len(first.message)
        self._unsent = min(self._unsent, len(self.items))
        return points

    def send_again(self) -> None:
        """A new session has begun: whatever is here is sent once more."""
        self._unsent = len(self.items)

    def clear(self) -> None:
        """Forget everything."""
        self.items.clear()
        self.points = self.bytes = self._unsent = 0


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

    async def start(self, durable: int) -> int:
        """Go on after what the mesh says is durable; returns rows of which it will never be heard again.

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

    async def work(self) -> None:
        """Do what is to be done besides, for ever."""
        ...

    def end(self, failure: TwinmeshError) -> None:
        """Let whoever waits here raise this."""
        ...


class MemoryBacklog:
    """Keeps batches in memory: they are lost with the process. Numbers are the producer's sequences."""

    def __init__(self, producer_id: str) -> None:
        self.changed = asyncio.Condition()
        self.window = Window()
        self.started = False
        self.taken = 0
        self._producer_id = producer_id
        self._failure: TwinmeshError | None = None

    @property
    def durable(self) -> int:
        """Number up to which all are durable in the mesh."""
        return self.window.items[0].sequence - 1 if self.window.items else self.taken

    async def start(self, durable: int) -> int:
        """Go on after what the mesh says is durable."""
        async with self.changed:
            if not self.started:
                self.taken = durable
            elif durable > self.taken:
                raise fenced(self._producer_id, durable)
            elif durable < self.durable:
                raise rewound(durable, self.durable)
            # The last durable one is sent again: it alone is answered again.
            unheard = self.window.settle(durable - 1)
            self.window.send_again()
            self.started = True
            self.changed.notify_all()
            return unheard

    async def put(self, columns: bytes, points: int, *, backfill: bool) -> int:
        """Take one batch; waits for the first session, which tells the sequence, and while too much is on its way."""
        async with self.changed:
            await self.changed.wait_for(
                lambda: self._failure is not None or (self.started and self.window.takes(points, len(columns)))
            )
            if self._failure is not None:
                raise copied(self._failure)
            self.taken += 1
            self.window.add(Item(self.taken, batch_message(self.taken, columns, backfill=backfill), points))
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
