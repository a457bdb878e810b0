"""Where the services are: every one of them answers `GetMesh`, so that a client has to know one endpoint only."""

from __future__ import annotations

from importlib import metadata
from typing import Any, Final

import grpc

from twinmesh.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from twinmesh_runtime.settings import ServiceSettings

MESH_SERVICE: Final = "twinmesh.mesh.v1.MeshService"


class MeshServicer(mesh_pb2_grpc.MeshServiceServicer):
    """Answers with the endpoints that this process was told by its environment."""

    def __init__(self, token: str, settings: ServiceSettings) -> None:
        endpoints = {
            "ingestion": settings.mesh_ingestion,
            "storage": settings.mesh_storage,
            "statesync": settings.mesh_statesync,
            "training": settings.mesh_training,
            "inference": settings.mesh_inference,
        }
        if settings.mesh_advertised_host:
            endpoints = {
                token: f"{settings.mesh_advertised_host}:{target.rpartition(':')[2]}"
                for token, target in endpoints.items()
            }
        self._answer = mesh_pb2.GetMeshResponse(
            endpoints=[
                mesh_pb2.ServiceEndpoint(service=service, target=target) for service, target in endpoints.items()
            ],
            service=token,
            version=version(),
            mode=settings.mode,
        )

    async def GetMesh(  # noqa: N802  named by the proto
        self, request: mesh_pb2.GetMeshRequest, context: Any
    ) -> mesh_pb2.GetMeshResponse:
        """Return the endpoints of all five services."""
        return self._answer

    def register(self, server: grpc.aio.Server) -> None:
        """Add this servicer to `server`."""
        mesh_pb2_grpc.add_MeshServiceServicer_to_server(self, server)


def version() -> str:
    """Return the version of the installed distribution, ``unknown`` when run from bare sources."""
    try:
        return metadata.version("twinmesh")
    except metadata.PackageNotFoundError:
        return "unknown"
