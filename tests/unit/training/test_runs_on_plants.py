"""Whole runs on seeded plants: what is learned must be better than naive, honest, causal and reproducible."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import onnx
import pytest
from tests.fixtures import plants

from twinmesh_training.adapters.onnx_graphs import OnnxExporter
from twinmesh_training.adapters.torch_network import TorchNetworkTrainer
from twinmesh_training.domain.dataset import Batch, History, build_dataset, filled
from twinmesh_training.domain.features import Normalisation, channel_statistics, make_feature_map
from twinmesh_training.domain.ports import ReadHistory, Stopped
from twinmesh_training.domain.predictor import Network, Predictor
from twinmesh_training.domain.ridge import LinearMap
from twinmesh_training.domain.spec import check
from twinmesh_training.domain.training import Outcome, train
from twinmesh_training.domain.values import Evaluation, Family, Signature, Task, TrainingSpec

STEP_US = 1_800_000_000
FORECAST = check(
    TrainingSpec(
        model_id="m",
        task=Task.FORECAST,
        twin_ids=("T1", "T2"),
        target="hot_spot",
        inputs=("oil", "load", "ambient", "cooling_stage"),
        step_us=STEP_US,
        context_steps=48,
        horizon_steps=12,
        holdout_us=20 * plants.DAY_US,
    )
)
DYNAMICS = check(replace(FORECAST, task=Task.DYNAMICS, inputs=("oil", "load", "ambient"), controls=("cooling_stage",)))


class Heard:
    """Progress that remembers, and stops on demand."""

    def __init__(self, stop_at: float = 2.0) -> None:
        self.seen: list[tuple[float, str]] = []
        self.stop_at = stop_at

    def report(self, progress: float, phase: str) -> None:
        self.seen.append((progress, phase))
        self.check()

    def check(self) -> None:
        if self.seen and self.seen[-1][0] >= self.stop_at:
            raise Stopped


class NoNetwork:
    """A trainer whose network makes things worse by a stated amount."""

    def __init__(self, harm: float) -> None:
        self.harm = harm

    def fit(self, features, residual, *, validation, seed, budget_s, progress) -> Network:
        inputs, outputs = features.shape[1], residual.shape[1]
        layer = (np.zeros((inputs, outputs)), np.full(outputs, self.harm))
        return Network(mean=np.zeros(inputs), scale=np.ones(inputs), layers=(layer,))


@lru_cache
def past(days: int = 60, missing: float = 0.01) -> tuple[History, ...]:
    return tuple(
        plants.transformer(days=days, step_us=STEP_US, seed=i, twin_id=f"T{i}", missing=missing) for i in (1, 2)
    )


@lru_cache
def outcome(task: Task) -> Outcome:
    spec = FORECAST if task is Task.FORECAST else DYNAMICS
    return learn(spec, plants.history(*past(), channels=spec.channels))


def learn(spec: TrainingSpec, history: ReadHistory, networks=None, progress=None) -> Outcome:
    return train(
        spec,
        history,
        networks=networks or TorchNetworkTrainer(threads=1),
        exporter=OnnxExporter(),
        progress=progress or Heard(),
    )


def of(done: Outcome, family: Family) -> Evaluation:
    return next(e for e in done.evaluations if e.family is family)


def value(evaluation: Evaluation, name: str, scope: str = "") -> float:
    found = evaluation.metric(name, scope)
    assert found is not None
    return found


@pytest.mark.parametrize("task", list(Task))
def test_gate_and_network_beat_seasonal_naive_with_honest_intervals(task: Task) -> None:
    done = outcome(task)
    naive = value(of(done, Family.SEASONAL_NAIVE), "mae")
    for family in (Family.RIDGE, Family.MLP):
        judged = of(done, family)
        assert value(judged, "mae") < 0.5 * naive
        assert value(judged, "mase") < 0.6
        assert 0.72 <= value(judged, "coverage") <= 0.88
        assert value(judged, "nominal_coverage") == pytest.approx(0.8)
        assert value(judged, "mae", "step=1") < value(judged, "mae", "step=12")
        assert abs(value(judged, "bias")) < 0.5 * value(judged, "mae")
    assert done.promoted
    assert done.candidates[done.promoted - 1].passed_gate
    assert done.start_time_us < done.holdout_start_time_us < done.end_time_us
    assert done.train_window_count > 1000


def test_a_control_has_the_effect_that_physics_gives_it() -> None:
    done = outcome(Task.DYNAMICS)
    for family in (Family.RIDGE, Family.MLP):
        judged = of(done, family)
        # 6 h of full instead of no cooling: 0.42 of the oil's final rise, 91 % of it reached; about 14 K at usual load.
        assert -20 < value(judged, "control_effect", "control=cooling_stage") < -9
        assert value(judged, "control_sign_share", "control=cooling_stage") > 0.97
    assert done.candidates[0].signature.control_min == (0.0,)
    assert done.candidates[0].signature.control_max == (3.0,)


def test_a_control_cools_even_where_only_a_thermostat_moved_it() -> None:
    closed = tuple(plants.transformer(days=60, step_us=STEP_US, seed=i, twin_id=f"T{i}", explore=0.0) for i in (1, 2))
    spec = replace(DYNAMICS, families=(Family.RIDGE,))
    done = learn(spec, plants.history(*closed, channels=spec.channels))
    judged = of(done, Family.RIDGE)
    assert value(judged, "control_effect", "control=cooling_stage") < -5
    assert value(judged, "control_sign_share", "control=cooling_stage") > 0.9


def test_nothing_of_the_held_out_tail_reaches_what_was_learned() -> None:
    spec = replace(FORECAST, families=(Family.RIDGE,))
    honest = plants.history(*past(), channels=spec.channels)
    tail = build_dataset(spec, honest.histories).holdout_start
    shuffled = []
    for made in honest.histories:
        values = made.values.copy()
        values[tail:] = np.random.default_rng(9).permutation(values[tail:])
        shuffled.append(replace(made, values=values))
    one = learn(spec, honest)
    other = learn(spec, replace(honest, histories=tuple(shuffled)))
    assert one.candidates[0].graph == other.candidates[0].graph, "the future changed the model"
    assert one.dataset_sha256 != other.dataset_sha256
    assert value(of(other, Family.RIDGE), "mae") > 1.5 * value(of(one, Family.RIDGE), "mae")


def test_equal_data_and_seed_give_equal_models() -> None:
    spec = replace(FORECAST, time_budget_us=600_000_000)
    history = plants.history(*past(40), channels=spec.channels)
    quick = TorchNetworkTrainer(threads=1, max_epochs=2)
    first, second = learn(spec, history, quick), learn(spec, history, quick)
    assert [c.graph for c in first.candidates] == [c.graph for c in second.candidates]
    assert first.dataset_sha256 == second.dataset_sha256
    other = learn(replace(spec, seed=2), history, quick)
    assert other.candidates[1].graph != first.candidates[1].graph


def test_a_model_worse_than_the_gate_is_registered_and_not_promoted() -> None:
    history = plants.history(*past(40), channels=FORECAST.channels)
    done = learn(FORECAST, history, NoNetwork(harm=0.3))
    ridge, network = done.candidates
    assert ridge.passed_gate
    assert not network.passed_gate
    assert done.promoted == 1
    kept = learn(replace(FORECAST, no_promotion=True), history, NoNetwork(harm=0.0))
    assert kept.promoted == 0
    assert not kept.candidates[1].passed_gate, "equal is not better"


def test_nothing_is_promoted_when_nothing_beats_seasonal_naive() -> None:
    n = 60 * 24
    wave = (50 + 8 * np.sign(np.sin(2 * np.pi * np.arange(n) / 24 + 0.1)) * (1 + np.arange(n) % 24 / 7))[:, None]
    spec = check(
        replace(
            FORECAST,
            twin_ids=("T1",),
            inputs=(),
            target="y",
            step_us=3_600_000_000,
            context_steps=5,
            holdout_us=0,
        )
    )
    made = History(twin_id="T1", time_zone="UTC", values=wave, start_us=plants.START_US)
    history = ReadHistory(histories=(made,), units=("1",), as_of_offset=1, incarnation="i")
    done = learn(spec, history, NoNetwork(harm=0.1))
    assert value(of(done, Family.SEASONAL_NAIVE), "mae") == 0.0
    assert done.promoted == 0
    assert not any(c.passed_gate for c in done.candidates)


def test_a_run_stops_where_it_is_told_to_and_says_where_it_is() -> None:
    history = plants.history(*past(40), channels=FORECAST.channels)
    heard = Heard()
    learn(FORECAST, history, NoNetwork(harm=0.0), heard)
    assert [p for p, _ in heard.seen] == sorted(p for p, _ in heard.seen)
    assert any("gate" in phase for _, phase in heard.seen)
    for at in (0.1, 0.12, 0.5, 0.94):
        with pytest.raises(Stopped):
            learn(FORECAST, history, NoNetwork(harm=0.0), Heard(stop_at=at))
    with pytest.raises(Stopped):
        learn(FORECAST, history, TorchNetworkTrainer(threads=1), Heard(stop_at=0.56))


@pytest.mark.parametrize("task", list(Task))
def test_exported_graphs_answer_as_their_models_do(task: Task) -> None:
    spec = FORECAST if task is Task.FORECAST else DYNAMICS
    exporter = OnnxExporter()
    for candidate in outcome(task).candidates:
        model = onnx.load_from_string(candidate.graph)
        assert model.ir_version <= 8
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
        assert {n.domain for n in model.graph.node} == {""}
        golden = candidate.golden
        controls = len(spec.controls)
        batch = Batch(
            window=np.frombuffer(golden.window, "<f4").reshape(8, 48, 5),
            calendar=np.frombuffer(golden.calendar, "<f4").reshape(8, 4),
            future=np.frombuffer(golden.future, "<f4").reshape(8, 12, controls),
            truth=np.zeros((8, 12)),
        )
        expected = np.frombuffer(golden.quantiles, "<f4").reshape(8, 12, 3)
        got = exporter.run(candidate.graph, batch)
        assert np.abs(got - expected).max() < min(golden.tolerance, 2e-3)
        assert (np.diff(got, axis=2) >= 0).all()
        single = replace(batch, window=batch.window[:1], calendar=batch.calendar[:1], future=batch.future[:1])
        assert np.abs(exporter.run(candidate.graph, single) - got[:1]).max() < 1e-3


@pytest.mark.parametrize("normalisation", list(Normalisation))
def test_the_graph_mirrors_imputation_and_features_for_any_hole(normalisation: Normalisation) -> None:
    random = np.random.default_rng(11)
    mean, scale = channel_statistics([random.normal(10, 3, (500, 3))])
    mapping = make_feature_map(normalisation, target=1, context=75, mean=mean, scale=scale)
    linear = LinearMap(
        weights=random.normal(0, 0.1, (mapping.width, 4)), bias=random.normal(size=4), strength=1.0, loss=0.0
    )
    layers = (
        (random.normal(0, 0.1, (mapping.width, 8)), random.normal(size=8)),
        (random.normal(size=(8, 4)), np.ones(4)),
    )
    network = Network(mean=np.zeros(mapping.width), scale=np.ones(mapping.width), layers=layers)
    offsets = np.array([[-1.0, 0.0, 2.0]] * 4)
    predictor = Predictor(features=mapping, linear=linear, rollout=None, network=network, offsets=offsets)
    signature = Signature(
        channels=("a", "b", "c"),
        units=("1", "1", "1"),
        target="b",
        controls=(),
        step_us=1,
        context_steps=75,
        horizon_steps=4,
        quantile_levels=(0.1, 0.5, 0.9),
    )
    window = random.normal(10, 3, (30, 75, 3)).astype(np.float32)
    window[random.random(window.shape) < 0.4] = np.nan
    window[0] = np.nan
    window[1, :, 1] = np.nan
    window[2, 40:, 0] = np.nan
    window[3, 3, 2] = 1e6
    calendar = random.normal(size=(30, 4)).astype(np.float32)
    batch = Batch(window=window, calendar=calendar, future=np.zeros((30, 4, 0), np.float32), truth=np.zeros((30, 4)))
    exporter = OnnxExporter()
    got = exporter.run(exporter.export(predictor, signature), batch)
    expected = predictor.quantiles(batch)
    assert np.isfinite(got).all()
    assert (np.abs(got - expected) <= 2e-3 + 1e-5 * np.abs(expected)).all()


def test_a_planned_control_that_is_missing_stays_as_it_is() -> None:
    candidate = outcome(Task.DYNAMICS).candidates[0]
    dataset = build_dataset(DYNAMICS, plants.history(*past(), channels=DYNAMICS.channels).histories)
    batch = dataset.batch(dataset.holdout[:64])
    now = batch.window[:, -1, -1]
    batch = replace(
        batch, window=batch.window[~np.isnan(now)], calendar=batch.calendar[~np.isnan(now)], truth=batch.truth
    )
    now = batch.window[:, -1, -1]
    exporter = OnnxExporter()
    shape = (len(now), 12, 1)
    held = exporter.run(
        candidate.graph, replace(batch, future=np.broadcast_to(now[:, None, None], shape).astype(np.float32))
    )
    absent = exporter.run(candidate.graph, replace(batch, future=np.full(shape, np.nan, np.float32)))
    assert np.allclose(held, absent, atol=1e-3)


def test_missing_truths_take_their_neighbours_value() -> None:
    truth = np.array([[np.nan, 1.0, np.nan, 3.0], [1.0, 2.0, 3.0, np.nan]])
    assert filled(truth).tolist() == [[1.0, 1.0, 1.0, 3.0], [1.0, 2.0, 3.0, 3.0]]
