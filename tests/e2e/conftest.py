"""One real mesh for the end-to-end tests: five service processes, PostgreSQL, Valkey and Triton on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from twinmesh_local.mesh import LocalMesh


@pytest.fixture
async def local_mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalMesh]:
    """A mesh of its own, gone after the test; the saved context of the user is left alone."""
    data_dir: Path = tmp_path_factory.mktemp("mesh")
    async with LocalMesh(data_dir=data_dir, context=None) as mesh:
        yield mesh
