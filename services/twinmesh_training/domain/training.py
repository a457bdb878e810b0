"""One run, from history to judged candidates: pure but for the ports it is handed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.errors import Internal
from twinmesh_training.domain.conformal import conformal_offsets
from twinmesh_training.domain.dataset import Batch, Dataset, Origins, build_dataset, filled, seasonal_naive, thin
from twinmesh_training.domain.features import FeatureMap, Normalisation, channel_statistics, make_feature_map
from twinmesh_training.domain.gate import passes_gate, winner
from twinmesh_training.domain.metrics import mean_absolute_error, measure
from twinmesh_training.domain.ports import GraphExporter, NetworkTrainer, Progress, ReadHistory
from twinmesh_training.domain.predictor import Member, Predictor
from twinmesh_training.domain.response import control_metrics
from twinmesh_training.domain.ridge import fit_ridge
from twinmesh_training.domain.rollout import Rollout, fit_rollout
from twinmesh_training.domain.values import Evaluation, Family, Golden, Metric, Signature, Task, TrainingSpec

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

GOLDEN_ROWS: Final = 8
_MAX_FEATURE_CELLS: Final = 12_000_000
"""Features of the fit part kept in memory per reading, about 50 MB; more windows than that are thinned."""
_CHUNK_CELLS: Final = 2_000_000
_NEAR: Final = 1.03
"""Readings whose validated squared error is within this factor of the best are averaged."""
_BEHIND: Final = 1.2
"""Beyond this factor of the best a reading is clearly behind."""
_VALIDATION_SHARE: Final = 0.15
_NAIVE_ROWS: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One trained and judged model, ready to be registered."""

    family: Family
    signature: Signature
    metrics: tuple[Metric, ...]
    passed_gate: bool
    graph: bytes
    golden: Golden


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run made; `evaluations` starts with seasonal-naive, and names versions by position in `candidates` + 1."""

    evaluations: tuple[Evaluation, ...]
    candidates: tuple[Candidate, ...]
    promoted: int
    dataset_sha256: str
    start_time_us: int
    end_time_us: int
    holdout_start_time_us: int
    train_window_count: int
    dropped_window_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitted:
    """A predictor before calibration, with what the next family builds on, for each row of the fit part.

    `answer` is in target units; `unexplained` in the normalised unit, which `unit` brings to target units.
    """

    predictor: Predictor
    features: Float32
    answer: Float64
    unexplained: Float64
    unit: Float64
    purge: int


def train(
    spec: TrainingSpec,
    history: ReadHistory,
    *,
    networks: NetworkTrainer,
    exporter: GraphExporter,
    progress: Progress,
    counted: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Train, calibrate, judge and export every family of the spec.

    Args:
        spec: checked.
        history: as of one log position.
        networks: fits the MLP.
        exporter: makes the graphs.
        progress: told what happens; stops the run by raising `Stopped`.
        counted: told the number of fit windows as soon as it is known.

    Raises:
        FailedPrecondition: NOT_ENOUGH_HISTORY.
        Internal: an exported graph does not reproduce its model.
        Stopped: see `Progress`.
    """
    progress.report(0.1, "cutting windows")
    dataset = build_dataset(spec, history.histories)
    counted(len(dataset.fit))
    naive_error = _fit_naive_error(dataset)
    times = dataset.origin_time_us(dataset.holdout)
    truth = np.concatenate([batch.truth for batch in _batches(dataset, dataset.holdout)])
    naive = seasonal_naive(dataset, dataset.holdout)
    naive_metrics = measure(
        np.where(np.isnan(naive), np.nan, truth),
        np.nan_to_num(naive)[:, :, None],
        (0.5,),
        naive_error=naive_error,
        origin_time_us=times,
        step_us=spec.step_us,
    )
    held_out = {Family.SEASONAL_NAIVE: mean_absolute_error(truth, naive)}
    calibration: dict[Family, float] = {}
    judged: dict[Family, tuple[Predictor, tuple[Metric, ...]]] = {}
    gate: _Fitted | None = None
    share = 0.8 / len(spec.families)
    for index, family in enumerate(spec.families):
        start = time.monotonic()
        base = 0.12 + share * index
        if family is Family.RIDGE or gate is None:
            progress.report(base, "fitting the gate (closed-form ridge)")
            gate = fitted = _fit_gate(dataset, progress.check)
        else:
            progress.report(base, "training the network")
            fitted = _fit_network(dataset, gate, networks, progress=_Part(progress, base, share * 0.8))
        seconds = time.monotonic() - start
        progress.report(base + share * 0.8, f"calibrating and judging {_WORDS[family]}")
        predictor, calibration[family] = _calibrate(dataset, fitted.predictor)
        quantiles = np.concatenate([predictor.quantiles(b) for b in _checked(dataset, dataset.holdout, progress)])
        measured = measure(
            truth, quantiles, spec.quantile_levels, naive_error=naive_error, origin_time_us=times, step_us=spec.step_us
        )
        held_out[family] = next(m.value for m in measured if m.name == "mae")
        extra = (
            Metric(name="calibration_mae", value=calibration[family]),
            Metric(name="train_seconds", value=seconds),
            *control_metrics(dataset, predictor),
        )
        judged[family] = (predictor, (*measured, *extra))

    progress.report(0.94, "exporting")
    candidates = []
    for family, (predictor, metrics) in judged.items():
        progress.check()
        candidates.append(
            _export(dataset, history.units, family, predictor, metrics, passes_gate(family, held_out), exporter)
        )
    chosen = winner(calibration, held_out)
    families = list(judged)
    baseline = Evaluation(
        family=Family.SEASONAL_NAIVE, metrics=naive_metrics, origin_count=len(dataset.holdout), model_version=0
    )
    evaluations = tuple(
        Evaluation(family=f, metrics=judged[f][1], origin_count=len(dataset.holdout), model_version=i + 1)
        for i, f in enumerate(families)
    )
    return Outcome(
        evaluations=(baseline, *evaluations),
        candidates=tuple(candidates),
        promoted=0 if chosen is None or spec.no_promotion else families.index(chosen) + 1,
        dataset_sha256=dataset.digest(),
        start_time_us=history.histories[0].start_us,
        end_time_us=history.histories[0].start_us + len(history.histories[0].values) * spec.step_us,
        holdout_start_time_us=history.histories[0].start_us + dataset.holdout_start * spec.step_us,
        train_window_count=len(dataset.fit),
        dropped_window_count=dataset.dropped,
    )


