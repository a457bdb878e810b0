"""Dynamics: one step learned, then rolled along the horizon under planned controls.

Why not regress the whole trajectory on the planned controls: recorded plants are mostly under somebody's control. A
thermostat cools *because* it will be hot, so a direct regression learns that cooling heats. Conditioned on the state of
the step before and on the load and weather of the step itself, what is left of a control is its effect. So:

* channels that the controls move (*driven*: the target, and any other whose next step is predicted better with the
  controls than without) follow a one-step model, fitted on recorded steps;
* all other channels (*exogenous*: load, weather) follow their outlook, a linear map of the window that no control
  enters;
* whatever else the window tells about the trajectory is added by maps that do not see the planned controls, so they
  cannot bend the response to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_training.domain.dataset import Dataset
from twinmesh_training.domain.features import Features
from twinmesh_training.domain.ridge import LinearMap, fit_ridge

Float64 = npt.NDArray[np.float64]

LAGS: Final = 3
_DRIVEN_GAIN: Final = 0.03
"""A channel is driven when the controls lower its one-step error by more than this share."""
_MAX_PRODUCT_STATES: Final = 10
_MARGIN: Final = 0.5
"""A rolled state may leave its recorded range by this share of the range; a runaway stops there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A one-step model of the driven channels and the outlook of the others, in deviations of each channel.

    Attributes:
        driven: channel indices, the target first.
        exogenous: channel indices.
        controls: channel indices, in the order of ``future``.
        mean, scale: float64 [channels].
        outlook: features -> [horizon * exogenous] deviations from the last value; None without exogenous channels.
        step: `step_features` -> [driven] change over one step.
        low, high: float64 [driven], bounds of a rolled state.
        turn: angle that the day turns in one step, radians.
        horizon: steps.
    """

    driven: tuple[int, ...]
    exogenous: tuple[int, ...]
    controls: tuple[int, ...]
    mean: Float64
    scale: Float64
    outlook: LinearMap | None
    step: LinearMap
    low: Float64
    high: Float64
    turn: float
    horizon: int

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs multiplied within [states, exogenous, controls, controls squared]."""
        return product_pairs(len(self.driven) + len(self.exogenous), len(self.controls))

    def trajectory(
        self, features: Features, calendar: npt.NDArray[np.floating], future: npt.NDArray[np.floating]
    ) -> Float64:
        """Return the target over the horizon, float64 [n, horizon], target units.

        Args:
            features: of the windows.
            calendar: [n, 4] at the origins.
            future: [n, horizon, controls], channel units; NaN = as it is now.
        """
        state = (features.known[:, -LAGS:, :] - self.mean) / self.scale
        driven = list(self.driven)
        lags = [state[:, -1 - k, driven] for k in range(LAGS)]
        exogenous_now = state[:, -1, list(self.exogenous)]
        control_now = state[:, -1, list(self.controls)]
        coming = self._exogenous(features, exogenous_now)
        planned = self._planned(control_now, future)
        sine, cosine = (calendar[:, k].astype(np.float64) for k in (0, 1))
        target = np.empty((len(state), self.horizon))
        for k in range(self.horizon):
            phi = step_features(
                lags,
                (coming[:, k], exogenous_now if k == 0 else coming[:, k - 1]),
                (planned[:, k], control_now if k == 0 else planned[:, k - 1]),
                (
                    sine * np.cos(k * self.turn) + cosine * np.sin(k * self.turn),
                    cosine * np.cos(k * self.turn) - sine * np.sin(k * self.turn),
                ),
                self.pairs,
            )
            moved = np.clip(lags[0] + self.step.apply(phi), self.low, self.high)
            lags = [moved, *lags[:-1]]
            target[:, k] = moved[:, 0]
        answer: Float64 = target * self.scale[driven[0]] + self.mean[driven[0]]
        return answer

    def _exogenous(self, features: Features, now: Float64) -> Float64:
        if self.outlook is None:
            return np.zeros((len(now), self.horizon, 0))
        ahead = self.outlook.apply(features.values).reshape(len(now), self.horizon, -1)
        return ahead + now[:, None, :]

    def _planned(self, now: Float64, future: npt.NDArray[np.floating]) -> Float64:
        controls = list(self.controls)
        planned = (future.astype(np.float64) - self.mean[controls]) / self.scale[controls]
        held: Float64 = np.where(np.isnan(planned), now[:, None, :], planned)
        return held


def product_pairs(states: int, controls: int) -> tuple[tuple[int, int], ...]:
    """Pairs of columns of [states, controls, controls squared] whose products are features of a step."""
    pairs = []
    if states <= _MAX_PRODUCT_STATES:
        pairs += [(i, j) for i in range(states) for j in range(i, states)]
    pairs += [(states + k, i) for k in range(2 * controls) for i in range(states)]
    return tuple(pairs)


def step_features(
    lags: list[Float64],
    exogenous: tuple[Float64, Float64],
    control: tuple[Float64, Float64],
    day: tuple[Float64, Float64],
    pairs: tuple[tuple[int, int], ...],
) -> Float64:
    """Return what the one-step model reads, float64 [n, p].

    Args:
        lags: driven states of the steps before, newest first, `LAGS` of [n, d].
        exogenous: [n, e] of this step and of the step before.
        control: [n, k] of this step and of the step before.
        day: sine and cosine of the time of day at the step's start, [n] each.
        pairs: from `product_pairs`.
    """
    base = np.concatenate((lags[0], exogenous[0], control[0], np.square(control[0])), axis=1)
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    return np.concatenate(
        (
            base,
            *(lags[k] - lags[k + 1] for k in range(len(lags) - 1)),
            exogenous[0] - exogenous[1],
            control[0] - control[1],
            base[:, left] * base[:, right],
            day[0][:, None],
            day[1][:, None],
        ),
        axis=1,
    )


