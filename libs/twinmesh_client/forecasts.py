"""Predictions and decisions as plain values, and as pandas frames."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from twinmesh.inference.v1 import inference_pb2
from twinmesh.type.v1 import prediction_pb2

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forecast:
    """A forecast of one channel with its uncertainty.

    Attributes:
        at: as of when it was made: the end of the newest window step used; nothing later was seen.
        model: model and version, ``name@version``.
        valid_until: `at` plus the horizon.
        step: length of a step; step i is the mean over [at + i * step, at + (i + 1) * step).
        levels: float64 [levels], increasing.
        values: float64 [steps, levels], in `unit`.
        input_offset: log offset that its inputs reflect.
        input_coverage: share of the window's values that were present; NaN when read back from a replica.
        recorded: whether it was written to the predicted facet.
        upper_limit: the channel's limit in the twin type; None = none.
        limit_crossing: start of the first step whose median exceeds the limit; None = none.
        expired: read from a replica after `valid_until`, in the twin's own present.
    """

    channel: str
    unit: str
    model: str
    at: datetime
    valid_until: datetime
    step: timedelta
    levels: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    input_offset: int
    input_coverage: float = float("nan")
    recorded: bool = False
    upper_limit: float | None = None
    limit_crossing: datetime | None = None
    expired: bool = False

    @classmethod
    def from_prediction(cls, message: prediction_pb2.Prediction) -> Forecast:
        """Return the forecast that a predicted facet holds."""
        levels = np.array(message.quantile_levels, np.float64)
        return cls(
            channel=message.channel,
            unit=message.unit,
            model=f"{message.model_id}@{message.model_version}",
            at=message.at.ToDatetime(tzinfo=UTC),
            valid_until=message.valid_until.ToDatetime(tzinfo=UTC),
            step=timedelta(microseconds=message.step_us),
            levels=levels,
            values=np.array(message.values, np.float64).reshape(-1, max(len(levels), 1)),
            input_offset=message.input_offset,
            expired=message.expired,
        )

    @classmethod
    def from_response(cls, response: inference_pb2.ForecastResponse) -> Forecast:
        """Return the forecast that inference answered."""
        plain = cls.from_prediction(response.prediction)
        crossing = response.limit_crossing_time
        return cls(
            channel=plain.channel,
            unit=plain.unit,
            model=plain.model,
            at=plain.at,
            valid_until=plain.valid_until,
            step=plain.step,
            levels=plain.levels,
            values=plain.values,
            input_offset=plain.input_offset,
            input_coverage=response.input_coverage,
            recorded=response.recorded,
            upper_limit=response.upper_limit if response.HasField("upper_limit") else None,
            limit_crossing=crossing.ToDatetime(tzinfo=UTC) if response.HasField("limit_crossing_time") else None,
        )

    @property
    def times(self) -> list[datetime]:
        """Start of each step."""
        return [self.at + i * self.step for i in range(len(self.values))]

    def quantile(self, level: float) -> npt.NDArray[np.float64]:
        """Return the values of one level, float64 [steps]; raises `KeyError` when the forecast does not hold it."""
        matches = np.flatnonzero(np.isclose(self.levels, level))
        if not len(matches):
            raise KeyError(f"no quantile {level}; there are {', '.join(f'{q:g}' for q in self.levels)}")
        return self.values[:, int(matches[0])]

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per step (index: its start, UTC) and one column per level, named ``0.1``, ``0.5``, ..."""
        import pandas as pd

        index = pd.DatetimeIndex(self.times, name="time")
        return pd.DataFrame(self.values, index=index, columns=[f"{q:g}" for q in self.levels])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """Planned values of a control and what the model expects of them.

    Attributes:
        steps: from when on, which value.
        cost: what the plan costs in all; `control_cost` is the part of the control itself.
        peak: highest predicted median; `peak_at_limit_quantile` the one held against the limit.
        feasible: whether it keeps the limit.
    """

    steps: tuple[tuple[datetime, float], ...]
    cost: float
    control_cost: float
    predicted: Forecast
    peak: float
    peak_at_limit_quantile: float
    feasible: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decision:
    """What `optimize` chose, beside what each constant value would have brought."""

    best: Plan
    constant_plans: tuple[Plan, ...]
    candidate_count: int
    limit_binding: bool
    infeasible: bool
    input_offset: int


def decision(response: inference_pb2.OptimizeResponse) -> Decision:
    """Return the decision that inference answered."""
    return Decision(
        best=_plan(response.best),
        constant_plans=tuple(_plan(p) for p in response.constant_plans),
        candidate_count=response.candidate_count,
        limit_binding=response.limit_binding,
        infeasible=response.infeasible,
        input_offset=response.as_of.offset,
    )


def _plan(message: inference_pb2.ControlPlan) -> Plan:
    return Plan(
        steps=tuple((s.start_time.ToDatetime(tzinfo=UTC), s.value) for s in message.steps),
        cost=message.cost,
        control_cost=message.control_cost,
        predicted=Forecast.from_prediction(message.predicted),
        peak=message.peak,
        peak_at_limit_quantile=message.peak_at_limit_quantile,
        feasible=message.feasible,
    )
