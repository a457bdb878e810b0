"""Reading windows: finds the rows of many twins' channels, from memory where they are recent, and builds matrices."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.time import floor_to
from twinmesh_storage.domain.flights import Flights
from twinmesh_storage.domain.history import MAX_TIME, MIN_TIME, History, Seen, cut
from twinmesh_storage.domain.hot import HotSeries
from twinmesh_storage.domain.latest_reader import LatestReader
from twinmesh_storage.domain.logview import LogView
from twinmesh_storage.domain.parts import Part
from twinmesh_storage.domain.rows import Lane, Rows, as_float64, concat, merge, no_rows, winners
from twinmesh_storage.domain.series import Series
from twinmesh_storage.domain.tail import TailView
from twinmesh_storage.domain.window import Column, WindowSpec, build_windows, usable
from twinmesh_storage.domain.window_cache import WindowCache
from twinmesh_storage.domain.window_grid import WindowGrid

_THREAD_VALUES: Final = 20_000
_LOOP_VALUES: Final = 400_000  # copying more than this takes over about 2 ms, too long for the event loop
_KEEP_WINDOWS: Final = 4  # a window that ends within this many lengths of the newest value is worth keeping unpacked
_FILLS_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Windows of many twins.

    Attributes:
        values: float64 [twin, step, channel], NaN = missing.
        at: end of each twin's window, microseconds; 0 for a twin that has no value at all.
        coverage: float64 [twin, channel], share of steps with a value before filling.
        as_of: offset that they reflect.
    """

    values: npt.NDArray[np.float64]
    at: tuple[int, ...]
    coverage: npt.NDArray[np.float64]
    as_of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Need:
    """One column to be filled: which series, the window's bounds, and from when on rows are needed."""

    series: Series
    at: int
    start: int
    since: int


