"""DTDL elements as plain JSON in one form: terms instead of identifiers, single values instead of lists of one.

DTDL is JSON-LD and allows several spellings of the same element; what follows reads one. What breaks a rule that every
element shares (names, identifiers, lengths) is told here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from twinmesh_client.dtdl.dtmi import dtmi_fault, name_fault
from twinmesh_client.dtdl.findings import Findings, at
from twinmesh_client.dtdl.units import SEMANTIC_TYPES, UNITS

MAX_TEXT: Final = 512
EXTENSION: Final = "dtmi:twinmesh:extension:twinType;1"
"""Context of our own extension: what DTDL has no place for stands in members named `twinmesh`."""
ADJUNCT: Final = "TwinmeshAdjunct"
"""Co-type of elements with such a member."""
DTDL_3: Final = "dtmi:dtdl:context;3"
QUANTITATIVE: Final = "dtmi:dtdl:extension:quantitativeTypes;1"
PRIMITIVES: Final = (
    "boolean", "date", "dateTime", "double", "duration", "float", "integer", "long", "string", "time",
)  # fmt: skip
GEOSPATIAL: Final = ("lineString", "multiLineString", "multiPoint", "multiPolygon", "point", "polygon")
COMPLEX: Final = ("Array", "Enum", "Map", "Object")
CONTENTS: Final = ("Command", "Component", "Property", "Relationship", "Telemetry")
_TERM: Final = re.compile(r"dtmi:dtdl:(?:property|class|instance:[A-Za-z]+):([A-Za-z]+);3")
_GEO_TERM: Final = re.compile(r"dtmi:standard:schema:geospatial:([A-Za-z]+);3")
_LISTS: Final = ("contents", "extends", "schemas", "fields", "enumValues", "properties")


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One element in the one form.

    Attributes:
        body: its members by term.
        kind: its material type, e.g. ``Telemetry``; "" = it states none.
        cotypes: its other types.
        pointer: where it stands in the document.
        contexts: the active context's values without versions, and their versions.
    """

    body: Mapping[str, Any]
    kind: str
    cotypes: tuple[str, ...]
    pointer: str
    contexts: Mapping[str, str]

    @property
    def name(self) -> str:
        """Its name; "" = it has none."""
        return str(self.body.get("name", ""))

    def child(self, body: Any, member: str, *more: str | int) -> Element | None:
        """Return an element that stands in a member of this one; None = it is no object."""
        return element(body, at(self.pointer, member, *more), self.contexts) if isinstance(body, dict) else None

    def children(self, member: str) -> Iterator[tuple[Any, str]]:
        """Yield the values of a member that holds a set, each with its place."""
        found = self.body.get(member, [])
        if isinstance(found, list):
            for i, value in enumerate(found):
                yield value, at(self.pointer, member, i)
        else:
            yield found, at(self.pointer, member)


def element(body: Mapping[str, Any], pointer: str, inherited: Mapping[str, str]) -> Element:
    """Return an object as an element; `inherited` is the active context around it."""
    members: dict[str, Any] = {}
    for name, value in body.items():
        term = _term(name)
        single = value
        if term not in _LISTS and not term.startswith("@") and isinstance(value, list) and len(value) == 1:
            single = value[0]
        members[term] = _literal(single) if term not in ("displayName", "description", "twinmesh") else value
    types = members.get("@type", [])
    named = [_term(each) for each in (types if isinstance(types, list) else [types]) if isinstance(each, str)]
    known = [each for each in named if each in _MATERIAL]
    return Element(
        body=members,
        kind=known[0] if known else "",
        cotypes=tuple(each for each in named if each not in _MATERIAL),
        pointer=pointer,
        contexts={**inherited, **_contexts(members.get("@context", []))},
    )


_MATERIAL: Final = (
    "Interface", *CONTENTS, *COMPLEX, "CommandRequest", "CommandResponse", "EnumValue", "Field", "MapKey", "MapValue",
)  # fmt: skip


def schema_term(schema: Any) -> Any:
    """Return a schema given as a string by its term; anything else unchanged."""
    if not isinstance(schema, str):
        return schema
    found = _GEO_TERM.fullmatch(schema)
    return found[1] if found is not None else _term(schema)


