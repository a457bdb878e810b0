"""The five services as processes: what each is started with.

They are told everything by environment variables, exactly as in a container; nothing of this package is imported there.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from twinmesh_local.ports import LOOPBACK, METRICS_OFFSET, PortBlock
from twinmesh_local.processes import ProcessSpec

DRAIN_GRACE_S = 3.0
"""Locally nobody waits longer for running calls at the end."""
STAGES: Mapping[str, int] = {"ingestion": 40, "inference": 40, "training": 30, "statesync": 30, "storage": 20}
"""Who stops before whom: those who call before those who are called; Valkey (10) and PostgreSQL (0) come last."""
_MALLOC = {
    # Bodies of several MB come and go; without these glibc returns and faults in their pages each time.
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    # Few arenas keep many threads from holding a heap each.
    "MALLOC_ARENA_MAX": "2",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """What the services stand on.

    Attributes:
        database_url: PostgreSQL; each service makes its own schema in it.
        redis_url: Valkey; empty for none.
        triton_url: ``host:port`` of Triton's gRPC; empty for none.
        model_repository: directory that Triton reads models from.
        artifact_dir: directory of trained artifacts.
    """

    database_url: str
    redis_url: str
    triton_url: str
    model_repository: Path
    artifact_dir: Path


Command = Callable[[str], Sequence[str]]
"""Program and arguments of a service, by its token."""


def python_module(token: str) -> Sequence[str]:
    """The command of a service: its package, run by the interpreter that runs us."""
    # -P: a directory that happens to be current must not supply modules.
    return (sys.executable, "-P", "-m", f"twinmesh_{token}")


def service_environment(
    token: str,
    ports: PortBlock,
    backends: Backends,
    overrides: Mapping[str, str],
    *,
    endpoints: Mapping[str, str],
    number: int = 0,
) -> dict[str, str]:
    """The environment of a service: the user's, what the mesh decides, then `overrides`.

    Args:
        token: which service.
        ports: of the mesh.
        backends: what it stands on.
        overrides: win over everything.
        endpoints: targets of all services by token.
        number: 0 = its first process, else a further one.
    """
    prefix = f"TWINMESH_{token.upper()}_"
    own = {
        "HOST": LOOPBACK,
        "PORT": str(ports.port_of(token, number)),
        "METRICS_PORT": str(ports.port_of(token, number) + METRICS_OFFSET),
        "DRAIN_GRACE_S": f"{DRAIN_GRACE_S:g}",
    }
    particular = {
        "storage": {"DATABASE_URL": backends.database_url, "REDIS_URL": backends.redis_url},
        "statesync": {"DATABASE_URL": backends.database_url},
        "training": {"DATABASE_URL": backends.database_url, "ARTIFACT_DIR": os.fspath(backends.artifact_dir)},
        "inference": {
            "DATABASE_URL": backends.database_url,
            "TRITON_URL": backends.triton_url,
            "MODEL_REPOSITORY": os.fspath(backends.model_repository),
        },
    }
    mesh = {f"TWINMESH_MESH_{t.upper()}": target for t, target in endpoints.items()}
    decided = {prefix + key: value for key, value in {**own, **particular.get(token, {})}.items()}
    return {**os.environ, **_MALLOC, "PYTHONUNBUFFERED": "1", **decided, **mesh, **overrides}


def process_name(token: str, number: int) -> str:
    """What a process of a service is called: by its token, and ``statesync-2`` and so on for further ones."""
    return f"{token}-{number + 1}" if number else token


def service_spec(
    token: str, *, command: Command, environment: Mapping[str, str], logs: Path, cwd: Path, number: int = 0
) -> ProcessSpec:
    """How the guardian starts and stops a process of a service."""
    name = process_name(token, number)
    return ProcessSpec(
        name=name,
        argv=command(token),
        log=logs / f"{name}.log",
        env=environment,
        cwd=cwd,
        stage=STAGES[token],
        stop=((signal.SIGTERM, DRAIN_GRACE_S + 3.0),),
    )
