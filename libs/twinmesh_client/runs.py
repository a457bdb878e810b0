"""Training runs, model versions and deployments as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from twinmesh.inference.v1 import inference_pb2
from twinmesh.training.v1 import training_pb2
from twinmesh.type.v1 import model_pb2
from twinmesh_client.durations import moment

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """How one family did on the held-out tail; metric names as in ``twinmesh.type.v1.Metric`` (whole horizon)."""

    family: str
    metrics: Mapping[str, float]
    origin_count: int
    model_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """A training run; `state` is QUEUED, RUNNING, SUCCEEDED, FAILED or CANCELLED."""

    run_id: str
    model_id: str
    state: str
    progress: float
    phase: str
    error: str
    candidates: tuple[Candidate, ...]
    promoted_version: int
    create_time: datetime
    end_time: datetime | None
    train_window_count: int

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One trained artifact; `stage` is CANDIDATE, PRODUCTION or RETIRED.

    `erased_twins` are those it learned from that were erased since: with any it is `invalidated`, and never promoted.
    """

    model_id: str
    version: int
    task: str
    family: str
    stage: str
    target: str
    metrics: Mapping[str, float]
    twin_ids: tuple[str, ...]
    passed_gate: bool
    create_time: datetime
    artifact_sha256: str
    artifact_bytes: int
    run_id: str
    erased_twins: tuple[str, ...] = ()

    @property
    def invalidated(self) -> bool:
        """Whether it holds what was learned from data that nobody may keep."""
        return bool(self.erased_twins)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One version in Triton; `state` is LOADING, READY or FAILED."""

    model_id: str
    version: int
    state: str
    serving: bool
    message: str


def _metrics(metrics: Sequence[model_pb2.Metric]) -> dict[str, float]:
    return {m.name: m.value for m in metrics if not m.scope}


def training_run(message: training_pb2.TrainingRun) -> TrainingRun:
    """Return a training run."""
    return TrainingRun(
        run_id=message.run_id,
        model_id=message.spec.model_id,
        state=training_pb2.TrainingRunState.Name(message.state).removeprefix("TRAINING_RUN_STATE_"),
        progress=message.progress,
        phase=message.phase,
        error=message.error_message,
        candidates=tuple(
            Candidate(
                family=model_pb2.ModelFamily.Name(e.family).removeprefix("MODEL_FAMILY_"),
                metrics=_metrics(e.metrics),
                origin_count=e.origin_count,
                model_version=e.model_version,
            )
            for e in message.evaluations
        ),
        promoted_version=message.promoted_version,
        create_time=moment(message.create_time),
        end_time=moment(message.end_time) if message.HasField("end_time") else None,
        train_window_count=message.train_window_count,
    )


def model_version(message: model_pb2.ModelVersion) -> ModelVersion:
    """Return a model version."""
    return ModelVersion(
        model_id=message.model_id,
        version=message.version,
        task=model_pb2.ModelTask.Name(message.task).removeprefix("MODEL_TASK_"),
        family=model_pb2.ModelFamily.Name(message.family).removeprefix("MODEL_FAMILY_"),
        stage=model_pb2.ModelStage.Name(message.stage).removeprefix("MODEL_STAGE_"),
        target=message.signature.target,
        metrics=_metrics(message.metrics),
        twin_ids=tuple(message.lineage.twin_ids),
        passed_gate=message.passed_gate,
        erased_twins=tuple(message.erased_twin_ids),
        create_time=moment(message.create_time),
        artifact_sha256=message.artifact_sha256,
        artifact_bytes=message.artifact_bytes,
        run_id=message.lineage.run_id,
    )


def deployment(message: inference_pb2.Deployment) -> Deployment:
    """Return a deployment."""
    return Deployment(
        model_id=message.model_id,
        version=message.version,
        state=inference_pb2.DeploymentState.Name(message.state).removeprefix("DEPLOYMENT_STATE_"),
        serving=message.serving,
        message=message.message,
    )
