"""Changing parts of a twin: what an update mask may name, and the twin that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from twinmesh_core.errors import invalid_field
from twinmesh_core.ids import quoted
from twinmesh_core.registry import Twin, TwinType

ValueT = TypeVar("ValueT")
MAX_PATHS: Final = 256
_WHOLE: Final = ("display_name", "time_zone", "geometry", "attributes", "properties", "relationships")
_BY_NAME: Final = ("attributes", "properties", "relationships")


def split_path(path: str) -> tuple[str, str]:
    """Return field and name of a path; the name may stand in backticks, and may itself hold dots."""
    field, _, name = path.partition(".")
    quoted_name = len(name) >= 2 and name[0] == name[-1] == "`"
    return field, name[1:-1] if quoted_name else name


def check_paths(paths: Sequence[str], at: str = "update_mask") -> None:
    """Refuse a mask that is empty, too long, or names what cannot be changed; raises `InvalidArgument`."""
    choices = f"{', '.join(_WHOLE)}, or one by name: attributes.KEY, properties.NAME, relationships.NAME"
    if not paths:
        raise invalid_field(at, f"is required: name what changes, of {choices}")
    if len(paths) > MAX_PATHS:
        raise invalid_field(at, f"must hold at most {MAX_PATHS} paths")
    for path in paths:
        field, name = split_path(path)
        if field not in _WHOLE or (field not in _BY_NAME and "." in path) or ("." in path and not name):
            raise invalid_field(at, f"{quoted(path)} cannot be changed; what can: {choices}")


def updated(current: Twin, wanted: Twin, paths: Sequence[str], twin_type: TwinType) -> Twin:
    """Return `current` with what `paths` name taken from `wanted`; what that does not hold goes.

    Raises:
        InvalidArgument: the mask cannot be, or names a property that the type does not have.
    """
    check_paths(paths)
    found = current
    for path in paths:
        field, name = split_path(path)
        if name:
            found = _BY_NAME_CHANGES[field](found, wanted, name, twin_type)
        else:
            found = replace(found, **{field: getattr(wanted, field)})
    return found


def _attribute(found: Twin, wanted: Twin, name: str, _: TwinType) -> Twin:
    return replace(found, attributes=_with(found.attributes, wanted.attributes, name))


def _property(found: Twin, wanted: Twin, name: str, twin_type: TwinType) -> Twin:
    if twin_type.property(name) is None:
        has = ", ".join(p.name for p in twin_type.properties) or "none"
        raise invalid_field("update_mask", f"{quoted(name)} is no property of {twin_type.reference}; it has: {has}")
    return replace(found, properties=_with(found.properties, wanted.properties, name))


def _relationships(found: Twin, wanted: Twin, name: str, _: TwinType) -> Twin:
    others = tuple(edge for edge in found.relationships if edge.name != name)
    return replace(found, relationships=others + tuple(edge for edge in wanted.relationships if edge.name == name))


def _with(found: Mapping[str, ValueT], wanted: Mapping[str, ValueT], name: str) -> Mapping[str, ValueT]:
    kept = {key: value for key, value in found.items() if key != name}
    return {**kept, name: wanted[name]} if name in wanted else kept


_BY_NAME_CHANGES: Final[dict[str, Callable[[Twin, Twin, str, TwinType], Twin]]] = {
    "attributes": _attribute,
    "properties": _property,
    "relationships": _relationships,
}
