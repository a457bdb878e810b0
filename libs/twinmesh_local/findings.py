"""What a check of the machine says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

COMPOSE = "run the mesh in containers instead: docker compose up"
"""The remedy wherever the local mesh cannot run."""


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    """The mesh runs, with the restriction that the finding names."""
    FAILURE = "failure"
    """The local mesh cannot run until this is mended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at, a few words.
        level: how bad it is.
        found: what is the case, and what it means.
        remedy: what to do, an exact command where there is one; empty when nothing is to be done.
    """

    check: str
    level: Level
    found: str
    remedy: str = ""
