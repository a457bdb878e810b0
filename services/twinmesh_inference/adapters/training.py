"""The model registry of the training service: which versions should serve, and their files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import grpc.aio

from twinmesh.training.v1 import training_pb2, training_pb2_grpc
from twinmesh.type.v1 import model_pb2
from twinmesh_client.transport import call, stream, tenant_metadata
from twinmesh_core.errors import DataLoss, Reason
from twinmesh_inference.adapters.dependency import dependency
from twinmesh_inference.domain.models import GoldenCheck, ModelTask, ModelVersion, Signature

_LIST_TIMEOUT_S: Final = 2.0
_GET_TIMEOUT_S: Final = 10.0
_DOWNLOAD_TIMEOUT_S: Final = 600.0
_PAGE_SIZE: Final = 1_000
_MAX_VERSIONS: Final = 10_000
_TASKS: Final = {
    model_pb2.MODEL_TASK_FORECAST: ModelTask.FORECAST,
    model_pb2.MODEL_TASK_DYNAMICS: ModelTask.DYNAMICS,
}


class TrainingRegistry:
    """Asks the training service; see `ModelRegistry`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = training_pb2_grpc.ModelServiceStub(channel)

    async def production_versions(self, tenant: str) -> tuple[ModelVersion, ...]:
        """Return the version of each model that should serve, without golden checks."""
        found: list[ModelVersion] = []
        token = ""
        while len(found) < _MAX_VERSIONS:
            request = training_pb2.ListModelVersionsRequest(
                stage=model_pb2.MODEL_STAGE_PRODUCTION, page_size=_PAGE_SIZE, page_token=token, omit_golden=True
            )
            with dependency("training"):
                page = await call(
                    self._stub.ListModelVersions,
                    request,
                    timeout_s=_LIST_TIMEOUT_S,
                    metadata=tenant_metadata(tenant),
                )
            # A task that this release does not know is another release's to serve.
            found += [_version(one) for one in page.versions if one.task in _TASKS]
            token = page.next_page_token
            if not token:
                break
        return tuple(found)

    async def version(self, tenant: str, model_id: str, version: int) -> ModelVersion:
        """Return one version with its golden check."""
        request = training_pb2.GetModelVersionRequest(model_id=model_id, version=version)
        with dependency("training"):
            answer = await call(
                self._stub.GetModelVersion, request, timeout_s=_GET_TIMEOUT_S, metadata=tenant_metadata(tenant)
            )
        return _version(answer.version)

    @asynccontextmanager
    async def artifact(self, tenant: str, model_id: str, version: int) -> AsyncIterator[_Download]:
        """Open a version's file for reading."""
        request = training_pb2.DownloadArtifactRequest(model_id=model_id, version=version)
        answers = stream(
            self._stub.DownloadArtifact, request, timeout_s=_DOWNLOAD_TIMEOUT_S, metadata=tenant_metadata(tenant)
        )
        with dependency("training"):
            async with aclosing(answers):
                first = await anext(answers, None)
                if first is None or not first.HasField("manifest"):
                    raise DataLoss(
                        "the registry sent a file without its manifest; train the model again",
                        reason=Reason.CHECKSUM_MISMATCH,
                    )
                yield _Download(first.manifest.size_bytes, first.manifest.sha256, answers)


@dataclass(frozen=True, slots=True)
class _Download:
    """A file on its way from the training service."""

    size_bytes: int
    sha256: str
    _answers: AsyncIterator[training_pb2.DownloadArtifactResponse]

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the bytes, once."""
        async for answer in self._answers:
            yield answer.chunk


def _version(message: model_pb2.ModelVersion) -> ModelVersion:
    return ModelVersion(
        model_id=message.model_id,
        version=message.version,
        task=_TASKS[message.task],
        signature=_signature(message.signature),
        twin_ids=tuple(message.lineage.twin_ids),
        artifact_sha256=message.artifact_sha256,
        artifact_bytes=message.artifact_bytes,
        golden=_golden(message.golden) if message.HasField("golden") else None,
    )


def _signature(message: model_pb2.ModelSignature) -> Signature:
    return Signature(
        channels=tuple(message.channels),
        units=tuple(message.units),
        target=message.target,
        controls=tuple(message.controls),
        step_us=message.step_us,
        context_steps=message.context_steps,
        horizon_steps=message.horizon_steps,
        quantile_levels=tuple(message.quantile_levels),
        control_min=tuple(message.control_min),
        control_max=tuple(message.control_max),
    )


def _golden(message: model_pb2.GoldenCheck) -> GoldenCheck:
    return GoldenCheck(
        rows=message.rows,
        inputs={"window": message.window, "calendar": message.calendar, "future": message.future},
        quantiles=message.quantiles,
        tolerance=message.tolerance,
    )
