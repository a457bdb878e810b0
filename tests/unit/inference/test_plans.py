"""Plans: all of them and no other, the documented cost, and the winner."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinmesh_inference.domain.plans import (
    MAX_CANDIDATES,
    CostRule,
    Plan,
    appraise,
    choose,
    enumerate_plans,
    future_of,
)


def brute_force(options: int, steps: int, max_switches: int, min_dwell: int) -> set[tuple[int, ...]]:
    """All value sequences with few enough changes, none sooner than min_dwell after the one before or the start."""
    found = set()
    for sequence in itertools.product(range(options), repeat=steps):
        changes = [0, *(n for n in range(1, steps) if sequence[n] != sequence[n - 1])]
        if len(changes) - 1 <= max_switches and all(b - a >= min_dwell for a, b in itertools.pairwise(changes)):
            found.add(sequence)
    return found


def expanded(plan: Plan, steps: int, options: int) -> tuple[int, ...]:
    values = np.arange(options, dtype=np.float32)
    return tuple(int(value) for value in future_of([plan], values, steps)[0])


@given(options=st.integers(1, 3), steps=st.integers(1, 7), max_switches=st.integers(0, 3), min_dwell=st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_the_enumeration_holds_every_allowed_plan_once(
    options: int, steps: int, max_switches: int, min_dwell: int
) -> None:
    plans = enumerate_plans(options=options, steps=steps, max_switches=max_switches, min_dwell=min_dwell)
    sequences = [expanded(plan, steps, options) for plan in plans]
    assert len(set(sequences)) == len(sequences)
    assert set(sequences) == brute_force(options, steps, max_switches, min_dwell)


@given(
    options=st.integers(1, 16), steps=st.integers(1, 400), max_switches=st.integers(0, 3), min_dwell=st.integers(1, 60)
)
@settings(max_examples=25, deadline=None)
def test_the_enumeration_is_bounded_and_constants_come_first(
    options: int, steps: int, max_switches: int, min_dwell: int
) -> None:
    plans = enumerate_plans(options=options, steps=steps, max_switches=max_switches, min_dwell=min_dwell)
    assert options <= len(plans) <= MAX_CANDIDATES
    assert [plan.choices for plan in plans[:options]] == [(n,) for n in range(options)]
    for plan in plans:
        assert plan.switches <= max_switches
        assert all(b - a >= min_dwell for a, b in itertools.pairwise(plan.starts))
        assert all(a != b for a, b in itertools.pairwise(plan.choices))
        assert plan.starts[-1] < steps


@given(options=st.integers(1, 16), steps=st.integers(1, 300), min_dwell=st.integers(1, 40))
@settings(max_examples=12, deadline=None)
def test_one_more_allowed_change_only_adds_plans(options: int, steps: int, min_dwell: int) -> None:
    before: list[Plan] = []
    for max_switches in range(4):
        plans = enumerate_plans(options=options, steps=steps, max_switches=max_switches, min_dwell=min_dwell)
        assert plans[: len(before)] == before
        before = plans


def rule(**changes: Any) -> CostRule:
    values: dict[str, Any] = {
        "step_hours": 0.5,
        "option_cost_per_hour": (0.0, 2.0),
        "switch_cost": 0.25,
        "target": 10.0,
        "target_weight": 3.0,
        "limit": 20.0,
        "limit_column": 1,
        "median_column": 0,
    }
    return CostRule(**(values | changes))


def test_the_cost_is_the_documented_sum() -> None:
    plans = [Plan(starts=(0, 2), choices=(1, 0))]
    median = np.array([9.0, 11.0, 12.0, 10.0])
    quantiles = np.stack((median, median + 5), axis=-1)[None].astype(np.float32)
    found = appraise(plans, quantiles, rule())
    control = 2 * 0.5 * 2.0
    assert found.control_cost[0] == pytest.approx(control)
    assert found.cost[0] == pytest.approx(control + 0.5 * 3.0 * (1.0 + 4.0) + 0.25)
    assert found.peak[0] == 12.0
    assert found.peak_at_limit[0] == 17.0
    assert found.feasible[0]


def test_the_cheapest_feasible_plan_wins_and_a_cheaper_one_that_breaks_the_limit_makes_it_bind() -> None:
    plans = [Plan(starts=(0,), choices=(0,)), Plan(starts=(0,), choices=(1,))]
    hot, cool = np.full((3, 2), 30.0), np.full((3, 2), 5.0)
    quantiles = np.stack((hot, cool)).astype(np.float32)
    found = appraise(plans, quantiles, rule(target_weight=0.0))
    assert choose(plans, found) == (1, True)
    found = appraise(plans, quantiles, rule(target_weight=0.0, limit=40.0))
    assert choose(plans, found) == (0, False)


def test_without_a_feasible_plan_the_lowest_peak_wins() -> None:
    plans = [Plan(starts=(0,), choices=(0,)), Plan(starts=(0,), choices=(1,))]
    quantiles = np.stack((np.full((3, 2), 30.0), np.full((3, 2), 25.0))).astype(np.float32)
    best, binding = choose(plans, appraise(plans, quantiles, rule(target_weight=0.0)))
    assert (best, binding) == (1, True)


def test_ties_go_to_fewer_changes() -> None:
    plans = [Plan(starts=(0, 1), choices=(0, 1)), Plan(starts=(0,), choices=(0,))]
    quantiles = np.zeros((2, 3, 2), np.float32)
    found = appraise(plans, quantiles, rule(switch_cost=0.0, option_cost_per_hour=(1.0, 1.0)))
    assert choose(plans, found)[0] == 1
