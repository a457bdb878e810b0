"""The log as this process has it in memory: its newest entries, its uncompacted rows, its newest values.

Only committed entries enter, in order and without gap: `apply` is called by the sequencer after its own commits, and
by a stand-by with what it reads from the log. Whoever waits for an offset is woken here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from twinmesh_core.errors import FailedPrecondition, OutOfRange, Reason
from twinmesh_core.time import Clock
from twinmesh_storage.domain.entries import EntryKind, LogEntry
from twinmesh_storage.domain.folding import Hide, uncovered
from twinmesh_storage.domain.hot import HotRows
from twinmesh_storage.domain.latest import LatestTable
from twinmesh_storage.domain.tail import Run, Tail, TailView, winners_by_lane

_CATCH_UP_S: Final = 2.0
"""Longest wait of a read for an offset that this process has not seen yet."""
_THREAD_ROWS: Final = 20_000  # sorting more takes over about 2 ms, too long for the event loop


HideOf = Callable[[LogEntry], Hide | None]
"""Tells what a control entry hides; None = nothing."""


class Ring:
    """The newest entries, bounded in bytes; older ones are read from the database."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: list[LogEntry] = []

    def append(self, entry: LogEntry) -> None:
        """Add the entry after the newest; the oldest make room."""
        self._entries.append(entry)
        self._bytes += len(entry.body)
        if self._bytes > self._max_bytes and len(self._entries) > 1:
            # Dropping an eighth at a time keeps the list's shifting out of the hot path.
            drop, freed = 0, 0
            while self._bytes - freed > self._max_bytes * 7 // 8 and drop < len(self._entries) - 1:
                freed += len(self._entries[drop].body)
                drop += 1
            del self._entries[:drop]
            self._bytes -= freed

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0

    def after(self, offset: int, max_bytes: int) -> list[LogEntry] | None:
        """Return entries after `offset` that fit `max_bytes` (at least one if any); None = they are not all here."""
        if not self._entries:
            return None
        index = offset + 1 - self._entries[0].offset
        if index < 0:
            return None
        taken: list[LogEntry] = []
        size = 0
        for entry in self._entries[index : index + 4096]:
            if taken and size + len(entry.body) > max_bytes:
                break
            taken.append(entry)
            size += len(entry.body)
        return taken


def _uncovered(run: Run, hides: Sequence[Hide]) -> Run:
    """Return a run without the rows that a deletion covers."""
    rows = uncovered(run.rows, hides)
    return run if rows is run.rows else Run.of(run.lane, rows)


