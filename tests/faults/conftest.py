"""Servers that may be killed, and the report of all runs at the end.

The shared PostgreSQL of the test run is never harmed: what is killed here is a second one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from tests.faults.report import Outcome, table

from twinmesh_local.postgres import PostgresServer
from twinmesh_local.processes import Guardian
from twinmesh_local.valkey import ValkeyServer

_KEEP_VARIABLE = "TWINMESH_FAULTS_DIR"
_outcomes: list[Outcome] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was survived, checked and caught."""
    if _outcomes:
        terminalreporter.section("faults")
        for line in table(_outcomes):
            terminalreporter.write_line(line)


@pytest.fixture
def report() -> Callable[[Outcome, Path], None]:
    """Note the outcome of a run, beside its ledger too."""

    def note(outcome: Outcome, directory: Path) -> None:
        _outcomes.append(outcome)
        outcome.save(directory)
        print(outcome.line())

    return note


@pytest.fixture
def run_dir(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Where ledger, read-back and logs of a run stay: in TWINMESH_FAULTS_DIR if that is set."""
    keep = os.environ.get(_KEEP_VARIABLE)
    if not keep:
        return tmp_path
    directory = Path(keep) / f"{request.node.name}-{uuid4().hex[:6]}"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture(scope="session")
def mortal_dir(servers_dir: Path) -> Path:
    """Directory of the servers that are killed."""
    directory = servers_dir / "mortal"
    directory.mkdir()
    directory.chmod(0o711)
    return directory


@pytest.fixture(scope="session")
def mortal_postgres(guardian: Guardian, mortal_dir: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL to be killed; a test leaves it running."""
    server = PostgresServer(guardian, mortal_dir, log_dir=mortal_dir, name="mortal-postgresql")
    server.start()
    yield server
    server.stop()
    server.remove_data()


@pytest.fixture
def mortal_url(mortal_postgres: PostgresServer) -> Iterator[str]:
    """URL of an empty database of it."""
    name = f"faults_{uuid4().hex}"
    mortal_postgres.create_database(name)
    yield mortal_postgres.url(name)
    mortal_postgres.drop_database(name)


@pytest.fixture
def mortal_valkey(guardian: Guardian, mortal_dir: Path) -> Iterator[ValkeyServer]:
    """A Valkey to be killed."""
    server = ValkeyServer(guardian, mortal_dir, log_dir=mortal_dir, name="mortal-valkey")
    server.start()
    yield server
    server.stop()
