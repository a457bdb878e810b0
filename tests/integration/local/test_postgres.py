"""The embedded PostgreSQL: durable, private, restartable, and gone without a trace."""

import os
import pwd
import shutil
import signal
import stat
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

from twinmesh_local.accounts import STATE_DIR_VARIABLE, abandoned_homes
from twinmesh_local.errors import LocalMeshError, ServerFailedError
from twinmesh_local.postgres import PostgresServer
from twinmesh_local.processes import Guardian

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to change user")


def system_v_segments() -> set[str]:
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def fetch(url: str, query: str) -> object:
    with psycopg.connect(url, connect_timeout=5) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def start(guardian: Guardian, directory: Path) -> PostgresServer:
    server = PostgresServer(guardian, directory, log_dir=directory)
    server.start()
    return server


def test_is_as_durable_as_production(database_url):
    for setting in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums"):
        assert fetch(database_url, f"SHOW {setting}") == "on"
    assert str(fetch(database_url, "SHOW server_version")).startswith("18.")


def test_asks_for_the_password_and_keeps_it_private(postgres_server, servers_dir):
    wrong = postgres_server.url().replace("twinmesh:", "twinmesh:not-", 1)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong, connect_timeout=5)
    assert stat.S_IMODE((servers_dir / "postgresql.password").stat().st_mode) == 0o600
    rules = fetch(postgres_server.url(), "SELECT array_agg(DISTINCT auth_method) FROM pg_hba_file_rules")
    assert rules == ["scram-sha-256"]


def test_listens_on_loopback_only(postgres_server):
    assert fetch(postgres_server.url(), "SHOW listen_addresses") == "127.0.0.1"
    assert fetch(postgres_server.url(), "SHOW unix_socket_directories") == ""


def test_each_test_has_its_own_empty_database(database_url, postgres_server):
    assert fetch(database_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    assert fetch(database_url, "SELECT current_database()") != "twinmesh"


def test_committed_rows_survive_a_restart_and_a_kill(tmp_path):
    with Guardian(log=tmp_path / "guardian.log") as guardian:
        server = start(guardian, tmp_path)
        with psycopg.connect(server.url()) as connection:
            connection.execute("CREATE TABLE kept (n int)")
            connection.execute("INSERT INTO kept VALUES (1)")
        server.stop()
        server.start()
        with psycopg.connect(server.url()) as connection:
            connection.execute("INSERT INTO kept VALUES (2)")
        guardian.signal("postgresql", signal.SIGKILL)
        deadline = time.monotonic() + 5
        while guardian.exit_of(server.pid or 0) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        server.start()
        assert fetch(server.url(), "SELECT sum(n) FROM kept") == 3
        server.stop()
        server.remove_data()
    assert not (tmp_path / "postgresql").exists()


def test_killed_it_leaves_no_shared_memory(tmp_path):
    with Guardian(log=tmp_path / "guardian.log") as guardian:
        server = start(guardian, tmp_path)
        segment = (tmp_path / "postgresql" / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1]
        assert segment in system_v_segments()
        guardian.signal("postgresql", signal.SIGKILL)
    assert segment not in system_v_segments()
    server.remove_data()


def test_what_cannot_be_started_is_explained(tmp_path):
    with Guardian(log=tmp_path / "guardian.log") as guardian:
        server = start(guardian, tmp_path)
        server.stop()

        password = tmp_path / "postgresql.password"
        kept = password.read_text()
        password.unlink()
        with pytest.raises(LocalMeshError, match="is missing"):
            server.start()
        password.write_text(kept)

        version = tmp_path / "postgresql" / "data" / "PG_VERSION"
        kept = version.read_text()
        version.write_text("15\n")
        with pytest.raises(LocalMeshError, match="written by PostgreSQL 15"):
            server.start()
        version.write_text(kept)

        (tmp_path / "postgresql" / "data" / "global" / "pg_control").unlink()
        with pytest.raises(ServerFailedError, match="pg_control"):
            server.start()
        server.remove_data()


@as_root
def test_as_root_it_runs_as_nobody_and_no_account_is_created(postgres_server):
    owner = Path(f"/proc/{postgres_server.pid}").stat().st_uid
    assert owner == pwd.getpwnam("nobody").pw_uid
    assert "embedded_postgres" not in {entry.pw_name for entry in pwd.getpwall()}


@as_root
def test_as_root_data_below_a_private_directory_go_to_the_state_directory(tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory() as open_place:
        Path(open_place).chmod(0o755)
        state = Path(open_place) / "state"
        monkeypatch.setenv(STATE_DIR_VARIABLE, str(state))
        private = tmp_path / "private"
        private.mkdir(mode=0o700)
        with Guardian(log=private / "guardian.log") as guardian:
            server = start(guardian, private)
            assert (private / "postgresql").is_symlink()
            assert (private / "postgresql").resolve().parent == state
            server.stop()
            # Deleting the data directory and starting anew means an empty database, not the old one.
            shutil.rmtree(private)
            assert len(abandoned_homes()) == 1
            private.mkdir(mode=0o700)
            server.start()
            assert abandoned_homes() == []
            server.stop()
            server.remove_data()
            assert [p.name for p in state.iterdir() if p.name.startswith("postgresql")] == []


@pytest.mark.slow
@as_root
def test_as_root_binaries_that_nobody_cannot_reach_are_copied_once(tmp_path, monkeypatch):
    import twinmesh_local.postgres as postgres

    hidden = tmp_path / "site-packages"
    real = postgres.installed_binaries()
    shutil.copytree(real.parent, hidden / "embedded_postgres", symlinks=True)
    shutil.copytree(real.parent.with_name("embedded_postgres.libs"), hidden / "embedded_postgres.libs")
    hidden.chmod(0o700)
    monkeypatch.setattr(postgres, "installed_binaries", lambda: hidden / "embedded_postgres" / "pginstall")
    with tempfile.TemporaryDirectory() as open_place:
        Path(open_place).chmod(0o755)
        monkeypatch.setenv(STATE_DIR_VARIABLE, str(Path(open_place) / "state"))
        with Guardian(log=tmp_path / "guardian.log") as guardian:
            server = start(guardian, tmp_path)
            assert open_place in str(Path(f"/proc/{server.pid}/exe").readlink())
            server.stop()
            server.remove_data()
