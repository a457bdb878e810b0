"""What a local mesh says about its servers while they start, run and fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class ServerState(StrEnum):
    """Where a server is in its life."""

    STARTING = "starting"
    READY = "ready"
    NOT_READY = "not ready"
    """Runs, and says itself that calls should not be sent to it now."""
    RESTARTING = "restarting"
    """Ended without being told to; a new process is on its way."""
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """One server at one moment.

    Attributes:
        name: ``postgresql``, ``valkey``, ``triton`` or a service's token.
        state: where it is in its life.
        endpoint: ``host:port`` it listens on; empty before that is known.
        pid: its process; 0 while there is none.
        restarts: how often it was started again because it had ended.
        last_exit: exit status of its latest end, negative for a signal; None when it never ended.
        ready_after_s: seconds from the start of the mesh, or of the restart, to its being ready.
        log: its log file.
    """

    name: str
    state: ServerState
    endpoint: str
    pid: int
    restarts: int
    last_exit: int | None
    ready_after_s: float
    log: Path


Report = Callable[[ServerStatus], None]
"""Told whenever a server becomes ready, ends, or is started again."""
