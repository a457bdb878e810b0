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
