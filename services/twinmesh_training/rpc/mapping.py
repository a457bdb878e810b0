"""Between protobuf and the domain of training."""

from __future__ import annotations

import base64
import binascii
from datetime import timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from twinmesh.training.v1 import training_pb2 as pb
from twinmesh.type.v1 import model_pb2 as model_pb
from twinmesh_core.errors import FieldViolation, InvalidArgument, invalid_field
from twinmesh_training.domain.values import (
    Evaluation,
    Family,
    Metric,
    Model,
    Run,
    Signature,
    Stage,
    Task,
    TrainingSpec,
    Version,
)

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1_000
_DAY_US: Final = 86_400_000_000
_DEFAULT_BUDGET_US: Final = 60_000_000
_DEFAULT_LEVELS: Final = (0.1, 0.5, 0.9)
_TOKEN_PREFIX: Final = b"t1:"


def spec_from_proto(message: pb.TrainingSpec) -> TrainingSpec:
    """Return the spec with defaults filled in; enum values are checked here, all else by the domain.

    Raises:
        InvalidArgument: an enum value that is not allowed.
    """
    violations = []
    if int(message.task) not in set(map(int, Task)):
        violations.append(FieldViolation(field="spec.task", description="is required: FORECAST or DYNAMICS"))
    for index, family in enumerate(message.families):
        if int(family) not in set(map(int, Family)):
            description = "is not a family; use RIDGE or MLP, or leave families empty for both"
            violations.append(FieldViolation(field=f"spec.families[{index}]", description=description))
    if violations:
        first = violations[0]
        text = f"The training spec cannot work: {first.field}: {first.description}"
        raise InvalidArgument(text, field_violations=violations)
    return TrainingSpec(
        model_id=message.model_id,
        task=Task(message.task),
        twin_ids=tuple(message.twin_ids),
        target=message.target,
        inputs=tuple(message.inputs),
        controls=tuple(message.controls),
        step_us=_duration_us(message.step),
        context_steps=message.context_steps,
        horizon_steps=message.horizon_steps,
        quantile_levels=tuple(message.quantile_levels) or _DEFAULT_LEVELS,
        start_time_us=_time_us(message.start_time) if message.HasField("start_time") else None,
        end_time_us=_time_us(message.end_time) if message.HasField("end_time") else None,
        holdout_us=_duration_us(message.holdout),
        season_us=_duration_us(message.season) if message.HasField("season") else _DAY_US,
        families=tuple(Family(f) for f in message.families) or (Family.RIDGE, Family.MLP),
        time_budget_us=_duration_us(message.time_budget) if message.HasField("time_budget") else _DEFAULT_BUDGET_US,
        seed=message.seed,
        origins=message.origins,
        no_promotion=message.no_promotion,
    )


def run_to_proto(run: Run) -> pb.TrainingRun:
    """Return a run as callers see it."""
    message = pb.TrainingRun(
        run_id=run.run_id,
        spec=_spec_to_proto(run.spec),
        state=int(run.state),  # type: ignore[arg-type]  # the numbers are the proto's
        progress=run.progress,
        phase=run.phase,
        error_reason=run.error_reason,
        error_message=run.error_message,
        evaluations=[_evaluation_to_proto(e) for e in run.evaluations],
        promoted_version=run.promoted_version,
        create_time=_timestamp(run.create_time_us),
        train_window_count=run.train_window_count,
        invalidated=bool(run.erased_twin_ids),
        erased_twin_ids=run.erased_twin_ids,
    )
    if run.start_time_us:
        message.start_time.CopyFrom(_timestamp(run.start_time_us))
    if run.end_time_us:
        message.end_time.CopyFrom(_timestamp(run.end_time_us))
    return message


def model_to_proto(model: Model) -> pb.Model:
    """Return a model as callers see it."""
    return pb.Model(
        model_id=model.model_id,
        task=int(model.task),  # type: ignore[arg-type]  # the numbers are the proto's
        production_version=model.production_version,
        latest_version=model.latest_version,
    )


def version_to_proto(version: Version) -> model_pb.ModelVersion:
    """Return a version as callers see it, with its golden check if it was read with it."""
    lineage = version.lineage
    message = model_pb.ModelVersion(
        model_id=version.model_id,
        version=version.version,
        task=int(version.task),  # type: ignore[arg-type]  # the numbers are the proto's
        family=int(version.family),  # type: ignore[arg-type]  # the numbers are the proto's
        stage=int(version.stage),  # type: ignore[arg-type]  # the numbers are the proto's
        signature=_signature_to_proto(version.signature),
        metrics=[_metric_to_proto(m) for m in version.metrics],
        lineage=model_pb.Lineage(
            run_id=lineage.run_id,
            twin_ids=lineage.twin_ids,
            as_of_offset=lineage.as_of_offset,
            incarnation=lineage.incarnation,
            start_time=_timestamp(lineage.start_time_us),
            end_time=_timestamp(lineage.end_time_us),
            holdout_start_time=_timestamp(lineage.holdout_start_time_us),
            seed=lineage.seed,
            code_version=lineage.code_version,
            dataset_sha256=lineage.dataset_sha256,
        ),
        artifact_sha256=version.artifact_sha256,
        artifact_bytes=version.artifact_bytes,
        create_time=_timestamp(version.create_time_us),
        passed_gate=version.passed_gate,
        invalidated=bool(version.erased_twin_ids),
        erased_twin_ids=version.erased_twin_ids,
    )
    golden = version.golden
    if golden is not None:
        message.golden.CopyFrom(
            model_pb.GoldenCheck(
                rows=golden.rows,
                window=golden.window,
                calendar=golden.calendar,
                future=golden.future,
                quantiles=golden.quantiles,
                tolerance=golden.tolerance,
            )
        )
    return message


