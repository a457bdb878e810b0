"""What this machine lacks for the local mesh, what that means, and what to type.

Runs on the base install alone and on any platform: where the local mesh cannot run, that is the finding.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from twinmesh_local.findings import COMPOSE, Finding, Level


def examine(data_dir: Path | None = None) -> tuple[Finding, ...]:
    """Look at everything the local mesh needs.

    Args:
        data_dir: data directory that it would use; None = the default one.
    """
    first = (_python(), _platform())
    if not can_run(first):
        return first
    # Only here: these modules use what exists on Linux alone.
    from twinmesh_local.checks import examine_linux

    return first + examine_linux(data_dir)


def can_run(findings: tuple[Finding, ...]) -> bool:
    """Whether nothing that was found keeps the local mesh from running."""
    return all(finding.level is not Level.FAILURE for finding in findings)


def _python() -> Finding:
    # Older ones cannot install the package at all; newer ones than Triton knows are told by its own check.
    found = f"{platform.python_version()} ({sys.executable})"
    return Finding(check="Python", level=Level.OK, found=found)


def _platform() -> Finding:
    found = f"{platform.system()} {platform.machine()}"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return Finding(
            check="platform",
            level=Level.FAILURE,
            found=f"{found}; the local mesh's servers come as binaries for Linux on x86-64. The SDK and this command "
            "work here, with a mesh elsewhere",
            remedy=COMPOSE,
        )
    kind, version = platform.libc_ver()
    return Finding(check="platform", level=Level.OK, found=f"{found}, {kind or 'unknown C library'} {version}".strip())