class WindowReader:
    """Reads windows of twins."""

    def __init__(self, *, history: History, latest: LatestReader, view: LogView, cache: WindowCache) -> None:
        self._cache = cache
        self._flights = Flights(_FILLS_AT_ONCE)
        self._history = history
        self._latest = latest
        self._view = view

    async def read(self, tenant: str, grid: WindowGrid, at: int | None, spec: WindowSpec) -> Windows:
        """Read one window per twin.

        Args:
            grid: the series of each column.
            at: end of the windows, aligned down to the step; None = per twin, the end of the step that holds the
                newest event time of its channels.
        """
        _, by_lane = await self._latest.rows_seen(tenant, grid.selection, Seen(as_of=spec.as_of_offset))
        newest = grid.newest(by_lane[Lane.NUMERIC])
        ends = [
            0
            if last is None
            else floor_to(last, spec.step_us) + spec.step_us
            if at is None
            else floor_to(at, spec.step_us)
            for last in newest
        ]
        tail = await self._view.tail_view()
        head = tail.head
        in_tail = frozenset(tail.series().tolist()).union(*(hide.series_ids for hide in tail.hides))
        even: list[_EvenColumn] = []
        left: list[tuple[int, int]] = []
        for row, (twin, end, last) in enumerate(zip(grid.series, ends, newest, strict=True)):
            if last is not None:
                self._find_even(row, twin, end, spec, in_tail, even, left)

        def place() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[tuple[int, int]]]:
            return _placed((grid.twins, spec.steps, grid.channels), even)

        size = grid.twins * spec.steps * grid.channels
        out, coverage, strange = await asyncio.to_thread(place) if size > _LOOP_VALUES else place()
        left += strange
        if left:
            recent = {row: newest[row] or 0 for row in {row for row, _ in left}}
            await self._place(tenant, grid, ends, recent, left, tail, in_tail, spec, out, coverage)
        return Windows(values=out, at=tuple(ends), coverage=coverage, as_of=spec.as_of_offset or head)

    def _find_even(
        self,
        row: int,
        twin: Sequence[Series | None],
        end: int,
        spec: WindowSpec,
        in_tail: frozenset[int],
        even: list[_EvenColumn],
        left: list[tuple[int, int]],
    ) -> None:
        """Add a twin's columns that are in memory with one row in each step to `even`, the others to `left`."""
        step, steps, worst = spec.step_us, spec.steps, spec.max_quality
        start = end - step * steps
        there = [(column, series) for column, series in enumerate(twin) if series is not None]
        if spec.as_of_offset:
            left.extend((row, column) for column, _ in there)
            return
        lies = self._view.hot.evens([series.series_id for _, series in there], start)
        for (column, series), lie in zip(there, lies, strict=True):
            if lie is None or lie.step != step or lie.worst > worst or series.series_id in in_tail:
                left.append((row, column))
                continue
            first = (start - lie.start + step - 1) // step  # of the first row at or after the start
            if first < 0 or first + steps > len(lie.value):
                left.append((row, column))
            else:
                even.append((row, column, lie.value[first : first + steps], series.kind))

    async def _place(
        self,
        tenant: str,
        grid: WindowGrid,
        ends: Sequence[int],
        newest: Mapping[int, int],
        wanted: Sequence[tuple[int, int]],
        tail: TailView,
        in_tail: frozenset[int],
        spec: WindowSpec,
        out: npt.NDArray[np.float64],
        coverage: npt.NDArray[np.float64],
    ) -> None:
        """Build the wanted (row, column) places from history, memory and tail."""
        length = spec.step_us * spec.steps
        reach = spec.gap_steps * spec.step_us if spec.fills and spec.max_gap_us else 0
        needs: list[_Need] = []
        recent: dict[int, bool] = {}
        for row, column in wanted:
            series, end = grid.series[row][column], ends[row]
            if series is None:
                raise AssertionError("only columns with a series are wanted")
            needs.append(_Need(series=series, at=end, start=end - length, since=end - length - reach))
            recent[series.series_id] = newest[row] - end <= _KEEP_WINDOWS * length
        if spec.as_of_offset:
            # Everything comes from history: what is kept unpacked, and the tail, are of the present.
            found, tail = await self._as_of(tenant, needs, spec), _NO_TAIL
        else:
            found = await self._folded(tenant, needs, recent)
        if spec.fills and not spec.max_gap_us:
            await self._reach_back(tenant, needs, found, tail, spec)

        def build() -> None:
            columns = [_column(n, found, tail if n.series.series_id in in_tail else _NO_TAIL, spec) for n in needs]
            values, shares = build_windows(columns, spec)
            at_row, at_column = (np.array(axis, np.intp) for axis in zip(*wanted, strict=True))
            out[at_row, :, at_column] = values
            coverage[at_row, at_column] = shares

        if len(needs) * spec.steps > _THREAD_VALUES:
            await asyncio.to_thread(build)
        else:
            build()

    async def _folded(self, tenant: str, needs: Sequence[_Need], recent: dict[int, bool]) -> dict[int, HotSeries]:
        """Return the folded rows of each series from `since` on, at least up to `at`."""
        found: dict[int, HotSeries] = {}
        missing = self._hot(needs, found)
        for cluster in _clusters(missing):
            keep = all(recent[need.series.series_id] for need in cluster)
            # Who waited for another's fill finds it; windows of long ago are not kept, and nobody waits for theirs.
            key = frozenset(need.series.series_id for need in cluster) if keep else object()
            async with self._flights.one(key):
                left = self._hot(cluster, found) if keep else cluster
                if left and keep:
                    cached = await self._cache.load([need.series.series_id for need in left])
                    left = _take(left, cached, found)
                if left:
                    found |= await self._fill(tenant, left, keep)
        return found

    def _hot(self, needs: Sequence[_Need], found: dict[int, HotSeries]) -> list[_Need]:
        """Put what is in memory into `found`; returns what is not."""
        missing: list[_Need] = []
        for need in needs:
            rows = self._view.hot.get(need.series.series_id, need.since)
            if rows is None:
                missing.append(need)
            else:
                found[need.series.series_id] = HotSeries(since=need.since, rows=rows)
        return missing

    async def _fill(self, tenant: str, cluster: Sequence[_Need], keep: bool) -> dict[int, HotSeries]:
        hot, version = self._view.hot, self._view.hot.version
        since = min(need.since for need in cluster)
        end = MAX_TIME if keep else max(need.at for need in cluster)
        loaded = await self._load(tenant, [need.series for need in cluster], since, end)
        filled = {series_id: HotSeries(since=since, rows=rows) for series_id, rows in loaded.items()}
        if keep:
            for series_id, one in filled.items():
                hot.put(series_id, one, version)
        return filled

    async def _load(self, tenant: str, series: Sequence[Series], since: int, end: int) -> dict[int, Rows]:
        parts: dict[int, list[Rows]] = {s.series_id: [] for s in series}
        async for page in self._history.pages(tenant, series, since, end):
            unpacked = await asyncio.to_thread(_unpack_all, page.parts)
            for part, rows in zip(page.parts, unpacked, strict=True):
                parts[part.series_id].append(cut(rows, page.start, page.end))
        return {series_id: concat(p) if p else no_rows(Lane.NUMERIC) for series_id, p in parts.items()}

    async def _as_of(self, tenant: str, needs: Sequence[_Need], spec: WindowSpec) -> dict[int, HotSeries]:
        """Return the rows of each series that were readable as of the offset, from `since` on, at least up to `at`."""
        found: dict[int, HotSeries] = {}
        for cluster in _clusters(needs):
            since, end = min(need.since for need in cluster), max(need.at for need in cluster)
            rows = await self._stream(tenant, [need.series for need in cluster], since, end, spec.as_of_offset)
            found |= {series_id: HotSeries(since=since, rows=r) for series_id, r in rows.items()}
        return found

    async def _stream(self, tenant: str, series: Sequence[Series], since: int, end: int, as_of: int) -> dict[int, Rows]:
        parts: dict[int, list[Rows]] = {s.series_id: [] for s in series}
        async for page in self._history.stream(tenant, series, since, end, Seen(as_of=as_of)):
            for part in page:
                parts[part.series.series_id].append(part.rows)
        return {series_id: concat(p) if p else no_rows(Lane.NUMERIC) for series_id, p in parts.items()}

    async def _reach_back(
        self,
        tenant: str,
        needs: Sequence[_Need],
        found: dict[int, HotSeries],
        tail: TailView,
        spec: WindowSpec,
    ) -> None:
        """Put the newest step with a usable row before the window in front, for columns whose first step is empty."""
        waiting = [need for need in needs if _lacks_start(need, found, tail, spec)]
        seen = Seen(max_quality=spec.max_quality, as_of=spec.as_of_offset)
        older = await self._history.newest(tenant, [(n.series, n.since) for n in waiting], 1, seen)
        steps = []
        for need in waiting:
            rows = older[need.series.series_id]
            if len(rows):
                ago = (need.start - int(rows.ts[-1]) - 1) // spec.step_us + 1
                start = need.start - ago * spec.step_us
                steps.append(_Need(series=need.series, at=need.since, start=start, since=start))
        for cluster in _clusters(steps):
            since, end = min(need.since for need in cluster), max(need.at for need in cluster)
            bounds = {need.series.series_id: need for need in cluster}
            loaded = await self._stream(tenant, [need.series for need in cluster], since, end, spec.as_of_offset)
            for series_id, rows in loaded.items():
                before = cut(rows, bounds[series_id].since, bounds[series_id].at)
                parts = [part for part in (before, found[series_id].rows) if len(part)]
                found[series_id] = HotSeries(
                    since=bounds[series_id].since, rows=merge(parts) if parts else no_rows(Lane.NUMERIC)
                )


