"""Aggregates of blocks equal aggregates of points: for every function, under any division, correction and quality."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.storage.histories import (
    BATCHES,
    COUNTER,
    GAUGE,
    SERIES,
    SPAN_US,
    STATE,
    Entry,
    Point,
    World,
    world,
)

from twinmesh_core.errors import InvalidArgument
from twinmesh_core.kinds import ChannelKind
from twinmesh_storage.domain import timelines
from twinmesh_storage.domain.aggregate import Question
from twinmesh_storage.domain.buckets import bucket_edges
from twinmesh_storage.domain.history import Seen
from twinmesh_storage.domain.partials import COMBINABLE, Function
from twinmesh_storage.domain.series import Series
from twinmesh_storage.domain.window import GapPolicy

S = 1_000_000
SIMPLE = tuple(f for f in Function if f in COMBINABLE)
QUANTILES = (0.0, 0.1, 0.5, 0.975, 1.0)
STATES = (-1.0, 2.0)


def obvious(rows: list[tuple[int, float]], low: int, high: int, question: Question, is_line: bool) -> list[float]:
    """One bucket, value by value."""
    inside = np.array([v for t, v in rows if low <= t < high])
    out: list[float] = []
    for function in question.functions:
        if function is Function.COUNT:
            out.append(len(inside))
        elif function in COMBINABLE:
            out.append(_simple(function, inside))
        elif function is Function.TIME_WEIGHTED_MEAN:
            pieces = _held(rows, low, high, question.max_gap_us)
            time = sum(d for d, _ in pieces)
            out.append(sum(d * v for d, v in pieces) / time if time else np.nan)
        else:
            pairs = [(a, b) for a, b in itertools.pairwise(rows) if low <= b[0] < high]
            rise = sum(b[1] if b[1] < a[1] else b[1] - a[1] for a, b in pairs)
            span = sum(b[0] - a[0] for a, b in pairs)
            if function is Function.INCREASE:
                out.append(rise if len(inside) else np.nan)
            else:
                out.append(rise / span * 1e6 if span else np.nan)
    out += [float(np.quantile(inside, q)) if len(inside) else np.nan for q in question.quantiles]
    pieces = _held(rows, low, high, question.max_gap_us)
    out += [sum(d for d, v in pieces if v == s) / 1e6 if pieces else np.nan for s in question.states]
    return out


def _simple(function: Function, values: np.ndarray) -> float:
    if not len(values) or (function is Function.STDDEV and len(values) < 2):
        return float("nan")
    found = {
        Function.MIN: values.min(),
        Function.MAX: values.max(),
        Function.MEAN: values.mean(),
        Function.SUM: values.sum(),
        Function.FIRST: values[0],
        Function.LAST: values[-1],
        Function.STDDEV: values.std(ddof=1) if len(values) > 1 else 0.0,
    }
    return float(found[function])


def _held(rows: list[tuple[int, float]], low: int, high: int, max_gap: int) -> list[tuple[int, float]]:
    pieces = []
    for number, (ts, value) in enumerate(rows):
        until = rows[number + 1][0] if number + 1 < len(rows) else high
        until = min(until, ts + max_gap) if max_gap else until
        duration = min(until, high) - max(ts, low)
        if duration > 0:
            pieces.append((duration, value))
    return pieces


def ask(history: World, series: Sequence[Series], edges: np.ndarray, question: Question) -> np.ndarray:
    return asyncio.run(history.aggregator.read("t", series, edges, question))


@given(
    BATCHES,
    st.integers(0, 6),
    st.integers(1, 45),
    st.integers(0, 20),
    st.integers(21, 41),
    st.integers(1, 3),
    st.sampled_from([0, 0, 1, 2, 3, 4]),
    st.sampled_from([0, 3 * S, 12 * S]),
    st.booleans(),
    st.sampled_from([2, 3, 1000]),
)
def test_aggregates_equal_those_of_the_points(
    batches: list[Entry],
    folded: int,
    bucket_s: int,
    start_s: int,
    end_s: int,
    quality: int,
    as_of: int,
    max_gap: int,
    every_value: bool,
    page_blocks: int,
) -> None:
    history = world(batches, folded, page_blocks)
    seen = Seen(max_quality=quality, as_of=as_of)
    edges = bucket_edges(start_s * S, end_s * S, bucket_s * S, "", 1000)
    asked = Question(functions=SIMPLE, seen=seen)
    if every_value:
        functions = (*SIMPLE, Function.INCREASE, Function.RATE, Function.TIME_WEIGHTED_MEAN)
        asked = Question(functions=functions, quantiles=QUANTILES, states=STATES, seen=seen, max_gap_us=max_gap)
    found = ask(history, SERIES, edges, asked)
    for table, series in zip(found, SERIES, strict=True):
        rows = history.seen(series.series_id, seen)
        rows = [r for r in rows if r[0] < edges[-1]]
        for result, (low, high) in zip(table, itertools.pairwise(edges.tolist()), strict=True):
            expected = obvious(rows, low, high, asked, series.kind is not ChannelKind.STATE)
            np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-9)


@given(
    BATCHES,
    st.integers(0, 6),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([GapPolicy.HOLD, GapPolicy.LINEAR]),
    st.sampled_from([0, 3 * S, 12 * S]),
    st.booleans(),
)
def test_empty_buckets_are_filled(
    batches: list[Entry],
    folded: int,
    bucket_s: int,
    quality: int,
    policy: GapPolicy,
    max_gap: int,
    every_value: bool,
) -> None:
    history = world(batches, folded)
    seen = Seen(max_quality=quality)
    edges = bucket_edges(10 * S, SPAN_US, bucket_s * S, "", 1000)
    functions = (Function.MEAN, Function.COUNT, Function.MAX, Function.SUM)
    asked = Question(
        functions=functions,
        quantiles=(0.5,) if every_value else (),
        seen=seen,
        gap_policy=policy,
        max_gap_us=max_gap,
    )
    bare = Question(functions=functions, quantiles=asked.quantiles, seen=seen)
    found, plain = ask(history, SERIES, edges, asked), ask(history, SERIES, edges, bare)
    starts = edges[:-1].tolist()
    for place, series in enumerate(SERIES):
        rows = [r for r in history.seen(series.series_id, seen) if r[0] < edges[-1]]
        present = [i for i in range(len(starts)) if plain[place, i, 1]]
        for i, start in enumerate(starts):
            expected = plain[place, i].copy()
            if i not in present:
                fill = None
                before = [r for r in rows if r[0] < start]
                left, right = [j for j in present if j < i], [j for j in present if j > i]
                if policy is GapPolicy.LINEAR and series.kind is not ChannelKind.STATE:
                    if left and right:
                        a, b = left[-1], right[0]
                        if not max_gap or starts[b] - starts[a] <= max_gap:
                            share = (start - starts[a]) / (starts[b] - starts[a])
                            fill = plain[place, a] + (plain[place, b] - plain[place, a]) * share
                elif before and (not max_gap or start - before[-1][0] <= max_gap):
                    fill = np.full(len(expected), before[-1][1])
                if fill is not None:
                    for column in (0, 2, *range(4, len(expected))):
                        expected[column] = fill[column]
            np.testing.assert_allclose(found[place, i], expected, rtol=1e-12, atol=1e-9)


@given(BATCHES, st.integers(0, 6), st.integers(1, 3), st.sampled_from([0, 0, 1, 2, 3]), st.integers(1, 30))
def test_tallies_count_what_is_seen(batches: list[Entry], folded: int, quality: int, as_of: int, start_s: int) -> None:
    history = world(batches, folded)
    seen = Seen(max_quality=quality, as_of=as_of)
    tally = asyncio.run(history.aggregator.tally("t", SERIES, seen, start_s * S, SPAN_US))
    for place, series in enumerate(SERIES):
        times = [t for t, _ in history.seen(series.series_id, seen) if start_s * S <= t < SPAN_US]
        assert tally.count[place] == len(times)
        if times:
            assert (tally.first[place], tally.last[place]) == (times[0], times[-1])


@given(BATCHES, st.integers(0, 6), st.integers(1, 5), st.integers(1, 3), st.sampled_from([0, 0, 1, 2, 3]))
def test_the_newest_rows_are_found(batches: list[Entry], folded: int, count: int, quality: int, as_of: int) -> None:
    history = world(batches, folded)
    seen = Seen(max_quality=quality, as_of=as_of)
    before = 30 * S
    found = asyncio.run(history.history.newest("t", [(s, before) for s in SERIES], count, seen))
    for series in SERIES:
        times = [t for t, _ in history.seen(series.series_id, seen) if t < before]
        assert found[series.series_id].ts.tolist() == times[-count:]


def steady(seconds: int) -> list[Point]:
    return [(s.series_id, t * S, t % 7, 1) for s in SERIES for t in range(seconds)]


def test_blocks_within_a_bucket_are_never_unpacked() -> None:
    # The gauge's cells last ten seconds: twenty blocks of ten rows, and buckets of forty seconds.
    history = world([steady(200)], 1)
    edges = bucket_edges(0, 200 * S, 40 * S, "", 100)
    table = ask(history, [GAUGE], edges, Question(functions=SIMPLE))
    assert history.store.unpacked == 0
    assert table[0, :, 0].tolist() == [40.0] * 5
    # Both ends of the range cut a block: those two are unpacked, and no other.
    ask(history, [GAUGE], np.array([5 * S, 195 * S]), Question(functions=SIMPLE))
    assert history.store.unpacked == 2
    # A correction in the tail costs the block that it falls into.
    history = world([steady(200), [(1, 55 * S, 100, 1)]], 1)
    table = ask(history, [GAUGE], edges, Question(functions=(Function.MAX,)))
    assert history.store.unpacked == 1
    assert table[0, :, 0].tolist() == [6.0, 100.0, 6.0, 6.0, 6.0]


def test_a_bucket_with_too_many_values_for_quantiles_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timelines, "MAX_BUCKET_VALUES", 50)
    history = world([steady(100)], 1)
    asked = Question(quantiles=(0.5,))
    assert ask(history, [GAUGE], bucket_edges(0, 100 * S, 40 * S, "", 9), asked).shape == (1, 3, 1)
    with pytest.raises(InvalidArgument, match="shorter buckets"):
        ask(history, [GAUGE], bucket_edges(0, 100 * S, 60 * S, "", 9), asked)


def test_a_counter_that_resets_goes_on_from_zero() -> None:
    values = [5, 9, 2, 4, 4]
    history = world([[(COUNTER.series_id, t * S, v, 1) for t, v in enumerate(values)]], 1)
    asked = Question(functions=(Function.INCREASE, Function.RATE))
    table = ask(history, [COUNTER], np.array([1 * S, 3 * S, 5 * S]), asked)
    # 5 -> 9 -> (reset) 2 in two seconds, then 2 -> 4 -> 4.
    assert table[0].tolist() == [[6.0, 3.0], [2.0, 1.0]]


def test_states_say_how_long_they_held() -> None:
    history = world([[(STATE.series_id, 0, 1, 1), (STATE.series_id, 7 * S, 2, 1)]], 1)
    asked = Question(functions=(Function.TIME_WEIGHTED_MEAN,), states=(1.0, 2.0))
    table = ask(history, [STATE], np.array([0, 5 * S, 10 * S]), asked)
    np.testing.assert_allclose(table[0], [[1.0, 5.0, 0.0], [1.6, 2.0, 3.0]])
