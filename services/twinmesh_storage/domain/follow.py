"""Following: entries after an offset, in order, without gap or duplicate, from memory where possible.

A follower holds one frame at a time; if it reads slowly, it falls out of the memory ring and goes on from the
database. So any number of slow followers cost neither memory nor the fast ones anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from twinmesh_core.errors import OutOfRange, Reason, Unavailable
from twinmesh_storage.domain.entries import EntryKind, LogEntry
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.ports import LogStore

FRAME_BYTES: Final = 1 << 20
"""A frame ends once it holds this much; one larger entry makes a frame of its own."""
FRAME_ENTRIES: Final = 1_000
_READ_BYTES: Final = 4 << 20
_CONTROL: Final = frozenset({EntryKind.CONTROL})


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Entries, or a bookmark when there are none: everything up to `through` was sent or did not pass the filter."""

    entries: tuple[LogEntry, ...]
    through: int
    head: int


class Follower:
    """Follows the log for callers."""

    def __init__(self, *, log: LogStore, view: LogView) -> None:
        self._log = log
        self._view = view

    async def follow(
        self, *, after: int, tenant: str | None, kinds: frozenset[EntryKind], bookmark_s: float
    ) -> AsyncIterator[Frame]:
        """Yield frames for ever; the caller has checked the position.

        Args:
            tenant: only this tenant's entries; None = all tenants'.
            kinds: only these kinds; empty = all.
            bookmark_s: longest silence.

        Raises:
            Unavailable: DRAINING, the process ends; follow another one from the last `through`.
            FailedPrecondition: LOG_REWOUND.
            OutOfRange: COMPACTED, observations after the position have left the log.
        """
        view = self._view
        incarnation = view.incarnation
        through = after
        clock = asyncio.get_running_loop().time
        sent_s = clock()
        while True:
            view.check_position(incarnation, 0)
            if view.closed:
                raise Unavailable(
                    "This server drains; follow again from the last position.",
                    reason=Reason.DRAINING,
                    metadata={"offset": str(through)},
                    retry_after_s=0.1,
                )
            left_s = sent_s + bookmark_s - clock()
            if view.head <= through and left_s > 0:
                await view.wait_beyond(through, left_s)
                continue
            entries, through = await self._next(through, tenant, kinds)
            if not entries and left_s > 0:
                continue  # what does not pass is told by a bookmark, and those only now and then
            for frame in _frames(entries, through, view):
                yield frame
            sent_s = clock()

    async def _next(
        self, after: int, tenant: str | None, kinds: frozenset[EntryKind]
    ) -> tuple[Sequence[LogEntry], int]:
        """Return what passes the filter after an offset, and up to where that is everything."""
        recent = self._view.recent(after, _READ_BYTES)
        if recent is not None:
            return [e for e in recent if _passes(e, tenant, kinds)], recent[-1].offset if recent else after
        page = await self._log.read(after, self._view.head, tenant=tenant, kinds=kinds, max_bytes=_READ_BYTES)
        if page.trim_offset > after and kinds != _CONTROL:
            raise _compacted(after, page.trim_offset)
        return page.entries, page.through


def _compacted(after: int, trim_offset: int) -> OutOfRange:
    return OutOfRange(
        f"Observations up to offset {trim_offset} have left the log, and {after} lies before that; start from a "
        f"checkpoint or from reads of history, then follow after {trim_offset}. Control entries alone can be followed "
        "from anywhere.",
        reason=Reason.COMPACTED,
        metadata={"trim_offset": str(trim_offset)},
    )


def _passes(entry: LogEntry, tenant: str | None, kinds: frozenset[EntryKind]) -> bool:
    return (tenant is None or entry.tenant == tenant) and (not kinds or entry.kind in kinds)


def _frames(entries: Sequence[LogEntry], through: int, view: LogView) -> Iterable[Frame]:
    """Cut entries into frames; the last one says `through`. Nothing passed = one bookmark."""
    frame: list[LogEntry] = []
    size = 0
    for entry in entries:
        if frame and (size + len(entry.body) > FRAME_BYTES or len(frame) >= FRAME_ENTRIES):
            yield Frame(entries=tuple(frame), through=frame[-1].offset, head=view.head)
            frame, size = [], 0
        frame.append(entry)
        size += len(entry.body)
    yield Frame(entries=tuple(frame), through=through, head=view.head)
