"""The inference service composed as in production: PostgreSQL and Triton are real, its peers are played by a test.

The peers answer over real gRPC from memory: what is tested is this service, its adapters included.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import numpy.typing as npt
from tests.unit.inference.graphs import Built

from twinmesh.inference.v1 import inference_pb2, inference_pb2_grpc
from twinmesh.statesync.v1 import statesync_pb2, statesync_pb2_grpc
from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh.training.v1 import training_pb2, training_pb2_grpc
from twinmesh.type.v1 import model_pb2, position_pb2, twin_pb2
from twinmesh_client.transport import open_channel
from twinmesh_core.errors import NotFound, Reason
from twinmesh_inference.main import compose
from twinmesh_inference.settings import InferenceSettings
from twinmesh_runtime.service import Service
from twinmesh_testing.inprocess import serve

AT_US = 1_700_000_100 * 1_000_000
POSITION = position_pb2.LogPosition(incarnation="inc", offset=42)
_TASKS = {"FORECAST": model_pb2.MODEL_TASK_FORECAST, "DYNAMICS": model_pb2.MODEL_TASK_DYNAMICS}


@dataclass
class Peers(
    training_pb2_grpc.ModelServiceServicer,
    storage_pb2_grpc.StorageServiceServicer,
    statesync_pb2_grpc.TwinServiceServicer,
    statesync_pb2_grpc.ReplicaServiceServicer,
):
    """Training's registry, storage's windows, state-sync's twins and predicted facet, as far as inference asks."""

    built: dict[tuple[str, int], Built] = field(default_factory=dict)
    production: dict[str, int] = field(default_factory=dict)
    window: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    recorded: list[statesync_pb2.RecordPredictionRequest] = field(default_factory=list)

    def promote(self, built: Built) -> None:
        self.built[built.version.model_id, built.version.version] = built
        self.production[built.version.model_id] = built.version.version

    async def ListModelVersions(self, request: Any, context: Any) -> training_pb2.ListModelVersionsResponse:  # noqa: N802
        assert request.stage == model_pb2.MODEL_STAGE_PRODUCTION
        versions = [_message(self.built[key], golden=not request.omit_golden) for key in self.production.items()]
        return training_pb2.ListModelVersionsResponse(versions=versions)

    async def GetModelVersion(self, request: Any, context: Any) -> training_pb2.GetModelVersionResponse:  # noqa: N802
        return training_pb2.GetModelVersionResponse(
            version=_message(self.built[request.model_id, request.version], golden=True)
        )

    async def DownloadArtifact(  # noqa: N802
        self, request: Any, context: Any
    ) -> AsyncIterator[training_pb2.DownloadArtifactResponse]:
        built = self.built[request.model_id, request.version]
        manifest = training_pb2.ArtifactManifest(
            file_name="model.onnx", size_bytes=len(built.onnx), sha256=built.version.artifact_sha256
        )
        yield training_pb2.DownloadArtifactResponse(manifest=manifest)
        for start in range(0, len(built.onnx), 1_000):
            yield training_pb2.DownloadArtifactResponse(chunk=built.onnx[start : start + 1_000])

    async def ReadWindow(self, request: Any, context: Any) -> storage_pb2.ReadWindowResponse:  # noqa: N802
        values = self.window if self.window.size else _rising(request.steps, len(request.channels))
        at_us = request.at.ToMicroseconds() if request.HasField("at") else AT_US
        return storage_pb2.ReadWindowResponse(
            values=values.astype("<f8").tobytes(), at_unix_us=[at_us], units=["Cel", "1", "1"][: len(request.channels)],
            as_of=POSITION,
        )  # fmt: skip

    async def GetTwin(self, request: Any, context: Any) -> statesync_pb2.GetTwinResponse:  # noqa: N802
        if not request.twin_id.startswith("T"):
            raise NotFound(f"There is no twin {request.twin_id}.", reason=Reason.TWIN_NOT_FOUND)
        twin = twin_pb2.Twin(
            twin_id=request.twin_id, twin_type_id="transformer", twin_type_version=1, time_zone="Europe/Berlin"
        )
        return statesync_pb2.GetTwinResponse(twin=twin, as_of=POSITION)

    async def GetTwinType(self, request: Any, context: Any) -> statesync_pb2.GetTwinTypeResponse:  # noqa: N802
        channels = [
            twin_pb2.ChannelSpec(name="oil_temp", unit="Cel", upper_limit=90.0),
            twin_pb2.ChannelSpec(name="load", unit="1"),
            twin_pb2.ChannelSpec(name="stage", unit="1", controllable=True),
        ]
        twin_type = twin_pb2.TwinType(twin_type_id="transformer", version=1, channels=channels)
        return statesync_pb2.GetTwinTypeResponse(twin_type=twin_type, as_of=POSITION)

    async def RecordPrediction(self, request: Any, context: Any) -> statesync_pb2.RecordPredictionResponse:  # noqa: N802
        self.recorded.append(request)
        return statesync_pb2.RecordPredictionResponse(position=POSITION, applied=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The running service and who plays around it."""

    peers: Peers
    stub: inference_pb2_grpc.InferenceServiceAsyncStub
    target: str

    async def deployment(self, model_id: str, version: int) -> inference_pb2.Deployment | None:
        """Return one deployment as listed, or None."""
        answer = await self.stub.ListDeployments(inference_pb2.ListDeploymentsRequest(model_id=model_id), timeout=5)
        return next((one for one in answer.deployments if one.version == version), None)

    async def serving(self, model_id: str, version: int, *, within_s: float = 30.0) -> inference_pb2.Deployment:
        """Wait until a version serves."""
        return await self._until(model_id, version, lambda one: one.serving and one.state == 2, within_s)

    async def failed(self, model_id: str, version: int, *, within_s: float = 30.0) -> inference_pb2.Deployment:
        """Wait until a version is told to have failed."""
        return await self._until(model_id, version, lambda one: one.state == 3, within_s)

    async def _until(self, model_id: str, version: int, holds: Any, within_s: float) -> inference_pb2.Deployment:
        async with asyncio.timeout(within_s):
            while True:
                found = await self.deployment(model_id, version)
                if found is not None and holds(found):
                    return found
                await asyncio.sleep(0.05)


@asynccontextmanager
async def world(*, database_url: str, triton_url: str, model_repository: Path, **real: str) -> AsyncIterator[World]:
    """Run the service with these servers; `real` names peers that are not played (mesh_storage=target, ...)."""
    peers = Peers()  # type: ignore[abstract]  # only what inference calls
    async with AsyncExitStack() as stack:
        played = await stack.enter_async_context(serve(_peers_service(peers), token="peers"))
        settings = InferenceSettings(
            port=0,
            database_url=database_url,
            triton_url=triton_url,
            model_repository=model_repository,
            poll_s=0.1,
            lease_ttl_s=1.0,
            mesh_storage=real.get("mesh_storage", played),
            mesh_statesync=real.get("mesh_statesync", played),
            mesh_training=real.get("mesh_training", played),
        )
        service = await compose(settings, stack)
        target = await stack.enter_async_context(serve(service, token="inference", settings=settings))
        channel = await stack.enter_async_context(open_channel(target))
        yield World(peers=peers, stub=inference_pb2_grpc.InferenceServiceStub(channel), target=target)


def _peers_service(peers: Peers) -> Service:
    def register(server: grpc.aio.Server) -> None:
        training_pb2_grpc.add_ModelServiceServicer_to_server(peers, server)
        storage_pb2_grpc.add_StorageServiceServicer_to_server(peers, server)
        statesync_pb2_grpc.add_TwinServiceServicer_to_server(peers, server)
        statesync_pb2_grpc.add_ReplicaServiceServicer_to_server(peers, server)

    return Service(register=register, service_names=("twinmesh.training.v1.ModelService",))


def _rising(steps: int, channels: int) -> npt.NDArray[np.float64]:
    return np.linspace(0.0, 1.0, steps * channels).reshape(steps, channels)


def _message(built: Built, *, golden: bool) -> model_pb2.ModelVersion:
    version, signature = built.version, built.version.signature
    message = model_pb2.ModelVersion(
        model_id=version.model_id,
        version=version.version,
        task=_TASKS[version.task],
        stage=model_pb2.MODEL_STAGE_PRODUCTION,
        signature=model_pb2.ModelSignature(
            channels=signature.channels,
            units=signature.units,
            target=signature.target,
            controls=signature.controls,
            step_us=signature.step_us,
            context_steps=signature.context_steps,
            horizon_steps=signature.horizon_steps,
            quantile_levels=signature.quantile_levels,
            control_min=signature.control_min,
            control_max=signature.control_max,
        ),
        lineage=model_pb2.Lineage(twin_ids=version.twin_ids),
        artifact_sha256=version.artifact_sha256,
        artifact_bytes=version.artifact_bytes,
    )
    if golden and version.golden is not None:
        message.golden.CopyFrom(
            model_pb2.GoldenCheck(
                rows=version.golden.rows,
                quantiles=version.golden.quantiles,
                tolerance=version.golden.tolerance,
                **version.golden.inputs,
            )
        )
    return message
