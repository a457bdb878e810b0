"""The local mesh with fake services: it comes up, keeps its servers running, and leaves nothing behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.integration.local.conftest import listens, until

from twinmesh_client.context import load_context
from twinmesh_local import (
    DataDirInUseError,
    LocalMesh,
    LocalMeshError,
    ServerFailedError,
    ServerState,
    ServerStatus,
    run_foreground,
)
from twinmesh_local.ports import claim_port_block

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(120)


def fake(token: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / "fake_service.py"), token)


def mesh_at(data_dir: Path, **options) -> LocalMesh:
    return LocalMesh(data_dir=data_dir, command=fake, **{"with_triton": False, **options})


async def test_comes_up_whole_and_goes_without_a_trace(data_dir, traces):
    async with mesh_at(data_dir, with_triton=True) as mesh:
        status = mesh.status()
        assert [s.state for s in status] == [ServerState.READY] * 8
        ports = [int(s.endpoint.rpartition(":")[2]) for s in status]
        assert all(listens(port) for port in ports)
        assert list(mesh.endpoints.values()) == [f"127.0.0.1:{mesh.ports.base + n}" for n in range(5)]
        context = load_context("local")
        assert context is not None
        assert (context.endpoints, context.pid) == (mesh.endpoints, os.getpid())
        assert traces.left()
    assert traces.left() == {}
    assert not any(listens(port) for port in ports)
    assert load_context("local") is None
    assert {s.state for s in mesh.status()} == {ServerState.STOPPED}


async def test_services_stop_before_what_they_stand_on(data_dir):
    async with mesh_at(data_dir) as mesh:
        logs = data_dir / "logs"
    ends = {token: (logs / f"{token}.log").stat().st_mtime_ns for token in mesh.endpoints}
    assert all((logs / f"{token}.log").read_text().endswith(f"{token} ends\n") for token in mesh.endpoints)
    assert max(ends["ingestion"], ends["inference"]) <= min(ends["training"], ends["statesync"])
    assert max(ends["training"], ends["statesync"]) <= ends["storage"]
    assert "database system is shut down" in (logs / "postgresql.log").read_text()


async def test_state_sync_runs_in_as_many_processes_as_are_asked_for(data_dir):
    async with mesh_at(data_dir, services=("statesync",), statesync=2) as mesh:
        names = [s.name for s in mesh.status() if s.name.startswith("statesync")]
        assert names == ["statesync", "statesync-2"]
        base = mesh.ports.base
        assert mesh.endpoints["statesync"] == f"127.0.0.1:{base + 2},127.0.0.1:{base + 5}"
        mesh.kill("statesync-2", signal.SIGKILL)
        again = await mesh.until_ready("statesync-2", restarts=1)
        assert again.endpoint == f"127.0.0.1:{base + 5}"
    with pytest.raises(LocalMeshError, match="choose 1 to 6"):
        mesh_at(data_dir, statesync=7)


@pytest.mark.slow
async def test_data_survive_from_one_mesh_to_the_next(data_dir):
    async with mesh_at(data_dir, services=()) as mesh:
        with psycopg.connect(mesh.backends.database_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
    async with mesh_at(data_dir, services=()) as mesh:
        with psycopg.connect(mesh.backends.database_url) as connection:
            assert connection.execute("SELECT n FROM kept").fetchone() == (42,)


async def test_a_killed_service_is_back_on_its_port_within_about_a_second(data_dir):
    changes: list[ServerStatus] = []
    async with mesh_at(data_dir, services=("storage",), report=changes.append) as mesh:
        endpoint = mesh.endpoints["storage"]
        first = mesh.status()[-1].pid
        began = time.monotonic()
        mesh.kill("storage", signal.SIGKILL)
        status = await mesh.until_ready("storage", restarts=1)
        assert time.monotonic() - began < 5
        assert (status.endpoint, status.restarts, status.last_exit) == (endpoint, 1, -signal.SIGKILL)
        assert status.pid != first
    states = [s.state for s in changes if s.name == "storage"]
    assert states == [ServerState.READY, ServerState.RESTARTING, ServerState.READY, ServerState.STOPPED]


@pytest.mark.slow
async def test_killed_servers_come_back_under_the_same_address(data_dir):
    async with mesh_at(data_dir, services=(), with_triton=True) as mesh:
        url = mesh.backends.database_url
        for name in ("postgresql", "valkey", "triton"):
            mesh.kill(name, signal.SIGKILL)
            await mesh.until_ready(name, restarts=1)
        assert mesh.backends.database_url == url
        with psycopg.connect(url, connect_timeout=5) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


async def test_what_a_killed_service_started_goes_with_it(data_dir, traces):
    async with mesh_at(data_dir, services=("training",), environment={"FAKE_CHILD": "training"}) as mesh:
        (sleeper,) = traces.processes(running="1234567")
        mesh.kill("training", signal.SIGKILL)
        assert until(lambda: sleeper not in traces.processes(), timeout_s=5)
    assert traces.left() == {}


@pytest.mark.slow
async def test_a_deaf_service_does_not_hold_up_the_end_for_ever(data_dir, traces):
    async with mesh_at(data_dir, services=("training",), environment={"FAKE_DEAF": "training"}):
        began = time.monotonic()
    assert time.monotonic() - began < 15
    assert traces.left() == {}


async def test_a_failing_start_says_why_and_leaves_nothing(data_dir, traces):
    with pytest.raises(ServerFailedError, match="training cannot work like this") as failure:
        async with mesh_at(data_dir, environment={"FAKE_FAIL": "training"}):
            pass
    assert "training.log" in failure.value.remedy
    assert traces.left() == {}
    assert load_context("local") is None


async def test_a_service_that_lost_its_port_to_another_program_is_not_taken_for_ready(data_dir, traces):
    claim = claim_port_block()
    port = claim.block.services["storage"]
    environment = {**os.environ, "TWINMESH_STORAGE_HOST": "127.0.0.1", "TWINMESH_STORAGE_PORT": str(port)}
    stranger = await asyncio.create_subprocess_exec(*fake("storage"), env=environment)
    try:
        assert await asyncio.to_thread(until, lambda: listens(port), timeout_s=10)
        # As if the stranger had come between the choice of the block and the start of the service.
        claim.close()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("twinmesh_local.ports.is_free", lambda port: True)
            with pytest.raises(ServerFailedError, match="storage ended"):
                await mesh_at(data_dir, services=("storage",), ports=claim.block.base).__aenter__()
    finally:
        stranger.kill()
        await stranger.wait()
    assert traces.left() == {}


async def test_a_cancelled_start_leaves_nothing(data_dir, traces):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3), mesh_at(data_dir):
            pass
    assert traces.left() == {}


async def test_two_meshes_run_side_by_side_and_one_context_keeps_its_owner(data_dir):
    async with mesh_at(data_dir, services=("storage",)) as first:
        async with mesh_at(data_dir.with_name("other"), services=("storage",), context="other") as second:
            assert second.ports.base >= first.ports.base + 20
            assert first.backends.database_url != second.backends.database_url
            other = load_context("other")
            assert other is not None
            assert other.data_dir.endswith("other")
        assert load_context("local") is not None
        assert load_context("other") is None


async def test_a_data_directory_has_one_mesh(data_dir):
    async with mesh_at(data_dir, services=()):
        with pytest.raises(DataDirInUseError, match=f"process {os.getpid()}"):
            async with mesh_at(data_dir, services=()):
                pass


async def test_unknown_names_are_refused(data_dir):
    with pytest.raises(LocalMeshError, match="no service is called stroage"):
        mesh_at(data_dir, services=("stroage",))
    async with mesh_at(data_dir, services=()) as mesh:
        with pytest.raises(LocalMeshError, match="training is not running"):
            mesh.kill("training", signal.SIGKILL)


async def test_a_killed_guardian_takes_everything_along(data_dir, traces):
    async with mesh_at(data_dir, with_triton=True) as mesh:
        guardian = mesh._guardian
        assert guardian is not None
        assert guardian.pid is not None
        os.kill(guardian.pid, signal.SIGKILL)
        async with asyncio.timeout(5):
            await mesh.until_lost()
    assert until(lambda: not traces.left(), timeout_s=5), traces.left()


@contextmanager
def running_program(data_dir: Path, kind: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The program and its facts; killed at the end, whatever a test asserts before."""
    with subprocess.Popen(
        [sys.executable, str(HERE / "mesh_program.py"), str(data_dir), kind],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        try:
            assert program.stdout is not None
            yield program, json.loads(program.stdout.readline())
        finally:
            program.kill()


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("real", signal.SIGKILL),
        pytest.param("fake-with-triton", signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param("fake-with-triton", signal.SIGTERM, marks=pytest.mark.slow),
        ("fake-with-triton", signal.SIGINT),
    ],
)
def test_however_its_program_ends_nothing_is_left(data_dir, traces, kind, number):
    with running_program(data_dir, kind) as (program, facts):
        assert len(facts["pids"]) == 8
        assert all(listens(port) for port in facts["ports"])
        program.send_signal(number)
        program.wait(timeout=60)
    # The guardian gives each stage 3 s at most; fakes and an idle machine need far less.
    assert until(lambda: not traces.left(), timeout_s=15), traces.left()
    assert not any(listens(port) for port in facts["ports"])
    assert load_context("local") is None


@pytest.mark.slow
def test_after_a_kill_the_data_directory_is_usable_at_once(data_dir, traces):
    with running_program(data_dir, "fake"):
        pass
    with running_program(data_dir, "fake"):
        pass
    assert until(lambda: not traces.left(), timeout_s=15), traces.left()


def test_killed_with_its_guardian_nothing_is_left_running(data_dir, traces):
    with running_program(data_dir, "fake-with-triton") as (program, facts):
        os.kill(facts["guardian"], signal.SIGSTOP)
        program.kill()
        os.kill(facts["guardian"], signal.SIGKILL)
    assert until(lambda: not traces.processes(), timeout_s=15), traces.left()
    assert not any(listens(port) for port in facts["ports"])


async def test_in_the_foreground_it_tells_and_stops_at_a_signal(data_dir, traces):
    lines: list[str] = []

    def out(line: str) -> None:
        lines.append(line)
        if "the mesh is ready" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    status = await run_foreground(out=out, data_dir=data_dir, with_triton=False, command=fake)
    assert status == 0
    assert [line.split()[0] for line in lines if " ready in " in line][:2] == ["valkey", "postgresql"]
    assert traces.left() == {}