_EvenColumn = tuple[int, int, npt.NDArray[np.int64], ChannelKind]
"""Row and column of a place, and the values (64 bits each) of its steps with their kind."""


def _placed(
    shape: tuple[int, int, int], even: Sequence[_EvenColumn]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[tuple[int, int]]]:
    """Return matrix and coverage with these columns in place, and the (row, column) of those with a NaN.

    A value that is no number is no value: such a column must be built with its gaps. The columns are joined as they
    lie and turned into steps once: writing each into its place costs three times as much.
    """
    twins, steps, channels = shape
    out, coverage = np.empty(shape), np.zeros((twins, channels))
    if not even:
        out.fill(np.nan)
        return out, coverage, []
    bits = np.concatenate([column[2] for column in even]).reshape(len(even), steps)
    values = _numbers(bits, [column[3] for column in even])
    place = np.array([row * channels + column for row, column, _, _ in even], np.intp)
    by_column = values
    if len(even) < twins * channels:
        by_column = np.full((twins * channels, steps), np.nan)
        by_column[place] = values
    by_twin = by_column.reshape(twins, channels, steps)
    for column in range(channels):
        out[:, :, column] = by_twin[:, column]
    coverage.reshape(-1)[place] = 1.0
    # A sum is NaN where a value is, and where there is infinity of both signs, which building gets right as well.
    with np.errstate(invalid="ignore", over="ignore"):
        strange = place[np.isnan(values.sum(axis=1))]
    return out, coverage, [divmod(at, channels) for at in strange.tolist()]


