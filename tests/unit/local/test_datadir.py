"""The data directory's lock: one mesh at a time, given back with the process."""

import os
import stat

import pytest

from twinmesh_local.datadir import DataDir, default_data_dir, holder_of
from twinmesh_local.errors import DataDirInUseError, LocalMeshError


def test_has_one_holder_at_a_time(tmp_path):
    first = DataDir(tmp_path / "mesh").open()
    assert holder_of(tmp_path / "mesh") == os.getpid()
    with pytest.raises(DataDirInUseError, match="in use by another mesh"):
        DataDir(tmp_path / "mesh").open()
    first.close()
    DataDir(tmp_path / "mesh").open().close()


def test_a_lock_file_of_a_dead_process_holds_nothing(tmp_path):
    (tmp_path / "lock").write_text("4194305 not-a-process\n")
    assert holder_of(tmp_path) is None
    DataDir(tmp_path).open().close()


def test_can_be_passed_through_and_not_read(tmp_path):
    directory = DataDir(tmp_path / "mesh").open()
    directory.close()
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o711
    assert {stat.S_IMODE(d.stat().st_mode) for d in (directory.logs, directory.run, directory.artifacts)} == {0o700}


def test_a_place_that_cannot_be_used_is_told_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalMeshError, match="cannot be used") as failure:
        DataDir(tmp_path / "file" / "mesh").open()
    assert "--data-dir" in failure.value.remedy


def test_home_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINMESH_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "local"
