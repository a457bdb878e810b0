"""Predictions against facts: which fact counts, what follows from it, and that no order or batching changes it."""

import random
from math import sqrt
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.statesync.worlds import T0, TENANT, S, World, doubles, prediction

from twinmesh_statesync.domain.changes import merge
from twinmesh_statesync.domain.checkpoint import Checkpoint, Position, capture_all, digest, restore
from twinmesh_statesync.domain.entries import DeleteTwin, RecordPrediction
from twinmesh_statesync.domain.events import Prediction
from twinmesh_statesync.domain.predicted import present_of
from twinmesh_statesync.domain.residuals import MAX_STEPS, Residual, median

HALF = S // 2


def predicted(*values: float, at: int = T0, version: int = 1, **more: Any) -> Prediction:
    """Return a prediction whose steps of a second have these medians, within 1 to each side."""
    return Prediction(
        channel="temperature",
        model_id="m",
        model_version=version,
        at_unix_us=at,
        valid_until_unix_us=at + len(values) * S,
        step_us=S,
        quantile_levels=(0.1, 0.5, 0.9),
        values=tuple(number for value in values for number in (value - 1.0, value, value + 1.0)),
        **{"unit": "Cel", "input_offset": 1, **more},
    )


def world_of(*predictions: Prediction) -> World:
    world = World("a")
    for one in predictions:
        record(world, one)
    return world


def record(world: World, one: Prediction) -> Any:
    return world.do(RecordPrediction(twin_id="a", prediction=one))


def residual(world: World) -> Residual:
    found: Residual = world.replica("a").residuals["temperature", "m"]
    return found


def facts(world: World, *rows: tuple[float, float], quality: int = 1) -> Any:
    """Report facts, (seconds after T0, value), in one batch."""
    return world.see(doubles([("a", "temperature", T0 + int(at * S), value, quality) for at, value in rows]))


def test_of_each_step_the_fact_nearest_to_its_middle_counts() -> None:
    world = world_of(predicted(10.0, 20.0, 30.0))
    assert residual(world).count == 0
    (change,) = facts(world, (0.1, 99.0)).changes
    assert change.residuals[0].count == 1
    facts(world, (0.4, 10.5), (1.5, 19.0))
    found = residual(world)
    assert (found.count, found.mean, found.mae) == (2, -0.25, 0.75)
    assert found.rmse == pytest.approx(sqrt((0.25 + 1.0) / 2))
    assert (found.interval_count, found.covered_count) == (2, 2)
    assert found.nominal_coverage == pytest.approx(0.8)
    assert (found.last_time_unix_us, found.last_step_unix_us) == (T0 + 3 * HALF, T0 + S)
    assert (found.last_lead_us, found.last_predicted, found.last_reported) == (3 * HALF, 20.0, 19.0)
    assert facts(world, (1.9, 0.0)).changes[0].residuals == (), "further from the middle"
    facts(world, (2.5, 40.0))
    assert (residual(world).covered_count, residual(world).count) == (2, 3)
    assert facts(world, (3.0, 0.0)).changes[0].residuals == (), "beyond the last step"


def test_a_late_fact_counts_without_changing_what_is_reported() -> None:
    world = world_of(predicted(10.0, 20.0))
    facts(world, (1.5, 20.0))
    (change,) = facts(world, (0.5, 11.0)).changes
    assert (change.reported, change.residuals[0].count) == ((), 2)
    assert residual(world).last_reported == 20.0, "the newest is still the newest"


def test_only_good_facts_count_and_one_taken_back_counts_no_more() -> None:
    world = world_of(predicted(10.0, 20.0))
    facts(world, (0.5, 11.0), quality=2)
    facts(world, (1.5, 21.0), quality=3)
    assert residual(world).count == 0
    facts(world, (1.4, 22.0))
    facts(world, (1.4, 23.0))
    assert (residual(world).count, residual(world).mean) == (1, 3.0), "a correction replaces"
    facts(world, (1.4, 23.0), quality=3)
    assert residual(world).count == 0


def test_the_next_prediction_of_a_version_adds_up_and_another_version_begins_anew() -> None:
    world = world_of(predicted(10.0, 20.0))
    facts(world, (0.5, 11.0))
    before = residual(world)
    assert record(world, predicted(12.0, at=T0 + S, input_offset=2)).changes[0].residuals == (), "nothing new yet"
    assert residual(world) == before
    facts(world, (1.5, 15.0))
    assert (residual(world).count, residual(world).mean, residual(world).mae) == (2, 2.0, 2.0)
    assert residual(world).since_offset == 3
    (change,) = record(world, predicted(12.0, at=T0 + 2 * S, version=2, input_offset=3)).changes
    assert (change.residuals[0].count, change.residuals[0].model_version) == (0, 2)
    assert residual(world).last_time_unix_us is None
    assert record(world, predicted(0.0, at=T0, version=1, input_offset=1)).changes == (), "from older inputs"
    assert residual(world).model_version == 2


