"""Starting and stopping local servers through the guardian process.

`Guardian` is synchronous and safe to use from several threads, so that pytest fixtures and the async supervisor share
it. Every server is described by a `ProcessSpec`; the guardian (`twinmesh_local.guardian`) is the parent that starts it,
and ends it when this process is gone, however it went.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from twinmesh_local.errors import LocalMeshError, ServerFailedError
from twinmesh_local.guardian import tidy_up

_GUARDIAN_SCRIPT = Path(__file__).with_name("guardian.py")
_REPLY_TIMEOUT_S = 10.0
_LOST_GRACE_S = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """One server: what to run, as whom, and how it ends.

    Attributes:
        name: unique among the running servers of one guardian.
        argv: program and arguments; no shell.
        log: file that standard output and error are appended to.
        env: the whole environment of the server; None passes on that of the guardian.
        cwd: directory it runs in.
        uid: user to run as, with `gid` and no other group; None for the present user.
        gid: group to run as; needed when `uid` is given.
        stage: servers stop in descending order of it, those of one stage at the same time.
        stop: signals to end it with, each with the seconds it is given; SIGKILL follows by itself.
        death_signal: what it gets from the kernel if even the guardian is killed.
        log_max_bytes: the log is cut to its newer half beyond this.
        shm_prefix: files of /dev/shm with this prefix belong to it and are removed after it; empty for none.
        postmaster_pid_file: of a PostgreSQL data directory, whose System V segment is removed if it was killed.
        remove: files to remove once it has ended, e.g. its socket.
    """

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] | None = None
    cwd: Path = Path("/")
    uid: int | None = None
    gid: int | None = None
    stage: int = 0
    stop: Sequence[tuple[int, float]] = ((signal.SIGTERM, 5.0),)
    death_signal: int = signal.SIGKILL
    log_max_bytes: int = 8 * 1024 * 1024
    shm_prefix: str = ""
    postmaster_pid_file: Path | None = None
    remove: Sequence[Path] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The spec as the guardian reads it."""
        return {
            "name": self.name,
            "argv": [os.fspath(a) for a in self.argv],
            "log": os.fspath(self.log),
            "env": None if self.env is None else dict(self.env),
            "cwd": os.fspath(self.cwd),
            "uid": self.uid,
            "gid": self.gid,
            "stage": self.stage,
            "stop": [[int(s), w] for s, w in self.stop],
            "death_signal": int(self.death_signal),
            "log_max_bytes": self.log_max_bytes,
            "shm_prefix": self.shm_prefix,
            "postmaster_pid_file": None if self.postmaster_pid_file is None else os.fspath(self.postmaster_pid_file),
            "remove": [os.fspath(p) for p in self.remove],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessExit:
    """A server ended.

    Attributes:
        name: of its `ProcessSpec`.
        pid: the process that ended.
        code: its exit status; negative is the number of the signal that ended it.
    """

    name: str
    pid: int
    code: int


class Guardian:
    """The parent process of a group of servers; leaving its context stops them all in order.

    Args:
        log: file for the guardian's own complaints; normally stays empty.
        on_exit: called with each `ProcessExit`, from a thread of the guardian's client.
        on_lost: called, from that thread, when the guardian itself is gone without being closed.
        keep_open: file descriptors that the guardian holds until the last server is gone, e.g. a lock.
    """

    def __init__(
        self,
        *,
        log: Path,
        on_exit: Callable[[ProcessExit], object] | None = None,
        on_lost: Callable[[], object] | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        self._log = log
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._keep_open = tuple(keep_open)
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[dict[str, Any]]] = {}
        self._exits: dict[int, ProcessExit] = {}
        self._specs: dict[int, ProcessSpec] = {}
        self._closing = False
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the guardian; None before `start` and after `close`."""
        return None if self._process is None else self._process.pid

    def start(self) -> Self:
        """Start the guardian process; calling it again changes nothing."""
        if self._process is not None:
            return self
        ours, theirs = socket.socketpair()
        with theirs, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                # -I: no path of the user's environment can shadow the standard library it runs on.
                [sys.executable, "-I", os.fspath(_GUARDIAN_SCRIPT), str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                pass_fds=self._keep_open,
            )
        self._socket = ours
        self._reader = threading.Thread(target=self._read, name="guardian-reader", daemon=True)
        self._reader.start()
        return self

    def spawn(self, spec: ProcessSpec) -> int:
        """Start a server and return its process id; raises `ServerFailedError` when it cannot be started at all."""
        reply = self._call({"op": "spawn", "spec": spec.to_json()}, timeout_s=_REPLY_TIMEOUT_S)
        if "error" in reply:
            raise ServerFailedError(
                f"{spec.name} could not be started: {reply['error']}", remedy="run `twinmesh doctor`"
            )
        return int(reply["pid"])

    def signal(self, name: str, number: int) -> bool:
        """Send a signal to a server; False when no server of that name runs."""
        return bool(
            self._call({"op": "signal", "name": name, "signal": int(number)}, timeout_s=_REPLY_TIMEOUT_S)["found"]
        )

    def stop(self, name: str, *, timeout_s: float = 60.0) -> bool:
        """Stop one server by the signals of its spec and wait until it is gone; False when it was not running."""
        return bool(self._call({"op": "stop", "name": name}, timeout_s=timeout_s)["found"])

    def exit_of(self, pid: int) -> ProcessExit | None:
        """How the server with this process id ended; None while it runs."""
        with self._lock:
            return self._exits.get(pid)

    def close(self, *, timeout_s: float = 60.0) -> None:
        """Stop every server in order, then the guardian; nothing is left when this returns. Repeatable."""
        process, self._process = self._process, None
        if process is None or self._socket is None or self._reader is None:
            return
        self._closing = True
        lost = process.poll() is not None
        # The guardian that was killed answers nothing, and one that hangs must not hang us: then it is ended.
        with contextlib.suppress(LocalMeshError, TimeoutError):
            self._call({"op": "stop_all"}, timeout_s=timeout_s)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            lost = True
        self._socket.close()
        self._reader.join(timeout=5)
        if lost:
            self._tidy_up_for_the_lost()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, request: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        if self._socket is None:
            raise LocalMeshError("the guardian has not been started", remedy="call start() first")
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            request["id"] = next(self._ids)
            self._waiting[request["id"]] = answer
            try:
                self._socket.sendall(json.dumps(request).encode() + b"\n")
            except OSError:
                self._waiting.pop(request["id"], None)
                raise self._lost() from None
        return answer.result(timeout=timeout_s)

    def _read(self) -> None:
        connection = self._socket
        if connection is None:
            return
        buffer = b""
        while True:
            try:
                received = connection.recv(1 << 16)
            except OSError:
                received = b""
            if not received:
                break
            *lines, buffer = (buffer + received).split(b"\n")
            for line in lines:
                self._dispatch(json.loads(line))
        with self._lock:
            waiting, self._waiting = list(self._waiting.values()), {}
        for answer in waiting:
            answer.set_exception(self._lost())
        if not self._closing and self._on_lost is not None:
            self._on_lost()

    def _dispatch(self, message: dict[str, Any]) -> None:
        if message.get("event") == "exit":
            ended = ProcessExit(name=message["name"], pid=message["pid"], code=message["code"])
            with self._lock:
                self._exits[ended.pid] = ended
            if self._on_exit is not None:
                self._on_exit(ended)
            return
        with self._lock:
            answer = self._waiting.pop(message["id"], None)
        if answer is not None:
            answer.set_result(message)

    def _tidy_up_for_the_lost(self) -> None:
        """Do what the guardian no longer can: wait for the servers, which its death ends, remove what they left."""
        running = {pid: spec for pid, spec in self._specs.items() if pid not in self._exits}
        deadline = time.monotonic() + _LOST_GRACE_S
        while any(_runs(pid) for pid in running) and time.monotonic() < deadline:
            time.sleep(0.05)
        for spec in running.values():
            tidy_up(spec.to_json())

    def _lost(self) -> LocalMeshError:
        return LocalMeshError(
            "the guardian of the local servers is gone, and so are they",
            remedy=f"start the mesh again; if it repeats, see {self._log}",
        )


def _runs(pid: int) -> bool:
    """Whether the process exists and has not ended; one that was not yet waited for counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False
