"""The sequencer: the one process that may append, and how it takes many waiting appends into one commit.

A process stands by (reads what others append, tries to take the lease) or leads (commits groups). Safety rests on the
lease epoch that each commit checks in its own transaction; the lease's time only decides how soon somebody else tries.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol
from uuid import uuid4

from twinmesh_core.errors import (
    FailedPrecondition,
    InvalidArgument,
    Reason,
    ResourceExhausted,
    TwinmeshError,
    Unavailable,
)
from twinmesh_storage.domain.catchup import CatchUp
from twinmesh_storage.domain.entries import Appended, Lease, NewEntry
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.ports import ContentRefused, GroupOutcome, LeaseLost, LogStore, OutcomeUnknown

_RETRY_S: Final = 0.2
_TROUBLE_S: Final = 5.0
"""How long appends count as impossible after the database had no room: as long as callers are told to wait."""
_LOOKS_PER_ATTEMPT: Final = 10


class Report(Protocol):
    """Tells an event with its fields to the operator."""

    def __call__(self, event: str, **fields: Any) -> None:
        """Tell it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencerLimits:
    """Bounds of queue and groups.

    Attributes:
        queue_entries: entries that may wait.
        queue_bytes: bytes that may wait.
        group_entries: entries of one commit.
        group_bytes: bytes of one commit (one entry always fits).
        tail_rows: uncompacted rows beyond which appends are shed.
        tail_age_s: seconds that the oldest uncompacted rows may have waited before appends are shed.
        renew_s: seconds between renewals of the lease.
        poll_s: seconds between looks at the log while standing by.
    """

    queue_entries: int = 20_000
    queue_bytes: int = 64 << 20
    group_entries: int = 1_000
    group_bytes: int = 8 << 20
    tail_rows: int = 16_000_000
    tail_age_s: float = 60.0
    renew_s: float = 1.0
    poll_s: float = 0.05


@dataclass(slots=True)
class _Waiting:
    entry: NewEntry
    done: asyncio.Future[Appended]


