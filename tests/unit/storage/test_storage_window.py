"""Windows against a slow and obvious model."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.time import US_PER_DAY, US_PER_HOUR
from twinmesh_storage.domain.buckets import bucket_edges
from twinmesh_storage.domain.rows import Rows, to_bits
from twinmesh_storage.domain.window import Column, GapPolicy, StepAggregate, WindowSpec, build_windows

POINTS = st.dictionaries(
    st.integers(-60, 60), st.tuples(st.integers(-9, 9), st.integers(1, 3), st.integers(1, 9)), max_size=40
)


def column(points: dict[int, tuple[int, int, int]], at: int, kind: ChannelKind = ChannelKind.GAUGE) -> Column:
    ts = np.array(sorted(points), np.int64)
    values = np.array([points[t][0] for t in ts.tolist()], np.float64)
    rows = Rows(
        series=np.ones(len(ts), np.int64),
        ts=ts,
        value=to_bits(values if kind.has_unit else values.astype(np.int64)),
        quality=np.array([points[t][1] for t in ts.tolist()], np.uint8),
        offset=np.array([points[t][2] for t in ts.tolist()], np.int64),
    )
    return Column(kind=kind, at=at, parts=(rows,) if len(ts) else ())


def obvious(points: dict[int, tuple[int, int, int]], at: int, spec: WindowSpec, mean: bool) -> list[float]:
    """Step by step, over more steps than asked for, so that fills reach back."""
    seen = {
        t: v
        for t, (v, q, o) in points.items()
        if q <= spec.max_quality and (not spec.as_of_offset or o <= spec.as_of_offset)
    }
    back = 200
    steps: list[float] = []
    lasts: list[float] = []
    for i in range(-back, spec.steps):
        low = at - (spec.steps - i) * spec.step_us
        inside = [float(seen[t]) for t in sorted(seen) if low <= t < low + spec.step_us]
        steps.append(float(np.mean(inside) if mean else inside[-1]) if inside else np.nan)
        lasts.append(inside[-1] if inside else np.nan)
    gap = spec.max_gap_us // spec.step_us if spec.max_gap_us else 10**6
    out = []
    for i in range(back, back + spec.steps):
        value = steps[i]
        if np.isnan(value) and spec.gap_policy in (GapPolicy.HOLD, GapPolicy.LINEAR):
            left = next((j for j in range(i - 1, -1, -1) if not np.isnan(steps[j])), None)
            right = next((j for j in range(i + 1, len(steps)) if not np.isnan(steps[j])), None)
            if spec.gap_policy is GapPolicy.HOLD and left is not None and i - left <= gap:
                value = lasts[left]
            if spec.gap_policy is GapPolicy.LINEAR and left is not None and right is not None and right - left <= gap:
                value = steps[left] + (steps[right] - steps[left]) * (i - left) / (right - left)
        out.append(value)
    return out


@given(
    st.lists(POINTS, min_size=1, max_size=3),
    st.integers(1, 7),
    st.integers(1, 12),
    st.integers(-3, 8),
    st.sampled_from(GapPolicy),
    st.sampled_from([0, 3, 10, 25]),
    st.integers(1, 3),
    st.sampled_from([0, 5]),
    st.booleans(),
)
def test_windows_equal_the_obvious_model(
    points: list[dict[int, tuple[int, int, int]]],
    step: int,
    steps: int,
    end: int,
    policy: GapPolicy,
    max_gap: int,
    quality: int,
    as_of: int,
    mean: bool,
) -> None:
    spec = WindowSpec(
        step_us=step,
        steps=steps,
        aggregate=StepAggregate.MEAN if mean else StepAggregate.LAST,
        gap_policy=policy,
        max_gap_us=max_gap,
        max_quality=quality,
        as_of_offset=as_of,
    )
    at = end * step
    values, coverage = build_windows([column(p, at) for p in points], spec)
    for row, share, mine in zip(values, coverage, points, strict=True):
        expected = obvious(mine, at, spec, mean)
        np.testing.assert_allclose(row, expected, atol=1e-12)
        bare = obvious(mine, at, WindowSpec(step_us=step, steps=steps, max_quality=quality, as_of_offset=as_of), mean)
        assert share == np.count_nonzero(~np.isnan(bare)) / steps


def test_states_are_held_where_gauges_are_drawn_as_lines() -> None:
    points = {0: (1, 1, 1), 30: (4, 1, 1)}
    spec = WindowSpec(step_us=10, steps=4, gap_policy=GapPolicy.LINEAR)
    values, _ = build_windows([column(points, 40), column(points, 40, ChannelKind.STATE)], spec)
    assert values.tolist() == [[1, 2, 3, 4], [1, 1, 1, 4]]


def test_days_follow_the_clocks_of_the_place() -> None:
    # Berlin, 26 October 2025: clocks go back, the day has 25 hours.
    start = 1_761_343_200_000_000  # 2025-10-25T00:00+02:00
    edges = bucket_edges(start, start + 3 * US_PER_DAY, US_PER_DAY, "Europe/Berlin", 100)
    assert edges[0] == start
    assert (np.diff(edges) // US_PER_HOUR).tolist() == [24, 25, 24]
    assert len(bucket_edges(0, 10, 10, "", 10)) == 2
    assert bucket_edges(5, 11, 10, "", 10).tolist() == [0, 10, 20]
