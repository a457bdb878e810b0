"""Which types a twin type is one of."""

from __future__ import annotations

from twinmesh_core.registry import TwinType


def lineage(twin_type: TwinType) -> tuple[str, ...]:
    """Return the ids of the type and of every type that it extends."""
    return (twin_type.twin_type_id, *twin_type.ancestors)
