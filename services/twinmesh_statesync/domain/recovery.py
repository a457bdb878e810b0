"""After a restore of the log: which generation of the checkpoint it still holds, for the fold to go on from there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

from twinmesh_core.errors import OutOfRange, Unavailable
from twinmesh_statesync.domain.checkpoint import Checkpoint, Position
from twinmesh_statesync.domain.entries import LogEntry
from twinmesh_statesync.domain.generations import Generation
from twinmesh_statesync.domain.ports import CheckpointStore, Log

_ENTRY_S: Final = 10.0


async def recovered(log: Log, store: CheckpointStore) -> Checkpoint | None:
    """Take the checkpoint back to the newest generation that the log, as it is now, still leads to, and return it.

    None = no generation does: the log has to be folded from its beginning.

    Raises:
        Unavailable: the log or the store is away; do the same again.
    """
    incarnation = (await log.head()).incarnation
    kept = await store.load()
    if kept is None:
        return None
    if kept.position.incarnation == incarnation:
        # Another process has done it.
        return kept
    survivor = await _newest_survivor(log, await store.generations())
    if survivor is None or not await store.rewind(Position(incarnation=incarnation, offset=survivor.offset)):
        return None
    return await store.load()


async def _newest_survivor(log: Log, generations: Sequence[Generation]) -> Generation | None:
    """Return the newest generation whose entry the log holds: it and all before it are of one history.

    A restored log is a beginning of the former one and what was appended since, so the generations it still leads to
    are the first ones, and halving finds the last of them.
    """
    low, high = 0, len(generations)
    while low < high:
        middle = (low + high) // 2
        if await _holds(log, generations[middle]):
            low = middle + 1
        else:
            high = middle
    # Before the first entry nothing has to be recognized, and nothing is gained either: the log is folded anyway.
    return generations[low - 1] if low and generations[low - 1].offset else None


async def _holds(log: Log, generation: Generation) -> bool:
    if not generation.offset:
        return True
    entry = await _entry_at(log, generation.offset)
    return entry is not None and entry.commit_time_unix_us == generation.commit_time_unix_us


async def _entry_at(log: Log, offset: int) -> LogEntry | None:
    try:
        async with (
            asyncio.timeout(_ENTRY_S),
            aclosing(log.follow(Position(incarnation="", offset=offset - 1))) as frames,
        ):
            async for frame in frames:
                for entry in frame.entries:
                    if entry.offset >= offset:
                        return entry if entry.offset == offset else None
                if frame.through.offset >= offset or frame.head_offset < offset:
                    return None
    except TimeoutError:
        raise Unavailable("The log did not answer in time.") from None
    except OutOfRange:
        # Beyond its head, or its observations have left the log: there is no way on from there.
        return None
    return None
