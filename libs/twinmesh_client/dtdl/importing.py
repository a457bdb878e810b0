"""From DTDL v3 to twin types: interfaces read, their rules checked, and what has no place told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from twinmesh_client.dtdl.dtmi import snake, type_id_of, version_of
from twinmesh_client.dtdl.elements import (
    COMPLEX,
    CONTENTS,
    DTDL_3,
    EXTENSION,
    QUANTITATIVE,
    Element,
    check_element,
    element,
    text_of,
)
from twinmesh_client.dtdl.findings import Finding, Findings, Loss, at, refuse
from twinmesh_client.dtdl.members import GROUPS, Member, Members
from twinmesh_client.dtdl.schemas import Schemas
from twinmesh_client.type_documents import type_from_document
from twinmesh_core.errors import InvalidArgument
from twinmesh_core.registry import TwinType

MAX_INTERFACE_BYTES: Final = 1024 * 1024
MAX_CONTENTS: Final = 100_000
MAX_EXTENDS: Final = 1_024
MAX_DEPTH: Final = 10
_KNOWN: Final = {DTDL_3, QUANTITATIVE, EXTENSION}
_INTERFACE_MEMBERS: Final = (
    "@context", "@id", "@type", "comment", "contents", "description", "displayName", "extends", "schemas", "twinmesh",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Twin types out of a document of DTDL.

    Attributes:
        types: as they would be created; a type comes after the one it extends.
        findings: whatever is not carried as it was.
    """

    types: tuple[TwinType, ...]
    findings: tuple[Finding, ...]


def import_dtdl(document: Any) -> Imported:
    """Return the twin types that a DTDL v3 document (an interface, or a list of them) describes.

    Raises:
        InvalidArgument: it breaks rules of DTDL v3; the field violations name each, with its JSON pointer.
    """
    return _Import(document).run()


@dataclass(slots=True)
class _Interface:
    element: Element
    extends: list[str] = field(default_factory=list)
    members: list[tuple[Element, Member]] = field(default_factory=list)


