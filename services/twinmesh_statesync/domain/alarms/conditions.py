"""What each kind of condition says of a twin: one function per kind, from what is known to a judgement.

None = it cannot be told: the value is missing, or of quality BAD, which proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from twinmesh_core.quality import Quality
from twinmesh_core.rules import PredictedCrossing, RateOfChange, Threshold
from twinmesh_statesync.domain.alarms.alarm import NORMAL, Judgement
from twinmesh_statesync.domain.alarms.expression import Expression
from twinmesh_statesync.domain.alarms.standing import Standing
from twinmesh_statesync.domain.events import Connectivity, Prediction
from twinmesh_statesync.domain.replica import DesiredValue
from twinmesh_statesync.domain.values import ReportedValue, Value

if TYPE_CHECKING:
    from twinmesh_statesync.domain.twin_state import Draft

MAX_SAMPLES: Final = 64
"""Values kept for one rate; a window with more is measured from values further apart."""


class View:
    """A twin as a draft leaves it, before the draft is finished."""

    __slots__ = ("_draft",)

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def fact(self, channel: str) -> ReportedValue | None:
        """Return the newest fact of a channel; None = there is none, or it is BAD."""
        found = self._draft.reported.get(channel) or self._draft.state.replica.reported.values.get(channel)
        return found if found is not None and found.quality is not Quality.BAD else None

    def facts(self) -> dict[str, Value]:
        """Return the values of all facts that are not BAD."""
        known = {**self._draft.state.replica.reported.values, **self._draft.reported}
        return {name: fact.value for name, fact in known.items() if fact.quality is not Quality.BAD}

    def targets(self) -> Mapping[str, DesiredValue]:
        """Return the targets."""
        return self._draft.state.replica.desired.values if self._draft.desired is None else self._draft.desired

    def predictions(self, channel: str) -> list[Prediction]:
        """Return the newest prediction of each model for a channel; the freshest last."""
        known = {**self._draft.state.replica.predicted.predictions}
        known.update({(p.channel, p.model_id): p for p in self._draft.predicted})
        found = [p for (name, _), p in sorted(known.items()) if name == channel]
        return sorted(found, key=lambda p: p.freshness)

    def predicted_channels(self) -> set[str]:
        """Return the channels that something is predicted of."""
        known = self._draft.state.replica.predicted.predictions
        return {name for name, _ in known} | {p.channel for p in self._draft.predicted}

    def attributes(self) -> Mapping[str, str]:
        """Return the twin's attributes."""
        return self._draft.state.twin.attributes

    def connectivity(self) -> Connectivity:
        """Return whether the entity is heard from."""
        fresh = self._draft.connectivity
        return self._draft.state.replica.connectivity if fresh is None else fresh


def beyond_limits(rule: Threshold, view: View, before: str) -> Judgement | None:
    """Judge a fact against the limits; `before` is the level so far, which hysteresis holds on to."""
    fact = view.fact(rule.channel)
    if fact is None or isinstance(fact.value, str):
        return None
    value = float(fact.value)
    low, high = (("LOW_LOW", rule.low_low), ("LOW", rule.low)), (("HIGH_HIGH", rule.high_high), ("HIGH", rule.high))
    for name, limit in low:
        if limit is not None and value < limit + _held(name, before, rule.hysteresis):
            return Judgement(level=name, value=fact.value, limit=limit)
    for name, limit in high:
        if limit is not None and value > limit - _held(name, before, rule.hysteresis):
            return Judgement(level=name, value=fact.value, limit=limit)
    return Judgement(value=fact.value)


def _held(name: str, before: str, hysteresis: float) -> float:
    """Return how far the limit moves for a level that holds already; the outer level holds the inner one too."""
    return hysteresis if before == name or before == f"{name}_{name}" else 0.0


def too_fast(rule: RateOfChange, view: View, standing: Standing) -> tuple[Judgement | None, Standing]:
    """Judge the change since the start of the window, and keep the fact as one more sample."""
    fact = view.fact(rule.channel)
    if fact is None or isinstance(fact.value, str):
        return None, standing
    now, value = fact.event_time_unix_us, float(fact.value)
    kept = [sample for sample in standing.samples if sample[0] < now]
    standing = replace(standing, samples=_thinned([*kept, (now, value)], now - rule.window_us))
    start = next((sample for sample in reversed(kept) if sample[0] <= now - rule.window_us), None)
    if start is None:
        return None, standing
    rate = (value - start[1]) / ((now - start[0]) / 1e6)
    before = standing.said.level
    for name, bound, speed in (("RISING", rule.max_rise_per_s, rate), ("FALLING", rule.max_fall_per_s, -rate)):
        if bound is not None and speed > bound - (rule.hysteresis_per_s if before == name else 0.0):
            return Judgement(level=name, value=rate, limit=bound), standing
    return Judgement(value=rate), standing


