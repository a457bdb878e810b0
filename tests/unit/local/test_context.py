"""Saved contexts: found again, noticed when stale, never half written."""

import os

import pytest

from twinmesh_client.context import Context, config_dir, load_context, process_start_of, remove_context, save_context
from twinmesh_core.errors import InvalidArgument, Unavailable

ENDPOINTS = {"ingestion": "127.0.0.1:7400", "storage": "127.0.0.1:7401"}


@pytest.fixture(autouse=True)
def own_config_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINMESH_CONFIG_DIR", str(tmp_path / "config"))


def mine(**changes) -> Context:
    values = {"name": "local", "endpoints": ENDPOINTS, "data_dir": "/data", "pid": os.getpid()}
    return Context(**{**values, "process_start": process_start_of(os.getpid()), **changes})


def test_comes_back_as_it_was_saved():
    path = save_context(mine(metrics={"storage": "127.0.0.1:7411"}))
    assert path == config_dir() / "contexts" / "local.json"
    assert load_context("local") == mine(metrics={"storage": "127.0.0.1:7411"})
    assert [p.name for p in path.parent.iterdir()] == ["local.json"]


def test_there_is_none_until_one_is_saved():
    assert load_context("local") is None
    assert not remove_context("local")


@pytest.mark.parametrize("changes", [{"pid": 4194305}, {"process_start": "another boot/1"}])
def test_of_a_process_that_is_gone_is_stale(changes):
    save_context(mine(**changes))
    assert load_context("local") is None
    assert load_context("local", stale=True) == mine(**changes)


def test_of_a_mesh_elsewhere_is_never_stale():
    elsewhere = Context(name="plant", endpoints={"ingestion": "mesh.example:7400"})
    save_context(elsewhere)
    assert load_context("plant") == elsewhere


def test_is_removed_by_its_owner_only():
    save_context(mine())
    assert not remove_context("local", pid=1)
    assert remove_context("local", pid=os.getpid())
    assert load_context("local") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1, "endpoints": 3}'])
def test_that_cannot_be_understood_says_what_to_do(text):
    path = save_context(mine())
    path.write_text(text)
    with pytest.raises(Unavailable, match="twinmesh up"):
        load_context("local")


@pytest.mark.parametrize("name", ["", "../x", "Local", "a/b", "-a"])
def test_names_are_checked(name):
    with pytest.raises(InvalidArgument, match="cannot name a context"):
        load_context(name)


def test_follows_the_configuration_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("TWINMESH_CONFIG_DIR")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert config_dir() == tmp_path / "xdg" / "twinmesh"
