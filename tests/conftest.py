"""What every test may use: the real servers as fixtures, started only when asked for."""

import gc
import os

import pytest
from hypothesis import settings

pytest_plugins = ("twinmesh_testing.servers", "tests.timescale.server")

# A busy machine stalls any example for longer than a deadline of its own would allow; each test has a time limit.
settings.register_profile("twinmesh", deadline=None, max_examples=30)
settings.register_profile("thorough", deadline=None)
settings.load_profile(os.environ.get("TWINMESH_LAWS", "twinmesh"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what was imported and collected out of Python's looks for cycles: a third of a second each time."""
    del session
    gc.collect()
    gc.freeze()


_LONG = (
    "tests/integration/storage/test_storage_timescale.py",  # fetches the extension where it is not there yet
    "tests/e2e/test_bad_input.py",
    "tests/integration/training/test_training_service.py",
    "tests/integration/local/test_mesh.py",
    "tests/e2e/test_faults_short.py",
    "tests/faults",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let files that start servers and wait take turns with those that compute: processes side by side waste less."""
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)
    waiting = [name for name in files if name.startswith(("tests/integration", "tests/e2e", "tests/faults"))]
    waiting.sort(key=lambda name: next((n for n, first in enumerate(_LONG) if name.startswith(first)), len(_LONG)))
    computing = [name for name in files if name not in waiting]
    places = [(n / len(group), number, name) for number, group in enumerate((waiting, computing)) if group
              for n, name in enumerate(group)]  # fmt: skip
    items[:] = [item for _, _, name in sorted(places) for item in files[name]]
