"""The data directory of a local mesh: what lies where, and who is using it.

::

    ~/.twinmesh/local/           TWINMESH_HOME replaces ~/.twinmesh
    ├── lock                     held while a mesh runs on it; names its process
    ├── postgresql               the database (a link into /var/lib/twinmesh when root's home is private)
    ├── postgresql.password
    ├── artifacts/               trained models
    ├── triton/models/           the model repository
    ├── logs/                    one bounded log per process
    └── run/                     short-lived files with secrets

Everything but `postgresql` is readable by the owner only.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Self

from twinmesh_client.context import process_start_of
from twinmesh_local.errors import DataDirInUseError, LocalMeshError

HOME_VARIABLE = "TWINMESH_HOME"
DEFAULT_NAME = "local"
_RELEASE_WAIT_S = 20.0
"""How long the servers of a mesh that was killed may take to end; its guardian holds the lock until then."""


def home() -> Path:
    """The directory of all meshes of this user: TWINMESH_HOME, or ~/.twinmesh."""
    configured = os.environ.get(HOME_VARIABLE)
    return Path(configured).expanduser() if configured else Path.home() / ".twinmesh"


def default_data_dir() -> Path:
    """The data directory of the mesh when none is named."""
    return home() / DEFAULT_NAME


class DataDir:
    """A data directory, created where missing and locked against other meshes while open.

    Raises:
        DataDirInUseError: another mesh runs on it.
        LocalMeshError: it cannot be created or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self._lock: int | None = None

    @property
    def logs(self) -> Path:
        """Directory of the logs."""
        return self.path / "logs"

    @property
    def run(self) -> Path:
        """Directory of files that live as long as the mesh."""
        return self.path / "run"

    @property
    def artifacts(self) -> Path:
        """Directory of the training service's artifacts."""
        return self.path / "artifacts"

    @property
    def lock_fd(self) -> int:
        """Descriptor of the held lock; whoever inherits it holds the lock too."""
        if self._lock is None:
            raise LocalMeshError("the data directory is not locked", remedy="open it first")
        return self._lock

    def open(self) -> Self:
        """Create what is missing and take the lock."""
        try:
            # Passable for others: PostgreSQL may have to run as another user. Each thing in it is private by itself.
            self.path.mkdir(parents=True, exist_ok=True, mode=0o711)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._acquire(self._lock)
            for directory in (self.logs, self.run, self.artifacts):
                directory.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            self.close()
            raise LocalMeshError(
                f"the data directory {self.path} cannot be used: {error.strerror}",
                remedy="choose another one with --data-dir, or mend its permissions",
            ) from error
        return self

    def close(self) -> None:
        """Give the lock back as far as this process holds it; repeatable."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _acquire(self, lock: int) -> None:
        deadline = time.monotonic() + _RELEASE_WAIT_S
        while not _try_lock(lock):
            holder = holder_of(self.path)
            # A holder that is gone: its guardian is still stopping the servers, which takes a few seconds.
            if holder is not None or time.monotonic() > deadline:
                self.close()
                who = f"process {holder}" if holder is not None else "servers that are still stopping"
                raise DataDirInUseError(
                    f"{self.path} is in use by another mesh ({who})",
                    remedy="stop that one (Ctrl-C in its terminal), or choose another directory with --data-dir",
                )
            time.sleep(0.1)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()} {process_start_of(os.getpid())}\n".encode(), 0)


def holder_of(path: Path) -> int | None:
    """Process id of the mesh that runs on a data directory; None when none does."""
    try:
        text = (path / "lock").read_text()
    except OSError:
        return None
    pid, _, started = text.strip().partition(" ")
    return int(pid) if pid.isdigit() and started and process_start_of(int(pid)) == started else None


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
