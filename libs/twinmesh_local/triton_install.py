"""Getting the real `tritonserver` without containers: from the `nvidia-pytriton` wheel, installed apart.

That wheel's Python side wants an old numpy, so it never enters our environment: pip puts it, without dependencies, into
a directory of its own in the cache, from which only the server's binaries are used. The directory appears by a rename
when it is complete, so an interrupted installation is simply not there.
"""

from __future__ import annotations

import fcntl
import os
import platform
import secrets
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from twinmesh_local.errors import LocalMeshError
from twinmesh_local.logs import log_tail

VERSION = "0.7.0"
"""Of nvidia-pytriton; it carries tritonserver 2.51."""
CACHE_DIR_VARIABLE = "TWINMESH_CACHE_DIR"
_INSTALL_TIMEOUT_S = 900.0
_STUB_PYTHONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")
"""Python versions that the wheel brings a stub process for."""


def cache_dir() -> Path:
    """Where downloads that can be fetched again are kept: TWINMESH_CACHE_DIR, or `twinmesh` in the user's cache."""
    configured = os.environ.get(CACHE_DIR_VARIABLE)
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "twinmesh"


def installation() -> Path:
    """Where Triton is, or would be, installed."""
    return cache_dir() / f"triton-{VERSION}"


def is_installed() -> bool:
    """Whether the server is there, complete."""
    return server_binary().exists()


def server_binary() -> Path:
    """Path of `tritonserver`."""
    return installation() / "pytriton" / "tritonserver" / "bin" / "tritonserver"


def unsupported_reason() -> str | None:
    """Why this machine cannot run the wheel's Triton; None if it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the wheel is for Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    if python_version() not in _STUB_PYTHONS:
        return f"the wheel supports Python {_STUB_PYTHONS[0]} to {_STUB_PYTHONS[-1]}, this is {python_version()}"
    kind, version = platform.libc_ver()
    if kind != "glibc":
        return "the wheel needs glibc, this system has another C library"
    if tuple(int(n) for n in version.split(".")[:2]) < (2, 35):
        return f"the wheel needs glibc 2.35 or newer, this system has {version}"
    return None


def libpython_dir() -> Path | None:
    """Directory of the interpreter's shared library, which Triton's Python stub loads; None when it is the system's."""
    name = f"libpython{python_version()}.so.1.0"
    for variable in ("LIBDIR", "LIBPL"):
        directory = sysconfig.get_config_var(variable)
        if directory and (Path(directory) / name).exists():
            return Path(directory)
    return None


def python_version() -> str:
    """The running interpreter's version as `3.11`."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def ensure_installed(report: Callable[[str], None] | None = None) -> Path:
    """Install Triton unless it is there already, and return its directory.

    Args:
        report: told one line when a download begins and one when it is done.

    Raises:
        LocalMeshError: the platform is not supported, or pip failed; the error shows the end of its output.
    """
    if is_installed():
        return installation()
    reason = unsupported_reason()
    if reason is not None:
        raise LocalMeshError(
            f"Triton cannot be installed here: {reason}", remedy="run the mesh with docker compose (see README)"
        )
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / "triton.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Somebody else may have installed it while we waited for the lock.
        if not is_installed():
            _install(report or _silent)
    return installation()


def _install(report: Callable[[str], None]) -> None:
    began = time.monotonic()
    report(f"Triton: fetching nvidia-pytriton {VERSION} (55 MB, once)")
    partial = installation().with_name(f"{installation().name}.{secrets.token_hex(4)}.part")
    log = cache_dir() / "triton-install.log"
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--only-binary=:all:", "--no-compile", "--target", os.fspath(partial), f"nvidia-pytriton=={VERSION}"]
    try:
        with log.open("wb") as output:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=True,
                timeout=_INSTALL_TIMEOUT_S,
            )
        partial.rename(installation())
    except (subprocess.SubprocessError, OSError) as error:
        raise LocalMeshError(
            f"Triton could not be installed:{log_tail(log)}",
            remedy=f"check the network and the disk, then run `python -m twinmesh_local setup`; full output in {log}",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    report(f"Triton: installed in {time.monotonic() - began:.0f} s")


def _silent(_line: str) -> None:
    """Tell nobody."""
