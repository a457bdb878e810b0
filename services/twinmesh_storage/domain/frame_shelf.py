"""Encoded frames, shared: followers with equal filters that stand at the same place get the same bytes.

What was committed never changes, so a frame is right for as long as it is kept; it is kept for moments, bounded in
bytes. A frame is encoded once however many wait for it, and read from the database once if memory has it no more.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from twinmesh_core.errors import OutOfRange, Reason
from twinmesh_storage.domain.entries import EntryKind, LogEntry
from twinmesh_storage.domain.flights import Flights
from twinmesh_storage.domain.follow_filter import Filter, TwinsOf
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.ports import LogStore

FRAME_BYTES: Final = 1 << 20
"""A frame ends once it holds this much, less with many followers; one larger entry makes a frame of its own."""
FRAME_ENTRIES: Final = 1_000
_IN_FLIGHT_BYTES: Final = 128 << 20  # of all followers' frames together, as long as entries are not larger
_SMALLEST_FRAME: Final = 64 << 10
_READ_BYTES: Final = 4 << 20
_READS_AT_ONCE: Final = 4
_KEPT_BYTES: Final = 32 << 20
_KEPT_FRAMES: Final = 4_096
_KEPT_S: Final = 2.0  # erased content must not outlive its erasure here by more
_CONTROL: Final = frozenset({EntryKind.CONTROL})


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Entries, or a bookmark when there are none: everything up to `through` was sent or did not pass the filter."""

    entries: tuple[LogEntry, ...]
    through: int
    head: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What comes after a place: a frame's bytes, None = nothing passed, and the place it leads to."""

    data: bytes | None
    through: int


EncodeFrame = Callable[[Frame, str], bytes]
"""Turns a frame, of a log of this incarnation, into what is sent."""

_Key = tuple[str, Filter, int]


class FrameShelf:
    """Makes frames and keeps the newest ones for whoever asks next."""

    def __init__(self, *, log: LogStore, view: LogView, twins_of: TwinsOf, encode: EncodeFrame) -> None:
        self._log = log
        self._view = view
        self._twins_of = twins_of
        self._encode = encode
        self._kept: OrderedDict[_Key, tuple[Step, float]] = OrderedDict()
        self._kept_bytes = 0
        self._reads = Flights(_READS_AT_ONCE)
        self._marks: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        self.followers = 0

    async def after(self, offset: int, wanted: Filter) -> Step:
        """Return the next step after an offset that is before the head.

        Raises:
            OutOfRange: COMPACTED, observations after the offset have left the log.
            Unavailable: the database is away, and memory does not reach back to the offset.
        """
        key = (self._view.incarnation, wanted, offset)
        kept = self._find(key)
        if kept is not None:
            return kept
        recent = self._view.recent(offset, _READ_BYTES)
        if recent:
            passing = [entry for entry in recent if wanted.passes(entry, self._twins_of)]
            return self._shelve(key, passing, recent[-1].offset)
        async with self._reads.one(key):
            kept = self._find(key)
            return kept if kept is not None else await self._read(key)

    def bookmark(self, through: int) -> bytes:
        """Return an empty frame that tells a place."""
        key = (self._view.incarnation, through, self._view.head)
        mark = self._marks.get(key)
        if mark is None:
            mark = self._encode(Frame(entries=(), through=through, head=key[2]), key[0])
            self._marks[key] = mark
            if len(self._marks) > _KEPT_FRAMES:
                self._marks.popitem(last=False)
        return mark

    def clear(self) -> None:
        """Keep nothing: bodies of entries were rewritten."""
        self._kept.clear()
        self._kept_bytes = 0

    async def _read(self, key: _Key) -> Step:
        _, wanted, offset = key
        page = await self._log.read(
            offset, self._view.head, tenant=wanted.tenant, kinds=wanted.kinds, max_bytes=_READ_BYTES
        )
        if page.trim_offset > offset and wanted.kinds != _CONTROL:
            raise compacted(offset, page.trim_offset)
        # The ring holds entries in the order of the log; a page does too, and both are told apart by nothing else.
        return self._shelve(key, [e for e in page.entries if wanted.passes(e, self._twins_of)], page.through)

    def _shelve(self, key: _Key, passing: Sequence[LogEntry], through: int) -> Step:
        """Keep the frames of entries that pass, and return the first: the next ones begin where it leads to."""
        incarnation, wanted, offset = key
        first: Step | None = None
        for frame in self._frames(passing, through):
            data = self._encode(frame, incarnation) if frame.entries else None
            step = Step(data=data, through=frame.through)
            self._keep((incarnation, wanted, offset), step)
            first = first or step
            offset = frame.through
        if first is None:
            raise AssertionError("there is always a frame: the last one tells where everything was seen")
        return first

    def _frames(self, entries: Sequence[LogEntry], through: int) -> Iterator[Frame]:
        """Cut entries into frames; the last one says `through`. Nothing passed = one without entries."""
        most = max(_SMALLEST_FRAME, min(FRAME_BYTES, _IN_FLIGHT_BYTES // max(1, self.followers)))
        head = self._view.head
        frame: list[LogEntry] = []
        size = 0
        for entry in entries:
            if frame and (size + len(entry.body) > most or len(frame) >= FRAME_ENTRIES):
                yield Frame(entries=tuple(frame), through=frame[-1].offset, head=head)
                frame, size = [], 0
            frame.append(entry)
            size += len(entry.body)
        yield Frame(entries=tuple(frame), through=through, head=head)

    def _find(self, key: _Key) -> Step | None:
        kept = self._kept.get(key)
        return kept[0] if kept is not None and kept[1] > _now_s() - _KEPT_S else None

    def _keep(self, key: _Key, step: Step) -> None:
        now_s = _now_s()
        old = self._kept.pop(key, None)
        self._kept_bytes += _size(step) - (_size(old[0]) if old is not None else 0)
        self._kept[key] = (step, now_s)
        while self._kept and (
            len(self._kept) > _KEPT_FRAMES
            or self._kept_bytes > _KEPT_BYTES
            or next(iter(self._kept.values()))[1] < now_s - _KEPT_S
        ):
            _, (gone, _) = self._kept.popitem(last=False)
            self._kept_bytes -= _size(gone)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _size(step: Step) -> int:
    return len(step.data) if step.data is not None else 0


def compacted(after: int, trim_offset: int) -> OutOfRange:
    """Return the refusal of a position whose observations have left the log."""
    return OutOfRange(
        f"Observations up to offset {trim_offset} have left the log, and {after} lies before that; start from a "
        f"checkpoint or from reads of history, then follow after {trim_offset}. Control entries alone can be followed "
        "from anywhere.",
        reason=Reason.COMPACTED,
        metadata={"trim_offset": str(trim_offset)},
    )
