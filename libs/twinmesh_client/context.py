"""Saved contexts: small files that tell the SDK and the command line where a mesh is.

A context is one JSON file, ``contexts/<name>.json`` below TWINMESH_CONFIG_DIR, else below ``twinmesh`` in the user's
configuration directory. It holds no secret. The local mesh saves the context ``local`` when it is ready and removes it
when it stops; should it be killed, the recorded process and its start time show that the context is stale.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinmesh_core.errors import InvalidArgument, Unavailable

CONFIG_DIR_VARIABLE = "TWINMESH_CONFIG_DIR"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Where one mesh is.

    Attributes:
        name: of the context, ``[a-z0-9][a-z0-9-._]{0,127}``.
        endpoints: ``host:port`` of each service by its token; any one of them is enough to find the others.
        metrics: ``host:port`` of each service's Prometheus metrics, by token; empty when not known.
        data_dir: directory of a mesh on this machine; empty for one elsewhere.
        pid: process that runs a mesh on this machine; 0 for one elsewhere.
        process_start: identifies that process among all that ever had its id; see `process_start_of`.
    """

    name: str
    endpoints: Mapping[str, str]
    metrics: Mapping[str, str] = field(default_factory=dict)
    data_dir: str = ""
    pid: int = 0
    process_start: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidArgument(
                f"{self.name!r} cannot name a context; use small letters, digits, '.', '_' and '-', e.g. local."
            )
        if not self.endpoints:
            raise InvalidArgument("A context needs at least one endpoint, host:port.")

    @property
    def stale(self) -> bool:
        """Whether the process that ran this mesh is gone; never for a mesh elsewhere."""
        return self.pid != 0 and process_start_of(self.pid) != self.process_start


def config_dir() -> Path:
    """The user's configuration directory of Twinmesh; it may not exist yet."""
    configured = os.environ.get(CONFIG_DIR_VARIABLE)
    if configured:
        return Path(configured)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "twinmesh"


def save_context(context: Context) -> Path:
    """Write the context, replacing one of the same name at once; return its file."""
    path = _path(context.name)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = json.dumps(
        {
            "format": _FORMAT,
            "endpoints": dict(context.endpoints),
            "metrics": dict(context.metrics),
            "data_dir": context.data_dir,
            "pid": context.pid,
            "process_start": context.process_start,
        },
        indent=2,
    )
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def load_context(name: str, *, stale: bool = False) -> Context | None:
    """The saved context of that name; None when there is none or the mesh it describes has ended.

    Args:
        name: of the context.
        stale: return also one whose process is gone.

    Raises:
        Unavailable: the file is there and cannot be understood.
    """
    try:
        text = _path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError:
        raise Unavailable(f"The saved context {name!r} cannot be read; check the permissions of its file.") from None
    try:
        context = _from_json(name, json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Unavailable(
            f"The saved context {name!r} cannot be understood; `twinmesh up` writes it anew.",
            metadata={"context": name},
        ) from None
    return None if context.stale and not stale else context


def remove_context(name: str, *, pid: int | None = None) -> bool:
    """Forget a context; whether there was one to forget.

    Args:
        name: of the context.
        pid: forget it only if it describes the mesh that this process runs.
    """
    if pid is not None:
        saved = load_context(name, stale=True)
        if saved is None or saved.pid != pid:
            return False
    try:
        _path(name).unlink()
    except FileNotFoundError:
        return False
    return True


def process_start_of(pid: int) -> str:
    """What tells this process from any other that had or will have its id; empty when it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return _exists(pid)
    state, *rest = stat.rpartition(")")[2].split()
    # Ticks since boot, field 22 of stat; a zombie runs nothing.
    return "" if state == "Z" else f"{boot}/{rest[18]}"


def _exists(pid: int) -> str:
    """Where the system has no /proc: all one can ask is whether somebody has that id."""
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        return "exists"
    return "exists"


def _from_json(name: str, value: Any) -> Context:
    if value["format"] != _FORMAT:
        raise ValueError
    return Context(
        name=name,
        endpoints={str(k): str(v) for k, v in value["endpoints"].items()},
        metrics={str(k): str(v) for k, v in value["metrics"].items()},
        data_dir=str(value["data_dir"]),
        pid=int(value["pid"]),
        process_start=str(value["process_start"]),
    )


def _path(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} cannot name a context; use small letters, digits, '.', '_' and '-', e.g. local."
        )
    return config_dir() / "contexts" / f"{name}.json"
