"""ModelService: the registry and its artifacts."""

# ruff: noqa: N802  methods are named by the contract

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio

from twinmesh.training.v1 import training_pb2 as pb
from twinmesh.training.v1 import training_pb2_grpc
from twinmesh_core.errors import invalid_field
from twinmesh_core.ids import require_resource_id
from twinmesh_runtime.caller import current_caller
from twinmesh_runtime.telemetry import log
from twinmesh_training.domain.ports import ArtifactStore, Page, Registry
from twinmesh_training.rpc import mapping

FILE_NAME = "model.onnx"


class ModelServicer(training_pb2_grpc.ModelServiceServicer):
    """Shows and promotes versions, and hands out their files."""

    def __init__(self, registry: Registry, artifacts: ArtifactStore) -> None:
        self._registry = registry
        self._artifacts = artifacts

    async def ListModels(
        self,
        request: pb.ListModelsRequest,
        context: grpc.aio.ServicerContext[pb.ListModelsRequest, pb.ListModelsResponse],
    ) -> pb.ListModelsResponse:
        """List models by id."""
        size = mapping.page_size(request.page_size)
        after = mapping.text_from_token(request.page_token)
        found = await self._registry.models(current_caller().tenant, size + 1, after)
        shown = found[:size]
        return pb.ListModelsResponse(
            models=[mapping.model_to_proto(model) for model in shown],
            next_page_token=mapping.to_token(shown[-1].model_id) if len(found) > size else "",
        )

    async def ListModelVersions(
        self,
        request: pb.ListModelVersionsRequest,
        context: grpc.aio.ServicerContext[pb.ListModelVersionsRequest, pb.ListModelVersionsResponse],
    ) -> pb.ListModelVersionsResponse:
        """List versions, newest first; a page ends early where its golden checks would outgrow a message."""
        model_id = require_resource_id(request.model_id, "model_id") if request.model_id else ""
        stage = mapping.stage_from_proto(request.stage)
        size = mapping.page_size(request.page_size)
        page = Page(size=size + 1, after=mapping.number_from_token(request.page_token))
        found = await self._registry.versions(
            current_caller().tenant, model_id, stage, page, golden=not request.omit_golden
        )
        answer = pb.ListModelVersionsResponse()
        for index, (_, version) in enumerate(found):
            message = mapping.version_to_proto(version)
            if index == size or (index and answer.ByteSize() + message.ByteSize() > _MAX_PAGE_BYTES):
                answer.next_page_token = mapping.to_token(found[index - 1][0])
                break
            answer.versions.append(message)
        return answer

    async def GetModelVersion(
        self,
        request: pb.GetModelVersionRequest,
        context: grpc.aio.ServicerContext[pb.GetModelVersionRequest, pb.GetModelVersionResponse],
    ) -> pb.GetModelVersionResponse:
        """Return a version, 0 = the one that serves."""
        model_id, number = _named(request.model_id, request.version, least=0)
        version = await self._registry.version(current_caller().tenant, model_id, number)
        return pb.GetModelVersionResponse(version=mapping.version_to_proto(version))

    async def PromoteModelVersion(
        self,
        request: pb.PromoteModelVersionRequest,
        context: grpc.aio.ServicerContext[pb.PromoteModelVersionRequest, pb.PromoteModelVersionResponse],
    ) -> pb.PromoteModelVersionResponse:
        """Make a version the one that serves."""
        model_id, number = _named(request.model_id, request.version, least=1)
        version = await self._registry.promote(current_caller().tenant, model_id, number, force=request.force)
        log("version_promoted", model_id=model_id, version=number, force=request.force)
        return pb.PromoteModelVersionResponse(version=mapping.version_to_proto(version))

    async def DownloadArtifact(
        self,
        request: pb.DownloadArtifactRequest,
        context: grpc.aio.ServicerContext[pb.DownloadArtifactRequest, pb.DownloadArtifactResponse],
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        """Stream a version's file: a manifest, then chunks."""
        model_id, number = _named(request.model_id, request.version, least=1)
        version = await self._registry.version(current_caller().tenant, model_id, number)
        manifest = pb.ArtifactManifest(
            file_name=FILE_NAME, size_bytes=version.artifact_bytes, sha256=version.artifact_sha256
        )
        yield pb.DownloadArtifactResponse(manifest=manifest)
        chunks = self._artifacts.chunks(version.artifact_sha256, version.artifact_bytes)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield pb.DownloadArtifactResponse(chunk=chunk)


_MAX_PAGE_BYTES = 8 * 1024 * 1024


def _named(model_id: str, version: int, *, least: int) -> tuple[str, int]:
    if version < least:
        hint = "give the version's number" if least else "give a version, or 0 for the one that serves"
        raise invalid_field("version", f"is {version}; {hint}")
    return require_resource_id(model_id, "model_id"), version
