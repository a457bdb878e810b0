"""One value of a channel, as Python says it and as the wire carries it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from twinmesh.type.v1 import observation_pb2
from twinmesh_client.spec_mapping import value_from_message
from twinmesh_core.errors import invalid_field
from twinmesh_core.values import Value

Scalar = float | int | bool | str
"""A value: float (GAUGE, COUNTER), int (STATE), bool, or str (TEXT; JSON as its text)."""


def to_proto(value: Any, field: str) -> observation_pb2.Value:
    """Return the wire's form of a Python value; dicts and lists travel as JSON. Numpy scalars are taken as well.

    Raises:
        InvalidArgument: the value has another type.
    """
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, bool):
        return observation_pb2.Value(bool_value=plain)
    if isinstance(plain, int):
        return observation_pb2.Value(int64_value=plain)
    if isinstance(plain, float):
        return observation_pb2.Value(double_value=plain)
    if isinstance(plain, str):
        return observation_pb2.Value(text_value=plain)
    if isinstance(plain, dict | list):
        return observation_pb2.Value(json_value=json.dumps(plain, allow_nan=False))
    raise invalid_field(
        field, f"is a {type(plain).__name__}; give a number, a bool, a text, or a dict or list for JSON"
    )


def plain_values(values: Mapping[str, Any], field: str) -> dict[str, Value]:
    """Return Python values by name as properties hold them; dicts and lists become JSON documents.

    Raises:
        InvalidArgument: a value has another type, or is not finite.
    """
    return {name: value_from_message(to_proto(v, f"{field}[{name}]"), f"{field}[{name}]") for name, v in values.items()}


def from_proto(value: observation_pb2.Value) -> Scalar | None:
    """Return the Python form of a wire value; None when none is set."""
    kind = value.WhichOneof("kind")
    if kind is None:
        return None
    plain: Scalar = getattr(value, kind)
    return plain


def map_to_proto(values: Mapping[str, Any], field: str) -> dict[str, observation_pb2.Value]:
    """Return the wire's form of values by name."""
    return {name: to_proto(value, f"{field}[{name}]") for name, value in values.items()}


def map_from_proto(values: Mapping[str, observation_pb2.Value]) -> dict[str, Scalar | None]:
    """Return the Python form of values by name."""
    return {name: from_proto(value) for name, value in values.items()}


def show(value: Scalar | None) -> str:
    """Return a value for people."""
    if value is None:
        return "nothing"
    return f"{value:g}" if isinstance(value, float) else str(value)


def enum_name(names: Iterable[str], prefix: str, name: str, field: str) -> str:
    """Return the full name of an enum value that a person wrote in short, e.g. ``ridge``.

    Args:
        names: all full names of the enum.
        prefix: what they begin with.
        name: as written, in any case.
        field: what to call it in the error.

    Raises:
        InvalidArgument: unknown; lists the known ones.
    """
    full = f"{prefix}_{name.upper()}"
    known = [n for n in names if not n.endswith("_UNSPECIFIED")]
    if full not in known:
        choices = ", ".join(n.removeprefix(f"{prefix}_").lower() for n in known)
        raise invalid_field(field, f"{name!r} is unknown; choose from {choices}")
    return full
