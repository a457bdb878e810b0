"""The backlog on disk: batches are taken when they are written, and read again to be sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

from twinmesh_client.aio.backlog import Item, Window, copied, fenced, rewound
from twinmesh_client.limits import MAX_UNACKED_BYTES, MAX_UNACKED_POINTS, SPOOL_MAX_BYTES
from twinmesh_client.refusals import Refusals, RefusedBatch
from twinmesh_client.spool.spool import SEGMENT_BYTES, Batch, Cursor, Spool, disk_error
from twinmesh_core.errors import ResourceExhausted, TwinmeshError, Unavailable, invalid_field
from twinmesh_core.ids import require_producer_id

GROUP_BYTES: Final = 8 * 1024 * 1024
"""Most bytes that are written with one flush to disk."""
LEAST_BYTES: Final = 1_000_000
READ_BYTES: Final = 4 * 1024 * 1024
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolOptions:
    """Where a spool is and how it behaves; see `Mesh.writer`.

    Attributes:
        directory: of this producer alone.
        max_bytes: bound on disk.
        full: ``wait`` for the mesh to take something, or ``error``.
        fsync: on disk, not only in the system's cache, before anybody is told.
        keep_bytes: acknowledged batches to keep at most.
        accept_gap: go on where a restored mesh lacks batches that are no longer here.
    """

    directory: Path
    max_bytes: int = SPOOL_MAX_BYTES
    full: Literal["wait", "error"] = "wait"
    fsync: bool = True
    keep_bytes: int = 0
    accept_gap: bool = False


def spool_options(
    directory: str | Path | None,
    *,
    max_bytes: int,
    full: Literal["wait", "error"],
    fsync: bool,
    keep_bytes: int,
    accept_gap: bool,
) -> SpoolOptions | None:
    """Return the options of a spool, None without a directory; raises `InvalidArgument` for what makes no sense."""
    if directory is None:
        return None
    if max_bytes < LEAST_BYTES:
        raise invalid_field("spool_max_bytes", f"is {max_bytes:,}; give at least {LEAST_BYTES:,}")
    if not 0 <= keep_bytes <= max_bytes // 2:
        raise invalid_field("spool_keep_bytes", f"is {keep_bytes:,}; give 0 to half of spool_max_bytes")
    if full not in ("wait", "error"):
        raise invalid_field("spool_full", f"is {full!r}; choose wait or error")
    return SpoolOptions(
        directory=Path(directory),
        max_bytes=max_bytes,
        full=full,
        fsync=fsync,
        keep_bytes=keep_bytes,
        accept_gap=accept_gap,
    )


class SpoolBacklog:
    """Keeps batches in a spool; in memory is only what is on its way. Numbers are the spool's own.

    One thread does all that touches the disk, one thing at a time.
    """

    def __init__(self, producer_id: str, options: SpoolOptions) -> None:
        self.changed = asyncio.Condition()
        self.window = Window()
        self.started = False
        self.refusals = Refusals()
        self._producer_id = require_producer_id(producer_id)
        self._options = options
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="twinmesh-spool")
        self._waiting: list[tuple[Batch, asyncio.Future[int]]] = []
        self._waiting_bytes = 0
        self._wanted = asyncio.Event()
        self._cursor = Cursor(1)
        self._on_disk = 0
        self._durable = 0
        self._failure: TwinmeshError | None = None

    async def open(self) -> None:
        """Open the directory; raises as `Spool`."""
        options = self._options
        self._spool = await self._run(
            lambda: Spool(
                options.directory,
                self._producer_id,
                fsync=options.fsync,
                keep_bytes=options.keep_bytes,
                segment_bytes=min(SEGMENT_BYTES, options.max_bytes // 8),
                refused_bytes=options.max_bytes // 4,
            )
        )
        self._on_disk = self._spool.next_number - 1
        self._durable = self._spool.first_number - 1
        state = self._spool.state
        self.refusals.batches, self.refusals.points = state.refused, state.refused_points

    async def close(self) -> None:
        """Let go of the directory."""
        try:
            if hasattr(self, "_spool"):
                await self._run(self._spool.close)
        finally:
            self._disk.shutdown(wait=False)

    @property
    def taken(self) -> int:
        """Number of the last batch that is on disk."""
        return self._on_disk

    @property
    def durable(self) -> int:
        """Number up to which all are durable in the mesh, or were lost or refused."""
        return self._durable

    @property
    def used_bytes(self) -> int:
        """Bytes on disk."""
        return self._spool.size

    @property
    def damaged(self) -> int:
        """Batches that were damaged on disk and not sent."""
        return self._spool.state.lost_count - self._spool.state.refused

    @property
    def cut_bytes(self) -> int:
        """Bytes at the end that a killed process had only begun to write."""
        return self._spool.cut_bytes

    async def start(self, durable: int, *, ask_again: bool, points: int = 0, byte_count: int = 0) -> int:
        """Go on after what the mesh says is durable; the first time ever, this settles which sequences ours are."""
        state = self._spool.state
        first = self._spool.first_number
        if state.base is None:
            await self._run(lambda: self._spool.adopt(durable - (first - 1)))
        if durable > state.sequence_of(self._on_disk):
            raise fenced(self._producer_id, durable)
        if durable < state.sequence_of(first - 1):
            if not self._options.accept_gap:
                raise rewound(durable, state.sequence_of(first - 1))
            base = (state.base or 0) + durable - state.sequence_of(first - 1)
            await self._run(lambda: self._spool.adopt(base))
            self.window.clear()
        async with self.changed:
            unheard = self.window.settle(durable - ask_again)
            if not self.window.items or self.window.items[0].sequence > durable + 1:
                self.window.clear()
                self._cursor = Cursor(state.number_of(durable) + 1)
            self.window.grant(points, byte_count)
            self._durable = state.number_of(durable)
            self.started = True
            self.changed.notify_all()
        await self._release()
        return unheard

    async def set_aside(self, sequence: int, error: TwinmeshError) -> RefusedBatch | None:
        """Keep a refused batch in the spool's file for such; those behind it are read again, with new sequences."""
        async with self.changed:
            number = self._spool.state.number_of(sequence - 1) + 1
            refused = await self._run(lambda: self._spool.set_aside(number, error))
            self.window.clear()
            self._cursor = Cursor(number + 1)
            if refused is not None:
                self.refusals.add(refused)
            return refused

    async def refused(self) -> list[RefusedBatch]:
        """Return the refused batches that are kept, oldest first."""
        return await self._run(self._spool.refused.load)

    async def forget_refused(self) -> None:
        """Remove them from the disk."""
        await self._run(self._spool.refused.clear)

    async def put(self, columns: bytes, points: int, *, backfill: bool) -> int:
        """Take one batch and return its number when it is on disk; waits for room, or raises where that was chosen."""
        batch = Batch(body=columns, points=points, backfill=backfill)
        async with self.changed:
            if not self._has_room(batch):
                # Something of what the mesh has may lie in the last file still: a batch that needs all waits for ever.
                if self._options.full == "error" or batch.disk_bytes > self._most_bytes():
                    raise self._is_full(batch)
                await self.changed.wait_for(lambda: self._failure is not None or self._has_room(batch))
            if self._failure is not None:
                raise copied(self._failure)
            on_disk: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._waiting.append((batch, on_disk))
            self._waiting_bytes += batch.disk_bytes
            self._wanted.set()
        return await on_disk

    async def next(self) -> Item:
        """Return the next batch to send, from memory or from disk."""
        async with self.changed:
            while (item := self.window.next()) is None:
                if self.window.unsent:
                    await self.changed.wait()
                    continue
                await self.changed.wait_for(self._may_read)
                await self._read()
            return item

    async def settle(self, sequence: int) -> None:
        """Forget what is durable up to this sequence, and remove files that hold nothing else."""
        async with self.changed:
            self.window.settle(sequence)
            self._durable = max(self._durable, self._spool.state.number_of(sequence))
            self.changed.notify_all()
        await self._release()

    async def work(self) -> None:
        """Write what is taken, as much as waits with one flush to disk; several callers share it."""
        try:
            while True:
                await self._wanted.wait()
                await self._write()
        finally:
            self._refuse(self._waiting)

    def end(self, failure: TwinmeshError) -> None:
        """Let whoever waits here raise this."""
        self._failure = failure

    def _is_full(self, batch: Batch) -> ResourceExhausted:
        return ResourceExhausted(
            f"The spool holds {self.used_bytes:,} bytes, the batch needs {batch.disk_bytes:,}, and the bound is "
            f"{self._options.max_bytes:,}; nothing was taken. Wait until the mesh is back, raise spool_max_bytes, or "
            "let write wait: spool_full='wait'.",
            metadata={"spool": self._options.directory.name, "used_bytes": str(self.used_bytes)},
        )

    def _most_bytes(self) -> int:
        """Return what fits when the mesh has everything: what is kept, and a quarter of a file, stay."""
        return self._options.max_bytes * 31 // 32 - self._options.keep_bytes

    def _has_room(self, batch: Batch) -> bool:
        return self._spool.size + self._waiting_bytes + batch.disk_bytes <= self._options.max_bytes

    def _may_read(self) -> bool:
        room = self.window.points < MAX_UNACKED_POINTS and self.window.bytes < MAX_UNACKED_BYTES
        return room and self._cursor.number <= self._on_disk

    async def _read(self) -> None:
        """Move batches from disk into the window; the lock is held, so that no rewinding comes between."""
        cursor = self._cursor
        records, self._cursor = await self._run(lambda: self._spool.read(cursor, READ_BYTES))
        state = self._spool.state
        for record in records:
            self.window.add(Item(state.sequence_of(record.number), record.body, record.points, record.backfill))
        if not self.window.items:
            # Nothing whole is left: what was damaged must not be waited for.
            self._durable = self._on_disk
            self.changed.notify_all()

    async def _write(self) -> None:
        group: list[tuple[Batch, asyncio.Future[int]]] = []
        size = 0
        while self._waiting and size < GROUP_BYTES:
            group.append(self._waiting.pop(0))
            size += group[-1][0].disk_bytes
        if not self._waiting:
            self._wanted.clear()
        try:
            first = await self._run(lambda: self._spool.append([batch for batch, _ in group]))
        except TwinmeshError as error:
            for _, on_disk in group:
                if not on_disk.done():
                    on_disk.set_exception(copied(error))
            async with self.changed:
                self._waiting_bytes -= size
                self.changed.notify_all()
            return
        except BaseException:
            self._refuse(group)
            raise
        async with self.changed:
            self._waiting_bytes -= size
            self._on_disk = first + len(group) - 1
            self.changed.notify_all()
        for i, (_, on_disk) in enumerate(group):
            if not on_disk.done():
                on_disk.set_result(first + i)

    def _refuse(self, group: list[tuple[Batch, asyncio.Future[int]]]) -> None:
        """Tell whoever still waits that nobody will write: whether the batch was is not known."""
        failure = self._failure or Unavailable("The writer was closed.")
        for _, on_disk in group:
            if not on_disk.done():
                on_disk.set_exception(copied(failure))

    async def _release(self) -> None:
        durable = self._durable
        if self._spool.holds_only_durable(durable):
            await self._run(lambda: self._spool.release(durable))
            async with self.changed:
                self.changed.notify_all()

    async def _run(self, function: Callable[[], ResultT]) -> ResultT:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._disk, function)
        except OSError as error:
            # The session goes on when the disk does, as it does when the mesh is away.
            raise disk_error(error, self._options.directory) from None
