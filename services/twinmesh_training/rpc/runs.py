"""TrainingService: runs."""

# ruff: noqa: N802  methods are named by the contract

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from hashlib import sha256
from uuid import uuid4

import grpc.aio

from twinmesh.training.v1 import training_pb2 as pb
from twinmesh.training.v1 import training_pb2_grpc
from twinmesh_core.ids import require_request_id, require_resource_id
from twinmesh_runtime.caller import current_caller
from twinmesh_runtime.telemetry import log
from twinmesh_training.domain.ports import Page, Registry
from twinmesh_training.domain.spec import check
from twinmesh_training.domain.values import Run
from twinmesh_training.rpc import mapping
from twinmesh_training.rpc.watching import RunHub


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """Creates, shows and cancels runs; workers do them."""

    def __init__(self, registry: Registry, hub: RunHub) -> None:
        self._registry = registry
        self._hub = hub

    async def CreateTrainingRun(
        self,
        request: pb.CreateTrainingRunRequest,
        context: grpc.aio.ServicerContext[pb.CreateTrainingRunRequest, pb.CreateTrainingRunResponse],
    ) -> pb.CreateTrainingRunResponse:
        """Queue a run."""
        tenant = current_caller().tenant
        request_id = require_request_id(request.request_id)
        spec = check(mapping.spec_from_proto(request.spec))
        digest = sha256(request.spec.SerializeToString(deterministic=True)).hexdigest()
        run = Run(run_id=f"run-{uuid4().hex[:16]}", spec=spec)
        created = await self._registry.create_run(tenant, run, request_id, digest)
        if created.run_id == run.run_id:
            log("run_created", run_id=created.run_id, model_id=spec.model_id, twins=len(spec.twin_ids))
        return pb.CreateTrainingRunResponse(run=mapping.run_to_proto(created))

    async def GetTrainingRun(
        self,
        request: pb.GetTrainingRunRequest,
        context: grpc.aio.ServicerContext[pb.GetTrainingRunRequest, pb.GetTrainingRunResponse],
    ) -> pb.GetTrainingRunResponse:
        """Return a run."""
        run_id = require_resource_id(request.run_id, "run_id")
        run = await self._registry.run(current_caller().tenant, run_id)
        return pb.GetTrainingRunResponse(run=mapping.run_to_proto(run))

    async def ListTrainingRuns(
        self,
        request: pb.ListTrainingRunsRequest,
        context: grpc.aio.ServicerContext[pb.ListTrainingRunsRequest, pb.ListTrainingRunsResponse],
    ) -> pb.ListTrainingRunsResponse:
        """List runs, newest first."""
        model_id = require_resource_id(request.model_id, "model_id") if request.model_id else ""
        size = mapping.page_size(request.page_size)
        page = Page(size=size + 1, after=mapping.number_from_token(request.page_token))
        found = await self._registry.runs(current_caller().tenant, model_id, page)
        shown = found[:size]
        return pb.ListTrainingRunsResponse(
            runs=[mapping.run_to_proto(run) for run in shown],
            next_page_token=mapping.to_token(shown[-1].number) if len(found) > size else "",
        )

    async def CancelTrainingRun(
        self,
        request: pb.CancelTrainingRunRequest,
        context: grpc.aio.ServicerContext[pb.CancelTrainingRunRequest, pb.CancelTrainingRunResponse],
    ) -> pb.CancelTrainingRunResponse:
        """Cancel a run that has not ended."""
        run_id = require_resource_id(request.run_id, "run_id")
        run = await self._registry.cancel_run(current_caller().tenant, run_id)
        return pb.CancelTrainingRunResponse(run=mapping.run_to_proto(run))

    async def WatchTrainingRun(
        self,
        request: pb.WatchTrainingRunRequest,
        context: grpc.aio.ServicerContext[pb.WatchTrainingRunRequest, pb.WatchTrainingRunResponse],
    ) -> AsyncIterator[pb.WatchTrainingRunResponse]:
        """Stream a run until it has ended."""
        run_id = require_resource_id(request.run_id, "run_id")
        async with aclosing(self._hub.watch(current_caller().tenant, run_id)) as states:
            async for run in states:
                yield pb.WatchTrainingRunResponse(run=mapping.run_to_proto(run))
