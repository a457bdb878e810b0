"""Inference beside the real services: windows and twins from storage and state-sync, versions from training."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.fixtures import plants
from tests.integration.inference.world import World, world
from tests.integration.statesync.mesh import StateSync, statesync
from tests.integration.training.training_mesh import Training, forecast_spec, training
from tests.unit.inference.graphs import STEP_US, build

from twinmesh.inference.v1 import inference_pb2
from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import observation_pb2, twin_pb2
from twinmesh_client.transport import call
from twinmesh_core.calendar import calendar_features
from twinmesh_core.errors import FailedPrecondition, Reason
from twinmesh_inference.domain.models import Signature
from twinmesh_local.triton import TritonServer
from twinmesh_storage.main import compose as compose_storage
from twinmesh_storage.settings import StorageSettings
from twinmesh_testing.inprocess import serve
from twinmesh_training.settings import TrainingSettings

START_US = 1_700_000_100 * 1_000_000 // STEP_US * STEP_US
HALF_HOUR_US = 1_800 * 1_000_000
PUMP = Signature(
    channels=("temperature", "speed"),
    units=("Cel", "1"),
    target="temperature",
    step_us=STEP_US,
    context_steps=8,
    horizon_steps=6,
    quantile_levels=(0.1, 0.5, 0.9),
)


@asynccontextmanager
async def storage(database_url: str) -> AsyncIterator[str]:
    """Serve the real storage on a free port; yields its target."""
    async with AsyncExitStack() as stack:
        settings = StorageSettings(port=0, database_url=database_url, redis_url="")
        service = await compose_storage(settings, stack)
        yield await stack.enter_async_context(serve(service, token="storage", settings=settings))


async def test_windows_and_twins_of_the_real_services_reach_the_graph_and_the_replica(
    database_url: str, triton_server: TritonServer
) -> None:
    triton: dict[str, Any] = {"triton_url": triton_server.grpc_url, "model_repository": triton_server.model_repository}
    built = build("pump-temperature", 1, signature=PUMP, twin_ids=("P1",))
    async with (
        storage(database_url) as log,
        statesync(database_url, log) as sync,
        world(database_url=database_url, **triton, mesh_storage=log, mesh_statesync=sync.target) as running,
    ):
        await sync.make_type()
        await sync.make_twin("P1")
        times = [START_US + n * STEP_US // 2 for n in range(16)]
        temperature = np.linspace(40.0, 47.5, 16)
        await sync.observe("P1", "temperature", times, temperature.tolist())
        offset = await sync.observe("P1", "speed", times[:10], [3.0] * 10)
        running.peers.promote(built)
        await running.serving("pump-temperature", 1)

        request = inference_pb2.ForecastRequest(twin_id="P1", channel="temperature", min_offset=offset, record=True)
        answer = await call(running.stub.Forecast, request, timeout_s=10)

        end_us = START_US + 8 * STEP_US
        window = np.full((1, 8, 2), np.nan, np.float32)
        window[0, :, 0] = temperature.reshape(8, 2).mean(axis=1)
        window[0, :5, 1] = 3.0
        expected = np.sort(built.run(window=window, calendar=calendar_features(np.array([end_us]), "UTC"))[0], axis=1)
        assert answer.prediction.at.ToMicroseconds() == end_us
        assert answer.prediction.input_offset == answer.as_of.offset >= offset
        assert answer.input_coverage == pytest.approx(13 / 16)
        np.testing.assert_allclose(np.array(answer.prediction.values).reshape(6, 3), expected, atol=1e-4)
        assert answer.recorded
        replica = await sync.replica("P1")
        assert list(replica.predicted.predictions) == [answer.prediction]

        # Offsets of another log are refused, also where the twin was asked for a moment ago; those of this one count.
        request.as_of_offset, request.incarnation = offset, answer.as_of.incarnation
        assert (await call(running.stub.Forecast, request, timeout_s=10)).as_of.offset == offset
        request.incarnation = "0b1c5a3c-0000-4000-8000-000000000001"
        with pytest.raises(FailedPrecondition) as rewound:
            await call(running.stub.Forecast, request, timeout_s=10)
        assert rewound.value.reason == Reason.LOG_REWOUND
        request.ClearField("as_of_offset")
        request.ClearField("incarnation")

        await sync.make_twin("P2")
        request.twin_id = "P2"
        with pytest.raises(FailedPrecondition) as refused:
            await call(running.stub.Forecast, request, timeout_s=10)
        assert refused.value.reason == Reason.NOT_ENOUGH_HISTORY
        assert refused.value.metadata["available"] == "0"


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_trained_models_pass_their_golden_checks_forecast_and_decide(
    database_url: str, triton_server: TritonServer, tmp_path: Path
) -> None:
    async with storage(database_url) as log, statesync(database_url, log) as sync:
        await _live_twins(sync)
        beside: dict[str, Any] = {"mesh_storage": log, "mesh_statesync": sync.target}
        async with (
            training(TrainingSettings(port=0, database_url=database_url, artifact_dir=tmp_path, **beside)) as learned,
            world(
                database_url=database_url,
                triton_url=triton_server.grpc_url,
                model_repository=triton_server.model_repository,
                mesh_training=learned.target,
                **beside,
            ) as running,
        ):
            await _train_forecast_and_decide(learned, running)


async def _live_twins(sync: StateSync) -> None:
    """Two transformers with 40 days of half-hourly history in the log."""
    channels = [
        twin_pb2.ChannelSpec(name=name, kind=observation_pb2.CHANNEL_KIND_GAUGE, unit="1") for name in plants.CHANNELS
    ]
    twin_type = twin_pb2.TwinType(twin_type_id="transformer", version=1, channels=channels)
    await call(sync.twins.CreateTwinType, statesync_pb2.CreateTwinTypeRequest(twin_type=twin_type), timeout_s=10)
    for seed in (1, 2):
        twin = twin_pb2.Twin(twin_id=f"T{seed}", twin_type_id="transformer", time_zone="Europe/Berlin")
        await call(sync.twins.CreateTwin, statesync_pb2.CreateTwinRequest(twin=twin), timeout_s=10)
        history = plants.transformer(days=40, step_us=HALF_HOUR_US, seed=seed, twin_id=twin.twin_id)
        times = [history.start_us + row * HALF_HOUR_US for row in range(len(history.values))]
        for column, name in enumerate(plants.CHANNELS):
            present = np.flatnonzero(np.isfinite(history.values[:, column]))
            values = history.values[present, column].tolist()
            await sync.observe(twin.twin_id, name, [times[row] for row in present], values)


async def _train_forecast_and_decide(learned: Training, running: World) -> None:
    for spec in (forecast_spec("hot-spot"), forecast_spec("hot-spot-dynamics", task=2, controls=["cooling_stage"])):
        run = await learned.create(spec)
        done = (await learned.watched(run.run_id, timeout_s=120))[-1]
        assert done.promoted_version, done.error_message
        await running.serving(spec.model_id, done.promoted_version)
    forecast = await call(
        running.stub.Forecast, inference_pb2.ForecastRequest(twin_id="T1", channel="hot_spot"), timeout_s=10
    )
    values = np.array(forecast.prediction.values).reshape(12, 3)
    assert np.isfinite(values).all()
    assert forecast.prediction.model_id == "hot-spot"
    request = inference_pb2.OptimizeRequest(
        twin_id="T1",
        control="cooling_stage",
        options=[inference_pb2.ControlOption(value=n, cost_per_hour=n) for n in range(4)],
        limit=200.0,
        max_switches=2,
    )
    decision = await call(running.stub.Optimize, request, timeout_s=20)
    ends = [one.predicted.values[-2] for one in decision.constant_plans]
    assert decision.best.steps[0].value == 0.0, "nothing is at stake: the cheapest plan is no cooling"
    assert not decision.limit_binding
    assert ends[3] < ends[0], "full cooling ends hotter than none"
    assert decision.candidate_count > 100