def _numbers(bits: npt.NDArray[np.int64], kinds: Sequence[ChannelKind]) -> npt.NDArray[np.float64]:
    """Return the values of columns, float64 [k, steps], whose bits are of these kinds."""
    if len(set(kinds)) == 1:
        return as_float64(bits, kinds[0])
    values = np.empty(bits.shape)
    for kind in set(kinds):
        of_kind = np.array([one == kind for one in kinds], np.bool_)
        values[of_kind] = as_float64(bits[of_kind], kind)
    return values


def _take(needs: Sequence[_Need], cached: dict[int, HotSeries], found: dict[int, HotSeries]) -> list[_Need]:
    """Put what reaches back far enough into `found`; returns what does not."""
    missing: list[_Need] = []
    for need in needs:
        one = cached.get(need.series.series_id)
        if one is None or one.since > need.since:
            missing.append(need)
        else:
            found[need.series.series_id] = one
    return missing


def _unpack_all(parts: Sequence[Part]) -> list[Rows]:
    return [part.rows() for part in parts]


def _clusters(needs: Sequence[_Need]) -> list[list[_Need]]:
    """Group columns whose windows overlap, so that a twin that fell silent long ago widens nobody else's read."""
    clusters: list[list[_Need]] = []
    reach = MIN_TIME
    for need in sorted(needs, key=lambda n: n.since):
        if need.since > reach:
            clusters.append([])
            reach = need.at
        clusters[-1].append(need)
    return clusters


_NO_TAIL: Final = TailView(base=0, head=0, runs=())


def _column(need: _Need, found: dict[int, HotSeries], tail: TailView, spec: WindowSpec) -> Column:
    rows = found[need.series.series_id].rows
    fresh = tail.select(need.series.series_id, MIN_TIME, need.at)
    if not fresh:
        parts: tuple[Rows, ...] = (rows,)
    elif len(fresh) == 1 and (not len(rows) or fresh[0].ts[0] > rows.ts[-1]):
        parts = (rows, winners(fresh[0]))
    else:
        parts = (merge([rows, *fresh]),)
    parts = tuple(tail.visible(need.series.series_id, part) for part in parts)
    return Column(kind=need.series.kind, at=need.at, parts=tuple(p for p in parts if len(p)))


def _lacks_start(need: _Need, found: dict[int, HotSeries], tail: TailView, spec: WindowSpec) -> bool:
    """Whether neither the first step nor anything before it has a usable row yet."""
    column = _column(need, found, tail, spec)
    return not any(len(usable(cut(part, MIN_TIME, need.start + spec.step_us), spec)) for part in column.parts)
