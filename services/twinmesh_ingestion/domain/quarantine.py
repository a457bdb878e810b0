"""What becomes of rows that were kept aside: taken through the pipeline again after a fix, or discarded.

A page is read, judged and appended as one entry, which names the rows that leave quarantine and those that stay with a
new reason. Storage does all of it in one transaction and once per request id: a process killed at any step leaves
either nothing or everything, and the same request sent again finds out which.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from twinmesh_core.errors import FailedPrecondition, Reason
from twinmesh_core.quality import FlagReason
from twinmesh_ingestion.domain.intake import Intake, Prepared
from twinmesh_ingestion.domain.outcomes import Ack, Sweep
from twinmesh_ingestion.domain.ports import (
    KeptPage,
    KeptRow,
    Log,
    QuarantineChange,
    QuarantineFilter,
    Receipts,
    Submission,
)

MAX_ROWS: Final = 10_000
"""Most rows of one page."""
_ATTEMPTS: Final = 5
_STILL_AHEAD: Final = FlagReason.TIME_IN_FUTURE
_NO_SERIES: Final = (FlagReason.UNKNOWN_HANDLE, FlagReason.REFUSED_BATCH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One page asked for.

    Attributes:
        wanted: which rows.
        after: only rows of greater ids.
        max_rows: most rows.
        principal: who asks.
        request_id: makes it happen once.
        content_hash: of the request as sent.
        dry_run: only say what would happen.
        backfill: the rows are recorded history.
        comment: why rows are discarded.
    """

    wanted: QuarantineFilter
    after: int
    max_rows: int
    principal: str
    request_id: str
    content_hash: bytes
    dry_run: bool
    backfill: bool = False
    comment: str = ""


class Quarantine:
    """Replays and discards, one page at a time in this process.

    Args:
        intake: the pipeline, and the patience with storage.
        log: where the rows are.
        receipts: answers as bytes.
    """

    def __init__(self, intake: Intake, log: Log, receipts: Receipts) -> None:
        self._intake = intake
        self._log = log
        self._receipts = receipts
        self._turn = asyncio.Lock()

    async def replay(self, tenant: str, order: Order) -> Sweep:
        """Take a page of rows through the pipeline again.

        Raises:
            InvalidArgument: a filter that cannot be; REQUEST_ID_REUSED.
            FailedPrecondition: QUARANTINE_CHANGED, if others kept taking the same rows.
            Unavailable: storage stayed away for longer than the patience.
        """
        async with self._turn:
            return await self._while_others_take_rows(lambda: self._replay_page(tenant, order))

    async def discard(self, tenant: str, order: Order) -> Sweep:
        """Take a page of rows out of quarantine; raises as `replay`."""
        async with self._turn:
            return await self._while_others_take_rows(lambda: self._discard_page(tenant, order))

    async def _while_others_take_rows(self, attempt: Callable[[], Awaitable[Sweep]]) -> Sweep:
        for _ in range(_ATTEMPTS - 1):
            try:
                return await attempt()
            except FailedPrecondition as error:
                if error.reason != Reason.QUARANTINE_CHANGED:
                    raise
        return await attempt()

    async def _replay_page(self, tenant: str, order: Order) -> Sweep:
        page = await self._page(tenant, order)
        rows = [row for row in page.rows if _is_replayed(row, order.wanted)]
        sweep = Sweep(
            examined=len(page.rows),
            skipped=len(page.rows) - len(rows),
            ack=Ack(accepted_count=0),
            next_after=_next(page),
            matched=page.total,
        )
        if not rows:
            return sweep if order.dry_run else await self._append(tenant, order, sweep, QuarantineChange(), None)
        observations = [row.observation for row in rows]
        prepared, position_of = await self._intake.prepare_again(tenant, observations, backfill=order.backfill)
        kept = {position_of[q.section, q.row]: (q.reason, q.message) for q in prepared.submission.quarantine}
        sweep = replace(sweep, ack=prepared.ack)
        if order.dry_run:
            self._intake.abandon(prepared)
            return sweep
        change = QuarantineChange(
            replayed=tuple(row.quarantine_id for i, row in enumerate(rows) if i not in kept),
            kept=tuple((rows[i].quarantine_id, *verdict) for i, verdict in kept.items()),
            principal=order.principal,
        )
        return await self._append(tenant, order, sweep, change, prepared)

    async def _discard_page(self, tenant: str, order: Order) -> Sweep:
        page = await self._page(tenant, order)
        ids = tuple(row.quarantine_id for row in page.rows)
        sweep = Sweep(
            examined=len(ids),
            ack=Ack(accepted_count=0),
            next_after=_next(page),
            matched=page.total,
        )
        if order.dry_run:
            return sweep
        change = QuarantineChange(discarded=ids, principal=order.principal, comment=order.comment)
        return await self._append(tenant, order, sweep, change, None)

    async def _page(self, tenant: str, order: Order) -> KeptPage:
        return await self._intake.patiently(
            lambda: self._log.kept(tenant, order.wanted, after=order.after, limit=order.max_rows)
        )

    async def _append(
        self, tenant: str, order: Order, sweep: Sweep, change: QuarantineChange, prepared: Prepared | None
    ) -> Sweep:
        """Append the page as one entry; an empty one too, since the request may have happened before."""
        submission = Submission(
            body=prepared.submission.body if prepared is not None else b"",
            content_hash=order.content_hash,
            receipt=self._receipts.encode_sweep(sweep),
            quarantine=(),
            change=change,
            request_id=order.request_id,
        )
        try:
            appended = await self._intake.patiently(lambda: self._log.append(tenant, submission))
        except BaseException:
            if prepared is not None:
                self._intake.abandon(prepared)
            raise
        if appended.replayed and appended.receipt:
            sweep = self._receipts.decode_sweep(appended.receipt)
        ack = replace(sweep.ack, offset=appended.offset, incarnation=appended.incarnation, replayed=appended.replayed)
        if prepared is not None:
            self._intake.settle(prepared, ack)
        return replace(sweep, ack=ack)


def _is_replayed(row: KeptRow, wanted: QuarantineFilter) -> bool:
    """Nothing mends a row without series; one that lay ahead grows old by waiting, which proves no clock right."""
    if row.reason in _NO_SERIES:
        return False
    return row.reason != _STILL_AHEAD or _STILL_AHEAD in wanted.reasons


def _next(page: KeptPage) -> int:
    return page.rows[-1].quarantine_id if page.more and page.rows else 0
