"""The doctor's look at a Linux machine: packages, servers, room, ports.

It looks for packages without importing them, and changes nothing but trying out whether files can be written.
"""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
import pwd
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from twinmesh_local import triton_install
from twinmesh_local.accounts import abandoned_homes
from twinmesh_local.datadir import default_data_dir, holder_of
from twinmesh_local.findings import COMPOSE, Finding, Level
from twinmesh_local.ports import FIRST_PORT, PortBlock, is_free

_INSTALL = "pip install -c constraints.txt -e '.[local]'   (or, in a checkout: make setup)"
_NEEDED_DISK_BYTES = 3_000_000_000
_NEEDED_MEMORY_BYTES = 3_000_000_000
_NEEDED_SHM_BYTES = 64_000_000
_EXTRA = "local"


def examine_linux(data_dir: Path | None) -> tuple[Finding, ...]:
    """Every finding about this machine; `data_dir` as in `doctor.examine`."""
    directory = (data_dir or default_data_dir()).expanduser().absolute()
    checks: tuple[Callable[[], Finding], ...] = (
        _user,
        _packages,
        _triton,
        _libpython,
        lambda: _data_dir(directory),
        lambda: _running(directory),
        lambda: _disk(directory),
        _memory,
        _shared_memory,
        _ports,
        _abandoned,
    )
    return tuple(check() for check in checks)


def _user() -> Finding:
    uid = os.geteuid()
    if uid == 0:
        return Finding(check="user", level=Level.OK, found="root; PostgreSQL runs as 'nobody', no account is created")
    try:
        return Finding(check="user", level=Level.OK, found=pwd.getpwuid(uid).pw_name)
    except KeyError:
        return Finding(
            check="user",
            level=Level.FAILURE,
            found=f"user id {uid} has no name on this system; PostgreSQL cannot create its files without one",
            remedy="run as a user of the system, or as root",
        )


def _packages() -> Finding:
    missing = sorted(name for name in _required() if not _is_installed(name))
    if missing:
        return Finding(
            check="packages",
            level=Level.FAILURE,
            found=f"not installed: {', '.join(missing)}",
            remedy=_INSTALL,
        )
    return Finding(check="packages", level=Level.OK, found="everything of the extra 'local' is installed")


def _required() -> set[str]:
    """Names of the distributions that the extra `local` asks for, its own extras followed."""
    try:
        lines = importlib.metadata.requires("twinmesh") or []
    except importlib.metadata.PackageNotFoundError:
        return {"twinmesh"}
    wanted, extras, seen = set[str](), [_EXTRA], set[str]()
    while extras:
        extra = extras.pop()
        seen.add(extra)
        for line in lines:
            if not re.search(rf"""extra\s*==\s*['"]{extra}['"]""", line):
                continue
            match = re.match(r"([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?", line)
            if match is None:
                continue
            if match[1] == "twinmesh":
                extras += [e.strip() for e in (match[2] or "").split(",") if e.strip() not in seen]
            else:
                wanted.add(match[1])
    return wanted


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _triton() -> Finding:
    reason = triton_install.unsupported_reason()
    if reason is not None:
        return Finding(
            check="Triton",
            level=Level.WARNING,
            found=f"not available here: {reason}. Without it everything but predictions works",
            remedy=COMPOSE,
        )
    if not triton_install.is_installed():
        return Finding(
            check="Triton",
            level=Level.WARNING,
            found="not installed yet; the first `twinmesh up` fetches it (55 MB)",
            remedy="python -m twinmesh_local setup",
        )
    return Finding(check="Triton", level=Level.OK, found=f"tritonserver in {triton_install.installation()}")


def _libpython() -> Finding:
    version = triton_install.python_version()
    name = f"libpython{version}.so.1.0"
    directory = triton_install.libpython_dir()
    if directory is not None or ctypes.util.find_library(f"python{version}") is not None:
        return Finding(check="libpython", level=Level.OK, found=f"{name} in {directory or 'the system'}")
    return Finding(
        check="libpython",
        level=Level.WARNING,
        found=f"{name} is not found; Triton cannot run models without it",
        remedy=f"apt-get install libpython{version}   (or use a Python built with --enable-shared)",
    )


def _data_dir(directory: Path) -> Finding:
    existing = next(p for p in (directory, *directory.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Finding(
            check="data directory",
            level=Level.FAILURE,
            found=f"{existing} cannot be written: {error.strerror}",
            remedy="twinmesh up --data-dir /some/dir   (or export TWINMESH_HOME=/some/dir)",
        )
    return Finding(check="data directory", level=Level.OK, found=f"{directory} can be used")


def _running(directory: Path) -> Finding:
    holder = holder_of(directory)
    if holder is not None:
        return Finding(
            check="running mesh",
            level=Level.WARNING,
            found=f"process {holder} runs a mesh on {directory}; a second one needs another directory",
            remedy=f"use it as it is, or stop it: kill {holder}",
        )
    return Finding(check="running mesh", level=Level.OK, found=f"none on {directory}")


def _disk(directory: Path) -> Finding:
    existing = next(p for p in (directory, *directory.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    return _amount("disk", free, _NEEDED_DISK_BYTES, f"free below {existing}", "free some space, or use --data-dir")


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return Finding(check="memory", level=Level.WARNING, found="cannot be told on this system", remedy="")
    return _amount("memory", available, _NEEDED_MEMORY_BYTES, "available", "end other programs before `twinmesh up`")


def _shared_memory() -> Finding:
    shm = Path("/dev/shm")  # noqa: S108 - looked at only
    if not shm.is_dir():
        return Finding(
            check="shared memory",
            level=Level.FAILURE,
            found=f"{shm} is missing; Triton exchanges tensors through it",
            remedy="mount -t tmpfs -o size=256m tmpfs /dev/shm",
        )
    free = shutil.disk_usage(shm).free
    remedy = "mount -o remount,size=256m /dev/shm   (in a container: --shm-size=256m)"
    return _amount("shared memory", free, _NEEDED_SHM_BYTES, "free in /dev/shm", remedy)


def _amount(check: str, free: int, needed: int, where: str, remedy: str) -> Finding:
    enough = free >= needed
    found = f"{free / 1e9:.1f} GB {where}" + ("" if enough else f"; {needed / 1e9:.1f} GB are advisable")
    return Finding(
        check=check, level=Level.OK if enough else Level.WARNING, found=found, remedy="" if enough else remedy
    )


def _ports() -> Finding:
    block = PortBlock(base=FIRST_PORT)
    taken = [port for port in block.all_ports if not is_free(port)]
    if taken:
        return Finding(
            check="ports",
            level=Level.WARNING,
            found=f"taken: {', '.join(map(str, taken))}; the next free block is used and saved as context 'local'",
            remedy=f"ss -ltnp 'sport = :{taken[0]}' shows by whom",
        )
    return Finding(check="ports", level=Level.OK, found=f"{block.base} to {block.base + 4} and their metrics are free")


def _abandoned() -> Finding:
    homes = abandoned_homes()
    if homes:
        return Finding(
            check="old data",
            level=Level.WARNING,
            found=f"{len(homes)} databases whose data directory is gone, e.g. {homes[0]}",
            remedy="rm -r " + " ".join(f"{home} {home}.owner" for home in map(os.fspath, homes)),
        )
    return Finding(check="old data", level=Level.OK, found="none left by deleted data directories")