class _Import:
    def __init__(self, document: Any) -> None:
        self._document = document
        self._findings = Findings()
        self._found: dict[str, _Interface] = {}

    def run(self) -> Imported:
        roots = self._document if isinstance(self._document, list) else [self._document]
        for i, body in enumerate(roots):
            pointer = at("", i) if isinstance(self._document, list) else ""
            if isinstance(body, dict):
                self._take(element(body, pointer, {}), top=True)
            else:
                self._findings.invalid(pointer, "must be an Interface")
        self._findings.refuse_invalid()
        order = self._in_order()
        for found in order:
            self._read_contents(found)
        self._findings.refuse_invalid()
        self._check_names()
        self._findings.refuse_invalid()
        types = tuple(self._type(found) for found in order)
        self._findings.refuse_invalid()
        return Imported(types=types, findings=tuple(self._findings.found))

    def _take(self, e: Element, *, top: bool = False) -> str:
        """Take an interface, and those that stand inside of it; returns its id."""
        if e.kind != "Interface":
            self._findings.invalid(at(e.pointer, "@type"), "must be Interface")
            return ""
        check_element(e, self._findings, named=False)
        self._check_context(e, top=top)
        dtmi = e.body.get("@id")
        if not isinstance(dtmi, str):
            self._findings.invalid(at(e.pointer, "@id"), "is required: the DTMI of the interface")
            return ""
        if dtmi in self._found:
            self._findings.invalid(at(e.pointer, "@id"), f"{dtmi!r} is there twice")
            return dtmi
        for name in e.body:
            if name not in _INTERFACE_MEMBERS:
                self._findings.lost(at(e.pointer, name), "is no member of an interface that is known here")
        if len(json.dumps(e.body, ensure_ascii=False).encode()) > MAX_INTERFACE_BYTES:
            self._findings.invalid(e.pointer, "is longer than 1 MiB")
        found = self._found[dtmi] = _Interface(element=e)
        for value, pointer in e.children("extends"):
            base = self._reference(e, value, pointer)
            if base:
                found.extends.append(base)
        return dtmi

    def _reference(self, e: Element, value: Any, pointer: str) -> str:
        """Return the id of an interface that is named, or that stands here itself."""
        inner = e.child(value, "x")
        if inner is not None:
            return self._take(replace(inner, pointer=pointer))
        if not isinstance(value, str):
            self._findings.invalid(pointer, "must be an interface, or the DTMI of one")
            return ""
        return value

    def _check_context(self, e: Element, *, top: bool) -> None:
        stated = e.body.get("@context", [])
        listed = [stated] if isinstance(stated, str) else stated
        pointer = at(e.pointer, "@context")
        if top and DTDL_3 not in listed:
            self._findings.invalid(pointer, f"must hold {DTDL_3!r}: this reads DTDL version 3")
        elif top and listed[0] != DTDL_3:
            self._findings.invalid(pointer, f"must begin with {DTDL_3!r}")
        elif not top and e.contexts.get("dtmi:dtdl:context") != "3":
            self._findings.invalid(pointer, "an interface inside of another must be of DTDL version 3, too")
        for context in listed if isinstance(listed, list) else ():
            if context not in _KNOWN:
                self._findings.lost(pointer, f"the extension {context!r} is not known here")

    def _in_order(self) -> list[_Interface]:
        """Return the interfaces, each after those it extends; tells circles and depths that are not allowed."""
        ordered: dict[str, _Interface] = {}
        depths: dict[str, int] = {}

        def visit(dtmi: str, path: tuple[str, ...]) -> int:
            found = self._found.get(dtmi)
            if found is None or dtmi in depths:
                return depths.get(dtmi, 0)
            if dtmi in path:
                circle = " extends ".join((*path[path.index(dtmi) :], dtmi))
                self._findings.invalid(at(found.element.pointer, "extends"), f"is a circle: {circle}")
                return 0
            depth = max((1 + visit(base, (*path, dtmi)) for base in found.extends), default=0)
            if depth > MAX_DEPTH:
                self._findings.invalid(at(found.element.pointer, "extends"), f"is deeper than {MAX_DEPTH} levels")
            ordered[dtmi] = found
            depths[dtmi] = depth
            return depth

        if sum(len(found.extends) for found in self._found.values()) > MAX_EXTENDS:
            self._findings.invalid("", f"more than {MAX_EXTENDS:,} interfaces are extended")
            return []
        for dtmi in list(self._found):
            visit(dtmi, ())
            if any(finding.loss is Loss.INVALID for finding in self._findings.found):
                break
        self._findings.refuse_invalid()
        return list(ordered.values())

    def _read_contents(self, found: _Interface) -> None:
        e = found.element
        shared: dict[str, Element] = {}
        for value, pointer in e.children("schemas"):
            schema = e.child(value, "schemas")
            if schema is None or schema.kind not in COMPLEX or not isinstance(schema.body.get("@id"), str):
                self._findings.invalid(pointer, f"must be an object with an @id: one of {', '.join(COMPLEX)}")
            else:
                shared[schema.body["@id"]] = replace(schema, pointer=pointer)
        reader = Members(Schemas(shared, self._findings), self._findings)
        contents = list(e.children("contents"))
        if len(contents) > MAX_CONTENTS:
            self._findings.invalid(at(e.pointer, "contents"), f"holds more than {MAX_CONTENTS:,} elements")
            return
        for value, pointer in contents:
            content = e.child(value, "contents")
            if content is None or content.kind not in CONTENTS:
                self._findings.invalid(pointer, f"must be one of {', '.join(CONTENTS)}")
                continue
            content = replace(content, pointer=pointer)
            check_element(content, self._findings, named=True)
            if content.kind == "Component":
                found.members.extend(self._flattened(content))
            else:
                found.members.append((content, reader.read(content)))

    def _flattened(self, component: Element) -> Iterator[tuple[Element, Member]]:
        """Yield the contents of a component under its name; its interface is not taken as a type of its own."""
        schema = component.body.get("schema")
        pointer = at(component.pointer, "schema")
        inner = component.child(schema, "schema")
        if inner is not None:
            self._take(replace(inner, pointer=pointer))
            schema = inner.body.get("@id")
        found = self._found.get(str(schema))
        if found is None:
            self._findings.invalid(pointer, f"the interface {schema!r} is not in the document")
            return
        prefix = snake(component.name) + "_"
        self._findings.changed(component.pointer, f"its contents become members named {prefix}...")
        for each in self._with_bases(found, set()):
            for value, place in each.element.children("contents"):
                content = each.element.child(value, "contents")
                if content is None or content.kind not in CONTENTS:
                    continue  # told where the interface itself is read
                if content.kind == "Component":
                    self._findings.invalid(
                        pointer, f"{schema!r} holds a component itself, which DTDL v3 does not allow"
                    )
                    continue
                quiet = Findings()
                reader = Members(Schemas(_shared_of(each.element), quiet), quiet)
                yield replace(content, pointer=place), reader.read(replace(content, pointer=place), prefix)

    def _with_bases(self, found: _Interface, seen: set[str]) -> Iterator[_Interface]:
        for base in found.extends:
            if base in self._found and base not in seen:
                seen.add(base)
                yield from self._with_bases(self._found[base], seen)
        yield found

    def _check_names(self) -> None:
        """Tell names that are there twice among an interface's contents, inherited ones included."""
        for found in self._found.values():
            seen: dict[str, str] = {}
            for each in self._with_bases(found, set()):
                for value, pointer in each.element.children("contents"):
                    name = value.get("name") if isinstance(value, dict) else None
                    if isinstance(name, str) and name in seen and each is found:
                        other = seen[name]
                        self._findings.invalid(at(pointer, "name"), f"{name!r} is there already, at {other}")
                    elif isinstance(name, str):
                        seen[name] = pointer

    def _type(self, found: _Interface) -> TwinType:
        e = found.element
        dtmi = str(e.body["@id"])
        major, minor = version_of(dtmi)
        if not major:
            self._findings.changed(at(e.pointer, "@id"), "states no version: it becomes version 1")
        if minor:
            self._findings.lost(at(e.pointer, "@id"), f"versions are whole numbers: {major}.{minor} becomes {major}")
        groups: dict[str, list[dict[str, Any]]] = {group: [] for group in GROUPS}
        for content, member in found.members:
            self._put(groups, member, content)
        extends = self._extends(found, groups)
        body: dict[str, Any] = {
            "type": f"{type_id_of(dtmi)}@{major or 1}",
            "display_name": text_of(e, "displayName", self._findings),
            "description": text_of(e, "description", self._findings),
            "extends": extends,
            **groups,
        }
        body = _with_ours(body, e.body.get("twinmesh"))
        try:
            return type_from_document(body)
        except InvalidArgument as error:
            self._findings.invalid(at(e.pointer, "twinmesh"), error.message)
            return TwinType(twin_type_id="x", version=1)

    def _put(self, groups: Mapping[str, list[dict[str, Any]]], member: Member, content: Element) -> None:
        group = groups.get(member.group)
        if group is None:
            self._findings.invalid(at(content.pointer, "twinmesh", "as"), f"{member.group!r} is no group of members")
            return
        taken = {each["name"] for each in group}
        body = dict(member.body)
        name, number = str(body["name"]), 2
        while body["name"] in taken:
            body["name"] = f"{name[:60]}_{number}"
            number += 1
        if body["name"] != name:
            self._findings.changed(at(content.pointer, "name"), f"becomes {body['name']!r}: {name!r} is taken")
        group.append(body)

    def _extends(self, found: _Interface, groups: Mapping[str, list[dict[str, Any]]]) -> str:
        """Return the one type that is extended; what further ones have is taken over."""
        if not found.extends:
            return ""
        first, *others = found.extends
        pointer = at(found.element.pointer, "extends")
        inherited = set(self._names(first))
        for other in others:
            if other not in self._found:
                self._findings.lost(
                    pointer, f"a type extends one other; {other!r} is not in the document to be taken over"
                )
                continue
            self._findings.changed(pointer, f"a type extends one other; the members of {other!r} are taken over")
            for each in self._with_bases(self._found[other], set()):
                for content, member in each.members:
                    if (member.group, member.body["name"]) not in inherited:
                        self._put(groups, member, content)
                        inherited.add((member.group, member.body["name"]))
        if first not in self._found:
            self._findings.changed(pointer, f"{first!r} is not in the document: its type must exist in the mesh")
        return f"{type_id_of(first)}@{version_of(first)[0] or 1}"

    def _names(self, dtmi: str) -> Iterator[tuple[str, str]]:
        found = self._found.get(dtmi)
        for each in self._with_bases(found, set()) if found is not None else ():
            for _, member in each.members:
                yield member.group, member.body["name"]


def _shared_of(e: Element) -> dict[str, Element]:
    found = {}
    for value, pointer in e.children("schemas"):
        schema = e.child(value, "schemas")
        if schema is not None and isinstance(schema.body.get("@id"), str):
            found[schema.body["@id"]] = replace(schema, pointer=pointer)
    return found


def _with_ours(body: dict[str, Any], stated: Any) -> dict[str, Any]:
    """Return a type document with what our own extension states of the whole type."""
    if not isinstance(stated, Mapping):
        return body
    merged = {name: value for name, value in body.items() if name not in stated.get("unset", ())}
    merged.update(stated.get("set", {}))
    for group, members in stated.get("members", {}).items():
        merged[group] = [*merged.get(group, []), *members]
    for group, names in stated.get("order", {}).items():
        place: Sequence[str] = list(names)
        merged[group] = sorted(
            merged.get(group, []), key=lambda m: place.index(m["name"]) if m["name"] in place else -1
        )
    return merged


__all__ = ["Imported", "import_dtdl", "refuse"]
