"""Windows are cut in time order and no part sees another's answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures import plants

from twinmesh_core.errors import FailedPrecondition, Reason
from twinmesh_training.domain.dataset import (
    Dataset,
    History,
    build_dataset,
    last_known,
    needed_steps,
    seasonal_naive,
    thin,
)
from twinmesh_training.domain.values import Task, TrainingSpec

STEP_US = 3_600_000_000
SPEC = TrainingSpec(
    model_id="m",
    task=Task.FORECAST,
    twin_ids=("T1",),
    target="y",
    inputs=("x",),
    step_us=STEP_US,
    context_steps=24,
    horizon_steps=6,
)


def history(values: np.ndarray, twin_id: str = "T1") -> History:
    return History(twin_id=twin_id, time_zone="UTC", values=values, start_us=plants.START_US)


def numbered(steps: int, twin_id: str = "T1", base: float = 0.0) -> History:
    """Column y holds the step's own number: a window shows which steps it has seen."""
    return history(np.stack((base + np.arange(steps), -base - np.arange(steps)), axis=1).astype(float), twin_id)


def steps_read(dataset: Dataset, origins: np.ndarray) -> tuple[set[float], set[float]]:
    batch = dataset.batch(origins)
    return set(batch.window[:, :, 0].ravel().tolist()), set(batch.truth.ravel().tolist())


@settings(max_examples=25, deadline=None)
@given(context=st.integers(2, 40), horizon=st.integers(1, 20), extra=st.integers(0, 300), holdout=st.integers(0, 120))
def test_no_part_reads_an_answer_of_an_earlier_part(context: int, horizon: int, extra: int, holdout: int) -> None:
    spec = replace(
        SPEC,
        context_steps=context,
        horizon_steps=horizon,
        holdout_us=max(holdout, horizon) * STEP_US if holdout else 0,
    )
    steps = needed_steps(spec, max(holdout, horizon)) + extra
    dataset = build_dataset(spec, (numbered(steps),))
    fit_seen, fit_answers = steps_read(dataset, dataset.fit)
    judged_seen, judged_answers = steps_read(dataset, dataset.calibration)
    tail_seen, tail_answers = steps_read(dataset, dataset.holdout)
    assert not fit_answers & judged_seen
    assert not fit_answers & judged_answers
    assert not (fit_answers | judged_answers) & tail_seen
    assert not (fit_answers | judged_answers | fit_seen | judged_seen) & tail_answers
    assert max(fit_answers) < min(judged_seen)
    assert max(judged_answers) < min(tail_seen)
    assert min(tail_answers) >= dataset.holdout_start


def test_a_window_ends_where_its_truth_begins() -> None:
    dataset = build_dataset(SPEC, (numbered(400), numbered(400, "T2", base=1000.0)))
    batch = dataset.batch(dataset.fit[:5])
    assert np.array_equal(batch.window[:, -1, 0] + 1, batch.truth[:, 0].astype(np.float32))
    assert np.array_equal(np.diff(batch.truth, axis=1), np.ones((5, 5)))
    assert set(dataset.fit[:, 0].tolist()) == {0, 1}
    assert np.all(np.diff(dataset.fit[:, 1]) >= 0)


def test_too_little_history_is_told_with_numbers() -> None:
    with pytest.raises(FailedPrecondition) as error:
        build_dataset(SPEC, (numbered(100),))
    assert error.value.reason == Reason.NOT_ENOUGH_HISTORY
    assert error.value.metadata["available"] == "100"
    needed = int(error.value.metadata["needed"])
    build_dataset(SPEC, (numbered(needed),))
    with pytest.raises(FailedPrecondition):
        build_dataset(SPEC, (numbered(needed - 20),))


def test_windows_with_too_many_gaps_are_dropped_and_counted() -> None:
    made = numbered(600)
    made.values[100:160] = np.nan
    dataset = build_dataset(SPEC, (made,))
    assert 60 < dataset.dropped < 120
    at = dataset.fit[:, 1]
    assert not np.any((at > 112) & (at < 165))
    empty = numbered(600)
    empty.values[:, 0] = np.nan
    with pytest.raises(FailedPrecondition) as error:
        build_dataset(SPEC, (empty,))
    assert "missing" in error.value.message


def test_the_naive_baseline_reads_only_what_was_known() -> None:
    made = numbered(600)
    made.values[300, 0] = np.nan
    dataset = build_dataset(replace(SPEC, season_us=4 * STEP_US), (made,))
    origins = np.array([[0, 200], [0, 302]])
    found = seasonal_naive(dataset, origins)
    assert found[0].tolist() == [196, 197, 198, 199, 196, 197]
    assert found[1].tolist() == [298, 299, 301, 301, 298, 299]
    assert (found < origins[:, 1:]).all()


def test_the_default_origins_are_hourly_and_at_least_a_hundred() -> None:
    dataset = build_dataset(replace(SPEC, step_us=600_000_000), (numbered(6000),))
    gaps = np.diff(dataset.holdout[:, 1])
    assert set(gaps.tolist()) == {6}
    few = build_dataset(replace(SPEC, step_us=600_000_000, holdout_us=200 * 600_000_000), (numbered(2000),))
    assert len(few.holdout) >= 100
    asked = build_dataset(replace(SPEC, origins=50), (numbered(6000),))
    assert 50 <= len(asked.holdout) <= 55


def test_the_digest_names_the_data() -> None:
    one = build_dataset(SPEC, (numbered(400),))
    same = build_dataset(SPEC, (numbered(400),))
    changed = numbered(400)
    changed.values[7, 1] += 1e-9
    assert one.digest() == same.digest()
    assert one.digest() != build_dataset(SPEC, (changed,)).digest()


def test_small_parts() -> None:
    assert last_known(np.array([np.nan, 1.0, np.nan, 3.0])).tolist()[1:] == [1.0, 1.0, 3.0]
    assert len(thin(np.zeros((10, 2), np.int64), 3)) == 3
