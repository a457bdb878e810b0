"""The fake mesh, and a client of it."""

import pytest
from tests.unit.client.fake_mesh import fake_mesh

from twinmesh_client.aio.mesh import connect_async


@pytest.fixture
async def fake():
    async with fake_mesh() as mesh:
        yield mesh


@pytest.fixture
async def client(fake):
    async with connect_async(fake.target, timeout_s=5) as mesh:
        yield mesh
