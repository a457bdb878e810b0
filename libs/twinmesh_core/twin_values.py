"""A twin's values held to its type: the properties it must state, and those it states."""

from __future__ import annotations

from dataclasses import replace

from twinmesh_core.errors import invalid_field
from twinmesh_core.registry import Twin, TwinType
from twinmesh_core.registry_rules import missing_properties
from twinmesh_core.value_specs import checked_values


def valued(twin: Twin, twin_type: TwinType) -> Twin:
    """Return the twin with its properties as the type holds them, defaults filled in.

    Raises:
        InvalidArgument: a required one is missing, one is unknown, or one is not what the type says.
    """
    kindless = [p.name for p in twin_type.properties if not p.kind]
    missing = [name for name in missing_properties(twin, twin_type) if name in kindless]
    if missing:
        raise invalid_field("twin.attributes", f"must state what the type requires: {', '.join(missing)}")
    typed = [p for p in twin_type.properties if p.kind]
    if not typed and not twin.properties:
        return twin
    for name in kindless:
        if name in twin.properties:
            raise invalid_field(
                f"twin.properties[{name}]", "has no kind in its type; state it among the attributes, as a text"
            )
    found = checked_values(typed, twin.properties, "twin.properties", owner=f"the type {twin_type.reference}")
    return twin if found == twin.properties else replace(twin, properties=found)