_WORDS: Final = {Family.SEASONAL_NAIVE: "seasonal-naive", Family.RIDGE: "the gate", Family.MLP: "the network"}


@dataclass(frozen=True, slots=True)
class _Part:
    """Progress of a part of the run, shown within the whole."""

    whole: Progress
    base: float
    share: float

    def report(self, progress: float, phase: str) -> None:
        self.whole.report(self.base + self.share * progress, phase)

    def check(self) -> None:
        self.whole.check()


def _fit_gate(dataset: Dataset, check: Callable[[], None]) -> _Fitted:
    """Fit the closed-form family: the mean of those readings of the window that validate about equally well."""
    spec = dataset.spec
    mean, scale = channel_statistics([h.values[: dataset.fit_end] for h in dataset.histories])
    target = spec.channels.index(spec.target)
    mappings = [
        make_feature_map(kind, target=target, context=context, mean=mean, scale=scale, calendar=calendar)
        for kind, context, calendar in _readings(spec)
    ]
    rows = thin(dataset.fit, max(256, _MAX_FEATURE_CELLS // max(m.width for m in mappings)))
    fitting = replace(dataset, fit=rows)
    found: list[_Fitted] = []
    best = np.inf
    for mapping in mappings:
        # A reading that is clearly behind takes its relatives along untried: they cost seconds and never catch up.
        behind = [f for f in found if f.predictor.linear.loss > _BEHIND * best]
        if not any(f.predictor.features.normalisation.has_levels is mapping.normalisation.has_levels for f in behind):
            found.append(_fit_linear(fitting, mapping, check))
            best = min(best, found[-1].predictor.linear.loss)
    near = [fitted for fitted in found if fitted.predictor.linear.loss <= _NEAR * best]
    # Between equals the one whose scale follows the window leads: its intervals widen where the window is restless.
    first = min(near, key=lambda f: (f.predictor.features.normalisation.has_levels, f.predictor.linear.loss))
    others = [fitted for fitted in near if fitted is not first]
    if not others:
        return first
    members = tuple(Member(features=f.predictor.features, linear=f.predictor.linear) for f in others)
    together = (first.answer + sum(f.answer for f in others)) / len(near)
    # A network makes more of levels and their products than of a scale, where they validate as well.
    reading = min(near, key=lambda f: (-len(f.predictor.features.pairs), f.predictor.linear.loss))
    unexplained = reading.unexplained + (reading.answer - together) / reading.unit[:, None]
    predictor = replace(first.predictor, others=members, network_features=reading.predictor.features)
    return replace(reading, predictor=predictor, unexplained=unexplained)


def _readings(spec: TrainingSpec) -> tuple[tuple[Normalisation, int, bool], ...]:
    """Ways to read a window that are tried: normalisation, steps, with the calendar or not."""
    whole = spec.context_steps
    if spec.task is Task.DYNAMICS:
        # The rollout needs absolute levels, and has products of its own.
        return ((Normalisation.LEVEL, whole, True),)
    return (
        (Normalisation.LEVEL, whole, True),
        (Normalisation.WINDOW, whole, True),
        (Normalisation.LEVEL_PRODUCTS, whole, True),
        (Normalisation.WINDOW, whole, False),
        (Normalisation.WINDOW, max(2, whole * 2 // 3), False),
    )


def _fit_linear(dataset: Dataset, mapping: FeatureMap, check: Callable[[], None]) -> _Fitted:
    spec = dataset.spec
    n = len(dataset.fit)
    features = np.empty((n, mapping.width), np.float32)
    base, unit = np.empty((n, spec.horizon_steps)), np.empty(n)
    truth = np.empty((n, spec.horizon_steps))
    for rows, batch in _rows(dataset):
        check()
        found = mapping.compute(batch.window, batch.calendar)
        features[rows], unit[rows] = found.values, found.scale
        truth[rows], base[rows] = filled(batch.truth), found.centre[:, None]
    span = max(1, int(dataset.fit[-1, 1] - dataset.fit[0, 1]))
    purge = int(np.ceil((spec.context_steps + spec.horizon_steps) * n / span))
    rollout: Rollout | None = None
    if spec.task is Task.DYNAMICS:
        rollout = fit_rollout(
            dataset, features, mean=mapping.channel_mean, scale=mapping.channel_scale, purge=purge, check=check
        )
        for rows, batch in _rows(dataset):
            check()
            found = mapping.compute(batch.window, batch.calendar)
            base[rows] = rollout.trajectory(found, batch.calendar, batch.future)
    change = (truth - base) / unit[:, None]
    linear = fit_ridge(features, change, unit=unit, purge=purge, check=check)
    fitted = np.asarray(features @ linear.weights.astype(np.float32) + linear.bias, np.float64)
    offsets = np.zeros((spec.horizon_steps, len(spec.quantile_levels)))
    return _Fitted(
        predictor=Predictor(features=mapping, linear=linear, rollout=rollout, network=None, offsets=offsets),
        features=features,
        answer=base + unit[:, None] * fitted,
        unexplained=change - fitted,
        unit=unit,
        purge=purge,
    )


def _rows(dataset: Dataset) -> Iterator[tuple[slice, Batch]]:
    """The fit part in parts of bounded memory, each with the rows it fills."""
    done = 0
    for batch in _batches(dataset, dataset.fit):
        yield slice(done, done + len(batch.truth)), batch
        done += len(batch.truth)


def _fit_network(dataset: Dataset, gate: _Fitted, networks: NetworkTrainer, *, progress: Progress) -> _Fitted:
    """Fit what the gate leaves over; a purge gap keeps early stopping honest."""
    n = len(gate.features)
    validation = max(16, round(n * _VALIDATION_SHARE))
    fitted = max(16, n - validation - min(gate.purge, n // 10))
    keep = np.r_[0:fitted, n - validation : n]
    network = networks.fit(
        gate.features[keep],
        gate.unexplained[keep].astype(np.float32),
        validation=validation,
        seed=dataset.spec.seed,
        budget_s=dataset.spec.time_budget_us / 1e6,
        progress=progress,
    )
    return replace(gate, predictor=replace(gate.predictor, network=network))


def _calibrate(dataset: Dataset, predictor: Predictor) -> tuple[Predictor, float]:
    """Return the predictor with its offsets, and its MAE on the calibration part in target units."""
    residuals, errors = [], []
    for batch in _batches(dataset, dataset.calibration):
        point, scale = predictor.point(batch)
        residuals.append((batch.truth - point) / scale[:, None])
        errors.append(batch.truth - point)
    offsets = conformal_offsets(np.concatenate(residuals), dataset.spec.quantile_levels)
    together = np.concatenate(errors)
    return replace(predictor, offsets=offsets), mean_absolute_error(together, np.zeros_like(together))


def _export(
    dataset: Dataset,
    units: tuple[str, ...],
    family: Family,
    predictor: Predictor,
    metrics: tuple[Metric, ...],
    passed: bool,
    exporter: GraphExporter,
) -> Candidate:
    spec = dataset.spec
    signature = Signature(
        channels=spec.channels,
        units=units,
        target=spec.target,
        controls=spec.controls,
        step_us=spec.step_us,
        context_steps=spec.context_steps,
        horizon_steps=spec.horizon_steps,
        quantile_levels=spec.quantile_levels,
        control_min=_control_range(dataset, np.nanmin),
        control_max=_control_range(dataset, np.nanmax),
    )
    graph = exporter.export(predictor, signature)
    batch = dataset.batch(thin(dataset.holdout, GOLDEN_ROWS))
    expected = predictor.quantiles(batch).astype(np.float32)
    got = exporter.run(graph, batch)
    tolerance = float(
        1e-3 * predictor.features.channel_scale[predictor.features.target] + 1e-5 * np.abs(expected).max()
    )
    worst = float(np.abs(got - expected).max())
    if not worst <= tolerance:
        raise Internal(
            f"The exported graph of {_WORDS[family]} strays from its model by {worst:.3g} (allowed {tolerance:.3g})."
        )
    golden = Golden(
        rows=len(expected),
        window=batch.window.astype("<f4").tobytes(),
        calendar=batch.calendar.astype("<f4").tobytes(),
        future=batch.future.astype("<f4").tobytes(),
        quantiles=expected.astype("<f4").tobytes(),
        tolerance=tolerance,
    )
    return Candidate(
        family=family, signature=signature, metrics=metrics, passed_gate=passed, graph=graph, golden=golden
    )


def _control_range(dataset: Dataset, reduce: Callable[[Float64], np.floating]) -> tuple[float, ...]:
    columns = [dataset.spec.channels.index(c) for c in dataset.spec.controls]
    seen = [np.concatenate([h.values[: dataset.fit_end, c] for h in dataset.histories]) for c in columns]
    return tuple(float(reduce(values)) if np.isfinite(values).any() else 0.0 for values in seen)


def _fit_naive_error(dataset: Dataset) -> float:
    """MAE of seasonal-naive on the fit part: the yardstick of MASE, which never looks at the tail."""
    rows = thin(dataset.fit, _NAIVE_ROWS)
    truth = np.concatenate([batch.truth for batch in _batches(dataset, rows)])
    return mean_absolute_error(truth, seasonal_naive(dataset, rows))


def _batches(dataset: Dataset, origins: Origins) -> Iterator[Batch]:
    """Windows in parts of bounded memory."""
    cells = dataset.spec.context_steps * len(dataset.spec.channels)
    size = max(1, _CHUNK_CELLS // cells)
    for start in range(0, len(origins), size):
        yield dataset.batch(origins[start : start + size])


def _checked(dataset: Dataset, origins: Origins, progress: Progress) -> Iterator[Batch]:
    for batch in _batches(dataset, origins):
        progress.check()
        yield batch
