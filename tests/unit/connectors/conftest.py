"""The fake mesh that the SDK's own tests use."""

import pytest
from tests.unit.client.fake_mesh import fake_mesh


@pytest.fixture
async def fake():
    async with fake_mesh() as mesh:
        yield mesh
