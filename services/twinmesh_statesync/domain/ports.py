"""What state-sync needs from outside: the log, and a place for its checkpoints."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from twinmesh_core.observations import ObservationBatch
from twinmesh_statesync.domain.checkpoint import Checkpoint, Position
from twinmesh_statesync.domain.entries import ControlEntry, LogEntry
from twinmesh_statesync.domain.generations import Generation
from twinmesh_statesync.domain.leases import Fence


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFrame:
    """Entries of the log in order, and the position they lead to.

    Attributes:
        entries: of all tenants; may be empty.
        through: everything up to here has been told.
        head_offset: the newest durable offset when this was sent.
    """

    entries: tuple[LogEntry, ...]
    through: Position
    head_offset: int


class Log(Protocol):
    """The ordered log of the storage service."""

    async def append(self, tenant: str, entry: ControlEntry, *, content_hash: bytes) -> Position:
        """Append a control entry and return its position once it is durable.

        The same request id with the same hash returns the first position again.

        Raises:
            InvalidArgument: REQUEST_ID_REUSED.
            ResourceExhausted: OVERLOADED.
            Unavailable: the storage service cannot be reached; nothing is known about the entry.
        """
        ...

    def follow(self, after: Position, *, control_only: bool = False) -> AsyncGenerator[LogFrame, None]:
        """Yield the entries of all tenants after a position, in order, without gap or duplicate, for ever.

        Args:
            after: where to go on.
            control_only: leave out observations; these entries stay in the log, so this never is COMPACTED.

        Raises:
            FailedPrecondition: LOG_REWOUND.
            OutOfRange: FUTURE_OFFSET, or COMPACTED, with the offset to follow from as metadata ``trim_offset``.
            Unavailable: the stream broke; go on from the last position.
        """
        ...

    def replay(self, after: Position, tenant: str, twin_ids: Collection[str] = ()) -> AsyncGenerator[LogFrame, None]:
        """Yield the entries of one tenant after a position as `follow` does.

        Args:
            after: where to go on.
            tenant: whose entries.
            twin_ids: only entries that name one of these twins, and those of no twin; empty = all. An entry that names
                others too comes whole.

        Raises:
            FailedPrecondition: LOG_REWOUND.
            OutOfRange: COMPACTED.
            Unavailable: the stream broke; go on from the last position.
        """
        ...

    async def latest(
        self, tenant: str, twin_ids: Sequence[str], *, at_unix_us: int | None = None, as_of_offset: int = 0
    ) -> ObservationBatch:
        """Return the newest observation of each channel of these twins; raises `Unavailable`.

        Args:
            tenant: whose.
            twin_ids: which twins.
            at_unix_us: of those with an event time of at most this; None = of all.
            as_of_offset: as known at this offset; 0 = now.

        Raises:
            OutOfRange: AS_OF_PRUNED, what was known then is not kept.
        """
        ...

    async def register_checkpoint(self, covered: Position) -> None:
        """State that a checkpoint up to here is durable: observations at or below it may leave the log.

        Raises:
            FailedPrecondition: LOG_REWOUND.
            OutOfRange: FUTURE_OFFSET.
            Unavailable: it is not known whether the log heard it; tell it again.
        """
        ...

    async def head(self) -> Position:
        """Return the newest durable position; raises `Unavailable`."""
        ...


class CheckpointStore(Protocol):
    """Keeps one checkpoint of the fold, all or nothing, and what takes it back to its generations."""

    async def load(self) -> Checkpoint | None:
        """Return the complete checkpoint, or None if there is none; raises `Unavailable`."""
        ...

    async def position(self) -> Position | None:
        """Return the position of the checkpoint, or None if there is none; raises `Unavailable`."""
        ...

    async def save(self, checkpoint: Checkpoint, fence: Fence | None = None) -> bool:
        """Add the changed records (or replace all by a complete set) and move the position, in one transaction.

        The records that are replaced stay for as long as a generation needs them; a complete set drops all earlier
        generations, and adds its own.

        Args:
            checkpoint: what to keep.
            fence: the right to do so, checked in that transaction; None where nobody else saves.

        Returns:
            False, with nothing written, when a later position of the same incarnation is kept already, or one of
            another incarnation, to which the changed records would not belong, or when the right has passed to another
            process.

        Raises:
            Unavailable: nothing was written, or nothing is known; save the same again.
        """
        ...

    async def generations(self) -> tuple[Generation, ...]:
        """Return the generations in order; raises `Unavailable`."""
        ...

    async def load_at(self, offset: int, tenant: str, twin_ids: Collection[str] = ()) -> Checkpoint | None:
        """Return the newest generation at or before an offset, or None if there is none.

        It holds the tenant's records apart from verdicts: the log has no request twice, so folding on needs none.

        Args:
            offset: the position wanted.
            tenant: whose records.
            twin_ids: only these twins with their events, and all that belongs to no twin; empty = all.

        Raises:
            Unavailable: the database is away.
        """
        ...

    async def forget(self, offsets: Collection[int]) -> None:
        """Drop the generations at these offsets, and what only they needed; raises `Unavailable`."""
        ...

    async def rewind(self, to: Position) -> bool:
        """Take the checkpoint back to the generation at `to.offset`, in the incarnation `to` names.

        Of verdicts, those that were forgotten since stay so. A checkpoint of that incarnation is left alone: another
        process has taken it back.

        Returns:
            False, with nothing done, when there is no such generation.

        Raises:
            Unavailable: nothing was done, or nothing is known; do the same again.
        """
        ...
