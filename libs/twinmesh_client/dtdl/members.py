"""One content of an interface as a member of a twin type, in the form of our type documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from twinmesh_client.dtdl.dtmi import dtmi_fault, snake, type_id_of
from twinmesh_client.dtdl.elements import Element, check_element, text_of
from twinmesh_client.dtdl.findings import Findings, at
from twinmesh_client.dtdl.schemas import NUMERIC, Schemas, Shape
from twinmesh_client.dtdl.units import SEMANTIC_TYPES, semantic_of, ucum_of

GROUPS: Final = ("channels", "properties", "commands", "relationships")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member of a twin type, and the group it belongs to."""

    group: str
    body: dict[str, Any]


class Members:
    """Reads the contents of one interface; components are the caller's.

    Args:
        schemas: reads its schemas.
        findings: told what is not carried.
    """

    def __init__(self, schemas: Schemas, findings: Findings) -> None:
        self._schemas = schemas
        self._findings = findings

    def read(self, e: Element, prefix: str = "") -> Member:
        """Return a content as a member; what our own extension states of it wins."""
        found = getattr(self, f"_{e.kind.lower()}")(e)
        body = found.body
        name = prefix + snake(e.name)
        if name != e.name and not _ours(e):
            self._findings.changed(at(e.pointer, "name"), f"becomes {name!r}")
        return extended(Member(group=found.group, body={**body, "name": name}), e)

    def _telemetry(self, e: Element) -> Member:
        return self._channel(e, controllable=False)

    def _property(self, e: Element) -> Member:
        if e.body.get("writable") is True:
            return self._channel(e, controllable=True)
        shape, unit = self._value(e)
        body: dict[str, Any] = {"name": e.name, "kind": shape.value_kind(), **_stated({"unit": unit})}
        if shape.allowed:
            body["allowed"] = list(shape.allowed)
        return Member(group="properties", body={**body, **_stated({"description": self._text(e)})})

    def _channel(self, e: Element, *, controllable: bool) -> Member:
        shape, unit = self._value(e)
        if shape.allowed and not _ours(e):
            self._findings.lost(at(e.pointer, "schema"), "channels are not held to the values of an enum")
        body = {"name": e.name, "kind": shape.channel_kind(unit), "unit": unit}
        optional = {"controllable": controllable, "description": self._text(e)}
        return Member(group="channels", body={**body, **_stated(optional)})

    def _command(self, e: Element) -> Member:
        if "response" in e.body:
            self._findings.lost(at(e.pointer, "response"), "commands have no typed response")
        if "commandType" in e.body:
            self._findings.lost(at(e.pointer, "commandType"), "every command is queued and followed to its end")
        request = e.child(e.body.get("request"), "request")
        args = self._arguments(request) if request is not None else []
        body = {"name": e.name, "required_args": [], **_stated({"args": args}), "description": self._text(e)}
        return Member(group="commands", body=body)

    def _arguments(self, request: Element) -> list[dict[str, Any]]:
        check_element(request, self._findings, named=True)
        shape = self._schemas.shape(request)
        if shape.form != "object":
            return [self._argument(request, shape)]
        if not _ours(request):
            self._findings.changed(request.pointer, "the fields of the request become arguments of their own")
        return [self._argument(field, self._schemas.shape(field)) for field in shape.fields]

    def _argument(self, e: Element, shape: Shape) -> dict[str, Any]:
        self._schemas.told(shape, at(e.pointer, "schema"))
        name = snake(e.name)
        if name != e.name:
            self._findings.changed(at(e.pointer, "name"), f"becomes {name!r}")
        body = {"name": name, "kind": shape.value_kind(), **_stated({"unit": self._unit(e, shape)})}
        if shape.allowed:
            body["allowed"] = list(shape.allowed)
        return {**body, "required": True, **_stated({"description": self._text(e)})}

    def _relationship(self, e: Element) -> Member:
        for member, why in (
            ("properties", "edges have no properties of their own"),
            ("writable", "edges are always written through the twin"),
        ):
            if member in e.body:
                self._findings.lost(at(e.pointer, member), why)
        target = e.body.get("target", "")
        fault = dtmi_fault(target) if target else ""
        if fault:
            self._findings.invalid(at(e.pointer, "target"), fault)
        least, most = e.body.get("minMultiplicity", 0), e.body.get("maxMultiplicity", 0)
        if least != 0 or isinstance(least, bool):
            self._findings.invalid(at(e.pointer, "minMultiplicity"), "must be 0")
        if "maxMultiplicity" in e.body and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
            self._findings.invalid(at(e.pointer, "maxMultiplicity"), "must be a whole number from 1")
            most = 0
        optional = {"target": type_id_of(target) if target else "", "max_count": most, "description": self._text(e)}
        return Member(group="relationships", body={"name": e.name, **_stated(optional)})

    def _value(self, e: Element) -> tuple[Shape, str]:
        shape = self._schemas.shape(e)
        if not _ours(e):
            self._schemas.told(shape, at(e.pointer, "schema"))
        return shape, self._unit(e, shape)

    def _unit(self, e: Element, shape: Shape) -> str:
        unit = e.body.get("unit")
        if not isinstance(unit, str):
            return ""
        if shape.form not in NUMERIC:
            self._findings.invalid(at(e.pointer, "schema"), "must be a number with a semantic type")
            return ""
        code = ucum_of(unit)
        if code is None:
            self._findings.lost(at(e.pointer, "unit"), f"{unit!r} has no UCUM code with a linear conversion")
            return ""
        told = semantic_of(code)
        semantic = next((c for c in e.cotypes if c in SEMANTIC_TYPES), "")
        if semantic and (told is None or told[0] != semantic):
            self._findings.lost(at(e.pointer, "@type"), f"only the unit of {semantic} is carried, not its meaning")
        return code

    def _text(self, e: Element) -> str:
        """Return what people read: the description; the display name where there is none."""
        name, description = text_of(e, "displayName", self._findings), text_of(e, "description", self._findings)
        if name and description:
            self._findings.lost(
                at(e.pointer, "displayName"), "members have one text for people, and the description is it"
            )
        elif name and not _ours(e):
            self._findings.changed(at(e.pointer, "displayName"), "becomes the description")
        return description or name


def extended(member: Member, e: Element) -> Member:
    """Return a member with what our own extension states of it."""
    stated = e.body.get("twinmesh")
    if not isinstance(stated, Mapping):
        return member
    body = {name: value for name, value in member.body.items() if name not in stated.get("unset", ())}
    return Member(group=str(stated.get("as", member.group)), body={**body, **stated.get("set", {})})


def _ours(e: Element) -> bool:
    """Whether our own extension states what is missing, so that nothing needs to be told."""
    return isinstance(e.body.get("twinmesh"), Mapping)


def _stated(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}
