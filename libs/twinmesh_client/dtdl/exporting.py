"""From twin types to DTDL v3; what DTDL has no place for goes into an extension of our own, or is told as lost.

The extension (context ``dtmi:twinmesh:extension:twinType;1``) adds the co-type ``TwinmeshAdjunct`` and a member
``twinmesh`` to interfaces and contents. It states exactly what reading the plain DTDL would not give back, in the form
of our type documents, so that a round trip is exact. Without it the document is plain DTDL v3 with QuantitativeTypes,
which any DTDL parser takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from twinmesh_client.dtdl.dtmi import dtmi_of, name_fault, type_id_of, version_of
from twinmesh_client.dtdl.elements import ADJUNCT, DTDL_3, EXTENSION, MAX_TEXT, QUANTITATIVE, element
from twinmesh_client.dtdl.findings import Finding, Findings, at
from twinmesh_client.dtdl.importing import MAX_INTERFACE_BYTES
from twinmesh_client.dtdl.members import GROUPS, Members
from twinmesh_client.dtdl.schemas import Schemas
from twinmesh_client.dtdl.units import semantic_of
from twinmesh_client.type_documents import type_document
from twinmesh_core.errors import InvalidArgument
from twinmesh_core.registry import TwinType, parse_reference
from twinmesh_core.units import TABLE

_CHANNEL_SCHEMAS: Final = {"gauge": "double", "counter": "double", "state": "long", "bool": "boolean"}
_VALUE_SCHEMAS: Final = {"number": "double", "integer": "long", "bool": "boolean"}
_INT32: Final = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A document of DTDL out of twin types.

    Attributes:
        document: one interface, or a list of them.
        findings: whatever plain DTDL does not carry; with the extension, all of it stands there.
    """

    document: dict[str, Any] | list[dict[str, Any]]
    findings: tuple[Finding, ...]


def export_dtdl(types: Sequence[tuple[TwinType, TwinType | None]], *, extension: bool = True) -> Exported:
    """Return twin types as DTDL v3.

    Args:
        types: each as it was written, and the type it extends, resolved (None = it extends none).
        extension: keep what DTDL has no place for in an extension of our own; False = plain DTDL.

    Raises:
        InvalidArgument: a type is larger than an interface may be.
    """
    findings = Findings()
    many = len(types) != 1
    interfaces = []
    for i, (declared, base) in enumerate(types):
        pointer = at("", i) if many else ""
        interfaces.append(_Export(declared, base, pointer, findings, extension).run())
    return Exported(document=interfaces if many else interfaces[0], findings=tuple(findings.found))


