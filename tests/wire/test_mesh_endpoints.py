"""A client that dials any one service is told where all five are, under names that it can resolve."""

from dataclasses import replace

import pytest

from twinmesh.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from twinmesh_client.transport import call, open_channel
from twinmesh_runtime.service import Service
from twinmesh_runtime.settings import ServiceSettings
from twinmesh_testing.inprocess import serve

NAMED = ServiceSettings(mesh_storage="dns:///storage:7401", mesh_training="[::1]:7403")


async def endpoints(settings: ServiceSettings) -> dict[str, str]:
    service = Service(register=lambda _: None, service_names=())
    async with serve(service, settings=settings) as target, open_channel(target) as channel:
        answer = await call(mesh_pb2_grpc.MeshServiceStub(channel).GetMesh, mesh_pb2.GetMeshRequest(), timeout_s=5)
    return {endpoint.service: endpoint.target for endpoint in answer.endpoints}


async def test_the_targets_are_told_as_they_are() -> None:
    told = await endpoints(NAMED)
    assert told["storage"] == "dns:///storage:7401"
    assert told["ingestion"] == "127.0.0.1:7400"
    assert len(told) == 5


@pytest.mark.parametrize("host", ["127.0.0.1", "twins.example.org"])
async def test_an_advertised_host_replaces_the_names_and_keeps_the_ports(host: str) -> None:
    told = await endpoints(replace(NAMED, mesh_advertised_host=host))
    assert told == {
        "ingestion": f"{host}:7400",
        "storage": f"{host}:7401",
        "statesync": f"{host}:7402",
        "training": f"{host}:7403",
        "inference": f"{host}:7404",
    }
