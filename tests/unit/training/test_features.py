"""Imputation, normalisation, pooling and the calendar's basis."""

from __future__ import annotations

import numpy as np
import pytest

from twinmesh_core.calendar import calendar_features
from twinmesh_training.domain.features import (
    CALENDAR_WIDTH,
    Normalisation,
    calendar_basis,
    channel_statistics,
    impute,
    make_feature_map,
    pooling,
)


def slow_impute(window: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    answer = window.copy()
    for row in answer:
        for channel in range(row.shape[1]):
            known = row[~np.isnan(row[:, channel]), channel]
            held = known.mean() if known.size else fallback[channel]
            for step in range(len(row)):
                held = held if np.isnan(row[step, channel]) else row[step, channel]
                row[step, channel] = held
    return answer


def test_imputation_holds_the_last_known_value() -> None:
    random = np.random.default_rng(1)
    window = random.normal(size=(40, 37, 3))
    window[random.random(window.shape) < 0.5] = np.nan
    window[0, :, 1] = np.nan
    fallback = np.array([7.0, 8.0, 9.0])
    assert np.allclose(impute(window, fallback), slow_impute(window, fallback))
    whole = random.normal(size=(2, 5, 1))
    assert impute(whole, fallback[:1]) is whole


@pytest.mark.parametrize("context", [2, 7, 48, 49, 96, 512, 4096])
def test_pooling_averages_every_step_once(context: int) -> None:
    pool = pooling(context, 48)
    assert pool.shape[1] <= 48
    assert np.allclose(pool.sum(axis=0), 1.0)
    assert ((pool > 0).sum(axis=1) == 1).all()
    if context <= 48:
        assert np.array_equal(pool, np.eye(context))
    assert pool[-1, -1] == 1.0


def test_the_calendar_basis_tells_days_apart_and_turns_with_the_day() -> None:
    hours = np.arange(14 * 24, dtype=np.int64) * 3_600_000_000
    basis = calendar_basis(calendar_features(hours))
    assert basis.shape == (336, CALENDAR_WIDTH)
    angle = 2 * np.pi * np.arange(336) / 24
    assert np.allclose(basis[:, 4], np.sin(3 * angle), atol=1e-5)
    weekend = ((np.arange(336) // 24 + 3) % 7 >= 5).astype(float)
    design = np.concatenate((basis, np.ones((336, 1))), axis=1)
    fitted = design @ np.linalg.lstsq(design, weekend, rcond=None)[0]
    assert np.abs(fitted - weekend).max() < 1e-4


def test_window_normalisation_ignores_level_and_scale() -> None:
    random = np.random.default_rng(2)
    window = random.normal(size=(5, 24, 2))
    mean, scale = np.zeros(2), np.ones(2)
    mapping = make_feature_map(Normalisation.WINDOW, target=0, context=24, mean=mean, scale=scale)
    calendar = calendar_features(np.zeros(5, np.int64))
    one = mapping.compute(window, calendar)
    other = mapping.compute(window + 1000.0, calendar)
    assert np.allclose(one.values, other.values, atol=1e-8)
    assert one.values.shape[1] == mapping.width
    levels = make_feature_map(Normalisation.LEVEL_PRODUCTS, target=1, context=24, mean=mean, scale=scale)
    assert levels.compute(window, calendar).values.shape[1] == levels.width
    assert np.array_equal(levels.compute(window, calendar).centre, window[:, -1, 1])


def test_statistics_survive_constants_and_silence() -> None:
    values = np.array([[1.0, 5.0, np.nan], [3.0, 5.0, np.nan]])
    mean, deviation = channel_statistics([values])
    assert mean.tolist() == [2.0, 5.0, 0.0]
    assert deviation.tolist() == [1.0, 1.0, 1.0]
