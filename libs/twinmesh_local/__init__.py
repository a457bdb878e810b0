"""How one machine runs the mesh, without containers: PostgreSQL, Valkey, Triton and the five services on loopback.

The package owns every process it starts. A small guardian process (`twinmesh_local.guardian`) is the parent of all of
them and watches the program that asked for them; whatever ends that program - Ctrl-C, SIGTERM, an exception, SIGKILL -
the guardian stops the rest and removes their ports, shared memory and sockets. No account is created on the machine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twinmesh_local.errors import DataDirInUseError, LocalMeshError, ServerFailedError, WheelMissingError
    from twinmesh_local.foreground import run_foreground
    from twinmesh_local.mesh import LocalMesh
    from twinmesh_local.status import Report, ServerState, ServerStatus

_HOMES = {
    "DataDirInUseError": "errors",
    "LocalMesh": "mesh",
    "LocalMeshError": "errors",
    "Report": "status",
    "ServerFailedError": "errors",
    "ServerState": "status",
    "ServerStatus": "status",
    "WheelMissingError": "errors",
    "run_foreground": "foreground",
}

__all__ = [
    "DataDirInUseError",
    "LocalMesh",
    "LocalMeshError",
    "Report",
    "ServerFailedError",
    "ServerState",
    "ServerStatus",
    "WheelMissingError",
    "run_foreground",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `doctor` must run where PostgreSQL's driver is not installed."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
