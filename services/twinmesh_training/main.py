"""Puts the training service together; torch stays out of this process."""

from __future__ import annotations

from contextlib import AsyncExitStack

import grpc.aio

from twinmesh.training.v1 import training_pb2_grpc
from twinmesh_client.transport import open_channel
from twinmesh_core.time import SystemClock
from twinmesh_runtime.postgres import migrate, open_pool, ping
from twinmesh_runtime.service import Service
from twinmesh_training.adapters.artifacts import DiskArtifacts
from twinmesh_training.adapters.erased_twins import ErasureFollower
from twinmesh_training.adapters.postgres import PostgresRegistry
from twinmesh_training.adapters.workers import WorkerSupervisor
from twinmesh_training.rpc.models import ModelServicer
from twinmesh_training.rpc.runs import TrainingServicer
from twinmesh_training.rpc.watching import RunHub
from twinmesh_training.settings import TrainingSettings

SCHEMA = "training"


async def compose(settings: TrainingSettings, stack: AsyncExitStack) -> Service:
    """Open the pool, then return the two services; beside them run the hub, the workers' supervisor and the
    follower of erasures."""
    await migrate(settings.database_url, SCHEMA, "twinmesh_training")
    pool = await stack.enter_async_context(open_pool(settings.database_url, min_size=1, max_size=6, schema=SCHEMA))
    storage = await stack.enter_async_context(open_channel(settings.mesh_storage))
    registry = PostgresRegistry(pool)
    erasures = ErasureFollower(storage, registry, SystemClock())
    hub = RunHub(registry)
    runs = TrainingServicer(registry, hub)
    models = ModelServicer(registry, DiskArtifacts(settings.artifact_dir))
    supervisor = WorkerSupervisor(registry, count=settings.worker_count, threads=settings.threads)

    def register(server: grpc.aio.Server) -> None:
        training_pb2_grpc.add_TrainingServiceServicer_to_server(runs, server)
        training_pb2_grpc.add_ModelServiceServicer_to_server(models, server)

    return Service(
        register=register,
        service_names=("twinmesh.training.v1.TrainingService", "twinmesh.training.v1.ModelService"),
        checks={"postgres": lambda: ping(pool)},
        background=(hub.run, supervisor.run, erasures.run),
        drain=hub.end_all,
    )
