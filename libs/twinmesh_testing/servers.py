"""Pytest plugin: the real PostgreSQL, Valkey and Triton, one of each per run.

Nothing starts until a test asks for it, and everything is gone when the run is: a guardian process is the parent of the
servers, so even ``kill -9`` of pytest leaves none behind. Each test gets an empty database and an empty cache.

Use: name ``postgres_server``, ``database_url``, ``valkey_server``, ``redis_url`` or ``triton_server`` as an argument.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from twinmesh_local.accounts import STATE_DIR_VARIABLE, remove_home
from twinmesh_local.postgres import PostgresServer
from twinmesh_local.processes import Guardian
from twinmesh_local.triton import TritonServer
from twinmesh_local.valkey import ValkeyServer


@pytest.fixture(scope="session", autouse=True)
def _own_state_dir() -> Iterator[None]:
    """Keep what root's meshes place outside private directories (pytest's are) within the run, and remove it."""
    directory = Path(tempfile.mkdtemp(prefix="twinmesh-state-"))
    directory.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STATE_DIR_VARIABLE, str(directory))
        yield
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def servers_dir() -> Iterator[Path]:
    """Directory of the run's servers (data, logs), removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="twinmesh-test-"))
    # PostgreSQL may run as another user than we do, and must be able to pass through.
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def guardian(servers_dir: Path) -> Iterator[Guardian]:
    """The parent process of the run's servers."""
    with Guardian(log=servers_dir / "guardian.log") as guardian:
        yield guardian


@pytest.fixture(scope="session")
def postgres_server(guardian: Guardian, servers_dir: Path) -> Iterator[PostgresServer]:
    """The run's PostgreSQL 18, as durable as in production."""
    server = PostgresServer(guardian, servers_dir, log_dir=servers_dir)
    server.start()
    yield server
    server.stop()
    server.remove_data()


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of an empty database that only this test uses; dropped afterwards, open connections or not."""
    name = f"test_{uuid4().hex}"
    postgres_server.create_database(name)
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def valkey_server(guardian: Guardian, servers_dir: Path) -> Iterator[ValkeyServer]:
    """The run's Valkey."""
    server = ValkeyServer(guardian, servers_dir, log_dir=servers_dir)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(valkey_server: ValkeyServer) -> str:
    """URL of the run's Valkey, emptied for this test."""
    valkey_server.flush()
    return valkey_server.url()


@pytest.fixture(scope="session")
def triton_server(guardian: Guardian, servers_dir: Path) -> Iterator[TritonServer]:
    """The run's Triton on CPU: ``grpc_url``, and ``model_repository`` to put models into (name them uniquely)."""
    server = TritonServer(guardian, servers_dir, log_dir=servers_dir)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def mesh_data_dir() -> Iterator[Path]:
    """An empty data directory for a `LocalMesh`, removed afterwards wherever its data went."""
    base = Path(tempfile.mkdtemp(prefix="twinmesh-mesh-"))
    base.chmod(0o711)
    yield base / "data"
    remove_home(base / "data" / "postgresql")
    shutil.rmtree(base, ignore_errors=True)
