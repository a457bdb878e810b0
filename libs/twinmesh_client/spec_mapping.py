"""Values, the specs of properties, commands and relationships, and geometry, between protobuf and `twinmesh_core`."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from twinmesh.type.v1 import observation_pb2, twin_pb2
from twinmesh_core.errors import invalid_field
from twinmesh_core.geometry import Geometry
from twinmesh_core.registry import CommandSpec, RelationshipSpec
from twinmesh_core.value_specs import ArgumentSpec, PropertySpec, ValueKind, normal_spec_values
from twinmesh_core.values import Json, Value


def value_to_message(value: Value) -> observation_pb2.Value:
    """Return a value as its message; the Python type decides which field is set."""
    if isinstance(value, bool):
        return observation_pb2.Value(bool_value=value)
    if isinstance(value, float):
        return observation_pb2.Value(double_value=value)
    if isinstance(value, int):
        return observation_pb2.Value(int64_value=value)
    if isinstance(value, Json):
        return observation_pb2.Value(json_value=value)
    return observation_pb2.Value(text_value=value)


def value_from_message(message: observation_pb2.Value, field: str) -> Value:
    """Return the value that a message holds; raises `InvalidArgument` naming `field` if it holds none or NaN."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise invalid_field(field, "holds no value; set one of double_value, int64_value, bool_value, text_value")
    found: Any = getattr(message, kind)
    if isinstance(found, float) and not isfinite(found):
        raise invalid_field(field, "must be a finite number")
    return Json(found) if kind == "json_value" else found


def values_from_messages(messages: Mapping[str, observation_pb2.Value], field: str) -> dict[str, Value]:
    """Return values by name."""
    return {name: value_from_message(message, f"{field}[{name}]") for name, message in messages.items()}


def values_to_messages(values: Mapping[str, Value]) -> dict[str, observation_pb2.Value]:
    """Return messages by name."""
    return {name: value_to_message(value) for name, value in values.items()}


def property_from_message(message: twin_pb2.PropertySpec, at: str) -> PropertySpec:
    """Return a property; whole numbers for a NUMBER are read as such. Raises `InvalidArgument` for a kind unknown."""
    return PropertySpec(**_spec_fields(message, at, PropertySpec), inherited_from=message.inherited_from)


def property_to_message(spec: PropertySpec) -> twin_pb2.PropertySpec:
    """Return a property as its message."""
    message = twin_pb2.PropertySpec(inherited_from=spec.inherited_from)
    _fill_spec(message, spec)
    return message


def command_from_message(message: twin_pb2.CommandSpec, at: str) -> CommandSpec:
    """Return a command."""
    return CommandSpec(
        name=message.name,
        description=message.description,
        required_args=tuple(message.required_args),
        args=tuple(
            ArgumentSpec(**_spec_fields(arg, f"{at}.args[{i}]", ArgumentSpec)) for i, arg in enumerate(message.args)
        ),
        inherited_from=message.inherited_from,
    )


def command_to_message(spec: CommandSpec) -> twin_pb2.CommandSpec:
    """Return a command as its message."""
    message = twin_pb2.CommandSpec(
        name=spec.name,
        description=spec.description,
        required_args=spec.required_args,
        inherited_from=spec.inherited_from,
    )
    for arg in spec.args:
        _fill_spec(message.args.add(), arg)
    return message


def relationship_from_message(message: twin_pb2.RelationshipSpec) -> RelationshipSpec:
    """Return a kind of relationship."""
    return RelationshipSpec(
        name=message.name,
        description=message.description,
        target_twin_type_id=message.target_twin_type_id,
        max_count=message.max_count,
        allow_missing_target=message.allow_missing_target,
        inherited_from=message.inherited_from,
    )


def relationship_to_message(spec: RelationshipSpec) -> twin_pb2.RelationshipSpec:
    """Return a kind of relationship as its message."""
    return twin_pb2.RelationshipSpec(
        name=spec.name,
        description=spec.description,
        target_twin_type_id=spec.target_twin_type_id,
        max_count=spec.max_count,
        allow_missing_target=spec.allow_missing_target,
        inherited_from=spec.inherited_from,
    )


def geometry_from_message(message: twin_pb2.Geometry) -> Geometry:
    """Return a geometry; nothing is checked."""
    return Geometry(
        uri=message.uri,
        frame=message.frame,
        matrix=tuple(message.matrix.values),
        translation=tuple(message.pose.translation),
        rotation=tuple(message.pose.rotation),
    )


def geometry_to_message(value: Geometry) -> twin_pb2.Geometry:
    """Return a geometry as its message."""
    message = twin_pb2.Geometry(uri=value.uri, frame=value.frame)
    if value.matrix:
        message.matrix.values.extend(value.matrix)
    elif value.translation or value.rotation:
        message.pose.translation.extend(value.translation)
        message.pose.rotation.extend(value.rotation)
    return message


def _spec_fields(message: Any, at: str, kind_of_spec: type[PropertySpec] | type[ArgumentSpec]) -> dict[str, Any]:
    kind = ValueKind.of(message.kind)
    if kind is None:
        known = ", ".join(k.name.lower() for k in ValueKind if k)
        raise invalid_field(f"{at}.kind", f"{message.kind} is unknown here; choose from {known}")
    allowed = tuple(value_from_message(v, f"{at}.allowed_values[{i}]") for i, v in enumerate(message.allowed_values))
    has_default = message.HasField("default_value")
    default = value_from_message(message.default_value, f"{at}.default_value") if has_default else None
    spec = kind_of_spec(name=message.name, kind=kind, allowed=allowed, default=default)
    allowed, default = normal_spec_values(spec)
    return {
        "name": message.name,
        "description": message.description,
        "required": message.required,
        "kind": kind,
        "unit": message.unit,
        "min_value": message.min_value if message.HasField("min_value") else None,
        "max_value": message.max_value if message.HasField("max_value") else None,
        "allowed": allowed,
        "default": default,
    }


def _fill_spec(message: Any, spec: PropertySpec | ArgumentSpec) -> None:
    message.name, message.description, message.required = spec.name, spec.description, spec.required
    message.kind = twin_pb2.ValueKind.ValueType(spec.kind)
    message.unit = spec.unit
    if spec.min_value is not None:
        message.min_value = spec.min_value
    if spec.max_value is not None:
        message.max_value = spec.max_value
    message.allowed_values.extend(map(value_to_message, spec.allowed))
    if spec.default is not None:
        message.default_value.CopyFrom(value_to_message(spec.default))
