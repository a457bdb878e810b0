"""What every test may use: the real servers as fixtures, started only when asked for."""

import gc
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

pytest_plugins = ("twinmesh_testing.servers", "tests.timescale.server")

# A busy machine stalls any example for longer than a deadline of its own would allow; each test has a time limit.
settings.register_profile("twinmesh", deadline=None, max_examples=30)
settings.register_profile("thorough", deadline=None)
settings.load_profile(os.environ.get("TWINMESH_LAWS", "twinmesh"))


_FETCHING = pytest.StashKey[subprocess.Popen[bytes]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Have TimescaleDB fetched, where it is not there yet, while a run in several processes does other things."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what runs in the background so, and programs inherit it: those that tests interrupt, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if session.config.getoption("numprocesses", None):
        session.config.stash[_FETCHING] = subprocess.Popen(
            [sys.executable, "-m", "tests.timescale.server"],
            cwd=session.config.rootpath,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave no process behind."""
    fetching = session.config.stash.get(_FETCHING, None)
    if fetching is not None:
        with suppress(ProcessLookupError):
            os.killpg(fetching.pid, signal.SIGTERM)  # npm too
        fetching.wait(timeout=10)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what was imported and collected out of Python's looks for cycles: a third of a second each time."""
    del session
    gc.collect()
    gc.freeze()


_ONE_MESH = "tests/integration/client/"
"""Its files share a running mesh: one process runs them all, and the mesh ends with them."""

_LONG = (
    _ONE_MESH,
    "tests/e2e/test_bad_input.py",
    "tests/integration/training/test_training_service.py",
    "tests/integration/local/test_mesh.py",
    "tests/e2e/test_faults_short.py",
    "tests/faults",
)


@pytest.hookimpl(optionalhook=True)  # `-p no:xdist` knows no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """Hand out whole files, and the directory that shares a mesh as one, where files are what is handed out."""
    return _Sharing(config, log) if config.getvalue("dist") == "loadfile" else None


class _Sharing(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    def _split_scope(self, nodeid: str) -> str:
        return _ONE_MESH if nodeid.startswith(_ONE_MESH) else str(super()._split_scope(nodeid))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let files that start servers and wait take turns with those that compute: processes side by side waste less."""
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        name = item.nodeid.partition("::")[0]
        files.setdefault(_ONE_MESH if name.startswith(_ONE_MESH) else name, []).append(item)
    waiting = [name for name in files if name.startswith(("tests/integration", "tests/e2e", "tests/faults"))]
    waiting.sort(key=lambda name: next((n for n, first in enumerate(_LONG) if name.startswith(first)), len(_LONG)))
    computing = [name for name in files if name not in waiting]
    places = [(n / len(group), number, name) for number, group in enumerate((waiting, computing)) if group
              for n, name in enumerate(group)]  # fmt: skip
    items[:] = [item for _, _, name in sorted(places) for item in files[name]]