class LogView:
    """Head, ring, tail and latest values; lives on the event loop.

    Args:
        incarnation: of the log; offsets of another mean nothing here.
        fold_offset: entries up to here are in blocks; the view begins after it.
        ring_bytes: bound of the ring.
        hot_rows: bound of the unpacked history.
        hide_of: tells what a control entry hides.
    """

    def __init__(
        self,
        *,
        incarnation: str,
        fold_offset: int,
        ring_bytes: int,
        hot_rows: int,
        clock: Clock,
        hide_of: HideOf = lambda _: None,
    ) -> None:
        self.incarnation = incarnation
        self.tail = Tail(fold_offset)
        self.latest = LatestTable()
        self.hot = HotRows(hot_rows)
        self._ring = Ring(ring_bytes)
        self._hide_of = hide_of
        self._clock = clock
        self._head = fold_offset
        self._control = fold_offset
        self._commit_time_unix_us = 0
        self._changed = asyncio.Event()
        self._indexing = asyncio.Lock()
        self._closed = False
        self._life = 0  # counts resets: what was sorted in an earlier life is not of this log

    def uncompacted_s(self) -> float:
        """Return how long the oldest rows that are not in history have been here, in seconds; 0 = there are none."""
        oldest = self.tail.oldest()
        return 0.0 if oldest is None else self._clock.monotonic_s() - oldest.opened_s

    @property
    def head(self) -> int:
        """Offset of the newest durable entry that this process has."""
        return self._head

    @property
    def control_offset(self) -> int:
        """Offset beyond which there is no control entry up to the head; kinds of older entries are not known."""
        return self._control

    @property
    def commit_time_unix_us(self) -> int:
        """Commit time of the head; 0 while it is not known."""
        return self._commit_time_unix_us

    @property
    def closed(self) -> bool:
        """Whether streams must end."""
        return self._closed

    def close(self) -> None:
        """End every wait: the process drains."""
        self._closed = True
        self._wake()

    def reset(self, *, incarnation: str, fold_offset: int, commit_time_unix_us: int = 0) -> None:
        """Begin anew after `fold_offset`, possibly of another incarnation."""
        self.incarnation = incarnation
        self._life += 1
        self.tail.reset(fold_offset)
        self.latest = LatestTable()
        self.hot.clear()
        self._ring.clear()
        self._head = fold_offset
        self._control = fold_offset
        self._commit_time_unix_us = commit_time_unix_us
        self._wake()

    def apply(self, entries: Sequence[LogEntry]) -> None:
        """Make the next committed entries visible."""
        if not entries:
            return
        now_s = self._clock.monotonic_s()
        for entry in entries:
            if entry.offset != self._head + 1:
                raise AssertionError(f"offset {entry.offset} does not follow {self._head}")
            hide = self._hide_of(entry) if entry.kind is EntryKind.CONTROL else None
            if hide is not None and hide.erases:
                # Followers that lie behind read from the log from now on, where the bodies are about to be rewritten.
                self._ring.clear()
            self.tail.append(entry, now_s, hide)
            if hide is not None:
                self.forget_hidden((hide,))
            self._ring.append(entry)
            self._head = entry.offset
            if entry.kind is EntryKind.CONTROL:
                self._control = entry.offset
        self._commit_time_unix_us = entries[-1].commit_time_unix_us
        self._wake()

    async def folded_elsewhere(self, fold_offset: int) -> None:
        """Learn that another process folded entries up to here; what they held stays known, as if folded here."""
        if fold_offset <= self.tail.base:
            return
        await self.tail_view()  # sorts what leaves, and so tells the newest values of it
        gone, hides = self.tail.leaving(fold_offset)
        fresh = await asyncio.to_thread(winners_by_lane, gone, hides) if gone else {}
        # No await from here on: whoever reads sees the rows in the tail or in what was unpacked from blocks.
        self.tail.drop_through(fold_offset)
        self.hot.absorb(fresh)
        self.forget_hidden(hides)

    def seed_commit_time(self, commit_time_unix_us: int) -> None:
        """State the head's commit time when no entry has been applied yet."""
        self._commit_time_unix_us = max(self._commit_time_unix_us, commit_time_unix_us)

    def recent(self, after: int, max_bytes: int) -> list[LogEntry] | None:
        """Return entries after an offset from memory, None when some are not there any more."""
        if after >= self._head:
            return []
        return self._ring.after(after, max_bytes)

    async def wait_beyond(self, offset: int, timeout_s: float) -> bool:
        """Wait until the head is beyond `offset`; False = not within the time, or the process drains."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._head <= offset and not self._closed:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return self._head > offset

    async def wait_for(self, offset: int, field: str = "min_offset") -> None:
        """Wait until this process reflects `offset`.

        Every offset that a caller was told is durable, and a process lags behind the log for a moment only: one that
        does not arrive within `_CATCH_UP_S` was never given out.

        Raises:
            OutOfRange: FUTURE_OFFSET when the offset does not arrive.
        """
        if offset <= self._head or await self.wait_beyond(offset - 1, _CATCH_UP_S):
            return
        raise OutOfRange(
            f"{field}: {offset} lies beyond the log's head, {self._head}; use the offset of an acknowledgement.",
            reason=Reason.FUTURE_OFFSET,
            metadata={"head_offset": str(self._head)},
        )

    def check_position(self, incarnation: str, offset: int) -> None:
        """Refuse a position that is not of this log.

        Raises:
            FailedPrecondition: LOG_REWOUND, the incarnation is another.
            OutOfRange: FUTURE_OFFSET, beyond the head.
        """
        if incarnation and incarnation != self.incarnation:
            raise FailedPrecondition(
                "The log was restored to an earlier point; start again from a snapshot.",
                reason=Reason.LOG_REWOUND,
                metadata={"incarnation": self.incarnation},
            )
        if offset > self._head:
            raise OutOfRange(
                f"Offset {offset} lies beyond the head {self._head}.",
                reason=Reason.FUTURE_OFFSET,
                metadata={"head_offset": str(self._head)},
            )

    async def tail_view(self) -> TailView:
        """Return the tail, sorted, reflecting at least the head of the moment of the call."""
        async with self._indexing:
            if self.tail.unindexed_rows():
                life = self._life
                work = self.tail.take_pending()
                if self.tail.unindexed_rows() > _THREAD_ROWS:
                    done = await asyncio.to_thread(Tail.sort_pending, work)
                else:
                    done = Tail.sort_pending(work)
                self.tail.put_sorted(done)
                if life == self._life:
                    hides = self.tail.hides()
                    for one in done:
                        for run in one.fresh:
                            self.latest.absorb(_uncovered(run, hides))
            return self.tail.view()

    def forget_hidden(self, hides: Sequence[Hide]) -> None:
        """Forget what is known of folded rows that deletions concern, when they arrive and again when they are folded.

        Newest values are all read again.
        """
        if not hides:
            return
        self.hot.forget({series_id for hide in hides for series_id in hide.series_ids})
        self.latest = LatestTable()
        view = self.tail.view()
        for run in view.runs:
            self.latest.absorb(_uncovered(run, view.hides))

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
