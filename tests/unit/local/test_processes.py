"""The guardian: starts, signals and stops processes in order, and bounds what they leave."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from twinmesh_local.errors import LocalMeshError, ServerFailedError
from twinmesh_local.guardian import _bound_log
from twinmesh_local.processes import Guardian, ProcessExit, ProcessSpec


def sh(name: str, script: str, tmp_path: Path, **options) -> ProcessSpec:
    return ProcessSpec(name=name, argv=["/bin/sh", "-c", script], log=tmp_path / f"{name}.log", **options)


def wait_for(guardian: Guardian, pid: int) -> ProcessExit:
    deadline = time.monotonic() + 10
    while (ended := guardian.exit_of(pid)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return ended


@pytest.fixture
def exits() -> list[ProcessExit]:
    return []


@pytest.fixture
def guardian(tmp_path, exits):
    with Guardian(log=tmp_path / "guardian.log", on_exit=exits.append) as guardian:
        yield guardian
    assert (tmp_path / "guardian.log").read_text() == ""


def test_tells_how_a_process_ended(guardian, tmp_path, exits):
    pid = guardian.spawn(sh("a", "echo out; echo err >&2; exit 7", tmp_path))
    assert wait_for(guardian, pid) == ProcessExit(name="a", pid=pid, code=7)
    assert exits == [ProcessExit(name="a", pid=pid, code=7)]
    assert (tmp_path / "a.log").read_text() == "out\nerr\n"


def test_a_program_that_is_not_there_is_told(guardian, tmp_path):
    with pytest.raises(ServerFailedError, match="nothing could not be started"):
        guardian.spawn(ProcessSpec(name="nothing", argv=["/no/such/program"], log=tmp_path / "log"))
    with pytest.raises(ServerFailedError):
        guardian.spawn(ProcessSpec(name="nowhere", argv=["/bin/true"], log=tmp_path / "no" / "dir" / "log"))


def test_signals_reach_the_process_as_they_would_by_default(guardian, tmp_path):
    pid = guardian.spawn(sh("a", "exec sleep 60", tmp_path))
    assert guardian.signal("a", signal.SIGINT)
    assert wait_for(guardian, pid).code == -signal.SIGINT
    assert not guardian.signal("a", signal.SIGINT)


def test_stop_escalates_until_it_is_obeyed(guardian, tmp_path):
    script = "trap '' TERM; trap 'echo int; exit 3' INT; echo up; while :; do sleep 0.05; done"
    pid = guardian.spawn(sh("a", script, tmp_path, stop=((signal.SIGTERM, 0.3), (signal.SIGINT, 5.0))))
    while "up" not in (tmp_path / "a.log").read_text():
        time.sleep(0.01)
    assert guardian.stop("a")
    assert wait_for(guardian, pid).code == 3
    assert not guardian.stop("a")


def test_stages_end_one_after_the_other_the_highest_first(tmp_path):
    order = tmp_path / "order"
    script = f"trap 'sleep 0.2; echo $0 >> {order}; exit' TERM; echo up; while :; do sleep 0.05; done"
    with Guardian(log=tmp_path / "guardian.log") as guardian:
        for stage in (1, 3, 2):
            spec = ProcessSpec(
                name=f"s{stage}",
                argv=["/bin/sh", "-c", script, f"s{stage}"],
                log=tmp_path / f"s{stage}.log",
                stage=stage,
            )
            guardian.spawn(spec)
            while "up" not in (tmp_path / f"s{stage}.log").read_text():
                time.sleep(0.01)
    assert order.read_text().split() == ["s3", "s2", "s1"]


def test_files_named_for_removal_go_with_the_process(guardian, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    pid = guardian.spawn(sh("a", "exit 0", tmp_path, remove=(secret,)))
    wait_for(guardian, pid)
    assert not secret.exists()


def test_shared_memory_with_the_prefix_goes_and_other_stays(guardian, tmp_path):
    shm = Path("/dev/shm")  # noqa: S108 - the point of the test
    ours, other = shm / f"twinmesh-test-{os.getpid()}-a", shm / f"twinmesh-other-{os.getpid()}"
    other.write_text("")
    try:
        pid = guardian.spawn(
            sh("a", f"echo x > {ours}; kill -9 $$", tmp_path, shm_prefix=f"twinmesh-test-{os.getpid()}")
        )
        assert wait_for(guardian, pid).code == -signal.SIGKILL
        assert not ours.exists()
        assert other.exists()
    finally:
        other.unlink()


def test_environment_and_directory_are_those_of_the_spec(guardian, tmp_path):
    pid = guardian.spawn(sh("a", 'pwd; echo "$ONLY:$HOME"', tmp_path, env={"ONLY": "this"}, cwd=tmp_path))
    wait_for(guardian, pid)
    assert (tmp_path / "a.log").read_text() == f"{tmp_path}\nthis:\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start as somebody else")
def test_as_root_it_starts_as_another_user_without_other_groups(guardian, tmp_path):
    pid = guardian.spawn(sh("a", "id -u; id -G", tmp_path, uid=65534, gid=65534))
    wait_for(guardian, pid)
    assert (tmp_path / "a.log").read_text() == "65534\n65534\n"


def test_closing_twice_is_closing_once_and_a_closed_one_says_so(tmp_path):
    guardian = Guardian(log=tmp_path / "guardian.log")
    with pytest.raises(LocalMeshError, match="has not been started"):
        guardian.spawn(sh("a", "exit", tmp_path))
    guardian.start()
    guardian.close()
    guardian.close()
    with pytest.raises(LocalMeshError, match="guardian of the local servers is gone"):
        guardian.spawn(sh("a", "exit", tmp_path))


def test_starts_on_the_standard_library_alone(tmp_path):
    # -I -S: neither the environment nor site-packages; the guardian must outlive a broken installation.
    import subprocess

    from twinmesh_local import guardian

    code = f"import runpy; runpy.run_path({guardian.__file__!r})"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=10)


def test_a_log_keeps_its_newer_half(tmp_path):
    log = tmp_path / "a.log"
    log.write_bytes(b"old" * 1000 + b"new" * 1000)
    _bound_log(log, 10_000)
    assert log.stat().st_size == 6000
    _bound_log(log, 4000)
    assert log.stat().st_size == 0
    assert (tmp_path / "a.log.1").read_bytes() == (b"old" * 1000 + b"new" * 1000)[-2000:]