class _Export:
    def __init__(
        self, declared: TwinType, base: TwinType | None, pointer: str, findings: Findings, extension: bool
    ) -> None:
        self._body = type_document(declared)
        self._declared = declared
        self._inherited = _names(base) if base is not None else set()
        self._pointer = pointer
        self._findings = findings
        self._extension = extension
        # As the base's own export may have named them: which of its names it found taken is not known here.
        self._taken = {taken for _, name in self._inherited for taken in (name, _dtdl_name(name))}
        quiet = Findings()
        self._reader = Members(Schemas({}, quiet), quiet)

    def run(self) -> dict[str, Any]:
        declared = self._declared
        contexts = [DTDL_3, QUANTITATIVE] + ([EXTENSION] if self._extension else [])
        ours: dict[str, Any] = {}
        contents = []
        for group in GROUPS:
            members = self._body.get(group, [])
            here = [member for member in members if (group, member["name"]) not in self._inherited]
            anew = [member for member in members if (group, member["name"]) in self._inherited]
            places = {member["name"]: i for i, member in enumerate(members)}
            for member in here:
                contents.append(self._content(group, member, at(self._pointer, group, places[member["name"]])))
            for member in anew:
                self._tell(
                    at(self._pointer, group, places[member["name"]]), "DTDL has no overriding of inherited contents"
                )
            if anew:
                ours.setdefault("members", {})[group] = anew
                ours.setdefault("order", {})[group] = [member["name"] for member in members]
        interface: dict[str, Any] = {
            "@context": contexts,
            "@id": dtmi_of(declared.twin_type_id, declared.version),
            "@type": "Interface",
        }
        self._texts(interface)
        if declared.extends:
            base = parse_reference(declared.extends) or (declared.extends, 1)
            interface["extends"] = dtmi_of(*base)
        if contents:
            interface["contents"] = contents
        ours |= self._difference(interface)
        if ours and self._extension:
            interface["@type"] = ["Interface", ADJUNCT]
            interface["twinmesh"] = ours
        if len(json.dumps(interface, ensure_ascii=False).encode()) > MAX_INTERFACE_BYTES:
            raise InvalidArgument(f"{declared.reference} is longer than the 1 MiB that an interface may have")
        return interface

    def _texts(self, interface: dict[str, Any]) -> None:
        for member, text in (
            ("displayName", self._body["display_name"]),
            ("description", self._body.get("description", "")),
        ):
            if text:
                interface[member] = self._short(text, at(self._pointer, member))

    def _difference(self, interface: Mapping[str, Any]) -> dict[str, Any]:
        """Return what reading the interface would not give back of the type itself."""
        extends = interface.get("extends", "")
        read = {
            "type": f"{type_id_of(interface['@id'])}@{version_of(interface['@id'])[0]}",
            "display_name": interface.get("displayName", ""),
            "description": interface.get("description", ""),
            "extends": f"{type_id_of(extends)}@{version_of(extends)[0]}" if extends else "",
        }
        wanted = {name: self._body.get(name, "") for name in read}
        changed = {name: text for name, text in wanted.items() if text != read[name]}
        for name in changed:
            if name in ("type", "extends"):
                self._tell(at(self._pointer, name), f"is not a DTMI by itself: {read[name]!r} stands in its place")
        if "geometry" in self._body:
            changed["geometry"] = self._body["geometry"]
            self._tell(at(self._pointer, "geometry"), "DTDL has no reference to a shape")
        if "rules" in self._body:
            changed["rules"] = self._body["rules"]
            self._tell(at(self._pointer, "rules"), "DTDL has no alarm rules")
        return {"set": changed} if changed else {}

    def _content(self, group: str, member: dict[str, Any], pointer: str) -> dict[str, Any]:
        content = {
            "channels": self._channel,
            "properties": self._property,
            "commands": self._command,
            "relationships": self._relationship,
        }[group](member, pointer)
        content["name"] = self._name(group, member["name"], pointer)
        if member.get("description"):
            content["description"] = self._short(member["description"], at(pointer, "description"))
        read = self._reader.read(element(content, "", _ACTIVE))
        stated = _stated(member, read.body)
        self._tell_lost(stated, pointer)
        if read.group != group:
            stated["as"] = group
        if stated and self._extension:
            types = content["@type"]
            content["@type"] = [*(types if isinstance(types, list) else [types]), ADJUNCT]
            content["twinmesh"] = stated
        return content

    def _tell_lost(self, stated: Mapping[str, Any], pointer: str) -> None:
        for name in stated.get("set", {}):
            if name not in ("name", "description"):
                self._tell(at(pointer, name), _REASONS.get(name, "DTDL has no place for it"))
        for name in stated.get("unset", ()):
            self._tell(at(pointer, name), "DTDL states more than the type does")

    def _channel(self, member: Mapping[str, Any], pointer: str) -> dict[str, Any]:
        kind = "Property" if member.get("controllable") else "Telemetry"
        content: dict[str, Any] = {"@type": kind, "name": "", "schema": _CHANNEL_SCHEMAS.get(member["kind"], "string")}
        if member.get("controllable"):
            content["writable"] = True
        return _with_unit(content, member.get("unit", ""))

    def _property(self, member: Mapping[str, Any], pointer: str) -> dict[str, Any]:
        content = {"@type": "Property", "name": "", "schema": _value_schema(member)}
        return _with_unit(content, member.get("unit", ""))

    def _command(self, member: Mapping[str, Any], pointer: str) -> dict[str, Any]:
        content: dict[str, Any] = {"@type": "Command", "name": ""}
        args = member.get("args", [])
        if len(args) == 1:
            content["request"] = self._payload(
                args[0], {"@type": "CommandRequest"}, args[0]["name"], at(pointer, "args", 0)
            )
        elif args:
            names: set[str] = set()
            fields = []
            for j, arg in enumerate(args):
                name = _free(_dtdl_name(arg["name"]), names)
                names.add(name)
                fields.append(self._payload(arg, {"@type": "Field"}, name, at(pointer, "args", j)))
            content["request"] = {"name": "args", "schema": {"@type": "Object", "fields": fields}}
        return content

    def _payload(self, arg: Mapping[str, Any], head: dict[str, Any], name: str, pointer: str) -> dict[str, Any]:
        payload = _with_unit({**head, "name": _dtdl_name(name), "schema": _value_schema(arg)}, arg.get("unit", ""))
        if arg.get("description"):
            payload["description"] = self._short(arg["description"], at(pointer, "description"))
        return payload

    def _relationship(self, member: Mapping[str, Any], pointer: str) -> dict[str, Any]:
        content: dict[str, Any] = {"@type": "Relationship", "name": ""}
        if member.get("target"):
            # Without a version: targets may be of any.
            content["target"] = dtmi_of(member["target"], 1).rpartition(";")[0]
        if member.get("max_count"):
            content["maxMultiplicity"] = member["max_count"]
        return content

    def _name(self, group: str, name: str, pointer: str) -> str:
        found = _dtdl_name(name)
        if found in self._taken:
            # By a hash, not by counting: types that extend this one do not know which names were counted up here.
            key = f"{self._declared.reference}/{group}/{name}"
            found = f"{found}_x{blake2b(key.encode(), digest_size=6).hexdigest()}"
        self._taken.add(found)
        if found != name:
            self._tell(at(pointer, "name"), f"stands there as {found!r}: names are unique among all contents")
        return found

    def _short(self, text: str, pointer: str) -> str:
        if len(text) <= MAX_TEXT:
            return text
        self._tell(pointer, f"is cut to the {MAX_TEXT} characters that DTDL allows")
        return text[: MAX_TEXT - 1] + "…"

    def _tell(self, pointer: str, reason: str) -> None:
        if self._extension:
            self._findings.changed(pointer, f"{reason}; it is kept in the twinmesh extension")
        else:
            self._findings.lost(pointer, reason)


