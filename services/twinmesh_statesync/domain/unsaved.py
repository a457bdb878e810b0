"""What the fold changed since a checkpoint last took it."""

from __future__ import annotations

from twinmesh_core.registry import TwinType
from twinmesh_statesync.domain.delivery.notices import Notice
from twinmesh_statesync.domain.entries import Verdict
from twinmesh_statesync.domain.events import Event


class Unsaved:
    """What the fold changed since a checkpoint last took it.

    Attributes:
        twins: (tenant, twin id).
        twin_types: (tenant, new version).
        events: (tenant, new event).
        erased: (tenant, twin id, event id) of events that are gone; those of the same id in `events` came later.
        verdicts: by (tenant, request id); None = forgotten.
        notices: by (tenant, key); None = forgotten.
    """

    def __init__(self) -> None:
        self.twins: set[tuple[str, str]] = set()
        self.twin_types: list[tuple[str, TwinType]] = []
        self.events: list[tuple[str, Event]] = []
        self.erased: set[tuple[str, str, str]] = set()
        self.verdicts: dict[tuple[str, str], Verdict | None] = {}
        self.notices: dict[tuple[str, str], Notice | None] = {}
