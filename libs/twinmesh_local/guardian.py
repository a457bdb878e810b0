"""The guardian: parent of every local server, which outlives whoever asked for them and leaves nothing behind.

Run as a script with the standard library only (``python -I guardian.py PARENT_PID``), so that it starts in some
20 ms and stays small. Standard input is one end of a socket pair; the other end is `twinmesh_local.processes`.
It reads one JSON object a line (``spawn``, ``signal``, ``stop``, ``stop_all``) and writes replies and ``exit`` events.

It stops everything, in descending ``stage``, when it is told so, gets SIGTERM, or its requester goes away: the socket
ends, or the process of PARENT_PID does (a forked child of the requester may hold the socket open). It lives in a
session of its own, so neither Ctrl-C nor a closed terminal reaches it. It is a child subreaper: what its servers leave
behind becomes its own child and is killed. Should the guardian itself be killed, each server gets its ``death_signal``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_IPC_RMID: Final = 0
_TICK_S: Final = 0.25
_LOG_CHECK_S: Final = 2.0
_ORPHANED_GRACE_S: Final = 3.0
"""Longest wait per signal once nobody is there to wait for a tidy end."""
_SHM_DIR: Final = Path("/dev/shm")  # noqa: S108 - looked through for leftovers of our own prefix, nothing is created

_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """One started server and how it is to be stopped."""

    def __init__(self, spec: dict[str, Any], process: subprocess.Popen[bytes]) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.pid: int = process.pid
        self.process = process
        self.stage: int = spec["stage"]
        # (signal, seconds to wait before the next one); SIGKILL ends the list and cannot be outwaited.
        self.escalation: list[tuple[int, float]] = [(s, float(w)) for s, w in spec["stop"]] + [(signal.SIGKILL, 5.0)]
        self.deadline: float | None = None
        self.stop_replies: list[int] = []

    def stop_next(self, *, longest_s: float) -> None:
        """Send the next, harsher signal and note when the one after it is due."""
        if not self.escalation:
            self.deadline = None
            return
        number, wait_s = self.escalation.pop(0)
        self.deadline = time.monotonic() + min(wait_s, longest_s)
        _kill(self.pid, number, group=number == signal.SIGKILL)


class Guardian:
    """The event loop: requests in, exits out, and one way to end."""

    def __init__(self, requester_pid: int) -> None:
        self.requester_pid = requester_pid
        self.children: dict[int, Child] = {}
        self.specs: dict[str, dict[str, Any]] = {}
        self.stopping = False
        self.orphaned = False
        self.stop_all_replies: list[int] = []
        self.buffer = b""
        self.next_log_check = 0.0
        self.selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Serve until told or forced to stop everything; return when nothing is left."""
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(wake_read, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        # Handlers instead of SIG_IGN: an ignored signal would stay ignored in the servers after exec.
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, _do_nothing)
        signal.signal(signal.SIGTERM, self._on_terminate)
        os.set_blocking(0, False)
        self.selector.register(0, selectors.EVENT_READ, "requests")
        self.selector.register(wake_read, selectors.EVENT_READ, "wake")
        self._watch_requester()
        while not (self.stopping and not self.children):
            for key, _ in self.selector.select(_TICK_S):
                if key.data == "wake":
                    _drain(wake_read)
                elif key.data == "requests":
                    self._read_requests()
                else:
                    self._abandon()
            self._reap()
            self._advance_stops()
            self._bound_logs()
        self._finish()

    def _watch_requester(self) -> None:
        # Fails if it is gone already, or on a kernel without pidfd, where the end of the socket has to do.
        with contextlib.suppress(OSError):
            self.selector.register(os.pidfd_open(self.requester_pid), selectors.EVENT_READ, "requester")
        if os.getppid() != self.requester_pid:
            self._abandon()

    def _abandon(self) -> None:
        """Nobody is left who could ask for anything: stop everything, quickly."""
        for key in list(self.selector.get_map().values()):
            if key.data != "wake":
                self.selector.unregister(key.fileobj)
        self.orphaned = True
        self._begin_stop_all()

    def _on_terminate(self, _number: int, _frame: object) -> None:
        self._begin_stop_all()

    def _read_requests(self) -> None:
        try:
            received = os.read(0, 1 << 20)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._abandon()
            return
        *lines, self.buffer = (self.buffer + received).split(b"\n")
        for line in lines:
            request = json.loads(line)
            try:
                getattr(self, f"_do_{request['op']}")(request)
            except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                self._send({"id": request["id"], "error": f"{type(error).__name__}: {error}"})

    def _do_spawn(self, request: dict[str, Any]) -> None:
        spec = request["spec"]
        if self.stopping:
            raise ValueError("everything is being stopped")
        guardian_pid = os.getpid()

        def bind_to_guardian() -> None:
            # After the change of user, which would clear it; lost if the guardian died in between, hence the check.
            _libc.prctl(_PR_SET_PDEATHSIG, spec["death_signal"], 0, 0, 0)
            if os.getppid() != guardian_pid:
                os._exit(1)

        user = {} if spec["uid"] is None else {"user": spec["uid"], "group": spec["gid"], "extra_groups": []}
        log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            process = subprocess.Popen(
                spec["argv"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=spec["cwd"],
                env=spec["env"],
                process_group=0,
                preexec_fn=bind_to_guardian,  # noqa: PLW1509 - the guardian has one thread
                **user,
            )
        finally:
            os.close(log)
        self.children[process.pid] = Child(spec, process)
        self.specs[spec["name"]] = spec
        self._send({"id": request["id"], "pid": process.pid})

    def _do_signal(self, request: dict[str, Any]) -> None:
        child = self._find(request["name"])
        if child is not None:
            _kill(child.pid, request["signal"], group=False)
        self._send({"id": request["id"], "found": child is not None})

    def _do_stop(self, request: dict[str, Any]) -> None:
        child = self._find(request["name"])
        if child is None:
            self._send({"id": request["id"], "found": False})
            return
        child.stop_replies.append(request["id"])
        if child.deadline is None:
            child.stop_next(longest_s=3600)

    def _do_stop_all(self, request: dict[str, Any]) -> None:
        self.stop_all_replies.append(request["id"])
        self._begin_stop_all()

    def _find(self, name: str) -> Child | None:
        return next((c for c in self.children.values() if c.name == name), None)

    def _begin_stop_all(self) -> None:
        self.stopping = True

    def _advance_stops(self) -> None:
        longest_s = _ORPHANED_GRACE_S if self.orphaned else 3600.0
        if self.stopping and self.children:
            stage = max(c.stage for c in self.children.values())
            for child in self.children.values():
                if child.stage == stage and child.deadline is None:
                    child.stop_next(longest_s=longest_s)
        now = time.monotonic()
        for child in self.children.values():
            if child.deadline is not None and now >= child.deadline:
                child.stop_next(longest_s=longest_s)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            child = self.children.pop(pid, None)
            if child is None:
                continue
            child.process.returncode = os.waitstatus_to_exitcode(status)
            # What it started is of no use without it, and would hold its ports.
            _kill(pid, signal.SIGKILL, group=True)
            self._kill_strays()
            tidy_up(child.spec)
            for reply_to in child.stop_replies:
                self._send({"id": reply_to, "found": True})
            self._send({"event": "exit", "name": child.name, "pid": pid, "code": child.process.returncode})

    def _kill_strays(self) -> None:
        """Kill the processes that became our children because the server that started them is gone."""
        for pid in _children_of(os.getpid()):
            if pid not in self.children:
                _kill(pid, signal.SIGKILL, group=False)

    def _bound_logs(self) -> None:
        now = time.monotonic()
        if now < self.next_log_check:
            return
        self.next_log_check = now + _LOG_CHECK_S
        for child in self.children.values():
            _bound_log(Path(child.spec["log"]), child.spec["log_max_bytes"])

    def _finish(self) -> None:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and _children_of(os.getpid()):
            self._kill_strays()
            self._reap()
            time.sleep(0.01)
        for spec in self.specs.values():
            tidy_up(spec)
        for reply_to in self.stop_all_replies:
            self._send({"id": reply_to, "found": True})

    def _send(self, message: dict[str, Any]) -> None:
        if self.orphaned:
            return
        os.set_blocking(0, True)
        try:
            os.write(0, json.dumps(message).encode() + b"\n")
        except OSError:
            self.orphaned = True
            self._begin_stop_all()
        finally:
            os.set_blocking(0, False)


def _do_nothing(_number: int, _frame: object) -> None:
    """Wake the loop; the reaping happens there."""


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            pass
    except BlockingIOError:
        return


def _kill(pid: int, number: int, *, group: bool) -> None:
    try:
        (os.killpg if group else os.kill)(pid, number)
    except ProcessLookupError:
        return


def _children_of(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _bound_log(path: Path, max_bytes: int) -> None:
    """Keep a log under `max_bytes`: its newer half moves to ``NAME.1`` and the file starts again.

    The writer appends (O_APPEND), so truncating under it is safe; lines written between copy and truncation are lost.
    """
    try:
        if path.stat().st_size <= max_bytes:
            return
        with path.open("r+b") as log:
            log.seek(-max_bytes // 2, os.SEEK_END)
            path.with_name(path.name + ".1").write_bytes(log.read())
            log.truncate(0)
    except OSError:
        # A log that cannot be bounded must not take the servers down.
        return


def tidy_up(spec: dict[str, Any]) -> None:
    """Remove what a server that could not clean up after itself leaves in the kernel and on disk; repeatable."""
    prefix = spec["shm_prefix"]
    if prefix:
        for leftover in _SHM_DIR.glob(prefix + "*"):
            leftover.unlink(missing_ok=True)
    if spec["postmaster_pid_file"]:
        _remove_system_v_segment(Path(spec["postmaster_pid_file"]))
    for path in spec["remove"]:
        Path(path).unlink(missing_ok=True)


def _remove_system_v_segment(pid_file: Path) -> None:
    """Remove the segment that a killed PostgreSQL names in line 7 of its pid file, unless a process is attached."""
    try:
        key, segment = (int(n) for n in pid_file.read_text().splitlines()[6].split())
        for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
            columns = line.split()
            same_key = int(columns[0]) % 2**32 == key % 2**32  # one file prints it signed, the other not
            if same_key and int(columns[1]) == segment and int(columns[6]) == 0:
                _libc.shmctl(segment, _IPC_RMID, None)
    except (OSError, ValueError, IndexError):
        # No pid file: PostgreSQL ended tidily and removed the segment itself.
        return


def main() -> None:
    """Run the guardian of the process whose id is the first argument."""
    try:
        Guardian(int(sys.argv[1])).run()
    except BaseException:
        # The servers end by their death signal when we do; say why we did.
        traceback.print_exc()
        raise


if __name__ == "__main__":
    main()
