"""Twins as files: JSON (a list), JSON lines, or CSV, as `twinmesh twins create --file` reads them.

A document of a twin::

    {"twin_id": "P1", "type": "pump@1", "time_zone": "Europe/Berlin", "display_name": "Pump 1",
     "attributes": {"site": "north"}, "properties": {"power": 4}, "relationships": {"feeds": ["T1"]},
     "geometry": {"uri": "https://example.org/pump.glb"}}

A CSV file has the columns twin_id, type, time_zone, display_name and any of attributes.KEY, properties.NAME and
relationships.NAME (several targets separated by ``;``); an empty cell is not stated.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TextIO

from twinmesh_client.type_documents import geometry_from_document, known_fields, value_of
from twinmesh_core.errors import InvalidArgument, invalid_field
from twinmesh_core.registry import Relationship, Twin, TwinType
from twinmesh_core.value_specs import ValueKind
from twinmesh_core.values import Value

_FIELDS: Final = (
    "twin_id", "type", "time_zone", "display_name", "attributes", "properties", "relationships", "geometry",
)  # fmt: skip
_PLAIN: Final = ("twin_id", "type", "time_zone", "display_name")
_GROUPS: Final = ("attributes", "properties", "relationships")

TypeOf = Callable[[str], TwinType | None]
"""The type of a reference (``pump``, ``pump@2``); None where it is not known, so that the mesh says what is wrong."""


def twin_from_document(body: Any, at: str, *, type: str = "") -> Twin:  # noqa: A002  the word of the document
    """Return the twin that a JSON object describes; `type` is taken where it states none.

    Raises:
        InvalidArgument: names the entry that cannot be read.
    """
    if not isinstance(body, Mapping):
        raise InvalidArgument(f"{at} must be an object")
    known_fields(body, _FIELDS, at)
    texts = {name: body.get(name, "") for name in _PLAIN}
    if not all(isinstance(text, str) for text in texts.values()):
        raise InvalidArgument(f"{at}: {', '.join(_PLAIN)} are texts")
    reference, _, version = (texts["type"] or type).partition("@")
    if not reference or (version and not version.isdigit()):
        raise invalid_field(f"{at}.type", 'must name the twin\'s type, e.g. "pump" or "pump@1"')
    attributes, properties = body.get("attributes", {}), body.get("properties", {})
    if not isinstance(attributes, Mapping) or not all(isinstance(text, str) for text in attributes.values()):
        raise invalid_field(f"{at}.attributes", "must be an object of texts")
    if not isinstance(properties, Mapping):
        raise invalid_field(f"{at}.properties", "must be an object of values")
    return Twin(
        twin_id=texts["twin_id"],
        twin_type_id=reference,
        twin_type_version=int(version or 0),
        display_name=texts["display_name"],
        time_zone=texts["time_zone"],
        attributes=dict(attributes),
        properties={n: value_of(v, ValueKind.UNSPECIFIED, f"{at}.properties[{n}]") for n, v in properties.items()},
        relationships=tuple(_edges(body.get("relationships", {}), at)),
        geometry=geometry_from_document(body["geometry"], f"{at}.geometry") if "geometry" in body else None,
    )


def read_twins(file: TextIO, form: str, *, type: str = "", type_of: TypeOf = lambda _: None) -> Iterator[Twin]:  # noqa: A002
    """Yield the twins of a file.

    Args:
        file: opened as text (CSV with ``newline=""``).
        form: ``json``, ``jsonl`` or ``csv``.
        type: taken where a twin states none.
        type_of: tells the kinds of properties, which a CSV cell does not.

    Raises:
        InvalidArgument: names the line or entry that cannot be read.
    """
    if form == "json":
        found = _parsed(file.read(), "the file")
        if not isinstance(found, list):
            raise InvalidArgument("the file must hold a list of twins")
        for i, body in enumerate(found):
            yield twin_from_document(body, f"twins[{i}]", type=type)
    elif form == "jsonl":
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield twin_from_document(_parsed(line, f"line {number}"), f"line {number}", type=type)
    else:
        yield from _csv(file, type, type_of)


def value_of_text(text: str, twin_type: TwinType, name: str) -> Value:
    """Return what a text says as a value of a property of a type; raises `InvalidArgument`."""
    spec = twin_type.property(name)
    return _cell(text, spec.kind if spec is not None else ValueKind.TEXT, f"property {name}")


def _csv(file: TextIO, type_: str, type_of: TypeOf) -> Iterator[Twin]:
    rows = csv.DictReader(file, strict=True)
    wrong = [name for name in rows.fieldnames or () if name not in _PLAIN and name.partition(".")[0] not in _GROUPS]
    if "twin_id" not in (rows.fieldnames or ()) or wrong:
        found = f"; {wrong[0]!r} is none of them" if wrong else ""
        raise InvalidArgument(
            f"the first line must name the columns: {', '.join(_PLAIN)}, attributes.KEY, properties.NAME, "
            f"relationships.NAME{found}"
        )
    try:
        for row in rows:
            yield _from_row(row, f"line {rows.line_num}", type_, type_of)
    except csv.Error as error:
        raise InvalidArgument(f"line {rows.line_num}: {error}") from None


def _from_row(row: Mapping[str, Any], at: str, type_: str, type_of: TypeOf) -> Twin:
    if None in row or any(cell is None for cell in row.values()):
        raise InvalidArgument(f"{at} has more or fewer cells than there are columns")
    body: dict[str, Any] = {name: row[name] for name in _PLAIN if row.get(name)}
    kind = type_of(body.get("type") or type_)
    for column, cell in row.items():
        group, _, name = column.partition(".")
        if group not in _GROUPS or not cell:
            continue
        value: Any = cell
        if group == "relationships":
            value = [target.strip() for target in cell.split(";") if target.strip()]
        elif group == "properties":
            spec = kind.property(name) if kind is not None else None
            value = _cell(cell, spec.kind if spec is not None else ValueKind.TEXT, f"{at}, {column}")
        body.setdefault(group, {})[name] = value
    return twin_from_document(body, at, type=type_)


def _cell(text: str, kind: ValueKind, at: str) -> Value:
    """Return what a cell says as a value of a kind; raises `InvalidArgument`."""
    try:
        if kind is ValueKind.NUMBER:
            return float(text)
        if kind is ValueKind.INTEGER:
            return int(text)
        if kind is ValueKind.BOOL:
            return {"true": True, "false": False, "1": True, "0": False}[text.strip().lower()]
    except (ValueError, KeyError):
        raise InvalidArgument(f"{at}: {text!r} is no {kind.name.lower()}") from None
    return value_of(text, kind, at)


def _edges(found: Any, at: str) -> Iterator[Relationship]:
    """Yield the edges of ``{"feeds": ["T1", "T2"]}``; a single target may stand without the list."""
    if not isinstance(found, Mapping):
        raise invalid_field(f"{at}.relationships", 'must be an object, e.g. {"feeds": ["T1"]}')
    for name, targets in found.items():
        each = [targets] if isinstance(targets, str) else targets
        if not isinstance(each, list) or not all(isinstance(target, str) for target in each):
            raise invalid_field(f"{at}.relationships[{name}]", "must be the id of a twin, or a list of them")
        for target in each:
            yield Relationship(name=name, target_twin_id=target)


def _parsed(text: str, at: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"{at}, line {error.lineno}: {error.msg}") from None
