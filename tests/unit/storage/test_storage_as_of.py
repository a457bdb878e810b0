"""Reads as of an offset equal a replay of the log up to there, however writes, corrections, deletions and folds mix."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.time import SystemClock
from twinmesh_storage.domain.compactor import Compactor
from twinmesh_storage.domain.entries import EntryKind, Lease, LogEntry
from twinmesh_storage.domain.folding import Hide
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.ports import HistoryStore
from twinmesh_storage.domain.rows import Lane, Rows, Segment, merge
from twinmesh_storage.domain.series import Series
from twinmesh_testing.history_fake import FakeHistory
from twinmesh_testing.storage_fakes import FakeDatabase

SERIES = [
    Series(
        tenant="t", series_id=i, twin_id="a", channel=f"c{i}", kind=ChannelKind.STATE, unit="", expected_interval_us=0
    )
    for i in (1, 2)
]
TIMES = 8


@dataclass(frozen=True)
class Write:
    rows: tuple[tuple[int, int, int], ...]  # series, time, value


@dataclass(frozen=True)
class Delete:
    series: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class FoldNow:
    pass


rows = st.tuples(st.integers(1, 2), st.integers(0, TIMES - 1), st.integers(0, 99))
writes = st.builds(Write, st.lists(rows, min_size=1, max_size=4).map(tuple))
ranges = st.tuples(st.integers(0, TIMES), st.integers(1, TIMES))
deletes = st.builds(
    lambda series, bounds: Delete(series, bounds[0], bounds[0] + bounds[1]),
    st.sampled_from([(1,), (2,), (1, 2)]),
    ranges,
)
histories = st.lists(st.one_of(writes, writes, deletes, st.just(FoldNow())), max_size=25)


def replay(history: list[Write | Delete | FoldNow], as_of: int) -> dict[tuple[int, int], int]:
    """Return {(series, time): value} after the entries up to an offset, one after the other."""
    seen: dict[tuple[int, int], int] = {}
    offset = 0
    for step in history:
        if isinstance(step, FoldNow):
            continue
        offset += 1
        if offset > as_of:
            break
        if isinstance(step, Write):
            seen.update({(series, time): value for series, time, value in step.rows})
        else:
            seen = {
                (series, time): value
                for (series, time), value in seen.items()
                if series not in step.series or not step.start <= time < step.end
            }
    return seen


def entry(offset: int, step: Write | Delete) -> LogEntry:
    if isinstance(step, Delete):
        return LogEntry(
            offset=offset, tenant="t", kind=EntryKind.CONTROL, commit_time_unix_us=offset, point_count=0, body=b""
        )
    columns = np.array(step.rows, np.int64).reshape(-1, 3)
    segment = Segment(
        lane=Lane.NUMERIC,
        series=columns[:, 0].copy(),
        ts=columns[:, 1].copy(),
        value=columns[:, 2].copy(),
        quality=np.ones(len(columns), np.uint8),
    )
    return LogEntry(
        offset=offset,
        tenant="t",
        kind=EntryKind.OBSERVATIONS,
        commit_time_unix_us=offset,
        point_count=len(columns),
        body=b"",
        segments=(segment,),
    )


async def as_of(view: LogView, history: HistoryStore, offset: int) -> dict[tuple[int, int], int]:
    """Read as readers do: the tail first, then what is readable, then what is superseded."""
    tail = await view.tail_view()
    seen: dict[tuple[int, int], int] = {}
    for one in SERIES:
        page = await history.read("t", [one], 0, TIMES, 1 << 20)
        aside = await history.read_superseded("t", [one], 0, TIMES, offset, 1 << 20)
        parts = [part.rows() for part in (*page.parts, *aside.parts)] + tail.select(one.series_id, 0, TIMES)
        parts = [part.take(part.offset <= offset) for part in parts]
        if not any(len(part) for part in parts):
            continue
        found: Rows = tail.visible(one.series_id, merge(parts), offset)
        seen |= {(one.series_id, t): v for t, v in zip(found.ts.tolist(), found.value.tolist(), strict=True)}
    return seen


async def run(steps: list[Write | Delete | FoldNow], history: HistoryStore, epoch: int) -> None:
    """Apply the steps to an empty history, and compare reads as of every offset with the replay."""
    deletions: dict[int, Delete] = {}

    def hide_of(at: LogEntry) -> Hide | None:
        step = deletions[at.offset]
        return Hide(tenant="t", series_ids=frozenset(step.series), start=step.start, end=step.end, offset=at.offset)

    view = LogView(
        incarnation="i", fold_offset=0, ring_bytes=1 << 20, hot_rows=100, clock=SystemClock(), hide_of=hide_of
    )

    async def nothing(_fold: object) -> None:
        return None

    compactor = Compactor(
        view=view,
        history=history,
        lease=lambda: Lease(holder="me", epoch=epoch),
        fold_rows=1,
        fold_after_s=0.0,
        clock=SystemClock(),
        report=lambda *_a, **_k: None,
        folded=nothing,
    )
    head = 0
    for step in steps:
        if isinstance(step, FoldNow):
            await compactor.fold_once()
        else:
            head += 1
            if isinstance(step, Delete):
                deletions[head] = step
            view.apply([entry(head, step)])
    for offset in range(1, head + 1):
        assert await as_of(view, history, offset) == replay(steps, offset), offset


@settings(max_examples=150, deadline=None)
@given(histories)
def test_a_read_as_of_every_offset_is_the_replay_up_to_there(steps: list[Write | Delete | FoldNow]) -> None:
    database = FakeDatabase()
    database.epoch = 1
    database.series.extend(SERIES)
    asyncio.run(run(steps, FakeHistory(database, lambda series_id: SERIES[series_id - 1]), 1))
