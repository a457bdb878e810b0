"""Twin types as JSON documents: what `twinmesh types create` takes and `types show --json` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, Final

from twinmesh_client.modelling import channel, twin_type
from twinmesh_client.rule_models import rule, rule_document
from twinmesh_core.errors import InvalidArgument, invalid_field
from twinmesh_core.geometry import Geometry
from twinmesh_core.registry import ChannelSpec, CommandSpec, RelationshipSpec, TwinType
from twinmesh_core.rules import AlarmRule
from twinmesh_core.value_specs import ArgumentSpec, PropertySpec, ValueKind, normal_spec_values
from twinmesh_core.values import Json, Value

_TYPE: Final = (
    "type", "display_name", "description", "extends", "channels", "commands", "properties", "relationships", "geometry",
    "rules",
)  # fmt: skip
_SPEC: Final = ("name", "kind", "unit", "minimum", "maximum", "allowed", "default", "required", "description")
_COMMAND: Final = ("name", "required_args", "args", "description")
_RELATIONSHIP: Final = ("name", "target", "max_count", "allow_missing_target", "description")
_GEOMETRY: Final = ("uri", "frame", "matrix", "translation", "rotation")


def type_document(found: TwinType) -> dict[str, Any]:
    """Return a type as a JSON document; what is not set is left out."""
    return {
        "type": found.reference,
        "display_name": found.display_name,
        **_set({"description": found.description, "extends": found.extends}),
        "channels": [channel_document(c) for c in found.channels],
        "commands": [command_document(c) for c in found.commands],
        "properties": [spec_document(p) for p in found.properties],
        **_set({"relationships": [relationship_document(r) for r in found.relationships]}),
        **({"geometry": geometry_document(found.geometry)} if found.geometry is not None else {}),
        **_set({"rules": [rule_document(r) for r in found.rules]}),
    }


def type_from_document(body: Mapping[str, Any]) -> TwinType:
    """Return the type that a JSON document describes; its rules are checked when it is created.

    Raises:
        InvalidArgument: names the entry that cannot be read.
    """
    known_fields(body, _TYPE, "the type")
    if not isinstance(body.get("type"), str):
        raise invalid_field(
            "type", 'the type needs a name: "type": "pump@1"', message='the type needs a name: "type": "pump@1"'
        )
    return twin_type(
        body["type"],
        [channel_from_document(e, f"channels[{i}]") for i, e in enumerate(_objects(body, "channels"))],
        commands=[command_from_document(e, f"commands[{i}]") for i, e in enumerate(_objects(body, "commands"))],
        properties=[property_from_document(e, f"properties[{i}]") for i, e in enumerate(_objects(body, "properties"))],
        relationships=[
            relationship_from_document(e, f"relationships[{i}]") for i, e in enumerate(_objects(body, "relationships"))
        ],
        geometry=geometry_from_document(body["geometry"]) if "geometry" in body else None,
        extends=_text(body, "extends"),
        description=_text(body, "description"),
        display_name=_text(body, "display_name"),
        rules=[rule_from_document(e, f"rules[{i}]") for i, e in enumerate(_objects(body, "rules"))],
    )


def channel_document(c: ChannelSpec) -> dict[str, Any]:
    """Return a channel as a JSON object."""
    entry: dict[str, Any] = {"name": c.name, "kind": c.kind.name.lower(), "unit": c.unit}
    optional = {
        "every": f"{c.expected_interval_us}us" if c.expected_interval_us else None,
        "minimum": c.min_value,
        "maximum": c.max_value,
        "max_rate_per_s": c.max_rate_per_s,
        "stuck_after": f"{c.stuck_after_us}us" if c.stuck_after_us else None,
        "spike_threshold": c.spike_threshold or None,
        "deadband": c.deadband,
        "deadband_percent": c.deadband_percent,
        "max_silence": f"{c.max_silence_us}us" if c.max_silence_us else None,
        "disabled_stages": [stage.name.lower() for stage in c.disabled_stages] or None,
        "tolerance": c.tolerance or None,
        "controllable": c.controllable or None,
        "set_command": c.set_command or None,
        "upper_limit": c.upper_limit,
        "retention_class": c.retention_class or None,
        "description": c.description or None,
    }
    return entry | {name: value for name, value in optional.items() if value is not None}


def channel_from_document(entry: Mapping[str, Any], at: str) -> ChannelSpec:
    """Return the channel that a JSON object describes."""
    known_fields(entry, tuple(signature(channel).parameters), at)
    try:
        return channel(**entry)
    except (TypeError, AttributeError):
        text = f'{at} needs a "name", and values of the right kinds'
        raise invalid_field(at, text, message=text) from None


def spec_document(spec: PropertySpec | ArgumentSpec) -> dict[str, Any]:
    """Return a property or an argument as a JSON object; JSON values stand as their text."""
    return {
        "name": spec.name,
        **_set({"kind": spec.kind.name.lower() if spec.kind else "", "unit": spec.unit}),
        **({"minimum": spec.min_value} if spec.min_value is not None else {}),
        **({"maximum": spec.max_value} if spec.max_value is not None else {}),
        **_set({"allowed": [_plain(value) for value in spec.allowed]}),
        **({"default": _plain(spec.default)} if spec.default is not None else {}),
        **_set({"required": spec.required, "description": spec.description}),
    }


def property_from_document(entry: Mapping[str, Any], at: str) -> PropertySpec:
    """Return the property that a JSON object describes."""
    return PropertySpec(**_spec_fields(entry, at))


def command_document(c: CommandSpec) -> dict[str, Any]:
    """Return a command as a JSON object."""
    return {
        "name": c.name,
        "required_args": list(c.required_args),
        **_set({"args": [spec_document(arg) for arg in c.args]}),
        "description": c.description,
    }


def command_from_document(entry: Mapping[str, Any], at: str) -> CommandSpec:
    """Return the command that a JSON object describes."""
    known_fields(entry, _COMMAND, at)
    required = entry.get("required_args", ())
    if not isinstance(required, list | tuple) or not all(isinstance(name, str) for name in required):
        raise invalid_field(f"{at}.required_args", "must be a list of names")
    return CommandSpec(
        name=entry["name"],
        description=_text(entry, "description", at),
        required_args=tuple(required),
        args=tuple(
            ArgumentSpec(**_spec_fields(arg, f"{at}.args[{j}]")) for j, arg in enumerate(_objects(entry, "args", at))
        ),
    )


def relationship_document(r: RelationshipSpec) -> dict[str, Any]:
    """Return a kind of relationship as a JSON object."""
    optional = {
        "target": r.target_twin_type_id,
        "max_count": r.max_count,
        "allow_missing_target": r.allow_missing_target,
        "description": r.description,
    }
    return {"name": r.name, **_set(optional)}


def relationship_from_document(entry: Mapping[str, Any], at: str) -> RelationshipSpec:
    """Return the kind of relationship that a JSON object describes."""
    known_fields(entry, _RELATIONSHIP, at)
    count, lax = entry.get("max_count", 0), entry.get("allow_missing_target", False)
    if not isinstance(count, int) or isinstance(count, bool) or not isinstance(lax, bool):
        raise invalid_field(at, "max_count is a whole number, allow_missing_target is true or false")
    return RelationshipSpec(
        name=entry["name"],
        description=_text(entry, "description", at),
        target_twin_type_id=_text(entry, "target", at),
        max_count=count,
        allow_missing_target=lax,
    )


def geometry_document(g: Geometry) -> dict[str, Any]:
    """Return a geometry as a JSON object."""
    optional = {
        "frame": g.frame,
        "matrix": list(g.matrix),
        "translation": list(g.translation),
        "rotation": list(g.rotation),
    }
    return {"uri": g.uri, **_set(optional)}


def geometry_from_document(entry: Any, at: str = "geometry") -> Geometry:
    """Return the geometry that a JSON object describes."""
    if not isinstance(entry, Mapping):
        raise invalid_field(at, 'must be an object with a "uri"')
    known_fields(entry, _GEOMETRY, at)
    numbers = {}
    for name in ("matrix", "translation", "rotation"):
        found = entry.get(name, [])
        if not isinstance(found, Sequence) or not all(_is_number(part) for part in found):
            raise invalid_field(f"{at}.{name}", "must be a list of numbers")
        numbers[name] = tuple(map(float, found))
    return Geometry(uri=_text(entry, "uri", at), frame=_text(entry, "frame", at), **numbers)


def rule_from_document(entry: Mapping[str, Any], at: str) -> AlarmRule:
    """Return the alarm rule that a JSON object describes."""
    known_fields(entry, tuple(signature(rule).parameters), at)
    try:
        return rule(**entry)
    except (TypeError, AttributeError):
        text = f'{at} needs a "name", a "severity" and one condition'
        raise invalid_field(at, text, message=text) from None


def known_fields(entry: Mapping[str, Any], fields: tuple[str, ...], at: str) -> None:
    """Refuse an entry with a field that there is not, naming those that there are."""
    unknown = sorted(entry.keys() - set(fields))
    if unknown:
        text = f"{at} has no field {unknown[0]!r}; there are {', '.join(fields)}"
        raise invalid_field(at, text, message=text)


def value_of(plain: Any, kind: ValueKind, at: str) -> Value:
    """Return the value that JSON says; a dict or list, or anything for a JSON property, is a document."""
    if kind is ValueKind.JSON or isinstance(plain, dict | list):
        return Json(plain) if isinstance(plain, str) else Json(json.dumps(plain))
    if isinstance(plain, bool | int | float | str):
        return plain
    raise invalid_field(at, "must be a number, true or false, a text or a JSON document")


def _spec_fields(entry: Mapping[str, Any], at: str) -> dict[str, Any]:
    known_fields(entry, _SPEC, at)
    kind_name = _text(entry, "kind", at)
    kinds = {kind.name.lower(): kind for kind in ValueKind if kind} | {"": ValueKind.UNSPECIFIED}
    if kind_name not in kinds:
        choices = ", ".join(name for name in kinds if name)
        raise invalid_field(f"{at}.kind", f"{kind_name!r} is unknown; choose {choices}")
    kind = kinds[kind_name]
    allowed = entry.get("allowed", [])
    if not isinstance(allowed, list) or not isinstance(entry.get("required", False), bool):
        raise invalid_field(at, "allowed is a list of values, required is true or false")
    bounds = {}
    for name, field in (("minimum", "min_value"), ("maximum", "max_value")):
        bound = entry.get(name)
        if bound is not None and not _is_number(bound):
            raise invalid_field(f"{at}.{name}", "must be a number")
        bounds[field] = None if bound is None else float(bound)
    default = None if entry.get("default") is None else value_of(entry["default"], kind, f"{at}.default")
    values = tuple(value_of(value, kind, f"{at}.allowed[{i}]") for i, value in enumerate(allowed))
    listed, default = normal_spec_values(PropertySpec(name="x", kind=kind, allowed=values, default=default))
    return {
        "name": entry["name"],
        "description": _text(entry, "description", at),
        "required": entry.get("required", False),
        "kind": kind,
        "unit": _text(entry, "unit", at),
        "allowed": listed,
        "default": default,
        **bounds,
    }


def _objects(body: Mapping[str, Any], name: str, at: str = "") -> list[dict[str, Any]]:
    found = body.get(name, [])
    if not isinstance(found, list) or not all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in found):
        text = f'"{name}" must be a list of objects, each with a "name"'
        raise invalid_field(f"{at}.{name}" if at else name, text, message=text)
    return found


def _text(entry: Mapping[str, Any], name: str, at: str = "") -> str:
    found = entry.get(name, "")
    if not isinstance(found, str):
        raise InvalidArgument(f"{at or 'the type'}: {name!r} must be a text")
    return found


def _plain(value: Value) -> Any:
    return str(value) if isinstance(value, Json) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _set(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}