def fit_rollout(
    dataset: Dataset,
    features: npt.NDArray[np.float32],
    *,
    mean: Float64,
    scale: Float64,
    purge: int,
    check: Callable[[], None],
) -> Rollout:
    """Fit the one-step model on recorded steps of the fit part, and the outlook on its windows.

    Args:
        dataset: of a DYNAMICS spec.
        features: float32 [fit windows, features], in the order of `dataset.fit`.
        mean, scale: float64 [channels] of the fit part.
        purge: rows that a block does not score at its begin.
        check: called between steps; raises to stop.
    """
    spec = dataset.spec
    channels = spec.channels
    controls = tuple(channels.index(c) for c in spec.controls)
    target = channels.index(spec.target)
    free = tuple(c for c in range(len(channels)) if c not in controls)
    recorded = _recorded_steps(dataset, mean, scale)
    check()
    driven = (target, *(c for c in free if c != target and _is_driven(recorded, c, free, controls)))
    exogenous = tuple(c for c in free if c not in driven)
    check()
    phi = step_features(
        [recorded.before[k][:, list(driven)] for k in range(LAGS)],
        (recorded.now[:, list(exogenous)], recorded.before[0][:, list(exogenous)]),
        (recorded.now[:, list(controls)], recorded.before[0][:, list(controls)]),
        (recorded.sine, recorded.cosine),
        product_pairs(len(free), len(controls)),
    )
    change = recorded.now[:, list(driven)] - recorded.before[0][:, list(driven)]
    step = fit_ridge(phi, change, purge=LAGS, check=check)
    seen = recorded.now[:, list(driven)]
    low, high = seen.min(axis=0), seen.max(axis=0)
    return Rollout(
        driven=driven,
        exogenous=exogenous,
        controls=controls,
        mean=mean,
        scale=scale,
        outlook=_fit_outlook(dataset, features, exogenous, mean, scale, purge, check) if exogenous else None,
        step=step,
        low=low - _MARGIN * (high - low),
        high=high + _MARGIN * (high - low),
        turn=2 * np.pi * spec.step_us / 86_400_000_000,
        horizon=spec.horizon_steps,
    )


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Steps of the fit part with all they depend on, in deviations: now [n, channels], before: LAGS of the same."""

    now: Float64
    before: list[Float64]
    sine: Float64
    cosine: Float64


def _recorded_steps(dataset: Dataset, mean: Float64, scale: Float64) -> _Recorded:
    end = dataset.fit_end
    now: list[Float64] = []
    before: list[list[Float64]] = [[] for _ in range(LAGS)]
    calendar: list[Float64] = []
    order: list[npt.NDArray[np.int64]] = []
    for history, calendars in zip(dataset.histories, dataset.calendars, strict=True):
        values = (history.values[:end] - mean) / scale
        rows = np.arange(LAGS, end)
        complete = np.logical_not(np.isnan(values).any(axis=1))
        whole = complete[rows].copy()
        for lag in range(1, LAGS + 1):
            whole &= complete[rows - lag]
        rows = rows[whole]
        now.append(values[rows])
        for lag in range(LAGS):
            before[lag].append(values[rows - 1 - lag])
        calendar.append(calendars[rows].astype(np.float64))
        order.append(rows)
    by_time = np.argsort(np.concatenate(order), kind="stable")
    together = np.concatenate(calendar)[by_time]
    return _Recorded(
        np.concatenate(now)[by_time],
        [np.concatenate(lag)[by_time] for lag in before],
        together[:, 0],
        together[:, 1],
    )


def _is_driven(recorded: _Recorded, channel: int, free: tuple[int, ...], controls: tuple[int, ...]) -> bool:
    """Whether the controls of a step tell something about this channel beyond the states before it."""
    states = recorded.before[0][:, list(free)]
    change = recorded.now[:, [channel]] - recorded.before[0][:, [channel]]
    slopes = [recorded.before[k][:, list(free)] - recorded.before[k + 1][:, list(free)] for k in range(LAGS - 1)]
    plain = np.concatenate((states, *slopes, recorded.sine[:, None], recorded.cosine[:, None]), axis=1)
    control = recorded.now[:, list(controls)]
    step = control - recorded.before[0][:, list(controls)]
    crossed = (control[:, :, None] * states[:, None, :]).reshape(len(states), -1)
    informed = np.concatenate((plain, control, np.square(control), step, crossed), axis=1)
    without = fit_ridge(plain, change, purge=LAGS).loss
    return fit_ridge(informed, change, purge=LAGS).loss < (1 - _DRIVEN_GAIN) * without


def _fit_outlook(
    dataset: Dataset,
    features: npt.NDArray[np.float32],
    exogenous: tuple[int, ...],
    mean: Float64,
    scale: Float64,
    purge: int,
    check: Callable[[], None],
) -> LinearMap:
    horizon = dataset.spec.horizon_steps
    ahead = np.arange(-1, horizon)
    truth = np.empty((len(dataset.fit), horizon + 1, len(exogenous)))
    for index, history in enumerate(dataset.histories):
        rows = np.flatnonzero(dataset.fit[:, 0] == index)
        if rows.size:
            truth[rows] = history.values[dataset.fit[rows, 1][:, None] + ahead][:, :, list(exogenous)]
    deviation = (truth - mean[list(exogenous)]) / scale[list(exogenous)]
    change = (deviation[:, 1:] - deviation[:, :1]).reshape(len(truth), -1)
    whole = ~np.isnan(change).any(axis=1)
    return fit_ridge(features[whole], change[whole], purge=purge, check=check)
