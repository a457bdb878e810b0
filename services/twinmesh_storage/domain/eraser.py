"""Carrying erasures out, step by step, while this process leads; see `erasure` for what an erasure is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from twinmesh_core.errors import TwinmeshError, Unavailable
from twinmesh_core.time import Clock
from twinmesh_storage.domain.entries import EntryKind, Lease, LogEntry
from twinmesh_storage.domain.erasure import ErasableHistory, Erasure, ErasureState, ErasureStore, HideTwin, Redact, Step
from twinmesh_storage.domain.ports import LogStore
from twinmesh_storage.domain.sequencer import Report
from twinmesh_storage.domain.series import Series

_LOOK_S: Final = 1.0
_WAIT_FOLD_S: Final = 0.1
_PAGE_BYTES: Final = 4 << 20
_LONGEST_LOOK_S: Final = 5.0
_MAX_ROUNDS: Final = 5
"""So often values are found again after they were removed; then a person must look."""

ForgetSeries = Callable[[Sequence[Series], int], Awaitable[None]]
"""Removes from memory and caches what they hold of series from before an offset."""


class Eraser:
    """Carries erasures out.

    Args:
        store: the jobs.
        log: where bodies are found.
        history: where rows are found.
        series_of_twin: finds all series of a (tenant, twin), those that other processes created too.
        hide: appends the entry that hides the twin's observations, wherever the lease is.
        twins_of: the twins that an entry names; None = it cannot be told.
        redact: takes a twin out of a body.
        forget: takes series out of memory and caches.
        lease: tells the lease while this process leads, else None.
    """

    def __init__(
        self,
        *,
        store: ErasureStore,
        log: LogStore,
        history: ErasableHistory,
        series_of_twin: Callable[[str, str], Awaitable[Sequence[Series]]],
        hide: HideTwin,
        twins_of: Callable[[LogEntry], frozenset[str] | None],
        redact: Redact,
        forget: ForgetSeries,
        lease: Callable[[], Lease | None],
        clock: Clock,
        report: Report,
    ) -> None:
        self._store = store
        self._log = log
        self._history = history
        self._series_of_twin = series_of_twin
        self._hide = hide
        self._twins_of = twins_of
        self._redact = redact
        self._forget = forget
        self._lease = lease
        self._clock = clock
        self._report = report
        self._asked = asyncio.Event()

    async def may_hold(self, tenant: str, twin_id: str) -> bool:
        """Whether storage holds something of a twin: observations, rows in quarantine, or entries that name it.

        Also true where there are so many entries that looking takes longer than a caller waits: an erasure looks at all
        of them in any case.

        Raises:
            Unavailable: the database is away.
        """
        if await self._series_of_twin(tenant, twin_id) or await self._store.quarantined(tenant, twin_id):
            return True
        until_s = self._clock.monotonic_s() + _LONGEST_LOOK_S
        head = (await self._log.position()).head
        through = 0
        while through < head and self._clock.monotonic_s() < until_s:
            page = await self._log.read(through, head, tenant=tenant, kinds=(EntryKind.CONTROL,), max_bytes=_PAGE_BYTES)
            if await asyncio.to_thread(self._name_it, page.entries, twin_id):
                return True
            through = page.through
        return through < head

    def _name_it(self, entries: Sequence[LogEntry], twin_id: str) -> bool:
        return any(twin_id in (self._twins_of(entry) or ()) for entry in entries)

    async def start(self, erasure: Erasure) -> tuple[Erasure, bool]:
        """Begin an erasure and hide the twin at once; the flag says it had begun before.

        Raises:
            Unavailable: the database or whoever leads is away; nothing is lost, ask again with the same request.
        """
        kept, known = await self._store.create(erasure)
        if kept.step is Step.HIDE and kept.state is ErasureState.RUNNING:
            if self._lease() is not None:
                kept = await self._advance(kept)
            else:
                # Whoever leads notes the step when it takes the job up: the entry is the same however often it is made.
                series = await self._series_of_twin(kept.tenant, kept.twin_id)
                kept = replace(kept, offset=await self._hide(kept, series))
        self._asked.set()
        return kept, known

    async def run(self) -> None:
        """Carry erasures out, for ever."""
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._asked.wait()
            except TimeoutError:
                pass
            self._asked.clear()
            if self._lease() is None:
                continue
            try:
                for erasure in await self._store.running():
                    await self.finish(erasure)
            except TwinmeshError as error:
                self._report("erasure_interrupted", reason=error.reason)

    async def finish(self, erasure: Erasure) -> Erasure:
        """Carry one erasure out from where it is.

        Raises:
            Unavailable: the database is away, or this process leads no more; it goes on later.
        """
        while erasure.state is ErasureState.RUNNING:
            if self._lease() is None:
                raise Unavailable("Another process leads now and goes on with the erasure.", retry_after_s=1.0)
            erasure = await self._advance(erasure)
        self._report(
            "erasure_ended",
            tenant=erasure.tenant,
            erasure_id=erasure.erasure_id,
            state=erasure.state.name,
            rounds=erasure.rounds,
        )
        return erasure

    async def _advance(self, erasure: Erasure) -> Erasure:
        """Do one step and note it."""
        series = await self._series_of_twin(erasure.tenant, erasure.twin_id)
        match erasure.step:
            case Step.HIDE:
                offset = await self._hide(erasure, series)
                moved = replace(erasure, step=Step.FOLD, offset=offset)
            case Step.FOLD:
                await self._wait_folded(erasure.offset)
                moved = replace(erasure, step=Step.HISTORY)
            case Step.HISTORY:
                gone = await self._history.erase(erasure.tenant, series, erasure.offset)
                moved = replace(erasure, step=Step.LOG, done_offset=0, rows_erased=erasure.rows_erased + gone)
            case Step.LOG:
                moved = await self._rewrite_page(erasure, series)
            case Step.ROWS:
                emptied = await self._store.scrub(erasure.tenant, erasure.twin_id, erasure.offset)
                moved = replace(erasure, step=Step.CACHE, scrubbed=erasure.scrubbed + emptied)
            case Step.CACHE:
                await self._forget(series, erasure.offset)
                moved = replace(erasure, step=Step.VERIFY, done_offset=0)
            case _:
                moved = await self._verify_page(erasure, series)
        await self._store.save(moved)
        return moved

    async def _wait_folded(self, offset: int) -> None:
        while (await self._log.position()).fold_offset < offset:
            if self._lease() is None:
                raise Unavailable("Another process leads now and goes on with the erasure.", retry_after_s=1.0)
            await asyncio.sleep(_WAIT_FOLD_S)

    async def _rewrite_page(self, erasure: Erasure, series: Sequence[Series]) -> Erasure:
        changed, through = await self._holding(erasure, series)
        if changed:
            await self._store.rewrite(erasure.tenant, changed)
        rewritten = erasure.entries_rewritten + len(changed)
        if through < erasure.offset:
            return replace(erasure, done_offset=through, entries_rewritten=rewritten)
        return replace(erasure, step=Step.ROWS, done_offset=0, entries_rewritten=rewritten)

    async def _holding(self, erasure: Erasure, series: Sequence[Series]) -> tuple[list[tuple[int, bytes]], int]:
        """Return, of the next page of the log, the bodies that hold something of the twin, as they should be."""
        page = await self._log.read(
            erasure.done_offset, erasure.offset, tenant=erasure.tenant, kinds=(), max_bytes=_PAGE_BYTES
        )
        ids = frozenset(s.series_id for s in series)

        def redact() -> list[tuple[int, bytes]]:
            bodies = ((entry.offset, self._redact(entry, erasure.twin_id, ids)) for entry in page.entries)
            return [(offset, body) for offset, body in bodies if body is not None]

        return await asyncio.to_thread(redact), page.through

    async def _verify_page(self, erasure: Erasure, series: Sequence[Series]) -> Erasure:
        """Look at the next page of the log, and at all else once the log is through."""
        left, through = await self._holding(erasure, series)
        if left:
            return self._again(erasure)
        if through < erasure.offset:
            return replace(erasure, done_offset=through)
        rows = await self._history.remaining(erasure.tenant, series, erasure.offset)
        if rows or await self._store.unscrubbed(erasure.tenant, erasure.twin_id, erasure.offset):
            return self._again(erasure)
        return replace(
            erasure,
            step=Step.DONE,
            state=ErasureState.SUCCEEDED,
            done_offset=erasure.offset,
            end_time_unix_us=self._clock.now_unix_us(),
        )

    def _again(self, erasure: Erasure) -> Erasure:
        """Begin anew with another entry: a series that was not known yet may have had rows before the first."""
        if erasure.rounds + 1 >= _MAX_ROUNDS:
            return replace(
                erasure,
                state=ErasureState.FAILED,
                message=f"Values of the twin were found again {erasure.rounds + 1} times after they had been removed; "
                "ask for another erasure, and report it if that fails too.",
                end_time_unix_us=self._clock.now_unix_us(),
            )
        return replace(erasure, step=Step.HIDE, done_offset=0, rounds=erasure.rounds + 1)
