"""The training service with its worker processes over a stand-in for storage and state-sync."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from tests.fixtures import plants
from tests.integration.training.stand_in import StandIn

from twinmesh.training.v1 import training_pb2 as pb
from twinmesh.training.v1 import training_pb2_grpc
from twinmesh.type.v1 import model_pb2
from twinmesh_client.transport import call, open_channel, stream
from twinmesh_testing.inprocess import serve
from twinmesh_training.main import compose
from twinmesh_training.settings import TrainingSettings

STEP_US = 1_800_000_000


@dataclass(frozen=True, slots=True)
class Training:
    """A client of one training service."""

    target: str
    runs: training_pb2_grpc.TrainingServiceAsyncStub
    models: training_pb2_grpc.ModelServiceAsyncStub

    async def create(self, spec: pb.TrainingSpec, request_id: str = "") -> pb.TrainingRun:
        request = pb.CreateTrainingRunRequest(spec=spec, request_id=request_id)
        return (await call(self.runs.CreateTrainingRun, request, timeout_s=10)).run

    async def get(self, run_id: str) -> pb.TrainingRun:
        request = pb.GetTrainingRunRequest(run_id=run_id)
        return (await call(self.runs.GetTrainingRun, request, timeout_s=10)).run

    async def watched(self, run_id: str, timeout_s: float = 50.0) -> list[pb.TrainingRun]:
        """Watch a run to its end; every state seen."""
        request = pb.WatchTrainingRunRequest(run_id=run_id)
        return [m.run async for m in stream(self.runs.WatchTrainingRun, request, timeout_s=timeout_s)]

    async def until(self, run_id: str, state: int, timeout_s: float = 30.0) -> pb.TrainingRun:
        """Watch a run until it is in this state."""
        request = pb.WatchTrainingRunRequest(run_id=run_id)
        async for message in stream(self.runs.WatchTrainingRun, request, timeout_s=timeout_s):
            if message.run.state == state:
                return message.run
        raise AssertionError("the run ended first")


def stand_in(days: int = 40) -> StandIn:
    twins = {f"T{i}": plants.transformer(days=days, step_us=STEP_US, seed=i, twin_id=f"T{i}") for i in (1, 2)}
    return StandIn(twins, plants.CHANNELS, STEP_US)  # type: ignore[abstract]  # the rest is not called


def forecast_spec(model_id: str = "hot-spot", **changes: Any) -> pb.TrainingSpec:
    spec = pb.TrainingSpec(
        model_id=model_id,
        task=model_pb2.MODEL_TASK_FORECAST,
        twin_ids=["T1", "T2"],
        target="hot_spot",
        inputs=["oil", "load", "ambient", "cooling_stage"],
        context_steps=48,
        horizon_steps=12,
    )
    spec.step.FromMicroseconds(STEP_US)
    for name, value in changes.items():
        field = getattr(spec, name)
        if hasattr(field, "FromMicroseconds"):
            field.FromMicroseconds(value)
        elif hasattr(field, "extend"):
            del field[:]
            field.extend(value)
        else:
            setattr(spec, name, value)
    return spec


def settings_for(database_url: str, artifact_dir: Path, mesh_target: str, **changes: Any) -> TrainingSettings:
    return TrainingSettings(
        port=0,
        database_url=database_url,
        artifact_dir=artifact_dir,
        mesh_storage=mesh_target,
        mesh_statesync=mesh_target,
        **changes,
    )


def environment(settings: TrainingSettings) -> dict[str, str]:
    """What a process of the service, or a worker, needs in its environment."""
    return {
        "TWINMESH_TRAINING_PORT": str(settings.port),
        "TWINMESH_TRAINING_DATABASE_URL": settings.database_url,
        "TWINMESH_TRAINING_ARTIFACT_DIR": str(settings.artifact_dir),
        "TWINMESH_TRAINING_WORKER_COUNT": str(settings.worker_count),
        "TWINMESH_TRAINING_LEASE_S": str(settings.lease_s),
        "TWINMESH_MESH_STORAGE": settings.mesh_storage,
        "TWINMESH_MESH_STATESYNC": settings.mesh_statesync,
    }


@asynccontextmanager
async def training(settings: TrainingSettings) -> AsyncIterator[Training]:
    """Serve training in this process; its workers are processes of their own."""
    before = dict(os.environ)
    os.environ.update(environment(settings))  # workers inherit it, as they do from the real service
    try:
        async with AsyncExitStack() as stack:
            service = await compose(settings, stack)
            target = await stack.enter_async_context(serve(service, token="training", settings=settings))
            yield client(await stack.enter_async_context(open_channel(target)), target)
    finally:
        os.environ.clear()
        os.environ.update(before)


def client(channel: grpc.aio.Channel, target: str) -> Training:
    return Training(
        target=target,
        runs=training_pb2_grpc.TrainingServiceStub(channel),
        models=training_pb2_grpc.ModelServiceStub(channel),
    )
