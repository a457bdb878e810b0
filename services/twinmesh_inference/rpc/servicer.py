"""The typed door of inference: one method per question, each a mapping in, a use case, a mapping out."""

# ruff: noqa: N802  the methods are named as the proto names them

from __future__ import annotations

import grpc.aio

from twinmesh.inference.v1 import inference_pb2, inference_pb2_grpc
from twinmesh_core.ids import require_resource_id
from twinmesh_inference.domain.deployments import Deployments
from twinmesh_inference.domain.forecasting import Forecaster
from twinmesh_inference.domain.optimizing import Optimizer
from twinmesh_inference.rpc import mapping
from twinmesh_runtime.caller import current_caller

SERVICE_NAME = "twinmesh.inference.v1.InferenceService"


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Answers ``twinmesh.inference.v1.InferenceService``."""

    def __init__(self, *, forecaster: Forecaster, optimizer: Optimizer, deployments: Deployments) -> None:
        self._forecaster = forecaster
        self._optimizer = optimizer
        self._deployments = deployments

    async def Forecast(
        self,
        request: inference_pb2.ForecastRequest,
        context: grpc.aio.ServicerContext[inference_pb2.ForecastRequest, inference_pb2.ForecastResponse],
    ) -> inference_pb2.ForecastResponse:
        """Forecast a channel of a twin from its own window."""
        question = mapping.forecast_question(request)
        return mapping.forecast_response(await self._forecaster.forecast(current_caller().tenant, question))

    async def Optimize(
        self,
        request: inference_pb2.OptimizeRequest,
        context: grpc.aio.ServicerContext[inference_pb2.OptimizeRequest, inference_pb2.OptimizeResponse],
    ) -> inference_pb2.OptimizeResponse:
        """Choose the planned values of one control."""
        question = mapping.optimize_question(request)
        return mapping.optimize_response(await self._optimizer.optimize(current_caller().tenant, question))

    async def ListDeployments(
        self,
        request: inference_pb2.ListDeploymentsRequest,
        context: grpc.aio.ServicerContext[inference_pb2.ListDeploymentsRequest, inference_pb2.ListDeploymentsResponse],
    ) -> inference_pb2.ListDeploymentsResponse:
        """List what is deployed, by model, newest version first."""
        if request.model_id:
            require_resource_id(request.model_id, "model_id")
        catalogue = await self._deployments.refresh(current_caller().tenant)
        shown = sorted(catalogue.deployments.values(), key=lambda one: (one.model_id, -one.version))
        return inference_pb2.ListDeploymentsResponse(
            deployments=(
                mapping.deployment_message(one, serving=catalogue.serves(one))
                for one in shown
                if request.model_id in {"", one.model_id}
            ),
            triton_ready=catalogue.server_live,
        )