class Sequencer:
    """Appends entries in groups while it holds the lease; stands by otherwise.

    Args:
        store: the durable log.
        view: where committed entries become visible.
        catch_up: reads into the view what others appended.
        holder: name of this process in the lease row.
        report: told of changes of role.
        address: where other processes reach this one; "" = nowhere.
        taken: awaited when this process begins to lead.
    """

    def __init__(
        self,
        *,
        store: LogStore,
        view: LogView,
        catch_up: CatchUp,
        holder: str,
        limits: SequencerLimits,
        report: Report,
        address: str = "",
        taken: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._store = store
        self._view = view
        self._catch_up = catch_up
        self._holder = holder
        self._limits = limits
        self._report = report
        self._address = address
        self._taken = taken
        self._queue: deque[_Waiting] = deque()
        self._queue_bytes = 0
        self._filled = asyncio.Event()
        self._lease: Lease | None = None
        self._elsewhere = False
        self._look = asyncio.Event()
        self._trouble: tuple[float, TwinmeshError] | None = None

    async def check(self) -> None:
        """Return if appends may succeed: the check of a capability.

        Raises:
            ResourceExhausted: the database had no room for the last ones, a moment ago.
        """
        if self._trouble is not None:
            since_s, error = self._trouble
            if asyncio.get_running_loop().time() - since_s < max(error.retry_after_s or 0.0, _TROUBLE_S):
                raise error
            self._trouble = None

    @property
    def leader(self) -> str:
        """Where the process that leads is reached; "" = this one leads, or nobody is known to."""
        leader = self._catch_up.leader if self._elsewhere else ""
        return leader if leader != self._address else ""

    def look(self) -> None:
        """Read the log now if this process stands by: something was appended elsewhere."""
        self._look.set()

    @property
    def lease(self) -> Lease | None:
        """The lease while this process leads."""
        return self._lease

    async def append(self, entry: NewEntry) -> Appended:
        """Append one entry and return once it is durable; a cancelled caller leaves the outcome open.

        Raises:
            FailedPrecondition: NOT_SEQUENCER, SEQUENCE_GAP, PRODUCER_FENCED.
            InvalidArgument: SEQUENCE_REUSED, REQUEST_ID_REUSED, or content that cannot be stored.
            ResourceExhausted: OVERLOADED, with the time after which to come back.
            Unavailable: the process drains, or the database is away.
        """
        self._check_room(entry)
        waiting = _Waiting(entry, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._queue_bytes += entry.weight
        self._filled.set()
        return await waiting.done

    def _check_room(self, entry: NewEntry) -> None:
        if self._elsewhere:
            raise _not_sequencer()
        tail = self._view.tail
        if tail.row_count > self._limits.tail_rows or self._view.uncompacted_s() > self._limits.tail_age_s:
            raise ResourceExhausted(
                f"Compaction lags behind: {tail.row_count} observations wait for it; send again later.",
                retry_after_s=1.0,
            )
        full = self._queue_bytes + entry.weight > self._limits.queue_bytes and self._queue
        if full or len(self._queue) >= self._limits.queue_entries:
            raise ResourceExhausted("The append queue is full; send again later.", retry_after_s=0.1)

    async def run(self) -> None:
        """Stand by and lead, for ever."""
        try:
            while True:
                try:
                    await self._lead(await self._stand_by())
                except LeaseLost:
                    self._report("lease_lost")
                except (Unavailable, ResourceExhausted) as error:
                    self._report("log_unavailable", reason=error.reason)
                    if isinstance(error, ResourceExhausted):
                        self._trouble = asyncio.get_running_loop().time(), error
                    self._fail_waiting(error)
                    await asyncio.sleep(_RETRY_S)
                finally:
                    self._lease = None
        finally:
            self._fail_waiting(Unavailable("This server drains; send again.", reason=Reason.DRAINING))

    async def _stand_by(self) -> Lease:
        asked_s = float("-inf")
        while True:
            now_s = asyncio.get_running_loop().time()
            lease = None
            if now_s >= asked_s + self._limits.poll_s * _LOOKS_PER_ATTEMPT:
                asked_s = now_s
                lease = await self._store.acquire(self._holder)
            if lease is not None:
                head = await self._catch_up.to_head()
                self._elsewhere = False
                self._report("lease_taken", epoch=lease.epoch, head=head)
                if self._taken is not None:
                    await self._taken()
                return lease
            if not self._elsewhere:
                self._elsewhere = True
                self._report("standing_by")
            self._fail_waiting(_not_sequencer())
            await self._catch_up.to_head()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._limits.poll_s):
                    await self._look.wait()
            self._look.clear()

    async def _lead(self, lease: Lease) -> NoReturn:
        self._lease = lease
        while True:
            if not self._queue:
                self._filled.clear()
                try:
                    async with asyncio.timeout(self._limits.renew_s):
                        await self._filled.wait()
                except TimeoutError:
                    if not await self._store.renew(lease):
                        raise LeaseLost from None
                continue
            lease = self._lease = await self._commit_next(lease)

    async def _commit_next(self, lease: Lease) -> Lease:
        group = self._take_group()
        if not group:
            return lease
        try:
            return await self._commit(lease, group)
        except LeaseLost:
            _fail(group, _not_sequencer())
            raise
        except TwinmeshError as error:
            _fail(group, error)
            raise
        finally:
            # Whatever else ends us (cancellation too), nobody may wait for ever.
            _fail(group, Unavailable("The outcome is not known; send again with the same stamp or request_id."))

    def _take_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        size = 0
        while self._queue and len(group) < self._limits.group_entries:
            waiting = self._queue[0]
            if group and size + waiting.entry.weight > self._limits.group_bytes:
                break
            self._queue.popleft()
            self._queue_bytes -= waiting.entry.weight
            if waiting.done.done():  # its caller left before anything was written
                continue
            size += waiting.entry.weight
            group.append(waiting)
        return group

    async def _commit(self, lease: Lease, group: Sequence[_Waiting]) -> Lease:
        group_id = str(uuid4())
        try:
            outcome = await self._store.commit(lease, self._view.head, group_id, [w.entry for w in group])
        except ContentRefused:
            return await self._commit_singly(lease, group)
        except OutcomeUnknown as unknown:
            return await self._resolve(lease, group, group_id, unknown.outcome)
        self._view.apply(outcome.entries)
        _answer(group, outcome)
        return lease

    async def _commit_singly(self, lease: Lease, group: Sequence[_Waiting]) -> Lease:
        """Find the entry that the database refuses; the others lose nothing but time."""
        if len(group) == 1:
            self._report("entry_refused", tenant=group[0].entry.tenant)
            _fail(group, InvalidArgument("The entry holds content that cannot be stored; mend it and send it anew."))
            return lease
        for waiting in group:
            lease = self._lease = await self._commit(lease, [waiting])
        return lease

    async def _resolve(self, lease: Lease, group: Sequence[_Waiting], group_id: str, outcome: GroupOutcome) -> Lease:
        """Find out what became of a commit whose answer was lost, before any offset is given again."""
        self._report("commit_outcome_unknown", entries=len(group))
        again = await self._store.acquire(self._holder)
        if again is None:
            raise LeaseLost
        position = await self._store.position()
        await self._catch_up.to_head()
        if position.last_group == group_id:
            _answer(group, outcome)
            return again
        if again.epoch != lease.epoch + 1:
            # Somebody led in between, so "not the newest commit" does not mean "not committed".
            keyless = [w for w in group if w.entry.producer is None and not w.entry.request_id]
            _fail(keyless, Unavailable("The outcome is not known; an entry without request_id may be there twice."))
            group = [w for w in group if not w.done.done()]
        return await self._commit(again, group) if group else again

    def _fail_waiting(self, error: TwinmeshError) -> None:
        waiting = list(self._queue)
        self._queue.clear()
        self._queue_bytes = 0
        _fail(waiting, error)


def _answer(group: Sequence[_Waiting], outcome: GroupOutcome) -> None:
    for waiting, answer in zip(group, outcome.answers, strict=True):
        if waiting.done.done():
            continue
        if isinstance(answer, TwinmeshError):
            waiting.done.set_exception(answer)
        else:
            waiting.done.set_result(answer)


def _fail(group: Sequence[_Waiting], error: TwinmeshError) -> None:
    for waiting in group:
        if not waiting.done.done():
            waiting.done.set_exception(error)


def _not_sequencer() -> FailedPrecondition:
    return FailedPrecondition("Another storage process appends; send there.", reason=Reason.NOT_SEQUENCER)