def check_element(e: Element, findings: Findings, *, named: bool) -> None:
    """Tell what breaks a rule that all elements share."""
    if named:
        fault = name_fault(e.body.get("name"))
        if fault:
            findings.invalid(at(e.pointer, "name"), fault)
    if "@id" in e.body:
        fault = dtmi_fault(e.body["@id"], interface=e.kind == "Interface")
        if fault:
            findings.invalid(at(e.pointer, "@id"), fault)
    for member in ("displayName", "description"):
        for text in _texts(e.body.get(member)).values():
            if len(text) > MAX_TEXT:
                findings.invalid(at(e.pointer, member), f"is longer than {MAX_TEXT} characters")
    comment = e.body.get("comment", "")
    if not isinstance(comment, str) or len(comment) > MAX_TEXT:
        findings.invalid(at(e.pointer, "comment"), f"must be a text of at most {MAX_TEXT} characters")
    elif comment:
        findings.lost(at(e.pointer, "comment"), "twin types have no comments for authors")
    if "@id" in e.body and e.kind != "Interface" and e.kind in CONTENTS:
        findings.lost(at(e.pointer, "@id"), "members of twin types are known by their names alone")
    _check_cotypes(e, findings)


def _check_cotypes(e: Element, findings: Findings) -> None:
    for cotype in e.cotypes:
        quantity = cotype in SEMANTIC_TYPES
        if quantity and _versionless(QUANTITATIVE) not in e.contexts:
            findings.invalid(at(e.pointer, "@type"), f"{cotype} needs {QUANTITATIVE!r} in @context, after {DTDL_3!r}")
        elif not quantity and not (cotype == ADJUNCT and _versionless(EXTENSION) in e.contexts):
            findings.lost(at(e.pointer, "@type"), f"the co-type {cotype} is of an extension that is not known here")
    unit = e.body.get("unit")
    quantities = [SEMANTIC_TYPES[c] for c in e.cotypes if c in SEMANTIC_TYPES]
    if unit is None:
        if quantities:
            findings.invalid(at(e.pointer, "unit"), f"is required with the semantic type {e.cotypes[0]}")
        return
    if not quantities:
        findings.invalid(at(e.pointer, "unit"), "needs a semantic type in @type, e.g. Temperature")
    elif unit not in UNITS[quantities[0]]:
        allowed = ", ".join(UNITS[quantities[0]])
        findings.invalid(at(e.pointer, "unit"), f"{unit!r} is no {quantities[0]}; there are: {allowed}")


def text_of(e: Element, member: str, findings: Findings) -> str:
    """Return a text for people, English where there are several; the other languages are told as lost."""
    texts = _texts(e.body.get(member))
    if not texts:
        return ""
    language = next((each for each in texts if each.partition("-")[0] in ("", "en")), next(iter(texts)))
    others = ", ".join(each for each in texts if each != language)
    if others:
        findings.lost(
            at(e.pointer, member), f"only one language is carried ({language or 'the default'}), not: {others}"
        )
    return texts[language]


def _texts(value: Any) -> dict[str, str]:
    """Return a localizable string by language."""
    if isinstance(value, str):
        return {"": value}
    if isinstance(value, dict) and "@value" in value:
        return {str(value.get("@language", "")): str(value["@value"])}
    if isinstance(value, dict):
        return {str(language): text for language, text in value.items() if isinstance(text, str)}
    if isinstance(value, list):
        found: dict[str, str] = {}
        for each in value:
            found.update(_texts(each))
        return found
    return {}


def _literal(value: Any) -> Any:
    """Unwrap a literal written as an object with a type."""
    if isinstance(value, dict) and "@value" in value and set(value) <= {"@value", "@type"}:
        return value["@value"]
    return value


def _term(name: str) -> str:
    found = _TERM.fullmatch(name)
    return found[1] if found is not None else name


def _contexts(value: Any) -> dict[str, str]:
    listed = value if isinstance(value, list) else [value]
    return {_versionless(each): each.partition(";")[2] for each in listed if isinstance(each, str)}


def _versionless(context: str) -> str:
    return context.partition(";")[0]
