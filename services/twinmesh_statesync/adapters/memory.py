"""A log, checkpoints and leases in this process's memory: the fakes that the contract suites hold to the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

import numpy as np

from twinmesh_core.errors import FailedPrecondition, InvalidArgument, OutOfRange, Reason
from twinmesh_core.observations import ObservationBatch, concat
from twinmesh_core.time import Clock
from twinmesh_statesync.domain.checkpoint import CHANGES, EVENT, TWIN, VERDICT, Checkpoint, Position, Record
from twinmesh_statesync.domain.entries import ControlEntry, LogEntry
from twinmesh_statesync.domain.generations import Generation, newest_at
from twinmesh_statesync.domain.leases import DUTIES, Fence, Roll
from twinmesh_statesync.domain.ports import LogFrame


class MemoryLog:
    """An ordered log that forgets with the process.

    Args:
        clock: gives commit times.
        frame_size: most entries of one frame.
    """

    def __init__(self, clock: Clock, *, frame_size: int = 256) -> None:
        self.incarnation = "memory-1"
        self.entries: list[LogEntry] = []
        self.covered: Position | None = None
        self.trim_offset = 0
        self._clock = clock
        self._frame_size = frame_size
        self._requests: dict[tuple[str, str], tuple[bytes, int]] = {}
        self._grown = asyncio.Event()

    async def append(self, tenant: str, entry: ControlEntry, *, content_hash: bytes) -> Position:
        """Append a control entry; see the port."""
        known = self._requests.get((tenant, entry.request_id))
        if known is not None:
            if known[0] != content_hash:
                raise InvalidArgument("request_id was used with other content", reason=Reason.REQUEST_ID_REUSED)
            return Position(incarnation=self.incarnation, offset=known[1])
        offset = self._add(tenant, entry)
        self._requests[tenant, entry.request_id] = (content_hash, offset)
        return Position(incarnation=self.incarnation, offset=offset)

    def observe(self, tenant: str, batch: ObservationBatch) -> int:
        """Append observations as ingestion would; return the offset."""
        return self._add(tenant, batch)

    def trim(self, offset: int) -> None:
        """Let the observations up to here leave the log, as storage does."""
        self.trim_offset = offset

    async def latest(
        self, tenant: str, twin_ids: Sequence[str], *, at_unix_us: int | None = None, as_of_offset: int = 0
    ) -> ObservationBatch:
        """Return newest observations; see the port."""
        known = self.entries[: as_of_offset or None]
        batches = [entry.body for entry in known if entry.tenant == tenant]
        whole = concat([body for body in batches if isinstance(body, ObservationBatch)])
        newest: dict[int, int] = {}
        doubles = whole.doubles
        for row, (handle, time) in enumerate(zip(doubles.series.tolist(), doubles.time_unix_us.tolist(), strict=True)):
            if whole.series[handle].twin_id in twin_ids and (at_unix_us is None or time <= at_unix_us):
                best = newest.get(handle)
                if best is None or time >= int(doubles.time_unix_us[best]):
                    newest[handle] = row
        rows = np.array(sorted(newest.values()), np.intp)
        return ObservationBatch(series=whole.series, doubles=doubles.select(rows))

    async def follow(self, after: Position, *, control_only: bool = False) -> AsyncGenerator[LogFrame, None]:
        """Yield frames after a position; see the port."""
        if after.offset < self.trim_offset and not control_only:
            raise OutOfRange("left the log", reason=Reason.COMPACTED, metadata={"trim_offset": str(self.trim_offset)})
        if after.incarnation and after.incarnation != self.incarnation:
            raise FailedPrecondition("the log was restored", reason=Reason.LOG_REWOUND)
        if after.offset > len(self.entries):
            raise OutOfRange("beyond the head", reason=Reason.FUTURE_OFFSET)
        at, incarnation = after.offset, self.incarnation
        while True:
            if incarnation != self.incarnation:
                raise FailedPrecondition("the log was restored", reason=Reason.LOG_REWOUND)
            grown = self._grown
            entries = tuple(self.entries[at : at + self._frame_size])
            at += len(entries)
            yield LogFrame(
                entries=tuple(e for e in entries if not control_only or isinstance(e.body, ControlEntry)),
                through=Position(incarnation=self.incarnation, offset=at),
                head_offset=len(self.entries),
            )
            if at == len(self.entries):
                # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes with what it waits for.
                with suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await grown.wait()

    async def replay(
        self, after: Position, tenant: str, twin_ids: Collection[str] = ()
    ) -> AsyncGenerator[LogFrame, None]:
        """Yield one tenant's frames after a position; see the port."""
        async with aclosing(self.follow(after)) as frames:
            async for frame in frames:
                entries = tuple(e for e in frame.entries if e.tenant == tenant and _names(e, twin_ids))
                yield replace(frame, entries=entries)

    async def register_checkpoint(self, covered: Position) -> None:
        """Keep it in `covered`; see the port."""
        if covered.incarnation != self.incarnation:
            raise FailedPrecondition("the log was restored", reason=Reason.LOG_REWOUND)
        self.covered = covered

    async def head(self) -> Position:
        """Return the newest position."""
        return Position(incarnation=self.incarnation, offset=len(self.entries))

    def rewind(self, length: int) -> None:
        """Restore the log to its first `length` entries: a new incarnation."""
        del self.entries[length:]
        self._requests = {key: kept for key, kept in self._requests.items() if kept[1] <= length}
        self.incarnation = f"memory-{int(self.incarnation.removeprefix('memory-')) + 1}"
        self._wake()

    def _add(self, tenant: str, body: ObservationBatch | ControlEntry) -> int:
        entry = LogEntry(
            offset=len(self.entries) + 1, tenant=tenant, commit_time_unix_us=self._clock.now_unix_us(), body=body
        )
        self.entries.append(entry)
        self._wake()
        return entry.offset

    def _wake(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()


def _names(entry: LogEntry, twin_ids: Collection[str]) -> bool:
    if not twin_ids:
        return True
    if isinstance(entry.body, ObservationBatch):
        return any(key.twin_id in twin_ids for key in entry.body.series)
    action = entry.body.action if entry.body is not None else None
    named = [getattr(getattr(action, about, None), "twin_id", None) for about in ("twin", "event")]
    named.append(getattr(action, "twin_id", None))
    return not any(named) or any(twin_id in twin_ids for twin_id in named)


class MemoryCheckpoints:
    """A checkpoint store that forgets with the process.

    Args:
        leases: where the right to save is looked up.
    """

    def __init__(self, leases: MemoryLeases | None = None) -> None:
        self._leases = leases
        self._position: Position | None = None
        self._records: dict[tuple[str, str, str], Record] = {}
        self._generations: dict[int, tuple[Generation, dict[tuple[str, str, str], Record]]] = {}

    async def load(self) -> Checkpoint | None:
        """Return the checkpoint; see the port."""
        if self._position is None:
            return None
        return Checkpoint(position=self._position, records=tuple(self._records.values()))

    async def position(self) -> Position | None:
        """Return the position; see the port."""
        return self._position

    async def save(self, checkpoint: Checkpoint, fence: Fence | None = None) -> bool:
        """Add to the checkpoint; see the port."""
        if fence is not None and self._leases is not None and not self._leases.stands(fence):
            return False
        kept = self._position
        new = checkpoint.position
        same_log = kept is not None and kept.incarnation == new.incarnation
        if kept is not None and (kept.offset > new.offset if same_log else not checkpoint.complete):
            return False
        if checkpoint.complete:
            self._records.clear()
            self._generations.clear()
        for offset in [offset for offset in self._generations if offset < checkpoint.forget_before]:
            del self._generations[offset]
        for record in checkpoint.records:
            key = (record.tenant, record.kind, record.key)
            self._records.pop(key, None)
            if record.body is not None:
                self._records[key] = record
        self._position = new
        for generation in checkpoint.generations:
            at = generation.offset
            self._generations.setdefault(at, (generation, dict(self._records) if at == new.offset else {}))
        return True

    async def generations(self) -> tuple[Generation, ...]:
        """Return the generations in order; see the port."""
        return tuple(self._generations[offset][0] for offset in sorted(self._generations))

    async def load_at(self, offset: int, tenant: str, twin_ids: Collection[str] = ()) -> Checkpoint | None:
        """Return a generation of one tenant; see the port."""
        found = newest_at(await self.generations(), offset)
        if found is None or self._position is None:
            return None
        wanted = set(twin_ids)
        return Checkpoint(
            position=replace(self._position, offset=found.offset),
            records=tuple(
                record
                for record in self._generations[found.offset][1].values()
                if record.tenant == tenant and record.kind not in {VERDICT, CHANGES}
                if not wanted or record.kind not in {TWIN, EVENT} or record.key.split("/")[0] in wanted
            ),
        )

    async def forget(self, offsets: Collection[int]) -> None:
        """Drop generations; see the port."""
        for offset in offsets:
            self._generations.pop(offset, None)

    async def rewind(self, to: Position) -> bool:
        """Take the checkpoint back; see the port."""
        if self._position is not None and self._position.incarnation == to.incarnation:
            return True
        if to.offset not in self._generations:
            return False
        self._records = dict(self._generations[to.offset][1])
        self._generations = {offset: kept for offset, kept in self._generations.items() if offset <= to.offset}
        self._position = to
        return True


class MemoryLeases:
    """Leases of processes that share this object.

    Args:
        clock: its monotonic side lets signs of life expire.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._leases = [Fence(duty=duty, holder="", epoch=0) for duty in range(DUTIES)]
        self._expiry: dict[str, float] = {}

    def stands(self, fence: Fence) -> bool:
        """Whether a right has not passed to anybody else."""
        return self._leases[fence.duty] == fence

    async def beat(self, holder: str, *, lease_s: float) -> Roll:
        """Give a sign of life; see the port."""
        now_s = self._clock.monotonic_s()
        self._expiry[holder] = now_s + lease_s
        living = sorted(name for name, until_s in self._expiry.items() if until_s > now_s)
        return Roll(living=tuple(living), leases=tuple(self._leases))

    async def claim(self, holder: str, seen: Sequence[Fence]) -> tuple[Fence, ...]:
        """Take over duties; see the port."""
        taken = tuple(
            Fence(duty=fence.duty, holder=holder, epoch=fence.epoch + 1)
            for fence in seen
            if self._leases[fence.duty].epoch == fence.epoch
        )
        for fence in taken:
            self._leases[fence.duty] = fence
        return taken

    async def give_up(self, holder: str, duties: Sequence[int]) -> None:
        """Let go of duties; see the port."""
        for duty in duties:
            if self._leases[duty].holder == holder:
                self._leases[duty] = replace(self._leases[duty], holder="")

    async def leave(self, holder: str) -> None:
        """Let go of everything; see the port."""
        await self.give_up(holder, range(DUTIES))
        self._expiry.pop(holder, None)
