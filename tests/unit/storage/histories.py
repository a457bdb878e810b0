"""History in memory, divided in any way into blocks, tail and superseded rows, and the plain model of what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from twinmesh_core.kinds import ChannelKind
from twinmesh_storage.domain.aggregate import Aggregator
from twinmesh_storage.domain.blocks import Block, build_blocks
from twinmesh_storage.domain.entries import EntryKind, LogEntry
from twinmesh_storage.domain.folding import Hide, Superseded, settle
from twinmesh_storage.domain.history import History, Seen
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.parts import (
    SUMMARY,
    Part,
    PartPage,
    PartSummaries,
    RowsPart,
    Statistics,
    page_of,
    summaries_of,
)
from twinmesh_storage.domain.rows import Lane, Rows, Segment, merge, no_rows
from twinmesh_storage.domain.series import Series
from twinmesh_testing.clock import FakeClock

SPAN_US = 40_000_000
GAUGE, STATE, COUNTER = (
    Series(tenant="t", series_id=i, twin_id="a", channel=c, kind=kind, unit="", expected_interval_us=interval)
    for i, c, kind, interval in (
        (1, "x", ChannelKind.GAUGE, 10),
        (2, "y", ChannelKind.STATE, 0),
        (3, "z", ChannelKind.COUNTER, 10),
    )
)
SERIES = (GAUGE, STATE, COUNTER)
_BY_ID = {one.series_id: one for one in SERIES}

Point = tuple[int, int, int, int]
"""Series id, event time, value, quality."""
Deletion = tuple[int, int]
"""Event times from and up to which all series lose what they had."""
Entry = list[Point] | Deletion
POINT = st.tuples(st.sampled_from([1, 2, 3]), st.integers(0, SPAN_US), st.integers(-5, 5), st.integers(1, 3))
DELETION = st.tuples(st.integers(0, SPAN_US), st.integers(0, SPAN_US)).map(lambda t: (min(t), max(t) + 1))
BATCHES = st.lists(st.lists(POINT, max_size=20) | st.lists(POINT, max_size=20) | DELETION, min_size=1, max_size=6)


@dataclass(slots=True)
class BlocksInMemory:
    """The reading side of a `HistoryStore` with blocks and statistics, folded once.

    Attributes:
        unpacked: how many blocks were handed out to be unpacked.
        page_rows: most rows of a page, to make pages small.
    """

    blocks: list[Block] = field(default_factory=list)
    superseded: list[Superseded] = field(default_factory=list)
    unpacked: int = 0
    page_blocks: int = 1_000_000
    form: str = "blocks"

    def fold(self, rows: Rows, hides: Sequence[Hide]) -> None:
        if not len(rows):
            return
        settled = settle([rows], hides)
        self.blocks = build_blocks(settled.readable, Lane.NUMERIC, _BY_ID.__getitem__)
        self.superseded = [settled.superseded]

    def _find(self, series: Sequence[Series], start: int, end: int, limit: int) -> tuple[list[Block], bool]:
        found = [b for s in series for b in self.blocks if b.series_id == s.series_id and b.t0 < end and b.t1 >= start]
        return found[:limit], len(found) > limit

    async def read(self, tenant: str, series: Sequence[Series], start: int, end: int, max_rows: int) -> PartPage:
        found, truncated = self._find(series, start, end, self.page_blocks)
        self.unpacked += len(found)
        return page_of(found, series, truncated=truncated)

    async def summaries(
        self, tenant: str, series: Sequence[Series], start: int, end: int, limit: int
    ) -> PartSummaries | None:
        found, truncated = self._find(series, start, end, min(limit, self.page_blocks))
        records = np.empty(len(found), SUMMARY)
        for record, b in zip(records, found, strict=True):
            s = b.statistics or Statistics(minimum=np.nan, maximum=np.nan, sum=np.nan, m2=np.nan, first=np.nan, last=0)
            record["series_id"], record["t0"], record["t1"], record["max_offset"] = (
                b.series_id,
                b.t0,
                b.t1,
                b.max_offset,
            )
            record["good"], record["uncertain"], record["bad"] = b.counts
            for name in ("minimum", "maximum", "sum", "m2", "first", "last"):
                record[name] = getattr(s, name)
        return summaries_of(records, series, truncated=truncated)

    async def read_before(self, tenant: str, series: Sequence[Series], before: Sequence[int]) -> list[Part]:
        found: list[Part] = []
        for one, moment in zip(series, before, strict=True):
            found += [b for b in self.blocks if b.series_id == one.series_id and b.t0 < moment][-1:]
        return found

    async def read_superseded(
        self, tenant: str, series: Sequence[Series], start: int, end: int, as_of_offset: int, max_rows: int
    ) -> PartPage:
        parts = []
        for one in series:
            for aside in self.superseded:
                r = aside.rows
                mine = (r.series == one.series_id) & (r.ts >= start) & (r.ts < end)
                rows = merge([r.take(mine & (r.offset <= as_of_offset) & (as_of_offset < aside.by_offset))])
                if len(rows):
                    parts.append(RowsPart(unpacked=rows))
        return PartPage(parts=parts, done=len(series))


@dataclass(slots=True)
class World:
    """A history of entries of the log: the first ones folded, the others in the tail."""

    view: LogView
    store: BlocksInMemory
    history: History
    aggregator: Aggregator
    entries: Sequence[Entry]

    def seen(self, series_id: int, seen: Seen) -> list[tuple[int, float]]:
        """The law in a few lines: the last one sent counts, unless deleted since, if it is trusted enough."""
        readable: dict[int, tuple[int, int]] = {}
        for offset, entry in enumerate(self.entries, start=1):
            if seen.as_of and offset > seen.as_of:
                break
            if isinstance(entry, tuple):
                readable = {ts: row for ts, row in readable.items() if not entry[0] <= ts < entry[1]}
                continue
            for series, ts, value, quality in entry:
                if series == series_id:
                    readable[ts] = (value, quality)
        return [(ts, float(v)) for ts, (v, q) in sorted(readable.items()) if q <= seen.max_quality]


def rows_of(points: Sequence[Point], offset: int) -> Rows:
    """Return points of one entry as rows."""
    if not points:
        return no_rows(Lane.NUMERIC)
    series, ts, value, quality = (np.array(column, np.int64) for column in zip(*points, strict=True))
    bits = np.where(series == STATE.series_id, value, value.astype(np.float64).view(np.int64))
    return Rows(series=series, ts=ts, value=bits, quality=quality.astype(np.uint8), offset=np.full(len(points), offset))


def world(entries: Sequence[Entry], folded: int, page_blocks: int = 1_000_000) -> World:
    """Return the history of entries, of which the first `folded` lie in blocks."""
    store = BlocksInMemory(page_blocks=page_blocks)
    numbered = list(enumerate(entries, start=1))
    before = [rows_of(entry, offset) for offset, entry in numbered[:folded] if isinstance(entry, list)]
    hides = {offset: _hide(entry, offset) for offset, entry in numbered if isinstance(entry, tuple)}
    filled = [rows for rows in before if len(rows)]
    if filled:
        store.fold(_concat(filled), [hide for offset, hide in hides.items() if offset <= folded])
    view = LogView(
        incarnation="i",
        fold_offset=min(folded, len(entries)),
        ring_bytes=1,
        hot_rows=0,
        clock=FakeClock(),
        hide_of=lambda entry: hides.get(entry.offset),
    )
    view.apply([_entry(entry, offset) for offset, entry in numbered if offset > folded])
    history = History(store=store, view=view)  # type: ignore[arg-type]  # the reading side only
    return World(view, store, history, Aggregator(history=history), entries)


def _concat(parts: Sequence[Rows]) -> Rows:
    return Rows(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in Rows.__slots__})


def _hide(deletion: Deletion, offset: int) -> Hide:
    return Hide(tenant="t", series_ids=frozenset(_BY_ID), start=deletion[0], end=deletion[1], offset=offset)


def _entry(entry: Entry, offset: int) -> LogEntry:
    rows = rows_of(entry if isinstance(entry, list) else [], offset)
    segment = Segment(lane=Lane.NUMERIC, series=rows.series, ts=rows.ts, value=rows.value, quality=rows.quality)
    return LogEntry(
        offset=offset,
        tenant="t",
        kind=EntryKind.CONTROL if isinstance(entry, tuple) else EntryKind.OBSERVATIONS,
        commit_time_unix_us=offset,
        point_count=len(rows),
        body=b"",
        segments=(segment,) if len(segment) else (),
    )
