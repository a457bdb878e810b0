"""Plans of a control: which ones are considered, what each costs, and which one wins.

A plan holds one of the allowed values from the start and changes it at most a few times, on a grid of steps. The grid
is as fine as the bound on candidates permits, and every allowed combination on it is evaluated: no search, no luck.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

MAX_CANDIDATES: Final = 4_096
"""Most plans evaluated for one decision; beyond it the grid of switch times is coarsened."""
MAX_SWITCHES: Final = 3
"""Most changes within one plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A control's values over the horizon.

    Attributes:
        starts: step at which each value begins; the first is 0.
        choices: index of the option held from there on; neighbours differ.
    """

    starts: tuple[int, ...]
    choices: tuple[int, ...]

    @property
    def switches(self) -> int:
        """How often the value changes after the start."""
        return len(self.starts) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRule:
    """What is paid for.

    Attributes:
        step_hours: length of a step.
        option_cost_per_hour: price of each option.
        switch_cost: price of one change.
        target: soft target of the median.
        target_weight: price per squared unit above the target and hour.
        limit: hard limit.
        limit_column: quantile column held against the limit.
        median_column: column of the median.
    """

    step_hours: float
    option_cost_per_hour: tuple[float, ...]
    switch_cost: float
    target: float
    target_weight: float
    limit: float
    limit_column: int
    median_column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """What each candidate costs and reaches; float64 [plans] each.

    Attributes:
        cost: the whole cost.
        control_cost: the options' part of it.
        peak: highest median.
        peak_at_limit: highest value of the quantile held against the limit.
        feasible: whether it keeps the limit.
    """

    cost: npt.NDArray[np.float64]
    control_cost: npt.NDArray[np.float64]
    peak: npt.NDArray[np.float64]
    peak_at_limit: npt.NDArray[np.float64]
    feasible: npt.NDArray[np.bool_]


def enumerate_plans(
    *, options: int, steps: int, max_switches: int, min_dwell: int, max_candidates: int = MAX_CANDIDATES
) -> list[Plan]:
    """Return all plans on the finest grids that keep their number within `max_candidates`; constant ones come first.

    The plans with k changes have a grid of their own, which does not depend on how many more changes are allowed:
    permission for one more change only ever adds plans, so it never makes the decision worse.

    Args:
        options: number of values to choose from, at least 1.
        steps: steps of the horizon.
        max_switches: most changes, 0 to `MAX_SWITCHES`.
        min_dwell: fewest steps between changes, also from the start to the first one; at least 1.
        max_candidates: at least `options`.
    """
    plans: list[Plan] = []
    for switches in range(max_switches + 1):
        share = max(options, max_candidates * (switches + 1) // (MAX_SWITCHES + 1)) - len(plans)
        grid = next(g for g in range(1, steps + 2) if _count(options, steps, switches, min_dwell, g) <= share)
        plans += [
            Plan(starts=(0, *times), choices=choices)
            for times in _switch_times(steps, switches, min_dwell, grid)
            for choices in _choices(options, switches)
        ]
    return plans


def future_of(plans: list[Plan], values: npt.NDArray[np.float32], steps: int) -> npt.NDArray[np.float32]:
    """Return what the control does under each plan: float32 [plans, steps]; `values` are the options' values."""
    future = np.empty((len(plans), steps), np.float32)
    for row, plan in zip(future, plans, strict=True):
        for start, choice in zip(plan.starts, plan.choices, strict=True):
            row[start:] = values[choice]
    return future


def appraise(plans: list[Plan], quantiles: npt.NDArray[np.float32], rule: CostRule) -> Appraisal:
    """Return what each plan costs, given its predicted quantiles float32 [plans, steps, levels].

    The cost is the sum over steps of the step's hours times (target_weight * max(0, median - target)^2 + the option's
    price), plus switch_cost for each change after the first choice.
    """
    steps = quantiles.shape[1]
    median = quantiles[:, :, rule.median_column].astype(np.float64)
    at_limit = quantiles[:, :, rule.limit_column].astype(np.float64)
    prices = np.zeros(len(plans))
    for index, plan in enumerate(plans):
        ends = (*plan.starts[1:], steps)
        for start, end, choice in zip(plan.starts, ends, plan.choices, strict=True):
            prices[index] += (end - start) * rule.option_cost_per_hour[choice]
    control_cost = prices * rule.step_hours
    excess = np.maximum(0.0, median - rule.target)
    discomfort = rule.target_weight * rule.step_hours * np.square(excess).sum(axis=1)
    switching = rule.switch_cost * np.array([plan.switches for plan in plans], np.float64)
    peak_at_limit = at_limit.max(axis=1)
    return Appraisal(
        cost=control_cost + discomfort + switching,
        control_cost=control_cost,
        peak=median.max(axis=1),
        peak_at_limit=peak_at_limit,
        feasible=peak_at_limit <= rule.limit,
    )


def choose(plans: list[Plan], appraisal: Appraisal) -> tuple[int, bool]:
    """Return the winner's index and whether the limit decided.

    The cheapest feasible plan wins, ties going to fewer changes, then to the lower peak; if none is feasible, the one
    with the lowest peak. The limit decided when some plan that breaks it would have been cheaper.
    """
    switches = np.array([plan.switches for plan in plans])
    if appraisal.feasible.any():
        order = np.lexsort((appraisal.peak_at_limit, switches, appraisal.cost))
        best = int(order[np.argmax(appraisal.feasible[order])])
    else:
        best = int(np.lexsort((switches, appraisal.cost, appraisal.peak_at_limit))[0])
    slack = 1e-9 * max(1.0, abs(float(appraisal.cost[best])))
    return best, bool(appraisal.cost.min() < appraisal.cost[best] - slack)


def _count(options: int, steps: int, switches: int, min_dwell: int, grid: int) -> int:
    sequences: int = options * (options - 1) ** switches
    return sequences * math.comb(_places(steps, switches, min_dwell, grid), switches)


def _places(steps: int, switches: int, min_dwell: int, grid: int) -> int:
    """Return from how many places the times of all changes may be chosen freely; see `_switch_times`."""
    gap = -(-min_dwell // grid)
    return max(0, len(_points(steps, min_dwell, grid)) - (switches - 1) * (gap - 1)) if switches else 0


def _points(steps: int, min_dwell: int, grid: int) -> range:
    return range(-(-min_dwell // grid) * grid, steps, grid)


def _switch_times(steps: int, switches: int, min_dwell: int, grid: int) -> Iterator[tuple[int, ...]]:
    points = _points(steps, min_dwell, grid)
    gap = -(-min_dwell // grid)
    # Choosing k of n with a gap is choosing k of fewer and spreading them out: nothing is generated to be thrown away.
    for places in itertools.combinations(range(_places(steps, switches, min_dwell, grid)), switches):
        yield tuple(points[place + index * (gap - 1)] for index, place in enumerate(places))


def _choices(options: int, switches: int) -> Iterator[tuple[int, ...]]:
    for first in range(options):
        for turns in itertools.product(range(1, options), repeat=switches):
            yield tuple(itertools.accumulate(turns, lambda held, turn: (held + turn) % options, initial=first))
