"""One real mesh for the tests of the SDK and the command line: five processes, PostgreSQL, Valkey, Triton."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from pathlib import Path

import pytest

from twinmesh_cli.__main__ import main
from twinmesh_client.aio.mesh import connect_async
from twinmesh_local.accounts import remove_home
from twinmesh_local.mesh import LocalMesh

START_TIMEOUT_S = 120


class RunningMesh:
    """A local mesh on a thread of its own, so that the tests' own event loops may come and go."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()))
        self.mesh = LocalMesh(data_dir=data_dir, context=None)
        self.failure: BaseException | None = None
        self.target = ""

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(START_TIMEOUT_S)
        if self.failure is not None:
            raise self.failure

    async def _run(self) -> None:
        try:
            async with self.mesh:
                self.target = self.mesh.endpoints["ingestion"]
                self._ready.set()
                await self._stop.wait()
        except BaseException as error:
            self.failure = error
            self._ready.set()
            raise

    def kill(self, name: str, number: int) -> None:
        async def kill() -> None:
            self.mesh.kill(name, number)

        asyncio.run_coroutine_threadsafe(kill(), self._loop).result(10)

    def restarts(self, name: str) -> int:
        return next(s.restarts for s in self.mesh.status() if s.name == name)

    def until_restarted(self, name: str, restarts: int) -> None:
        waiting = self.mesh.until_ready(name, restarts=restarts)
        asyncio.run_coroutine_threadsafe(waiting, self._loop).result(60)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_TIMEOUT_S)
        self._loop.close()


_MESH = pytest.StashKey[tuple[RunningMesh, Path]]()


@pytest.fixture
def running_mesh(request: pytest.FixtureRequest) -> RunningMesh:
    """The mesh of this directory's tests, up to the first test of another; each test uses twins of its own."""
    stash = request.session.stash
    if _MESH not in stash:
        base = Path(tempfile.mkdtemp(prefix="twinmesh-mesh-"))
        base.chmod(0o711)
        stash[_MESH] = RunningMesh(base / "data"), base
        stash[_MESH][0].start()
    mesh, _ = stash[_MESH]
    if mesh.failure is not None:
        raise mesh.failure
    return mesh


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the mesh where the next test is not of this directory: five services cost a tenth of a core at rest."""
    if nextitem is None or nextitem.path.parent != item.path.parent:
        _end(item.session)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the mesh of a run that was broken off."""
    _end(session)


def _end(session: pytest.Session) -> None:
    found = session.stash.get(_MESH, None)
    if found is None:
        return
    del session.stash[_MESH]
    mesh, base = found
    try:
        mesh.stop()
    finally:
        remove_home(base / "data" / "postgresql")
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def target(running_mesh, monkeypatch, tmp_path) -> str:
    """Where that mesh is, also for whoever looks into the environment."""
    monkeypatch.setenv("TWINMESH_TARGET", running_mesh.target)
    monkeypatch.setenv("TWINMESH_CONFIG_DIR", str(tmp_path / "config"))
    return running_mesh.target


@pytest.fixture
async def mesh(target):
    """A client of that mesh."""
    async with connect_async(target, timeout_s=20) as client:
        yield client


@pytest.fixture
def twinmesh(target, capsys):
    """Run the command line against that mesh: ``status, out, err = twinmesh("latest", "T1")``."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(list(arguments))
        said = capsys.readouterr()
        return status, said.out, said.err

    return run
