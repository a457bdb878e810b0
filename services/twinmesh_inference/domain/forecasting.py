"""From "which twin" to "what next": the forecast of a channel from its own window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinmesh_core.call_context import remaining_s
from twinmesh_core.errors import NotFound, Reason, invalid_field
from twinmesh_core.ids import quoted
from twinmesh_core.time import US_PER_S, Clock
from twinmesh_inference.domain import rows
from twinmesh_inference.domain.catalogue import Catalogue
from twinmesh_inference.domain.coalescer import Coalescer
from twinmesh_inference.domain.deployments import Deployments
from twinmesh_inference.domain.models import Deployment, ModelTask, Signature
from twinmesh_inference.domain.past import window_of
from twinmesh_inference.domain.ports import (
    LogPosition,
    Prediction,
    PredictionRecorder,
    Twin,
    TwinDirectory,
    Window,
    WindowReader,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastQuestion:
    """What to forecast.

    Attributes:
        twin_id: the twin.
        channel: the channel; may be empty where `model_id` is given.
        model_id: the model; empty = chosen.
        model_version: 0 = the one that serves.
        horizon_us: length of the forecast; None = the model's whole horizon.
        quantile_levels: levels among those of the model; empty = all.
        at_unix_us: end of the window; None = the newest event time of its inputs.
        min_offset: inputs must reflect this offset.
        as_of_offset: inputs after this offset are not seen; 0 = the present.
        incarnation: of the log that the offsets belong to; "" = not checked.
        record: whether to write the forecast to the predicted facet.
        max_staleness_us: oldest acceptable newest input; None = any age.
    """

    twin_id: str
    channel: str = ""
    model_id: str = ""
    model_version: int = 0
    horizon_us: int | None = None
    quantile_levels: tuple[float, ...] = ()
    at_unix_us: int | None = None
    min_offset: int = 0
    as_of_offset: int = 0
    incarnation: str = ""
    record: bool = False
    max_staleness_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A forecast with what it rests on.

    Attributes:
        prediction: the forecast itself.
        as_of: what its inputs reflect.
        input_coverage: share of the window's values that were present.
        recorded: whether it is now the twin's prediction.
        upper_limit: the channel's limit, None = none.
        limit_crossing_unix_us: start of the first step whose median exceeds the limit, None = none.
    """

    prediction: Prediction
    as_of: LogPosition
    input_coverage: float
    recorded: bool
    upper_limit: float | None
    limit_crossing_unix_us: int | None


