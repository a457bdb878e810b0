"""Trimming: observations leave the log once they are in readable history and no registered follower needs them.

The mark moves first, in a transaction of its own, and what lies below it is deleted afterwards in small steps. So a
follower never meets a hole that the mark does not explain, and a kill at any point leaves a mark to go on from.
Control entries stay: whatever the registry is rebuilt from must be there from the beginning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from twinmesh_core.errors import TwinmeshError
from twinmesh_storage.domain.entries import Lease
from twinmesh_storage.domain.ports import LogRetention
from twinmesh_storage.domain.sequencer import Report

_PAUSE_S: Final = 0.02  # between two steps, so that commits come first


class Trimmer:
    """Trims the log while this process leads.

    Args:
        lease: tells the lease while this process leads, else None.
        keep_s: youngest age at which an entry may go; 0 = nothing ever goes.
        every_s: seconds between looks.
        trimmed: told how many offsets each step passed over.
    """

    def __init__(
        self,
        *,
        store: LogRetention,
        lease: Callable[[], Lease | None],
        keep_s: float,
        every_s: float,
        report: Report,
        trimmed: Callable[[int], None],
    ) -> None:
        self._store = store
        self._lease = lease
        self._keep_s = keep_s
        self._every_s = every_s
        self._report = report
        self._trimmed = trimmed

    async def run(self) -> None:
        """Trim for ever."""
        while True:
            await asyncio.sleep(self._every_s)
            if not self._keep_s or self._lease() is None:
                continue
            try:
                while await self.trim_once():  # noqa: ASYNC110 -- work in steps, not a wait
                    await asyncio.sleep(_PAUSE_S)
            except TwinmeshError as error:
                self._report("trim_failed", reason=error.reason)

    async def trim_once(self) -> bool:
        """Move the mark and delete one step below it; False = there is nothing to delete now.

        Raises:
            Unavailable: the database is away; whatever was done stays done.
        """
        before = await self._store.advance(self._keep_s)
        after = await self._store.sweep()
        if after.swept_offset > before.swept_offset:
            self._trimmed(after.swept_offset - before.swept_offset)
        return after.swept_offset < after.trim_offset or after.swept_offset > before.swept_offset