def _thinned(samples: list[tuple[int, float]], start: int) -> tuple[tuple[int, float], ...]:
    """Keep the window, one sample before it, and of too many samples those that lie furthest apart."""
    first = max((i for i, sample in enumerate(samples) if sample[0] <= start), default=0)
    samples = samples[first:]
    if len(samples) > MAX_SAMPLES:
        gaps = [(later[0] - earlier[0], i + 1) for i, (earlier, later) in enumerate(pairwise(samples[:-1]))]
        del samples[min(gaps)[1]]
    return tuple(samples)


def not_met(channel: str, view: View) -> tuple[Judgement, int]:
    """Judge whether desired values are open; also returns the offset of the newest target among them."""
    targets = view.targets()
    wanted = [targets[channel]] if channel in targets else targets.values() if not channel else ()
    still_open = sorted((t for t in wanted if not t.in_sync), key=lambda t: (t.offset, t.channel))
    if not still_open:
        return NORMAL, 0
    return Judgement(level="NOT_CONVERGING", value=still_open[-1].value), still_open[-1].offset


def crosses(rule: PredictedCrossing, view: View, before: str) -> Judgement | None:
    """Judge the freshest prediction: the first step whose quantile lies beyond a limit."""
    found = [p for p in view.predictions(rule.channel) if rule.model_id in ("", p.model_id)]
    if not found:
        return None
    path = quantile_path(found[-1], rule.quantile)
    if path is None:
        return None
    steps = len(path) if not rule.within_us else min(len(path), -(-rule.within_us // max(1, found[-1].step_us)))
    high = None if rule.high is None else rule.high - (rule.hysteresis if before == "HIGH" else 0.0)
    low = None if rule.low is None else rule.low + (rule.hysteresis if before == "LOW" else 0.0)
    for value in path[:steps]:
        if high is not None and value > high:
            return Judgement(level="HIGH", value=max(path[:steps]), limit=rule.high)
        if low is not None and value < low:
            return Judgement(level="LOW", value=min(path[:steps]), limit=rule.low)
    return NORMAL


def quantile_path(prediction: Prediction, quantile: float) -> list[float] | None:
    """Return one quantile of each step, between two levels interpolated; None outside of the levels."""
    levels, values = prediction.quantile_levels, prediction.values
    width = len(levels)
    if not width or len(values) % width or not levels[0] - 1e-9 <= quantile <= levels[-1] + 1e-9:
        return None
    upper = next((i for i, level in enumerate(levels) if level >= quantile - 1e-9), width - 1)
    lower = upper if abs(levels[upper] - quantile) <= 1e-9 or upper == 0 else upper - 1
    span = levels[upper] - levels[lower]
    part = (quantile - levels[lower]) / span if span > 0 else 0.0
    rows = range(0, len(values), width)
    return [values[at + lower] + part * (values[at + upper] - values[at + lower]) for at in rows]


def holds(expression: Expression, view: View) -> Judgement | None:
    """Judge an expression over what the twin is now."""
    found = expression.holds(_context(expression, view))
    if found is None:
        return None
    return Judgement(level="TRUE") if found else NORMAL


def _context(expression: Expression, view: View) -> dict[str, Any]:
    """Return what an expression names, and no more: reading a wide twin costs time."""
    context: dict[str, Any] = {}
    for name in expression.names:
        if name == "attributes":
            context[name] = dict(view.attributes())
        elif name == "connectivity":
            context[name] = view.connectivity().name
        else:
            wanted = None if name in expression.whole else {c for facet, c in expression.channels if facet == name}
            context[name] = _facet(name, wanted, view)
    return context


def _facet(name: str, wanted: set[str] | None, view: View) -> dict[str, Any]:
    if name == "reported":
        if wanted is None:
            return view.facts()
        facts = ((channel, view.fact(channel)) for channel in sorted(wanted))
        return {channel: fact.value for channel, fact in facts if fact is not None}
    if name == "desired":
        return {c: t.value for c, t in view.targets().items() if wanted is None or c in wanted}
    if name == "delta":
        open_targets = {c: t.value for c, t in view.targets().items() if not t.in_sync}
        return {c: value for c, value in open_targets.items() if wanted is None or c in wanted}
    channels = view.predicted_channels() if wanted is None else wanted
    found = {channel: view.predictions(channel) for channel in sorted(channels)}
    return {channel: _outlook(predictions[-1]) for channel, predictions in found.items() if predictions}


def _outlook(prediction: Prediction) -> dict[str, float]:
    """Return a prediction as an expression sees it: the median's next and last step, and the outermost quantiles."""
    median = quantile_path(prediction, 0.5) or list(prediction.values)
    width = max(1, len(prediction.quantile_levels))
    return (
        {
            "next": median[0],
            "last": median[-1],
            "lowest": min(prediction.values[::width]),
            "highest": max(prediction.values[width - 1 :: width]),
        }
        if median
        else {}
    )
