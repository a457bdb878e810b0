"""The sync SDK is generated, complete, and works without an event loop of the caller's."""

import asyncio
import inspect
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from tests.unit.client.fake_mesh import FakeMesh, fake_mesh

import twinmesh_client as tm
from twinmesh_client import sync
from twinmesh_client.aio import mesh, models, twin, twins, writer

ROOT = Path(__file__).resolve().parents[3]


def test_the_committed_file_is_what_the_tool_makes():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/async_to_sync.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (sync.Mesh, mesh.Mesh),
        (sync.Twin, twin.Twin),
        (sync.Twins, twins.Twins),
        (sync.TwinTypes, twins.TwinTypes),
        (sync.Models, models.Models),
        (sync.Writer, writer.Writer),
    ],
)
def test_every_public_name_is_there_with_the_same_arguments(ours, theirs):
    for name, member in inspect.getmembers(theirs):
        if name.startswith("_") or (theirs, name) == (mesh.Mesh, "device"):
            continue
        assert hasattr(ours, name), name
        if callable(member):
            assert list(inspect.signature(getattr(ours, name)).parameters) == list(inspect.signature(member).parameters)
            assert not inspect.iscoroutinefunction(getattr(ours, name))


def test_public_names_load_lazily_and_stay_what_they_are():
    program = (
        "import sys, twinmesh_client as tm; assert 'pandas' not in sys.modules; "
        "first = tm.connect; import twinmesh_client.sync; assert callable(tm.connect) and tm.connect is first; "
        "[getattr(tm, n) for n in tm.__all__]; assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = tm.nope


def test_connecting_where_nothing_answers_says_how_to_start_a_mesh():
    with pytest.raises(tm.Unavailable, match="twinmesh up"), tm.connect("127.0.0.1:1"):
        pass


def test_without_a_context_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TWINMESH_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("TWINMESH_TARGET", raising=False)
    with pytest.raises(tm.Unavailable, match="no saved context 'local'"), tm.connect():
        pass
    with pytest.raises(tm.Unavailable, match="no saved context 'other'"), tm.connect(context="other"):
        pass


@pytest.fixture
def mesh_elsewhere():
    """The fake mesh on a thread of its own, as it is for code without an event loop."""
    loop = asyncio.new_event_loop()
    leave = asyncio.Event()
    served: Future[FakeMesh] = Future()

    async def serve():
        async with fake_mesh() as fake:
            served.set_result(fake)
            await leave.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    yield served.result(10)
    loop.call_soon_threadsafe(leave.set)
    thread.join(10)
    loop.close()


def test_a_spooled_writer_in_ordinary_code(mesh_elsewhere, tmp_path):
    with tm.connect(mesh_elsewhere.target) as mesh:
        with mesh.writer("s", spool=tmp_path / "spool") as writer:
            taken = [writer.observe("t", "c", float(v), time=v + 1) for v in range(5)]
            assert taken[0].written() == 1
            taken[4].durable()
            assert (writer.spooled, writer.durable, writer.flush().accepted) == (True, 1, 5)
        with mesh.writer("s", spool=tmp_path / "spool"):
            second = mesh.writer("s", spool=tmp_path / "spool")
            with pytest.raises(tm.FailedPrecondition, match=f"process {os.getpid()}"):
                second.__enter__()


def test_a_writer_needs_no_mesh_to_begin_with(mesh_elsewhere, tmp_path):
    with tm.open_writer("s", target="127.0.0.1:1", spool=tmp_path / "spool") as writer:
        writer.observe("t", "c", 1.0, time=1)
        assert writer.sync() == 1
    with pytest.raises(KeyError), tm.open_writer("s", target="127.0.0.1:1") as writer:
        raise KeyError
    with tm.open_writer("s", target=mesh_elsewhere.target, spool=tmp_path / "spool") as writer:
        writer.flush()
    assert mesh_elsewhere.ingestion.producers["s"].all_values() == [1.0]
