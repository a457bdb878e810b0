"""A real Mosquitto on a free port: the one on this machine, else Debian's package unpacked into the cache."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from twinmesh_local.triton_install import cache_dir

PACKAGES = ("mosquitto", "libmosquitto1", "libwebsockets17", "libcjson1", "libev4", "libdlt2", "libwrap0")
UNPACKED = "mosquitto-debian"
# Even a killed run leaves no broker: the kernel ends it with its parent (1 is PR_SET_PDEATHSIG, 9 SIGKILL).
ENDS_WITH_US = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"


def find() -> tuple[str, dict[str, str]]:
    """Return the program and what its environment needs; skips the test, with the reason, where there is none."""
    installed = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if installed:
        return installed, {}
    root = cache_dir() / UNPACKED
    if not (root / "usr/sbin/mosquitto").exists():
        reason = _unpack(root)
        if reason:
            pytest.skip(f"no mosquitto here and it cannot be fetched: {reason}")
    libraries = ":".join(str(path.parent) for path in sorted(root.glob("usr/lib/*/libmosquitto.so.1")))
    return str(root / "usr/sbin/mosquitto"), {"LD_LIBRARY_PATH": libraries}


def _unpack(root: Path) -> str:
    """Download the packages and unpack them; installs nothing. Returns why it cannot, or nothing."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return "this is no Debian; install mosquitto"
    cache_dir().mkdir(parents=True, exist_ok=True)
    work = root.with_name(f"{root.name}.{os.getpid()}")
    work.mkdir()
    try:
        fetched = _run("apt-get", "download", *PACKAGES, cwd=work)
        if fetched.returncode and os.geteuid() == 0 and not _run("apt-get", "-q", "update", cwd=work).returncode:
            fetched = _run("apt-get", "download", *PACKAGES, cwd=work)
        if fetched.returncode:
            return fetched.stderr.strip().splitlines()[-1] if fetched.stderr.strip() else "apt-get failed"
        for package in work.glob("*.deb"):
            _run("dpkg-deb", "-x", str(package), str(work / "root"), cwd=work).check_returncode()
        try:
            (work / "root").rename(root)
        except OSError:  # another run was faster
            return "" if root.exists() else "the cache cannot be written"
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return ""


def _run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


class Mosquitto:
    """A broker that can be stopped, killed and started again on the same port, with its sessions kept on disk."""

    def __init__(self, directory: Path, *, password_for: str = "") -> None:
        self._program, self._environment = find()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        # Below a run as root the broker would change to a user of its own, which may not exist.
        lines = [
            f"listener {self.port} 127.0.0.1",
            "user root" if os.geteuid() == 0 else "",
            "persistence true",
            f"persistence_location {directory}/",
            "autosave_interval 1",
            "autosave_on_changes true",
            "max_inflight_messages 0",
            "max_queued_messages 100000",
            "log_dest stderr",
        ]
        if password_for:
            passwords = directory / "passwords"
            passwords.write_text(f"{password_for}\n", encoding="utf-8")
            passwords.chmod(0o600)
            subprocess.run(
                [str(Path(self._program).parents[1] / "bin/mosquitto_passwd"), "-U", str(passwords)],
                env={**os.environ, **self._environment}, check=True, timeout=20, capture_output=True,
            )  # fmt: skip
            lines += ["allow_anonymous false", f"password_file {passwords}"]
        else:
            lines.append("allow_anonymous true")
        self._config = directory / "mosquitto.conf"
        self._config.write_text("\n".join(lines), encoding="utf-8")

    def start(self) -> None:
        with (self._directory / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", ENDS_WITH_US, self._program, "-c", str(self._config)],
                env={**os.environ, **self._environment}, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self._directory / "mosquitto.log").read_text()) from None
                time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=20)
            self._process = None

    def freeze(self, frozen: bool) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)
