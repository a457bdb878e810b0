"""Downsampling against plain implementations, point by point."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.storage.histories import DELETION, GAUGE, SERIES, SPAN_US, Entry, World, world

from twinmesh_storage.domain.downsample import Downsampler, Method
from twinmesh_storage.domain.history import Seen
from twinmesh_storage.domain.rows import as_float64

POINTS = st.lists(
    st.tuples(st.just(1), st.integers(0, SPAN_US), st.integers(-1000, 1000), st.integers(1, 3)), max_size=60
)


def lttb(rows: Sequence[tuple[int, float]], most: int) -> list[int]:
    """Steinarsson's algorithm as he writes it down, with lists."""
    if len(rows) <= most:
        return [t for t, _ in rows]
    inner = most - 2
    bounds = [1 + i * (len(rows) - 2) // inner for i in range(inner + 1)]
    buckets = [rows[:1], *(rows[a:b] for a, b in itertools.pairwise(bounds)), rows[-1:]]
    chosen = [rows[0]]
    for bucket, after in itertools.pairwise(buckets[1:]):
        mean_t = sum(t for t, _ in after) / len(after)
        mean_v = sum(v for _, v in after) / len(after)
        left_t, left_v = chosen[-1]
        areas = [abs((left_t - mean_t) * (v - left_v) - (left_t - t) * (mean_v - left_v)) / 2 for t, v in bucket]
        chosen.append(bucket[areas.index(max(areas))])
    return [t for t, _ in [*chosen, rows[-1]]]


def min_max(rows: Sequence[tuple[int, float]], most: int) -> list[int]:
    if len(rows) <= most:
        return [t for t, _ in rows]
    spans = most // 2
    first, length = rows[0][0], rows[-1][0] - rows[0][0] + 1
    chosen = set()
    for number in range(spans):
        inside = [r for r in rows if (r[0] - first) * spans // length == number]
        if inside:
            chosen |= {min(inside, key=lambda r: r[1])[0], max(inside, key=lambda r: r[1])[0]}
    return sorted(chosen)


def downsample(history: World, method: Method, most: int, seen: Seen, kept: int = 10**6) -> dict[int, list]:
    async def run() -> dict[int, list]:
        sampler = Downsampler(history=history.history, aggregator=history.aggregator, kept_rows=kept)
        found = {}
        async for part in sampler.stream("t", SERIES, 0, SPAN_US + 1, method, most, seen):
            values = as_float64(np.ascontiguousarray(part.rows.value), part.series.kind)
            found[part.series.series_id] = list(zip(part.rows.ts.tolist(), values.tolist(), strict=True))
        return found

    return asyncio.run(run())


@given(
    st.lists(POINTS | DELETION, min_size=1, max_size=4),
    st.integers(0, 4),
    st.integers(3, 20),
    st.sampled_from([Method.LTTB, Method.MIN_MAX]),
    st.integers(1, 3),
    st.sampled_from([0, 2]),
    st.sampled_from([0, 10**6]),
)
def test_downsampling_equals_the_plain_implementation(
    batches: list[Entry], folded: int, most: int, method: Method, quality: int, as_of: int, kept: int
) -> None:
    history = world(batches, folded)
    seen = Seen(max_quality=quality, as_of=as_of)
    rows = history.seen(GAUGE.series_id, seen)
    plain = lttb if method is Method.LTTB else min_max
    expected = plain(rows, most)
    found = downsample(history, method, most, seen, kept).get(GAUGE.series_id, [])
    assert [t for t, _ in found] == expected
    assert set(found) <= set(rows)
    assert len(found) <= most


@pytest.mark.parametrize("method", [Method.LTTB, Method.MIN_MAX])
def test_a_long_history_is_read_in_pages_and_none_of_it_is_kept(method: Method) -> None:
    rng = np.random.default_rng(1)
    batches: list[Entry] = [
        [(1, t * 1_000_000, int(v), 1) for t, v in enumerate(rng.normal(0, 50, 3_000).cumsum(), start)]
        for start in range(0, 30_000, 3_000)
    ]
    history = world(batches, 8)
    rows = history.seen(1, Seen())
    found = downsample_all(history, method, 101)
    assert found == (lttb if method is Method.LTTB else min_max)(rows, 101)


def downsample_all(history: World, method: Method, most: int) -> list[int]:
    async def run() -> list[int]:
        sampler = Downsampler(history=history.history, aggregator=history.aggregator, kept_rows=0)
        parts = sampler.stream("t", [GAUGE], 0, 1 << 60, method, most, Seen())
        return [t async for part in parts for t in part.rows.ts.tolist()]

    return asyncio.run(run())