def test_what_cannot_be_compared_is_left_alone() -> None:
    for odd in (
        predicted(1.0, unit="K"),
        predicted(1e200),
        prediction(steps=1, channel="document"),
    ):
        world = world_of(odd)
        facts(world, (0.5, 1.0))
        assert not world.replica("a").residuals
    aliased = world_of(predicted(1.0, unit="degC"))
    facts(aliased, (0.5, 2.0))
    assert residual(aliased).mean == 1.0, "another spelling of the same unit"
    long = world_of(predicted(*([5.0] * (MAX_STEPS + 1))))
    facts(long, (MAX_STEPS + 0.5, 5.0))
    assert residual(long).count == 0
    huge = world_of(predicted(1.0))
    facts(huge, (0.5, 1e200))
    assert residual(huge).count == 0


def test_a_median_that_is_not_among_the_levels_is_interpolated() -> None:
    def of(levels: tuple[float, ...], values: tuple[float, ...]) -> float:
        one = prediction()
        return median(Prediction(**{**_fields(one), "quantile_levels": levels, "values": values}), 0)

    assert of((0.25, 0.75), (10.0, 20.0)) == 15.0
    assert of((0.4, 0.9), (10.0, 20.0)) == pytest.approx(12.0)
    assert of((0.6, 0.9), (10.0, 20.0)) == 10.0
    assert of((0.1, 0.2), (10.0, 20.0)) == 20.0
    assert of((0.5,), (7.0,)) == 7.0


def _fields(one: Prediction) -> dict[str, Any]:
    return {name: getattr(one, name) for name in Prediction.__slots__}


def test_a_deleted_twin_forgets_and_changes_merge() -> None:
    world = world_of(predicted(10.0, 20.0))
    first = facts(world, (0.5, 11.0)).changes[0]
    second = facts(world, (1.5, 21.0)).changes[0]
    assert merge(first, second).residuals == second.residuals
    world.do(DeleteTwin(twin_id="a"))
    world.create("a")
    facts(world, (0.5, 11.0))
    assert not world.replica("a").residuals


def test_a_prediction_expires_in_the_present_of_its_twin() -> None:
    world = world_of(predicted(10.0))
    state = world.fold.state(TENANT, "a")
    assert state is not None
    assert present_of(state, 5) == 5, "never heard from: the time now"
    world.now = T0 + 86_400 * S
    facts(world, (0.5, 11.0))
    arrived = world.now
    assert present_of(state, arrived) == T0 + HALF, "a recording is judged in its own time"
    assert present_of(state, arrived + 10 * S) == T0 + HALF + 10 * S


rows = st.lists(
    st.tuples(st.integers(0, 59), st.floats(-50, 50), st.integers(1, 3)),
    min_size=1,
    max_size=24,
    unique_by=lambda r: r[0],
)


@settings(max_examples=80)
@given(rows=rows, seed=st.randoms(use_true_random=False))
def test_order_batching_and_repetition_of_facts_do_not_matter(
    rows: list[tuple[int, float, int]], seed: random.Random
) -> None:
    given_facts = [("a", "temperature", T0 + tenth * S // 10, value, quality) for tenth, value, quality in rows]
    models = (predicted(1.0, 2.0, 3.0, 4.0, 5.0), prediction(model="n", steps=4, at=T0 + S))
    straight, shuffled = world_of(*models), world_of(*models)
    straight.see(doubles(given_facts))
    again = given_facts + seed.sample(given_facts, len(given_facts) // 2)
    seed.shuffle(again)
    while again:
        size = seed.randint(1, 5)
        shuffled.see(doubles(again[:size]))
        again = again[size:]
    assert straight.replica("a").residuals == shuffled.replica("a").residuals
    assert straight.replica("a").reported.values["temperature"].value == (
        shuffled.replica("a").reported.values["temperature"].value
    )


@settings(max_examples=60)
@given(rows=rows, cut=st.integers(0, 12))
def test_residuals_go_on_from_a_checkpoint_at_any_point_as_if_nothing_had_been(
    rows: list[tuple[int, float, int]], cut: int
) -> None:
    world = world_of(predicted(1.0, 2.0, 3.0))
    for number, (tenth, value, quality) in enumerate(rows):
        if number == cut:
            before = world.fold
            position = Position(incarnation="i", offset=before.offset)
            records = tuple(capture_all(before).records())
            whole, world.fold = before, restore(Checkpoint(position=position, records=records))
            assert digest(whole) == digest(world.fold)
        if number == 6:
            record(world, predicted(4.0, 5.0, at=T0 + 2 * S, input_offset=2))
        world.report("a", "temperature", T0 + tenth * S // 10, value, quality)
    straight = World()
    for entry in world.entries:
        straight.fold.apply(entry)
    assert digest(straight.fold) == digest(world.fold)
    found = residual(world)
    assert found.rmse >= found.mae - 1e-9
    assert abs(found.mean) <= found.mae + 1e-9
    assert 0 <= found.covered_count <= found.interval_count == found.count
