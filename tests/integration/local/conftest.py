"""What the tests of the local mesh look at: processes, ports, shared memory; and where they keep things."""

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Traces:
    """What was there before, so that what came can be told."""

    directory: Path
    shared_memory: set[str]
    segments: set[str]

    def processes(self, *, running: str = "") -> list[int]:
        """Processes that mention the directory, and `running`, in their arguments or environment."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            if int(entry.name) == os.getpid():
                continue
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(self.directory).encode() in text and running.encode() in text:
                found.append(int(entry.name))
        return found

    def left(self) -> dict[str, object]:
        """Everything that is still there and was not before."""
        return {
            name: what
            for name, what in {
                "processes": self.processes(),
                "shared memory": shared_memory() - self.shared_memory,
                "segments": segments() - self.segments,
            }.items()
            if what
        }


def shared_memory() -> set[str]:
    """Triton's files of shared memory, unless another mesh of this machine uses them now."""
    names = {p.name for p in Path("/dev/shm").glob("twinmesh-*")}  # noqa: S108 - looked at only
    return {n for n in names if not Path(f"/proc/{n.split('-')[1]}").exists() or n.split("-")[1] == str(os.getpid())}


def segments() -> set[str]:
    """System V segments that nothing is attached to: what a killed PostgreSQL would leave."""
    lines = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    return {columns[1] for columns in lines if columns[6] == "0"}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def traces(data_dir: Path) -> Traces:
    return Traces(directory=data_dir.parent, shared_memory=shared_memory(), segments=segments())


@pytest.fixture
def data_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty data directory, with contexts and root's state kept beside it, removed afterwards."""
    base = Path(tempfile.mkdtemp(prefix="twinmesh-mesh-"))
    base.chmod(0o711)
    monkeypatch.setenv("TWINMESH_CONFIG_DIR", str(base / "config"))
    monkeypatch.setenv("TWINMESH_HOME", str(base / "home"))
    yield base / "data"
    shutil.rmtree(base, ignore_errors=True)
