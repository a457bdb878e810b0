"""Sizes of a model for data that nobody described."""

from datetime import timedelta

import numpy as np
import pytest

from twinmesh_client.planning import suggest_sizes, usual_interval
from twinmesh_core.errors import FailedPrecondition, Reason

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


@pytest.mark.parametrize(
    ("interval", "span", "step", "context", "horizon"),
    [
        (MINUTE, 90 * DAY, 15 * MINUTE, 96, 48),
        (60 * MINUTE, 725 * DAY, 60 * MINUTE, 24, 12),
        (timedelta(seconds=1), timedelta(hours=8), MINUTE, 60, 30),
        (timedelta(minutes=7), 90 * DAY, 15 * MINUTE, 96, 48),
        (DAY, 4_000 * DAY, DAY, 24, 12),
    ],
)
def test_steps_follow_the_data(interval, span, step, context, horizon):
    sizes = suggest_sizes(interval, span)
    assert (sizes.step, sizes.context_steps, sizes.horizon_steps) == (step, context, horizon)
    assert sizes.horizon == horizon * step


def test_too_little_history_says_how_much_is_needed():
    with pytest.raises(FailedPrecondition, match="about 200") as caught:
        suggest_sizes(60 * MINUTE, 2 * DAY)
    assert caught.value.reason == Reason.NOT_ENOUGH_HISTORY


def test_the_usual_interval_is_the_median_of_distinct_times():
    times = np.array([0, 0, 60, 120, 120, 180, 10_000], np.int64) * 1_000_000
    assert usual_interval(times) == MINUTE
    assert usual_interval(times[:1]) == MINUTE
