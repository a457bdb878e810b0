"""The composition root of inference: every port gets its adapter here, and nowhere else."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from uuid import uuid4

from twinmesh.inference.v1 import inference_pb2_grpc
from twinmesh_client.transport import open_channel
from twinmesh_core.time import SystemClock
from twinmesh_inference.adapters.postgres import PostgresDeploymentStore
from twinmesh_inference.adapters.repository import ModelFiles
from twinmesh_inference.adapters.statesync import StatesyncPredictions, StatesyncTwins
from twinmesh_inference.adapters.storage import StorageWindows
from twinmesh_inference.adapters.training import TrainingRegistry
from twinmesh_inference.adapters.triton import Triton, open_triton_channel
from twinmesh_inference.domain.coalescer import Coalescer
from twinmesh_inference.domain.deployments import Deployments
from twinmesh_inference.domain.forecasting import Forecaster
from twinmesh_inference.domain.optimizing import Optimizer
from twinmesh_inference.domain.reconciler import Reconciler
from twinmesh_inference.domain.rollout import Rollout
from twinmesh_inference.rpc.servicer import SERVICE_NAME, InferenceServicer
from twinmesh_inference.settings import InferenceSettings
from twinmesh_runtime.caller import DEFAULT_TENANT
from twinmesh_runtime.postgres import migrate, open_pool, ping
from twinmesh_runtime.service import Service
from twinmesh_runtime.telemetry import gauge, histogram, log

_TRITON_MESSAGE_BYTES = 64 * 1024 * 1024
_BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


async def compose(settings: InferenceSettings, stack: AsyncExitStack) -> Service:
    """Build the service; waits for its database, and for nothing else that may come later."""
    clock = SystemClock()
    await migrate(settings.database_url, "inference", "twinmesh_inference")
    pool = await stack.enter_async_context(
        open_pool(
            settings.database_url,
            min_size=1,
            max_size=settings.database_connections,
            schema="inference",
            autocommit=True,
        )
    )
    repository = ModelFiles(settings.model_repository)
    await repository.prepare()
    message_bytes = max(_TRITON_MESSAGE_BYTES, 2 * settings.max_batch_bytes)
    triton = Triton(
        await stack.enter_async_context(open_triton_channel(settings.triton_url, max_message_bytes=message_bytes)),
        load_timeout_s=settings.load_timeout_s,
        report=log,
    )
    storage = await stack.enter_async_context(open_channel(settings.mesh_storage))
    statesync = await stack.enter_async_context(open_channel(settings.mesh_statesync))
    training = await stack.enter_async_context(open_channel(settings.mesh_training))

    # Open mode has one tenant; others come with identity.
    tenants = (DEFAULT_TENANT,)
    store = PostgresDeploymentStore(pool)
    registry = TrainingRegistry(training)
    twins = StatesyncTwins(statesync, clock, keep_s=settings.twin_cache_s)
    windows = StorageWindows(storage)
    coalescer = Coalescer(
        triton,
        clock,
        max_queued_rows=settings.max_queued_rows,
        max_batch_bytes=settings.max_batch_bytes,
        infer_timeout_s=settings.infer_timeout_s,
        on_batch=_batch_metrics(),
    )
    gauge("inference", "queued_rows", "Rows waiting for Triton or in flight.").set_function(
        lambda: float(coalescer.queued_rows)
    )
    deployments = Deployments(
        store=store,
        server=triton,
        tenants=tenants,
        max_batch_size=settings.max_batch_size,
        poll_s=settings.poll_s,
        report=log,
    )
    rollout = Rollout(
        registry=registry,
        repository=repository,
        server=triton,
        executor=triton,
        store=store,
        clock=clock,
        max_batch_size=settings.max_batch_size,
        prove_timeout_s=settings.load_timeout_s,
    )
    reconciler = Reconciler(
        registry=registry,
        rollout=rollout,
        store=store,
        deployments=deployments,
        clock=clock,
        tenants=tenants,
        # The same after a restart of this process, which then need not wait for its own lease to run out.
        holder=f"{socket.gethostname()}:{settings.port or uuid4().hex}",
        poll_s=settings.poll_s,
        lease_ttl_s=settings.lease_ttl_s,
        report=log,
    )
    forecaster = Forecaster(
        deployments=deployments,
        coalescer=coalescer,
        windows=windows,
        twins=twins,
        recorder=StatesyncPredictions(statesync),
        clock=clock,
        infer_timeout_s=settings.infer_timeout_s,
    )
    optimizer = Optimizer(
        deployments=deployments,
        coalescer=coalescer,
        windows=windows,
        twins=twins,
        infer_timeout_s=settings.infer_timeout_s,
    )
    servicer = InferenceServicer(forecaster=forecaster, optimizer=optimizer, deployments=deployments)
    return Service(
        register=lambda server: inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server),
        service_names=(SERVICE_NAME,),
        # Not Triton: while it is away, this service is the one that says so in words.
        checks={"postgres": lambda: ping(pool), "deployments": deployments.check},
        background=(coalescer.run, deployments.run, reconciler.run),
    )


def _batch_metrics() -> Callable[[int, float], None]:
    batch_rows = histogram("inference", "batch_rows", "Rows of one call to Triton.", buckets=_BATCH_ROWS)
    batch_seconds = histogram("inference", "batch_seconds", "Duration of one call to Triton.")

    def observe(rows: int, seconds: float) -> None:
        batch_rows.observe(rows)
        batch_seconds.observe(seconds)

    return observe
