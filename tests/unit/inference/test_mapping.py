"""What a request may say: each bad field is named, with the reason and the remedy."""

from __future__ import annotations

import math

import pytest

from twinmesh.inference.v1 import inference_pb2
from twinmesh_core.errors import InvalidArgument
from twinmesh_inference.rpc.mapping import forecast_question, optimize_question


def forecast(**fields: object) -> inference_pb2.ForecastRequest:
    return inference_pb2.ForecastRequest(**{"twin_id": "T1", "channel": "oil_temp", **fields})  # type: ignore[arg-type]


def optimize(**fields: object) -> inference_pb2.OptimizeRequest:
    values = {"twin_id": "T1", "control": "stage", "options": [{"value": 0}, {"value": 1}], "limit": 90.0, **fields}
    return inference_pb2.OptimizeRequest(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"twin_id": ""}, "twin_id"),
        ({"twin_id": "no spaces"}, "twin_id"),
        ({"channel": ""}, "channel"),
        ({"channel": "Bad-Name"}, "channel"),
        ({"model_id": "No"}, "model_id"),
        ({"model_version": 2}, "model_version"),
        ({"model_id": "m", "model_version": -1}, "model_version"),
        ({"quantile_levels": [1.0]}, "quantile_levels"),
        ({"quantile_levels": [math.nan]}, "quantile_levels"),
        ({"horizon": {"seconds": 0}}, "horizon"),
        ({"horizon": {"seconds": -1}}, "horizon"),
        ({"max_staleness": {"seconds": -1}}, "max_staleness"),
        ({"at": {"seconds": 1 << 60}}, "at"),
        ({"min_offset": -1}, "min_offset"),
        ({"as_of_offset": -1}, "as_of_offset"),
    ],
)
def test_a_bad_field_of_a_forecast_is_named(fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        forecast_question(forecast(**fields))
    assert [one.field for one in refused.value.field_violations] == [field]


@pytest.mark.parametrize(
    ("fields", "fields_named"),
    [
        ({"options": []}, ["options"]),
        ({"options": [{"value": n} for n in range(17)]}, ["options"]),
        ({"options": [{"value": 1}, {"value": 1}]}, ["options"]),
        ({"options": [{"value": math.inf}]}, ["options[0].value"]),
        ({"options": [{"cost_per_hour": math.nan}]}, ["options[0].cost_per_hour"]),
        ({"limit": math.nan, "switch_cost": -1}, ["limit", "switch_cost"]),
        ({"limit_quantile": 1.0}, ["limit_quantile"]),
        ({"target": math.inf}, ["target"]),
        ({"target_weight": -0.1}, ["target_weight"]),
        ({"max_switches": 4}, ["max_switches"]),
        ({"min_dwell": {"seconds": 0}}, ["min_dwell"]),
        ({"control": ""}, ["control"]),
    ],
)
def test_all_bad_fields_of_a_decision_are_named(fields: dict[str, object], fields_named: list[str]) -> None:
    with pytest.raises(InvalidArgument) as refused:
        optimize_question(optimize(**fields))
    assert [one.field for one in refused.value.field_violations] == fields_named


def test_defaults_are_those_of_the_contract() -> None:
    decision = optimize_question(optimize())
    assert decision.limit_quantile == 0.9
    assert decision.target is None
    assert decision.min_dwell_us is None
    question = forecast_question(forecast())
    assert question.at_unix_us is None
    assert question.horizon_us is None
    assert question.max_staleness_us is None