_ACTIVE: Final = {DTDL_3.partition(";")[0]: "3", QUANTITATIVE.partition(";")[0]: "1", EXTENSION.partition(";")[0]: "1"}
_REASONS: Final = {
    "kind": "DTDL has no such kind",
    "unit": "QuantitativeTypes has no such unit",
    "args": "DTDL states less of arguments",
    "required_args": "DTDL states less of arguments",
    "allowed": "an enum of DTDL holds 32-bit integers or strings, each with a name",
    "target": "is not a DTMI by itself",
}


def _names(base: TwinType) -> set[tuple[str, str]]:
    return {(group, member.name) for group in GROUPS for member in getattr(base, group)}


def _stated(member: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a member states that reading its content does not give back, and what that states beyond."""
    changed = {name: value for name, value in member.items() if name not in read or not _same(value, read[name])}
    beyond = [name for name in read if name not in member]
    return {**({"set": changed} if changed else {}), **({"unset": beyond} if beyond else {})}


def _same(left: Any, right: Any) -> bool:
    """Whether two values are the same JSON: 1, 1.0 and true are three."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def _with_unit(content: dict[str, Any], unit: str) -> dict[str, Any]:
    """Return a content with its unit and the semantic type that goes with it, where DTDL has one."""
    try:
        found = semantic_of(TABLE.canonical(unit)) if unit else None
    except InvalidArgument:
        found = semantic_of(unit)
    if found is None or content["schema"] not in ("double", "long"):
        return content
    semantic, name = found
    return {**content, "@type": [content["@type"], semantic], "unit": name}


def _value_schema(spec: Mapping[str, Any]) -> Any:
    kind, allowed = spec.get("kind", ""), spec.get("allowed", [])
    whole = kind == "integer" and all(-_INT32 <= value < _INT32 for value in allowed)
    # An enum has no unit: a number with one stays a number.
    if allowed and ((whole and not spec.get("unit")) or kind == "text"):
        names: set[str] = set()
        values = []
        for value in allowed:
            name = _free(_label(value), names)
            names.add(name)
            values.append({"name": name, "enumValue": value})
        return {"@type": "Enum", "valueSchema": "integer" if whole else "string", "enumValues": values}
    return _VALUE_SCHEMAS.get(kind, "string")


def _label(value: int | str) -> str:
    text = "".join(c if c.isascii() and c.isalnum() else "_" for c in str(value)).strip("_")
    named = text if text and text[0].isalpha() else f"value_{text}".rstrip("_")
    return named[:MAX_TEXT].rstrip("_")


def _dtdl_name(name: str) -> str:
    stripped = name.rstrip("_") or "x"
    return stripped if not name_fault(stripped) else "x"


def _free(name: str, taken: set[str]) -> str:
    found, number = name, 2
    while found in taken:
        found = f"{name}_{number}"
        number += 1
    return found
