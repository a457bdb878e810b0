"""Between protobuf messages and inference's values; what a request may say is decided here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from twinmesh.inference.v1 import inference_pb2
from twinmesh.type.v1 import model_pb2, position_pb2, prediction_pb2
from twinmesh_core.errors import FieldViolation, InvalidArgument, invalid_field
from twinmesh_core.ids import require_name, require_resource_id, require_twin_id
from twinmesh_inference.domain.forecasting import Forecast, ForecastQuestion
from twinmesh_inference.domain.models import Deployment, DeploymentState, ModelTask, Signature
from twinmesh_inference.domain.optimizing import ControlPlan, Decision, OptimizeQuestion
from twinmesh_inference.domain.plans import MAX_SWITCHES
from twinmesh_inference.domain.ports import LogPosition, Prediction

MAX_OPTIONS: Final = 16
_MAX_LEVELS: Final = 100
_DEFAULT_LIMIT_QUANTILE: Final = 0.9
_STATES: Final = {
    DeploymentState.LOADING: inference_pb2.DEPLOYMENT_STATE_LOADING,
    DeploymentState.READY: inference_pb2.DEPLOYMENT_STATE_READY,
    DeploymentState.FAILED: inference_pb2.DEPLOYMENT_STATE_FAILED,
}
_TASKS: Final = {
    ModelTask.FORECAST: model_pb2.MODEL_TASK_FORECAST,
    ModelTask.DYNAMICS: model_pb2.MODEL_TASK_DYNAMICS,
}


def forecast_question(request: inference_pb2.ForecastRequest) -> ForecastQuestion:
    """Return what the request asks; raises `InvalidArgument` naming the field, the reason and the remedy."""
    if not request.channel and not request.model_id:
        raise invalid_field("channel", "is required unless model_id is given; name the channel to forecast")
    if request.model_version < 0:
        raise invalid_field("model_version", f"{request.model_version} is negative; 0 is the version that serves")
    if request.model_version and not request.model_id:
        raise invalid_field("model_version", "pins a version of model_id, which is empty; give both")
    levels = tuple(request.quantile_levels)
    if len(levels) > _MAX_LEVELS or not all(0 < level < 1 for level in levels):
        raise invalid_field(
            "quantile_levels", f"must be at most {_MAX_LEVELS} numbers between 0 and 1, e.g. 0.1, 0.5, 0.9"
        )
    return ForecastQuestion(
        twin_id=require_twin_id(request.twin_id),
        channel=require_name(request.channel, "channel") if request.channel else "",
        model_id=require_resource_id(request.model_id, "model_id") if request.model_id else "",
        model_version=request.model_version,
        horizon_us=_positive(request.horizon, "horizon") if request.HasField("horizon") else None,
        quantile_levels=levels,
        at_unix_us=_time(request.at, "at") if request.HasField("at") else None,
        min_offset=_offset(request.min_offset, "min_offset"),
        as_of_offset=_offset(request.as_of_offset, "as_of_offset"),
        incarnation=request.incarnation,
        record=request.record,
        max_staleness_us=_positive(request.max_staleness, "max_staleness")
        if request.HasField("max_staleness")
        else None,
    )


def optimize_question(request: inference_pb2.OptimizeRequest) -> OptimizeQuestion:
    """Return what the request asks; raises `InvalidArgument` naming the field, the reason and the remedy."""
    violations = [*_option_violations(request.options), *_number_violations(request)]
    if violations:
        first = violations[0]
        raise InvalidArgument(f"{first.field}: {first.description}", field_violations=violations)
    return OptimizeQuestion(
        twin_id=require_twin_id(request.twin_id),
        control=require_name(request.control, "control"),
        values=tuple(option.value for option in request.options),
        cost_per_hour=tuple(option.cost_per_hour for option in request.options),
        limit=request.limit,
        limit_quantile=request.limit_quantile or _DEFAULT_LIMIT_QUANTILE,
        target=request.target if request.HasField("target") else None,
        target_weight=request.target_weight,
        switch_cost=request.switch_cost,
        max_switches=request.max_switches,
        min_dwell_us=_positive(request.min_dwell, "min_dwell") if request.HasField("min_dwell") else None,
        model_id=require_resource_id(request.model_id, "model_id") if request.model_id else "",
        at_unix_us=_time(request.at, "at") if request.HasField("at") else None,
        min_offset=_offset(request.min_offset, "min_offset"),
        as_of_offset=_offset(request.as_of_offset, "as_of_offset"),
        incarnation=request.incarnation,
    )


def forecast_response(forecast: Forecast) -> inference_pb2.ForecastResponse:
    """Return the forecast as its message."""
    response = inference_pb2.ForecastResponse(
        prediction=prediction_message(forecast.prediction),
        as_of=_position(forecast.as_of),
        input_coverage=forecast.input_coverage,
        recorded=forecast.recorded,
        upper_limit=forecast.upper_limit,
    )
    if forecast.limit_crossing_unix_us is not None:
        response.limit_crossing_time.FromMicroseconds(forecast.limit_crossing_unix_us)
    return response


def optimize_response(decision: Decision) -> inference_pb2.OptimizeResponse:
    """Return the decision as its message."""
    return inference_pb2.OptimizeResponse(
        best=_plan(decision.best),
        constant_plans=map(_plan, decision.constant_plans),
        candidate_count=decision.candidate_count,
        limit_binding=decision.limit_binding,
        as_of=_position(decision.as_of),
        infeasible=decision.infeasible,
    )


def deployment_message(deployment: Deployment, *, serving: bool) -> inference_pb2.Deployment:
    """Return the deployment as its message."""
    message = inference_pb2.Deployment(
        model_id=deployment.model_id,
        version=deployment.version,
        state=_STATES[deployment.state],
        serving=serving,
        message=deployment.message,
        signature=_signature(deployment.signature),
        task=_TASKS[deployment.task],
    )
    if deployment.ready_time_us:
        message.ready_time.FromMicroseconds(deployment.ready_time_us)
    return message


def prediction_message(prediction: Prediction) -> prediction_pb2.Prediction:
    """Return the prediction as its message."""
    message = prediction_pb2.Prediction(
        channel=prediction.channel,
        model_id=prediction.model_id,
        model_version=prediction.model_version,
        input_offset=prediction.input_offset,
        step_us=prediction.step_us,
        quantile_levels=prediction.quantile_levels,
        values=prediction.values.ravel().tolist(),
        unit=prediction.unit,
    )
    message.at.FromMicroseconds(prediction.at_unix_us)
    message.valid_until.FromMicroseconds(prediction.valid_until_unix_us)
    return message


def _plan(plan: ControlPlan) -> inference_pb2.ControlPlan:
    message = inference_pb2.ControlPlan(
        cost=plan.cost,
        control_cost=plan.control_cost,
        predicted=prediction_message(plan.predicted),
        peak=plan.peak,
        peak_at_limit_quantile=plan.peak_at_limit_quantile,
        feasible=plan.feasible,
    )
    for start_unix_us, value in plan.steps:
        message.steps.add(value=value).start_time.FromMicroseconds(start_unix_us)
    return message


def _signature(signature: Signature) -> model_pb2.ModelSignature:
    return model_pb2.ModelSignature(
        channels=signature.channels,
        units=signature.units,
        target=signature.target,
        controls=signature.controls,
        step_us=signature.step_us,
        context_steps=signature.context_steps,
        horizon_steps=signature.horizon_steps,
        quantile_levels=signature.quantile_levels,
        control_min=signature.control_min,
        control_max=signature.control_max,
    )


def _position(position: LogPosition) -> position_pb2.LogPosition:
    return position_pb2.LogPosition(incarnation=position.incarnation, offset=position.offset)


def _option_violations(options: Sequence[inference_pb2.ControlOption]) -> list[FieldViolation]:
    if not 1 <= len(options) <= MAX_OPTIONS:
        words = f"has {len(options)} values; give 1 to {MAX_OPTIONS}, each once"
        return [FieldViolation(field="options", description=words)]
    found = []
    for index, option in enumerate(options):
        for name in ("value", "cost_per_hour"):
            if not math.isfinite(getattr(option, name)):
                words = "is not a finite number; give one"
                found.append(FieldViolation(field=f"options[{index}].{name}", description=words))
    if len({option.value for option in options}) != len(options):
        found.append(FieldViolation(field="options", description="name a value twice; give each once"))
    return found


def _number_violations(request: inference_pb2.OptimizeRequest) -> list[FieldViolation]:
    checks = (
        ("limit", math.isfinite(request.limit), "is not a finite number; give the highest value allowed"),
        ("limit_quantile", 0 <= request.limit_quantile < 1, "must lie between 0 and 1; 0 means 0.9"),
        ("target", math.isfinite(request.target), "is not a finite number; give one, or leave it out to use the limit"),
        ("target_weight", 0 <= request.target_weight < math.inf, "must be a finite number of at least 0"),
        ("switch_cost", 0 <= request.switch_cost < math.inf, "must be a finite number of at least 0"),
        ("max_switches", 0 <= request.max_switches <= MAX_SWITCHES, f"must be 0 to {MAX_SWITCHES}"),
    )
    return [FieldViolation(field=name, description=words) for name, holds, words in checks if not holds]


def _positive(duration: Duration, field: str) -> int:
    micros = duration.ToMicroseconds()
    if micros <= 0:
        raise invalid_field(field, "must be longer than 0 s; leave it out for the default")
    return micros


def _time(moment: Timestamp, field: str) -> int:
    if not -62_135_596_800 <= moment.seconds <= 253_402_300_799 or not 0 <= moment.nanos < 1_000_000_000:
        raise invalid_field(field, "is not a time within the years 1 to 9999")
    return moment.ToMicroseconds()


def _offset(offset: int, field: str) -> int:
    if offset < 0:
        raise invalid_field(field, f"{offset} is negative; offsets begin at 1 and 0 means the present")
    return offset
