"""Sensible sizes for a model of data that nobody has described yet."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.errors import FailedPrecondition, Reason

_STEPS_MIN: Final = (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1_440)
_PREFERRED: Final = timedelta(minutes=15)
_DAY: Final = timedelta(days=1)
_LEAST_STEPS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """What a forecast model sees and says.

    Attributes:
        interval: usual time between two values of the channel.
        step: length of a step.
        context_steps: steps of the window, at least a day where the history allows.
        horizon_steps: steps ahead.
    """

    interval: timedelta
    step: timedelta
    context_steps: int
    horizon_steps: int

    @property
    def horizon(self) -> timedelta:
        """How far ahead the model says."""
        return self.horizon_steps * self.step


def usual_interval(time_unix_us: npt.NDArray[np.int64]) -> timedelta:
    """Return the median distance of distinct times, int64 [n] in microseconds; a minute when there are fewer than 2."""
    gaps = np.diff(np.unique(time_unix_us))
    return timedelta(microseconds=int(np.median(gaps))) if len(gaps) else timedelta(minutes=1)


def suggest_sizes(interval: timedelta, span: timedelta) -> ModelSizes:
    """Return sizes for values that come every `interval` and reach back over `span`.

    Raises:
        FailedPrecondition: NOT_ENOUGH_HISTORY, with the time that is needed.
    """
    wanted = max(interval, min(_PREFERRED, span / 2_000))
    step = next((timedelta(minutes=m) for m in _STEPS_MIN if timedelta(minutes=m) >= wanted), interval)
    steps = int(span / step)
    if steps < _LEAST_STEPS:
        raise FailedPrecondition(
            f"There are {steps} steps of {step} in this channel's history, and a model needs about {_LEAST_STEPS}; "
            "write more history, or say a shorter step.",
            reason=Reason.NOT_ENOUGH_HISTORY,
        )
    per_day = max(1, round(_DAY / step))
    context = int(np.clip(per_day, 24, min(192, steps // 8)))
    horizon = int(np.clip(per_day // 2, 12, min(96, steps // 16)))
    return ModelSizes(interval=interval, step=step, context_steps=context, horizon_steps=horizon)
