"""The order of a list: by fields of the filter language, twins without a value last, the id breaking ties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from twinmesh_core.errors import invalid_field
from twinmesh_core.ids import quoted
from twinmesh_statesync.domain.filter.compiling import values_of
from twinmesh_statesync.domain.filter.errors import FilterError
from twinmesh_statesync.domain.filter.expressions import Field
from twinmesh_statesync.domain.filter.fields import Kind, kind_of, resolve
from twinmesh_statesync.domain.filter.scanning import Scanner
from twinmesh_statesync.domain.version import TwinVersion

MAX_KEYS: Final = 4
MAX_LENGTH: Final = 512


@dataclass(frozen=True, slots=True)
class SortKey:
    """One field of an order."""

    field: Field
    descending: bool = False


def read_order(text: str) -> tuple[SortKey, ...]:
    """Return the order that ``create_time desc, attributes.site`` names; raises `InvalidArgument`."""
    if not text.strip():
        return ()
    if len(text) > MAX_LENGTH:
        raise invalid_field("order_by", f"must be at most {MAX_LENGTH} characters")
    parts = text.split(",")
    if len(parts) > MAX_KEYS:
        raise invalid_field("order_by", f"must name at most {MAX_KEYS} fields")
    return tuple(_read_key(part) for part in parts)


def _read_key(text: str) -> SortKey:
    scanner = Scanner(text)
    try:
        names = [scanner.name()]
        while scanner.sign("."):
            names.append(scanner.name())
        field = resolve(1, names)
    except FilterError as error:
        problem = error.field_violations[0].description.partition(": ")[2]
        raise invalid_field("order_by", f"{quoted(text.strip())}: {problem}") from None
    descending = scanner.keyword("asc", "desc") == "desc"
    if not scanner.ended:
        raise invalid_field("order_by", f"{quoted(text.strip())}: after a field comes nothing, asc or desc")
    if kind_of(field) in (Kind.KEYS, Kind.ITEM) or field.root in ("relationships", "predicted"):
        raise invalid_field("order_by", f"{quoted(text.strip())} is not one value and has no order")
    return SortKey(field, descending)


def ordered(versions: Sequence[TwinVersion], keys: Sequence[SortKey]) -> list[TwinVersion]:
    """Return the twins in order."""
    found = sorted(versions, key=lambda version: version.twin.twin_id)
    for key in reversed(keys):
        value = _comparable(key.field)
        having = [version for version in found if value(version) is not None]
        lacking = [version for version in found if value(version) is None]
        # Stable in either direction: ties stay in the order of the keys behind.
        found = sorted(having, key=value, reverse=key.descending) + lacking
    return found


def _comparable(field: Field) -> Callable[[TwinVersion], Any]:
    """Return how to find a value of the field that can be compared with any other: numbers first, then texts."""
    values = values_of(field)

    def value(version: TwinVersion) -> Any:
        found = next(iter(values(version)), None)
        if found is None:
            return None
        return (1, 0, found) if isinstance(found, str) else (0, found, "")

    return value
