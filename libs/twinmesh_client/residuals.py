"""How a model's predictions compare with the facts, as a plain value."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from twinmesh.type.v1 import prediction_pb2
from twinmesh_client.durations import moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """How a model did on one channel; numbers in the channel's unit, each residual being reported minus predicted.

    Attributes:
        model: ``name@version``; another version begins anew.
        since_offset: offset of the first prediction that counts.
        count: steps of predictions that were compared with a fact.
        mean: how far the model is off on average.
        mae: mean absolute residual.
        rmse: root mean square residual.
        coverage: share of facts within the interval; None = nothing to compare.
        nominal_coverage: the share that the interval promises; 0 = there is no interval.
        last_time: event time of the newest fact compared; None = none yet.
        last_lead: how far ahead it was predicted.
    """

    channel: str
    model: str
    since_offset: int
    count: int
    mean: float
    mae: float
    rmse: float
    coverage: float | None
    nominal_coverage: float
    last_time: datetime | None
    last_lead: timedelta
    last_predicted: float
    last_reported: float

    @property
    def last(self) -> float:
        """The newest residual."""
        return self.last_reported - self.last_predicted


def residuals(messages: Iterable[prediction_pb2.Residual]) -> dict[tuple[str, str], Residual]:
    """Return residuals by channel and model id."""
    return {
        (m.channel, m.model_id): Residual(
            channel=m.channel,
            model=f"{m.model_id}@{m.model_version}",
            since_offset=m.since_offset,
            count=m.count,
            mean=m.mean,
            mae=m.mae,
            rmse=m.rmse,
            coverage=m.covered_count / m.interval_count if m.interval_count else None,
            nominal_coverage=m.nominal_coverage,
            last_time=moment(m.last_time) if m.HasField("last_time") else None,
            last_lead=timedelta(microseconds=m.last_lead_us),
            last_predicted=m.last_predicted,
            last_reported=m.last_reported,
        )
        for m in messages
    }
