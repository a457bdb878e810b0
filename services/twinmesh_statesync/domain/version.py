"""A living twin at one offset, immutable: what filters judge, masks cut and lists tell, long after the fold went on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from twinmesh_core.immutable import frozen_for_checkers
from twinmesh_core.registry import Twin, TwinType
from twinmesh_statesync.domain.replica import Replica


@frozen_for_checkers(frozen=True, slots=True)
class TwinVersion:
    """Identity, type and replica of a living twin at one offset.

    Positional on purpose: one is made with every change.

    Attributes:
        twin: its identity.
        twin_type: the version of its type.
        replica: its state.
    """

    twin: Twin
    twin_type: TwinType
    replica: Replica


class Population(Protocol):
    """All living twins of a tenant at one offset, as relationship hops need them."""

    memo: dict[tuple[int, str], bool]
    """What was found out about twins at this offset, by the key of a condition and twin id."""

    def version(self, twin_id: str) -> TwinVersion | None:
        """Return a twin, or None if it does not live."""
        ...

    def sources(self, relation: str, twin_id: str) -> Iterable[TwinVersion]:
        """Return the living twins with an edge of this name to `twin_id`."""
        ...
