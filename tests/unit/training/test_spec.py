"""A spec that cannot work is refused with the field, the reason and the remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from twinmesh_core.errors import InvalidArgument
from twinmesh_training.domain.spec import check
from twinmesh_training.domain.values import Family, Task, TrainingSpec

GOOD = TrainingSpec(
    model_id="hot-spot",
    task=Task.FORECAST,
    twin_ids=("T1", "T2"),
    target="hot_spot",
    inputs=("load",),
    step_us=600_000_000,
    context_steps=96,
    horizon_steps=24,
)
DYNAMICS = replace(GOOD, task=Task.DYNAMICS, controls=("stage",))


def test_a_good_spec_gets_its_normal_form() -> None:
    checked = check(
        replace(GOOD, families=(Family.MLP,), inputs=("hot_spot", "load", "load"), twin_ids=("T1", "T1"), seed=0)
    )
    assert checked.families == (Family.RIDGE, Family.MLP)
    assert checked.inputs == ("load",)
    assert checked.twin_ids == ("T1",)
    assert checked.seed == 1
    assert checked.channels == ("hot_spot", "load")
    assert check(DYNAMICS).channels == ("hot_spot", "load", "stage")


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("model_id", replace(GOOD, model_id="Hot Spot")),
        ("twin_ids", replace(GOOD, twin_ids=())),
        ("twin_ids[1]", replace(GOOD, twin_ids=("T1", "a b"))),
        ("target", replace(GOOD, target="")),
        ("inputs[0]", replace(GOOD, inputs=("1x",))),
        ("inputs", replace(GOOD, inputs=tuple(f"c{i}" for i in range(300)))),
        ("controls", replace(GOOD, controls=("stage",))),
        ("controls", replace(DYNAMICS, controls=())),
        ("controls", replace(DYNAMICS, controls=("hot_spot",))),
        ("controls", replace(DYNAMICS, controls=("stage", "stage"))),
        ("controls", replace(DYNAMICS, controls=tuple(f"c{i}" for i in range(20)))),
        ("step", replace(GOOD, step_us=999_999)),
        ("context_steps", replace(GOOD, context_steps=1)),
        ("context_steps", replace(GOOD, context_steps=4096, inputs=tuple(f"c{i}" for i in range(100)))),
        ("horizon_steps", replace(GOOD, horizon_steps=5000)),
        ("horizon_steps", replace(DYNAMICS, horizon_steps=513)),
        ("origins", replace(GOOD, origins=100_001)),
        ("quantile_levels", replace(GOOD, quantile_levels=(0.1, 0.9))),
        ("quantile_levels", replace(GOOD, quantile_levels=(0.5, 0.1))),
        ("quantile_levels", replace(GOOD, quantile_levels=(0.5, float("nan")))),
        ("end_time", replace(GOOD, start_time_us=5, end_time_us=5)),
        ("holdout", replace(GOOD, holdout_us=-1)),
        ("holdout", replace(GOOD, holdout_us=600_000_000)),
        ("season", replace(GOOD, season_us=0)),
        ("time_budget", replace(GOOD, time_budget_us=0)),
        ("families", replace(GOOD, families=(Family.SEASONAL_NAIVE,))),
    ],
)
def test_a_bad_field_is_named_with_what_would_be_right(field: str, bad: TrainingSpec) -> None:
    with pytest.raises(InvalidArgument) as error:
        check(bad)
    found = {violation.field: violation.description for violation in error.value.field_violations}
    assert f"spec.{field}" in found
    assert len(found[f"spec.{field}"]) > 15


def test_all_bad_fields_are_named_at_once() -> None:
    with pytest.raises(InvalidArgument) as error:
        check(replace(GOOD, model_id="", step_us=0, horizon_steps=0))
    assert {v.field for v in error.value.field_violations} == {"spec.model_id", "spec.step", "spec.horizon_steps"}
