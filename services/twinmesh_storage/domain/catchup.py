"""Catching up: reads into the view what the log has and this process has not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from twinmesh_storage.domain.entries import EntryKind, LogEntry
from twinmesh_storage.domain.landing import Landing
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.ports import LogStore, SeriesStore
from twinmesh_storage.domain.series import Catalogue

_READ_BYTES: Final = 16 << 20


class CatchUp:
    """Brings the view to the log's head: at start, while standing by, and when a commit's outcome was lost.

    Offsets are dense and become visible in order (one sequencer, one transaction at a time), so "after what I have" is
    complete; with a bare database sequence it would miss entries.
    """

    def __init__(
        self, *, log: LogStore, series: SeriesStore, catalogue: Catalogue, view: LogView, landing: Landing
    ) -> None:
        self._log = log
        self._series = series
        self._catalogue = catalogue
        self._view = view
        self._landing = landing
        self.leader = ""
        """Where the lease holder was reached when the log was last looked at; "" = not known."""

    async def to_head(self) -> int:
        """Apply every entry that is durable now; returns the head."""
        position = await self._log.position()
        self.leader = position.lease_address
        view = self._view
        if position.incarnation != view.incarnation or position.head < view.head:
            view.reset(incarnation=position.incarnation, fold_offset=position.fold_offset)
        if position.fold_offset > view.head:
            # What is passed over here may name series that another process created: readable, and never met here.
            self._catalogue.add(await self._series.load())
            view.reset(incarnation=position.incarnation, fold_offset=position.fold_offset)
        await view.folded_elsewhere(position.fold_offset)
        while view.head < position.head:
            page = await self._log.read(view.head, position.head, tenant=None, kinds=(), max_bytes=_READ_BYTES)
            if page.trim_offset > view.head:
                # Folded and trimmed since `position` was read: what is missing here is in blocks by now.
                return await self.to_head()
            decoded = await asyncio.to_thread(self._decode_all, page.entries)
            await self._know_series(decoded)
            view.apply(decoded)
        view.seed_commit_time(position.commit_time_unix_us)
        return view.head

    def _decode_all(self, entries: Sequence[LogEntry]) -> list[LogEntry]:
        return [
            replace(entry, segments=self._landing.segments(entry.body))
            if entry.kind is EntryKind.OBSERVATIONS
            else entry
            for entry in entries
        ]

    async def _know_series(self, entries: list[LogEntry]) -> None:
        """Learn series that another process created."""
        for entry in entries:
            for segment in entry.segments or ():
                ids = np.unique(segment.series).tolist()
                unknown = [i for i in ids if self._catalogue.by_id(i) is None]
                if unknown:
                    self._catalogue.add(await self._series.find_ids(entry.tenant, unknown))
