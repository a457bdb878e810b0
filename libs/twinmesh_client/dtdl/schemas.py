"""Schemas of DTDL: what a value is, with the rules of complex schemas, and which kinds of ours hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from twinmesh_client.dtdl.dtmi import name_fault
from twinmesh_client.dtdl.elements import (
    COMPLEX,
    EXTENSION,
    GEOSPATIAL,
    PRIMITIVES,
    Element,
    check_element,
    schema_term,
)
from twinmesh_client.dtdl.findings import Findings, at
from twinmesh_core.values import Value

MAX_DEPTH: Final = 5
NUMERIC: Final = ("double", "float", "integer", "long")
_CHANNEL_KINDS: Final = {"double": "gauge", "float": "gauge", "boolean": "bool", "enum_integer": "state"}
_VALUE_KINDS: Final = {
    "double": "number", "float": "number", "integer": "integer", "long": "integer", "boolean": "bool",
    "enum_integer": "integer",
}  # fmt: skip
_CALENDAR: Final = ("date", "dateTime", "duration", "time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a value is.

    Attributes:
        form: a primitive term, ``enum_integer``, ``enum_string``, ``array``, ``map``, ``object`` or ``geospatial``.
        fields: the fields of an object.
        allowed: the values of an enum.
    """

    form: str
    fields: tuple[Element, ...] = ()
    allowed: tuple[Value, ...] = ()

    @property
    def document(self) -> bool:
        """Whether it becomes a JSON document of ours."""
        return self.form in ("array", "map", "object", "geospatial")

    def channel_kind(self, unit: str) -> str:
        """Return the kind of a channel that holds it; whole numbers with a unit are quantities."""
        if self.form in ("integer", "long"):
            return "gauge" if unit else "state"
        return "json" if self.document else _CHANNEL_KINDS.get(self.form, "text")

    def value_kind(self) -> str:
        """Return the kind of a property or argument that holds it."""
        return "json" if self.document else _VALUE_KINDS.get(self.form, "text")


class Schemas:
    """Reads the schemas of one interface.

    Args:
        shared: the interface's `schemas` by id.
        findings: told what breaks a rule, or is not carried.
    """

    def __init__(self, shared: Mapping[str, Element], findings: Findings) -> None:
        self._shared = shared
        self._findings = findings

    def shape(self, owner: Element, member: str = "schema") -> Shape:
        """Return what the schema in a member of an element says; a broken one reads as text."""
        return self._shape(owner.body.get(member), owner, at(owner.pointer, member), (), 0)

    def told(self, shape: Shape, pointer: str) -> None:
        """Tell what of a shape is not held to once it is carried."""
        if shape.document:
            self._findings.lost(pointer, f"its structure ({shape.form}) is not checked: it is kept as a JSON document")
        elif shape.form in _CALENDAR:
            self._findings.lost(pointer, f"its format ({shape.form}) is not checked: it is kept as a text")

    def _shape(self, schema: Any, owner: Element, pointer: str, path: tuple[str, ...], depth: int) -> Shape:
        schema = schema_term(schema)
        if isinstance(schema, str):
            if schema in PRIMITIVES:
                return Shape(form=schema)
            if schema in GEOSPATIAL:
                return Shape(form="geospatial")
            found = self._shared.get(schema)
            if found is None:
                self._findings.invalid(pointer, f"{schema!r} is no schema of DTDL and none of this interface's schemas")
                return Shape(form="string")
            if schema in path:
                self._findings.invalid(pointer, f"{schema!r} contains itself")
                return Shape(form="string")
            return self._complex(found, (*path, schema), depth + 1)
        inner = owner.child(schema, "schema") if isinstance(schema, dict) else None
        if inner is None:
            self._findings.invalid(pointer, "is required: the name of a schema, or a complex one")
            return Shape(form="string")
        return self._complex(replace(inner, pointer=pointer), path, depth + 1)

    def _complex(self, e: Element, path: tuple[str, ...], depth: int) -> Shape:
        check_element(e, self._findings, named=False)
        if depth > MAX_DEPTH:
            self._findings.invalid(e.pointer, f"complex schemas are nested deeper than {MAX_DEPTH}")
            return Shape(form="string")
        if e.kind == "Enum":
            return self._enum(e)
        if e.kind == "Array":
            self._shape(e.body.get("elementSchema"), e, at(e.pointer, "elementSchema"), path, depth)
            return Shape(form="array")
        if e.kind == "Map":
            self._map(e, path, depth)
            return Shape(form="map")
        if e.kind == "Object":
            return Shape(form="object", fields=tuple(self._fields(e, path, depth)))
        self._findings.invalid(e.pointer, f"@type must be one of {', '.join(COMPLEX)}")
        return Shape(form="string")

    def _fields(self, e: Element, path: tuple[str, ...], depth: int) -> list[Element]:
        found: list[Element] = []
        for body, pointer in e.children("fields"):
            field = e.child(body, "fields")
            if field is None:
                self._findings.invalid(pointer, "must be an object with a name and a schema")
                continue
            field = replace(field, pointer=pointer)
            check_element(field, self._findings, named=True)
            if any(field.name == other.name for other in found):
                self._findings.invalid(at(pointer, "name"), f"{field.name!r} is there twice")
            self._shape(field.body.get("schema"), field, at(pointer, "schema"), path, depth)
            found.append(field)
        return found

    def _map(self, e: Element, path: tuple[str, ...], depth: int) -> None:
        key, value = e.child(e.body.get("mapKey"), "mapKey"), e.child(e.body.get("mapValue"), "mapValue")
        for part, member in ((key, "mapKey"), (value, "mapValue")):
            if part is None:
                self._findings.invalid(at(e.pointer, member), "is required: an object with a name and a schema")
            else:
                check_element(part, self._findings, named=True)
        if key is not None and schema_term(key.body.get("schema")) != "string":
            self._findings.invalid(at(key.pointer, "schema"), "must be string")
        if value is not None:
            self._shape(value.body.get("schema"), value, at(value.pointer, "schema"), path, depth)

    def _enum(self, e: Element) -> Shape:
        held = schema_term(e.body.get("valueSchema"))
        if held not in ("integer", "string"):
            self._findings.invalid(at(e.pointer, "valueSchema"), "must be integer or string")
        allowed: list[Value] = []
        labels: list[str] = []
        for body, pointer in e.children("enumValues"):
            value = body.get("enumValue") if isinstance(body, dict) else None
            label = body.get("name") if isinstance(body, dict) else None
            fault = name_fault(label)
            if fault:
                self._findings.invalid(at(pointer, "name"), fault)
            fits = isinstance(value, int if held == "integer" else str) and not isinstance(value, bool)
            if not fits or not isinstance(value, int | str):
                self._findings.invalid(at(pointer, "enumValue"), f"must be a value of {held}")
            elif value in allowed or label in labels:
                self._findings.invalid(pointer, f"{label!r} or its value is there twice")
            else:
                allowed.append(value)
                labels.append(str(label))
            for member in ("displayName", "description", "comment"):
                if isinstance(body, dict) and member in body:
                    self._findings.lost(at(pointer, member), "values of an enum have no texts of their own")
        renamed = [label for label, value in zip(labels, allowed, strict=True) if label != value]
        if renamed and EXTENSION.partition(";")[0] not in e.contexts:
            self._findings.lost(at(e.pointer, "enumValues"), "values are kept, their names are not")
        return Shape(form=f"enum_{held}" if held == "integer" else "enum_string", allowed=tuple(allowed))