class Forecaster:
    """Answers `ForecastQuestion`s."""

    def __init__(
        self,
        *,
        deployments: Deployments,
        coalescer: Coalescer,
        windows: WindowReader,
        twins: TwinDirectory,
        recorder: PredictionRecorder,
        clock: Clock,
        infer_timeout_s: float,
    ) -> None:
        self._deployments = deployments
        self._coalescer = coalescer
        self._windows = windows
        self._twins = twins
        self._recorder = recorder
        self._clock = clock
        self._infer_timeout_s = infer_timeout_s

    async def forecast(self, tenant: str, question: ForecastQuestion) -> Forecast:
        """Forecast one channel of one twin.

        Raises:
            NotFound: TWIN_NOT_FOUND, CHANNEL_NOT_FOUND, MODEL_NOT_FOUND.
            FailedPrecondition: NOT_ENOUGH_HISTORY, LOG_REWOUND.
            Unavailable: MODEL_NOT_READY, DEPENDENCY_UNAVAILABLE.
            InvalidArgument: the question does not fit the model.
        """
        twin = await self._twins.twin(
            tenant, question.twin_id, min_offset=question.min_offset, incarnation=question.incarnation
        )
        return await self._deployments.answer(
            tenant,
            lambda catalogue: _choose(catalogue, twin, question),
            lambda deployment: self._answer(tenant, twin, deployment, question),
        )

    async def _answer(self, tenant: str, twin: Twin, deployment: Deployment, question: ForecastQuestion) -> Forecast:
        signature = deployment.signature
        steps = _horizon_steps(question, signature)
        columns = _level_columns(question, signature)
        window = await window_of(
            self._windows,
            tenant,
            twin,
            signature,
            at_unix_us=question.at_unix_us,
            min_offset=question.min_offset,
            as_of_offset=question.as_of_offset,
            incarnation=question.incarnation,
        )
        if question.max_staleness_us is not None:
            rows.require_fresh(window, signature, self._clock.now_unix_us(), question.max_staleness_us)
        values = (await self._run(tenant, deployment, twin, window))[:steps]
        prediction = Prediction(
            channel=signature.target,
            unit=signature.target_unit,
            model_id=deployment.model_id,
            model_version=deployment.version,
            at_unix_us=window.at_unix_us,
            input_offset=window.as_of.offset,
            step_us=signature.step_us,
            quantile_levels=tuple(signature.quantile_levels[column] for column in columns),
            values=np.ascontiguousarray(values[:, columns]),
        )
        limit = twin.channels[signature.target].upper_limit if signature.target in twin.channels else None
        return Forecast(
            prediction=prediction,
            as_of=window.as_of,
            input_coverage=rows.coverage(window),
            recorded=question.record and await self._recorder.record(tenant, question.twin_id, prediction),
            upper_limit=limit,
            limit_crossing_unix_us=_crossing(values, signature, window.at_unix_us, limit),
        )

    async def _run(self, tenant: str, deployment: Deployment, twin: Twin, window: Window) -> rows.Quantiles:
        left_s = remaining_s()
        answer = await self._coalescer.submit(
            self._deployments.endpoint(tenant, deployment),
            1,
            (rows.window_bytes(window), rows.calendar_bytes(window, twin.time_zone)),
            timeout_s=self._infer_timeout_s if left_s is None else min(left_s, self._infer_timeout_s),
        )
        quantiles: rows.Quantiles = rows.quantiles_of(answer, 1, deployment)[0]
        return quantiles


def _choose(catalogue: Catalogue, twin: Twin, question: ForecastQuestion) -> Deployment:
    if question.channel and question.channel not in twin.channels:
        there = ", ".join(sorted(twin.channels))
        raise NotFound(
            f"The twin {quoted(twin.twin_id)} has no channel {quoted(question.channel)}; it has: {there}.",
            reason=Reason.CHANNEL_NOT_FOUND,
            metadata={"channels": there},
        )
    if not question.model_id:
        return catalogue.choose(
            twin,
            ModelTask.FORECAST,
            f"forecasts {quoted(question.channel)} of {quoted(twin.twin_id)}",
            lambda one: one.signature.target == question.channel,
        )
    found = catalogue.named(question.model_id, question.model_version, ModelTask.FORECAST)
    if question.channel not in {"", found.signature.target}:
        raise invalid_field(
            "channel",
            f"is {quoted(question.channel)} and the model {quoted(found.model_id)} predicts "
            f"{quoted(found.signature.target)}",
        )
    return found


def _horizon_steps(question: ForecastQuestion, signature: Signature) -> int:
    if question.horizon_us is None:
        return signature.horizon_steps
    if not signature.step_us <= question.horizon_us <= signature.horizon_us:
        raise invalid_field(
            "horizon",
            f"must be from {signature.step_us / US_PER_S:g} s (one step) to {signature.horizon_us / US_PER_S:g} s (the "
            "model's horizon)",
        )
    return -(-question.horizon_us // signature.step_us)


def _level_columns(question: ForecastQuestion, signature: Signature) -> list[int]:
    if not question.quantile_levels:
        return list(range(len(signature.quantile_levels)))
    missing = [level for level in question.quantile_levels if level not in signature.quantile_levels]
    if missing:
        known = ", ".join(f"{level:g}" for level in signature.quantile_levels)
        raise invalid_field("quantile_levels", f"{missing[0]:g} is not a level of the model; it has: {known}")
    return sorted({signature.quantile_levels.index(level) for level in question.quantile_levels})


def _crossing(values: rows.Quantiles, signature: Signature, at_unix_us: int, limit: float | None) -> int | None:
    if limit is None:
        return None
    above = np.flatnonzero(values[:, signature.quantile_levels.index(0.5)] > limit)
    return at_unix_us + int(above[0]) * signature.step_us if len(above) else None
