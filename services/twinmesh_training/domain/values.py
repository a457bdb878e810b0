"""The nouns of training: what is asked for (spec), what happens (run) and what comes out (version)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class Task(IntEnum):
    """What a model answers; equal to ``twinmesh.type.v1.ModelTask``."""

    FORECAST = 1
    DYNAMICS = 2


class Family(IntEnum):
    """How a model is built; equal to ``twinmesh.type.v1.ModelFamily``."""

    SEASONAL_NAIVE = 1
    RIDGE = 2
    MLP = 3


class Stage(IntEnum):
    """Where a version stands; equal to ``twinmesh.type.v1.ModelStage``."""

    CANDIDATE = 1
    PRODUCTION = 2
    RETIRED = 3


class RunState(IntEnum):
    """Where a run is; equal to ``TrainingRunState``."""

    QUEUED = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5

    @property
    def final(self) -> bool:
        """Whether the run has ended."""
        return self >= RunState.SUCCEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """What to learn, with every default filled in; `twinmesh_training.domain.spec.check` makes it.

    Times are microseconds since the Unix epoch, None = open; steps count `step_us`.
    """

    model_id: str
    task: Task
    twin_ids: tuple[str, ...]
    target: str
    inputs: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    step_us: int
    context_steps: int
    horizon_steps: int
    quantile_levels: tuple[float, ...] = (0.1, 0.5, 0.9)
    start_time_us: int | None = None
    end_time_us: int | None = None
    holdout_us: int = 0
    season_us: int = 86_400_000_000
    families: tuple[Family, ...] = (Family.RIDGE, Family.MLP)
    time_budget_us: int = 60_000_000
    seed: int = 1
    origins: int = 0
    no_promotion: bool = False

    @property
    def channels(self) -> tuple[str, ...]:
        """Channels of the window in order: the target, the inputs, then the controls, each once."""
        return tuple(dict.fromkeys((self.target, *self.inputs, *self.controls)))

    @property
    def season_steps(self) -> int:
        """Season of the naive baseline in steps, at least 1."""
        return max(1, round(self.season_us / self.step_us))


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What goes into and comes out of a version's graph; see ``twinmesh.type.v1.ModelSignature``."""

    channels: tuple[str, ...]
    units: tuple[str, ...]
    target: str
    controls: tuple[str, ...]
    step_us: int
    context_steps: int
    horizon_steps: int
    quantile_levels: tuple[float, ...]
    control_min: tuple[float, ...] = ()
    control_max: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One measured property: a name, a value in the target's unit or a ratio, and the share of the horizon covered."""

    name: str
    value: float
    scope: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How one candidate did on the held-out tail; `model_version` 0 = none registered."""

    family: Family
    metrics: tuple[Metric, ...]
    origin_count: int
    model_version: int = 0

    def metric(self, name: str, scope: str = "") -> float | None:
        """Return the value of a metric, or None when it was not measured."""
        return next((m.value for m in self.metrics if m.name == name and m.scope == scope), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a version comes from: enough to build it again."""

    run_id: str
    twin_ids: tuple[str, ...]
    as_of_offset: int
    incarnation: str
    start_time_us: int
    end_time_us: int
    holdout_start_time_us: int
    seed: int
    code_version: str
    dataset_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPosition:
    """A point of the log; offsets of different incarnations cannot be compared."""

    incarnation: str
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasedTwin:
    """A twin all of whose observations before an offset were erased."""

    tenant: str
    twin_id: str
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """A few inputs of the graph with the outputs it must give: little-endian float32, row-major.

    `tolerance` is the largest allowed difference, in target units.
    """

    rows: int
    window: bytes
    calendar: bytes
    future: bytes
    quantiles: bytes
    tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One registered artifact; `version` and `stage` are given by the registry, dense from 1 per model.

    `erased_twin_ids` are those of its twins that were erased after its data were read: with any, it is invalidated.
    """

    model_id: str
    version: int = 0
    task: Task
    family: Family
    stage: Stage = Stage.CANDIDATE
    signature: Signature
    metrics: tuple[Metric, ...]
    lineage: Lineage
    artifact_sha256: str
    artifact_bytes: int
    create_time_us: int = 0
    passed_gate: bool
    golden: Golden | None = None
    erased_twin_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model and its versions' heads; 0 = none."""

    model_id: str
    task: Task
    production_version: int
    latest_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training run as everyone sees it; `number` orders runs by creation, `revision` counts its changes.

    `erased_twin_ids` are those of its twins that were erased after its dataset was read: with any, it is invalidated.
    """

    run_id: str
    number: int = 0
    spec: TrainingSpec
    state: RunState = RunState.QUEUED
    progress: float = 0.0
    phase: str = ""
    error_reason: str = ""
    error_message: str = ""
    evaluations: tuple[Evaluation, ...] = field(default=())
    promoted_version: int = 0
    create_time_us: int = 0
    start_time_us: int = 0
    end_time_us: int = 0
    train_window_count: int = 0
    revision: int = 0
    erased_twin_ids: tuple[str, ...] = ()
