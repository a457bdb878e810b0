"""Ridge, conformal intervals, metrics and the gate: each against what a person would compute."""

from __future__ import annotations

import numpy as np
import pytest

from twinmesh_training.domain.conformal import conformal_offsets
from twinmesh_training.domain.gate import passes_gate, winner
from twinmesh_training.domain.metrics import measure, reported_steps
from twinmesh_training.domain.ridge import fit_ridge
from twinmesh_training.domain.values import Evaluation, Family

SEASONAL_NAIVE, RIDGE, MLP = Family
LEVELS = (0.1, 0.5, 0.9)
DAY_US = 86_400_000_000


def test_ridge_solves_the_normal_equations() -> None:
    random = np.random.default_rng(3)
    x = random.normal(size=(400, 6)) * np.array([1, 2, 3, 4, 5, 0.1]) + 7
    y = x @ random.normal(size=(6, 2)) + 3 + random.normal(size=(400, 2))
    found = fit_ridge(x, y)
    scale = x.std(axis=0)
    z = (x - x.mean(axis=0)) / scale
    penalty = found.strength * len(x) * np.eye(6)
    weights = np.linalg.solve(z.T @ z + penalty, z.T @ (y - y.mean(axis=0))) / scale[:, None]
    assert np.allclose(found.weights, weights, rtol=1e-3, atol=1e-3)
    assert np.allclose(found.apply(x).mean(axis=0), y.mean(axis=0), atol=1e-3)
    assert 0.8 < found.loss < 1.3


def test_ridge_shrinks_to_the_mean_when_there_is_nothing_to_learn() -> None:
    random = np.random.default_rng(4)
    x = random.normal(size=(120, 60))
    x[:, 5] = 4.0
    y = random.normal(size=(120, 1))
    found = fit_ridge(x, y, purge=3)
    assert found.strength == 10.0
    assert found.weights[5, 0] == 0.0


def test_offsets_cover_skewed_errors_and_keep_their_order() -> None:
    random = np.random.default_rng(5)
    residual = random.exponential(2.0, (4000, 8)) - 1.0
    offsets = conformal_offsets(residual, LEVELS)
    fresh = random.exponential(2.0, (20_000, 8)) - 1.0
    inside = ((fresh >= offsets[:, 0]) & (fresh <= offsets[:, 2])).mean()
    assert 0.78 < inside < 0.83
    assert (np.diff(offsets, axis=1) >= 0).all()
    assert (offsets[:, 1] == 0).all()
    biased = conformal_offsets(residual + 50, LEVELS)
    assert (biased[:, 0] == 0).all()
    assert (biased[:, 2] > 50).all()
    assert (conformal_offsets(np.full((5, 3), np.nan), LEVELS) == 0).all()


def test_metrics_by_hand() -> None:
    truth = np.array([[1.0, 2.0], [3.0, np.nan]])
    quantiles = np.array([[[0, 1, 2], [3, 4, 5]], [[1, 2, 2.5], [0, 0, 0]]], float)
    found = {
        (m.name, m.scope): m.value
        for m in measure(
            truth, quantiles, LEVELS, naive_error=2.0, origin_time_us=np.array([0, DAY_US]), step_us=3_600_000_000
        )
    }
    assert found["mae", ""] == pytest.approx(1.0)
    assert found["bias", ""] == pytest.approx((0 + 2 - 1) / 3)
    assert found["rmse", ""] == pytest.approx(np.sqrt(5 / 3))
    assert found["mase", ""] == pytest.approx(0.5)
    assert found["coverage", ""] == pytest.approx(1 / 3)
    assert found["nominal_coverage", ""] == pytest.approx(0.8)
    assert found["interval_width", ""] == pytest.approx((2 + 2 + 1.5) / 3)
    assert found["worst_day_mae", ""] == pytest.approx(1.0)
    assert found["mae", "step=2"] == pytest.approx(2.0)
    by_hand = [0.1 * 1, 0, 0.1 * 1, 0.9 * 1, 0.5 * 2, 0.1 * 3, 0.1 * 2, 0.5 * 1, 0.9 * 0.5]
    assert found["pinball", ""] == pytest.approx(sum(by_hand) / 9)
    assert reported_steps(36) == (1, 9, 18, 36)
    assert reported_steps(1) == (1,)


def test_the_gate_lets_only_better_models_pass() -> None:
    held_out = {SEASONAL_NAIVE: 2.0, RIDGE: 1.0, MLP: 0.9}
    assert passes_gate(RIDGE, held_out)
    assert passes_gate(MLP, held_out)
    assert not passes_gate(MLP, held_out | {MLP: 1.0})
    assert not passes_gate(RIDGE, held_out | {RIDGE: 2.0})
    assert not passes_gate(MLP, held_out | {MLP: float("nan")})
    assert passes_gate(RIDGE, held_out | {SEASONAL_NAIVE: float("nan")})


def test_the_winner_is_chosen_on_calibration_and_the_tail_can_only_veto() -> None:
    held_out = {SEASONAL_NAIVE: 2.0, RIDGE: 1.0, MLP: 0.9}
    assert winner({RIDGE: 1.0, MLP: 0.8}, held_out) is MLP
    assert winner({RIDGE: 0.8, MLP: 1.0}, held_out) is RIDGE, "better on the tail, but not selected on it"
    assert winner({RIDGE: 1.0, MLP: 0.8}, held_out | {MLP: 1.1}) is RIDGE
    assert winner({RIDGE: 1.0, MLP: 0.8}, held_out | {RIDGE: 3.0, MLP: 3.0}) is None


def test_an_evaluation_finds_its_metrics() -> None:
    evaluation = Evaluation(family=RIDGE, metrics=(), origin_count=0)
    assert evaluation.metric("mae") is None
