"""From a promoted version to forecasts and decisions, with the real Triton and the real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from tests.integration.inference.world import AT_US, World, world
from tests.unit.inference.graphs import STEP_US, build, cooling_weights, dynamics_signature, forecast_signature

from twinmesh.inference.v1 import inference_pb2
from twinmesh_client.transport import call
from twinmesh_core.calendar import calendar_features
from twinmesh_core.errors import InvalidArgument, NotFound, Reason, Unavailable
from twinmesh_local.triton import TritonServer


@pytest.fixture
async def running(database_url: str, triton_server: TritonServer) -> AsyncIterator[World]:
    async with world(
        database_url=database_url,
        triton_url=triton_server.grpc_url,
        model_repository=triton_server.model_repository,
    ) as found:
        yield found


def forecast(**fields: Any) -> inference_pb2.ForecastRequest:
    return inference_pb2.ForecastRequest(twin_id="T1", **fields)


async def test_a_forecast_equals_what_the_graph_gives_without_triton(running: World) -> None:
    built = build("oil-equal", 1, seed=1)
    running.peers.promote(built)
    deployment = await running.serving("oil-equal", 1)
    assert deployment.HasField("ready_time")

    answer = await call(running.stub.Forecast, forecast(channel="oil_temp", record=True), timeout_s=10)

    signature = built.version.signature
    window = np.linspace(0.0, 1.0, 16).reshape(1, 8, 2).astype(np.float32)
    calendar = calendar_features(np.array([AT_US]), "Europe/Berlin")
    expected = np.sort(built.run(window=window, calendar=calendar)[0], axis=1)
    found = np.array(answer.prediction.values).reshape(signature.horizon_steps, 3)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert answer.prediction.model_id == "oil-equal"
    assert answer.prediction.model_version == 1
    assert answer.prediction.unit == "Cel"
    assert answer.prediction.at.ToMicroseconds() == AT_US
    assert answer.prediction.valid_until.ToMicroseconds() == AT_US + 6 * STEP_US
    assert answer.prediction.input_offset == answer.as_of.offset == 42
    assert answer.upper_limit == 90.0
    assert answer.input_coverage == 1.0
    assert answer.recorded
    assert running.peers.recorded[-1].prediction == answer.prediction
    assert running.peers.recorded[-1].request_id


async def test_versions_roll_and_roll_back_under_load_without_a_failed_call(running: World) -> None:
    builds = {number: build("oil-roll", number, seed=number) for number in (1, 2, 3)}
    running.peers.promote(builds[1])
    await running.serving("oil-roll", 1)
    answered: dict[int, int] = {}
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            answer = await running.stub.Forecast(forecast(model_id="oil-roll"), timeout=10)
            answered[answer.prediction.model_version] = answered.get(answer.prediction.model_version, 0) + 1

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(load())
        # Forth, back (which needs no load), forth by two, and back to one that is no longer there.
        for number in (2, 1, 2, 3, 1):
            running.peers.promote(builds[number])
            await running.serving("oil-roll", number)
            await asyncio.sleep(0.1)
        stop.set()
    assert set(answered) == {1, 2, 3}
    pinned = await running.stub.Forecast(forecast(model_id="oil-roll", model_version=3), timeout=10)
    assert pinned.prediction.model_version == 3


async def test_a_version_of_another_shape_rolls_in_beside_the_old_one(running: World) -> None:
    running.peers.promote(build("oil-shape", 1))
    await running.serving("oil-shape", 1)
    running.peers.promote(build("oil-shape", 2, signature=forecast_signature(context=12, horizon=4)))
    await running.serving("oil-shape", 2)
    newest = await running.stub.Forecast(forecast(model_id="oil-shape"), timeout=10)
    oldest = await running.stub.Forecast(forecast(model_id="oil-shape", model_version=1), timeout=10)
    assert (len(newest.prediction.values), len(oldest.prediction.values)) == (12, 18)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"onnx_bytes": b"this is no graph"}, "refused to load"),
        ({"golden_shift": 1.0}, "golden check differs"),
    ],
    ids=["no-graph", "wrong-answers"],
)
async def test_a_broken_version_fails_with_words_and_the_one_before_it_serves_on(
    running: World, broken: dict[str, Any], words: str
) -> None:
    name = f"oil-{'golden' if 'golden_shift' in broken else 'broken'}"
    running.peers.promote(build(name, 1, seed=1))
    await running.serving(name, 1)
    running.peers.promote(build(name, 2, seed=2, **broken))
    failure = await running.failed(name, 2)
    assert words in failure.message
    assert "/" not in failure.message
    for _ in range(5):
        answer = await running.stub.Forecast(forecast(model_id=name), timeout=10)
        assert answer.prediction.model_version == 1
    with pytest.raises(Unavailable) as refused:
        await call(running.stub.Forecast, forecast(model_id=name, model_version=2), timeout_s=5)
    assert refused.value.reason == Reason.MODEL_NOT_READY
    running.peers.promote(build(name, 3, seed=3))
    await running.serving(name, 3)


async def test_the_cheapest_plan_within_the_limit_is_chosen(running: World) -> None:
    signature = dynamics_signature()
    built = build("oil-control", 1, signature=signature, weights=cooling_weights(signature))
    running.peers.promote(built)
    running.peers.window = np.full((8, 3), 80.0)
    await running.serving("oil-control", 1)
    request = inference_pb2.OptimizeRequest(
        twin_id="T1",
        control="stage",
        options=[inference_pb2.ControlOption(value=n, cost_per_hour=n) for n in range(3)],
        limit=83.0,
        max_switches=1,
    )
    decision = await call(running.stub.Optimize, request, timeout_s=10)
    # Uncontrolled, the 0.9 quantile ends at 80 + 8 * 0.5 + 1 = 85; each step at stage 1 takes 1 K off from then on.
    assert not decision.infeasible
    assert decision.limit_binding
    assert [one.feasible for one in decision.constant_plans] == [False, True, True]
    assert decision.constant_plans[0].peak_at_limit_quantile == pytest.approx(85.0, abs=1e-4)
    assert decision.best.feasible
    assert decision.best.control_cost < decision.constant_plans[1].control_cost
    assert decision.best.peak_at_limit_quantile <= 83.0
    assert decision.best.steps[0].start_time.ToMicroseconds() == AT_US

    request.options[2].value = 4.0
    with pytest.raises(InvalidArgument, match="outside of what the model has seen") as refused:
        await call(running.stub.Optimize, request, timeout_s=10)
    assert refused.value.field_violations[0].field == "options[2].value"


async def test_unknown_twins_channels_and_models_are_told_apart(running: World) -> None:
    running.peers.promote(build("oil-unknown", 1))
    await running.serving("oil-unknown", 1)
    asked = {
        Reason.TWIN_NOT_FOUND: inference_pb2.ForecastRequest(twin_id="nobody", channel="oil_temp"),
        Reason.CHANNEL_NOT_FOUND: forecast(channel="pressure"),
        Reason.MODEL_NOT_FOUND: forecast(model_id="nothing"),
    }
    for reason, request in asked.items():
        with pytest.raises(NotFound) as refused:
            await call(running.stub.Forecast, request, timeout_s=5)
        assert refused.value.reason == reason
    with pytest.raises(grpc.aio.AioRpcError) as raw:
        await running.stub.Forecast(forecast(), timeout=5)
    assert raw.value.code() is grpc.StatusCode.INVALID_ARGUMENT