def stage_from_proto(stage: int) -> Stage | None:
    """Return the stage of a filter, None = any.

    Raises:
        InvalidArgument: no such stage.
    """
    if not stage:
        return None
    if stage not in set(Stage):
        raise invalid_field("stage", "is not a stage; use CANDIDATE, PRODUCTION or RETIRED, or leave it out")
    return Stage(stage)


def page_size(size: int) -> int:
    """Return the size of a page, 0 = the default.

    Raises:
        InvalidArgument: below 0 or above the bound.
    """
    if not 0 <= size <= MAX_PAGE:
        raise invalid_field("page_size", f"is {size}; choose 1 to {MAX_PAGE:,}, or 0 for {DEFAULT_PAGE}")
    return size or DEFAULT_PAGE


def to_token(position: int | str) -> str:
    """Return an opaque page token for the last item of a page."""
    return base64.urlsafe_b64encode(_TOKEN_PREFIX + str(position).encode()).decode().rstrip("=")


def text_from_token(token: str) -> str:
    """Return the position that `to_token` was given, "" for the first page.

    Raises:
        InvalidArgument: not a token of ours.
    """
    if not token:
        return ""
    try:
        plain = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        if not plain.startswith(_TOKEN_PREFIX):
            raise ValueError(token)
        return plain.removeprefix(_TOKEN_PREFIX).decode()
    except (ValueError, binascii.Error, UnicodeError):
        raise invalid_field("page_token", "is not a token of this list; start again without one") from None


def number_from_token(token: str) -> int:
    """Return the position as a number, 0 for the first page; raises `InvalidArgument` as `text_from_token` does."""
    text = text_from_token(token)
    if text and not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise invalid_field("page_token", "is not a token of this list; start again without one")
    return int(text or 0)


def _spec_to_proto(spec: TrainingSpec) -> pb.TrainingSpec:
    message = pb.TrainingSpec(
        model_id=spec.model_id,
        task=int(spec.task),  # type: ignore[arg-type]  # the numbers are the proto's
        twin_ids=spec.twin_ids,
        target=spec.target,
        inputs=spec.inputs,
        controls=spec.controls,
        step=_duration(spec.step_us),
        context_steps=spec.context_steps,
        horizon_steps=spec.horizon_steps,
        quantile_levels=spec.quantile_levels,
        season=_duration(spec.season_us),
        families=[int(f) for f in spec.families],  # type: ignore[misc]  # the numbers are the proto's
        time_budget=_duration(spec.time_budget_us),
        seed=spec.seed,
        origins=spec.origins,
        no_promotion=spec.no_promotion,
    )
    if spec.start_time_us is not None:
        message.start_time.CopyFrom(_timestamp(spec.start_time_us))
    if spec.end_time_us is not None:
        message.end_time.CopyFrom(_timestamp(spec.end_time_us))
    if spec.holdout_us:
        message.holdout.CopyFrom(_duration(spec.holdout_us))
    return message


def _signature_to_proto(signature: Signature) -> model_pb.ModelSignature:
    return model_pb.ModelSignature(
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


def _evaluation_to_proto(evaluation: Evaluation) -> model_pb.Evaluation:
    return model_pb.Evaluation(
        family=int(evaluation.family),  # type: ignore[arg-type]  # the numbers are the proto's
        metrics=[_metric_to_proto(m) for m in evaluation.metrics],
        origin_count=evaluation.origin_count,
        model_version=evaluation.model_version,
    )


def _metric_to_proto(metric: Metric) -> model_pb.Metric:
    return model_pb.Metric(name=metric.name, value=metric.value, scope=metric.scope)


def _time_us(message: Timestamp) -> int:
    return message.seconds * 1_000_000 + message.nanos // 1_000


def _duration_us(message: Duration) -> int:
    return message.seconds * 1_000_000 + message.nanos // 1_000


def _timestamp(time_unix_us: int) -> Timestamp:
    seconds, rest = divmod(time_unix_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)


def _duration(duration_us: int) -> Duration:
    message = Duration()
    message.FromTimedelta(timedelta(microseconds=duration_us))
    return message
