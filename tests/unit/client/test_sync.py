"""The sync SDK is generated, complete, and works without an event loop of the caller's."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

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
