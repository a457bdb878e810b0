"""The spool itself: opened and mended, appended to, read in order, shortened as the mesh acknowledges."""

from __future__ import annotations

import errno
import fcntl
import os
import time as clock
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from twinmesh_client.refusals import RefusedBatch
from twinmesh_client.spool import records, state
from twinmesh_client.spool.records import Record
from twinmesh_client.spool.refused import MAX_BYTES, RefusedFile
from twinmesh_core.errors import DataLoss, FailedPrecondition, ResourceExhausted, TwinmeshError, Unavailable

SEGMENT_BYTES: Final = 16 * 1024 * 1024
_SUFFIX: Final = ".spool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch to append: its encoding, its rows, and whether it is declared as recorded history."""

    body: bytes
    points: int
    backfill: bool

    @property
    def disk_bytes(self) -> int:
        """What it takes on disk."""
        return len(self.body) + records.HEAD_BYTES


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where reading goes on: the next number, and where it stands if that is known (else it is looked for)."""

    number: int
    segment: int = 0
    position: int = 0


@dataclass(slots=True)
class _Segment:
    first: int
    path: Path
    size: int


class Spool:
    """One directory, open for one producer; every method blocks, and one thread at a time may use it.

    Args:
        directory: created if absent.
        producer_id: whose batches these are.
        fsync: every append is on disk, not only in the system's cache, when it returns. Without it batches survive
            the end of this process, but not that of the machine.
        keep_bytes: acknowledged batches to keep at most, for a mesh that is restored from a backup.
        segment_bytes: a file is full at this size.
        refused_bytes: bound of the file of refused batches.

    Raises:
        FailedPrecondition: another process has it open (its pid is named), or it is another producer's.
        DataLoss: its state file is damaged.
    """

    def __init__(
        self,
        directory: Path,
        producer_id: str,
        *,
        fsync: bool = True,
        keep_bytes: int = 0,
        segment_bytes: int = SEGMENT_BYTES,
        refused_bytes: int = MAX_BYTES,
    ) -> None:
        self._directory = directory
        self._fsync = fsync
        self._keep_bytes = keep_bytes
        self._segment_bytes = segment_bytes
        self.refused = RefusedFile(directory, refused_bytes)
        """Batches that the mesh refused."""
        self._lock = _lock(directory)
        try:
            self._state = state.load(directory, producer_id)
            self._segments = [
                _Segment(int(path.stem), path, path.stat().st_size)
                for path in sorted(directory.glob(f"*{_SUFFIX}"))
                if path.stem.isdigit()
            ]
            self.cut_bytes = 0
            """Bytes cut from the end when it was opened: what a killed process had begun to write."""
            self._next = 1
            self._fd = -1
            self._mend()
            self.size = sum(segment.size for segment in self._segments)
            """Bytes on disk, acknowledged ones included as long as their file is there."""
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def next_number(self) -> int:
        """Number of the next batch that is taken."""
        return self._next

    @property
    def first_number(self) -> int:
        """Number of the oldest batch that is still here."""
        return self._segments[0].first

    @property
    def state(self) -> state.State:
        """How numbers become sequences, and what was lost."""
        return self._state

    def adopt(self, base: int) -> None:
        """Settle, durably, which sequence the first batch has: `base` + 1, less what was lost."""
        self._state.base = base
        state.save(self._directory, self._state)

    def append(self, batches: Sequence[Batch]) -> int:
        """Write batches at the end, all or none; returns the number of the first. They are on disk when it returns.

        Raises:
            ResourceExhausted: the disk is full.
            Unavailable: the disk failed.
        """
        if self._segments[-1].size >= self._segment_bytes:
            self._begin_segment(self._next)
        segment = self._segments[-1]
        first = self._next
        parts: list[bytes] = []
        for number, batch in enumerate(batches, start=first):
            parts += records.encode(
                Record(number=number, body=batch.body, points=batch.points, backfill=batch.backfill)
            )
        try:
            written = _write(self._fd, parts)
            if self._fsync:
                os.fdatasync(self._fd)
        except OSError as error:
            self._take_back(segment)
            raise disk_error(error, self._directory) from None
        segment.size += written
        self.size += written
        self._next += len(batches)
        return first

    def read(self, cursor: Cursor, max_bytes: int) -> tuple[list[Record], Cursor]:
        """Return the next whole batches, at least one unless none is left, and where to go on.

        What was refused is passed over. So is what is damaged, and noted in `state.lost` durably before anything behind
        it is returned.
        """
        found: list[Record] = []
        size = 0
        number = cursor.number
        damaged = False
        for segment, end, record in self._walk(cursor):
            if record.number > number:
                damaged |= self._state.lose(number, record.number - 1)
            number = record.number + 1
            if not self._state.is_lost(record.number):
                found.append(record)
                size += len(record.body)
            cursor = Cursor(number, segment.first, end)
            if size >= max_bytes:
                break
        else:
            if number < self._next:
                damaged |= self._state.lose(number, self._next - 1)
                cursor = Cursor(self._next)
        if damaged:
            state.save(self._directory, self._state)
        return found, cursor

    def set_aside(self, number: int, error: TwinmeshError) -> RefusedBatch | None:
        """Keep a batch that the mesh refused in a file of its own, and give its sequence to the next one, durably.

        A process that is killed in between sends the batch again, is refused again, and keeps it once.

        Returns:
            What was refused; None = it is damaged by now, and counts as that.

        Raises:
            ResourceExhausted: no room for it there.
        """
        records, _ = self.read(Cursor(number), 1)
        if not records or records[0].number != number:
            return None
        record = records[0]
        refused = RefusedBatch(
            number=number,
            points=record.points,
            backfill=record.backfill,
            time_unix_us=clock.time_ns() // 1_000,
            error=error,
            columns=record.body,
        )
        self.refused.append(refused)
        self._state.lose(number, number)
        self._state.refused += 1
        self._state.refused_points += record.points
        self._state.forget(self.first_number)
        state.save(self._directory, self._state)
        return refused

    def holds_only_durable(self, number: int) -> bool:
        """Return whether `release` up to this number would remove a file; may be asked from any thread."""
        segments = self._segments
        return (len(segments) > 1 and segments[1].first <= number + 1) or self._is_spent(number)

    def release(self, number: int) -> None:
        """Remove files all of whose batches the mesh has, up to `number`, beyond those that are to be kept."""
        if self._is_spent(number):
            self._begin_segment(self._next)
        ends = [s.first - 1 for s in self._segments[1:]]
        settled = [s for s, end in zip(self._segments, ends, strict=False) if end <= number]
        kept = sum(s.size for s in settled)
        for segment in settled:
            if kept <= self._keep_bytes:
                break
            segment.path.unlink(missing_ok=True)
            kept -= segment.size
            self.size -= segment.size
            self._segments.remove(segment)

    def _is_spent(self, number: int) -> bool:
        """Return whether the last file holds much, and nothing that the mesh lacks."""
        return number + 1 >= self._next and self._segments[-1].size * 4 > self._segment_bytes

    def close(self) -> None:
        """Close the files and let another process have it."""
        for fd in (self._fd, self._lock):
            with suppress(OSError):
                os.close(fd)

    def _walk(self, cursor: Cursor) -> Iterator[tuple[_Segment, int, Record]]:
        """Yield whole records from a cursor on, with their segment and where they end."""
        at = max(0, bisect_right([s.first for s in self._segments], cursor.number) - 1)
        for segment in self._segments[at:]:
            position = cursor.position if segment.first == cursor.segment else 0
            first = cursor.number if position else segment.first
            fd = os.open(segment.path, os.O_RDONLY)
            try:
                if not position and segment.first < cursor.number:
                    position = _position_of(fd, segment, cursor.number)
                for item in records.walk(fd, segment.size, first=first, position=position):
                    if item.record is not None and item.number >= cursor.number:
                        yield segment, item.end, item.record
            finally:
                os.close(fd)

    def _mend(self) -> None:
        """Find the end of the last file, cut what was only begun, and leave damage to be passed over by `read`."""
        if not self._segments:
            # Whoever removed the files removed the batches too: what was agreed about their numbers is void.
            self._state = state.State(producer_id=self._state.producer_id)
            state.save(self._directory, self._state)
            self._begin_segment(1)
            return
        segment = self._segments[-1]
        self._next = segment.first
        self._fd = os.open(segment.path, os.O_RDWR)
        end = 0
        damaged_end = False
        for item in records.walk(self._fd, segment.size, first=segment.first):
            if item.torn:
                self.cut_bytes = segment.size - end
                segment.size = end
                os.ftruncate(self._fd, end)
                os.fsync(self._fd)
                break
            end = item.end
            damaged_end = item.headless and end == segment.size
            # A head that nobody can read hides one batch at least: its number is not given to another.
            self._next = item.number + (1 if damaged_end or not item.headless else 0)
        os.lseek(self._fd, segment.size, os.SEEK_SET)
        if damaged_end:
            self._begin_segment(self._next)

    def _begin_segment(self, first: int) -> None:
        path = self._directory / f"{first:020d}{_SUFFIX}"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            state.sync_directory(self._directory)
        except OSError as error:
            raise disk_error(error, self._directory) from None
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._segments.append(_Segment(first, path, 0))

    def _take_back(self, segment: _Segment) -> None:
        """Remove what a failed append left: it was promised to nobody, and its caller may write it again."""
        try:
            os.ftruncate(self._fd, segment.size)
            os.lseek(self._fd, segment.size, os.SEEK_SET)
        except OSError as error:
            raise DataLoss(
                "The spool's disk failed, and what was half written could not be taken back; mend the disk and open "
                "the spool again.",
                metadata={"spool": self._directory.name},
            ) from error


def _position_of(fd: int, segment: _Segment, number: int) -> int:
    """Return where a number stands, or the first whole head after it."""
    position = 0
    for item in records.walk(fd, segment.size, first=segment.first, bodies=False):
        if item.record is not None and item.number >= number:
            return position
        position = item.end
    return position


def _write(fd: int, parts: list[bytes]) -> int:
    """Write everything; a system call takes so many buffers only, and may write less than it was given."""
    total = 0
    for start in range(0, len(parts), 512):
        waiting = [memoryview(part) for part in parts[start : start + 512]]
        while waiting:
            written = os.writev(fd, waiting)
            total += written
            while waiting and written >= len(waiting[0]):
                written -= len(waiting.pop(0))
            if waiting and written:
                waiting[0] = waiting[0][written:]
    return total


def _lock(directory: Path) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise disk_error(error, directory) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise FailedPrecondition(
            f"The spool {directory.name!r} is in use by process {holder or '(unknown)'}; one process at a time may use "
            "a spool. Give each producer a directory of its own, or end that process.",
            metadata={"spool": directory.name, "pid": holder},
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def disk_error(error: OSError, directory: Path) -> TwinmeshError:
    """Return what a caller is told of a disk that is full or fails."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(
            "The disk of the spool is full; nothing was taken. Free space, or give the spool another directory.",
            metadata={"spool": directory.name},
        )
    what = (error.strerror or "it failed").lower()
    return Unavailable(
        f"The spool {directory.name!r} cannot be used: {what}; nothing was taken.", metadata={"spool": directory.name}
    )
