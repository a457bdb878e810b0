"""What a property of a twin, or an argument of a command, may hold: its kind, unit, range and default."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from twinmesh_core.errors import FieldViolation, InvalidArgument, invalid_field
from twinmesh_core.ids import name_violation, quoted
from twinmesh_core.values import Json, Value, is_number, same_value

MAX_ALLOWED_VALUES: Final = 256
MAX_TEXT_BYTES: Final = 8 * 1_024
"""Longest text or document of one property or argument, in UTF-8."""
_INT64: Final = 1 << 63


class ValueKind(IntEnum):
    """What a value is; numbers equal ``twinmesh.type.v1.ValueKind`` (a test holds them together)."""

    UNSPECIFIED = 0
    """Of a property: a text among the twin's attributes; of an argument: anything."""
    NUMBER = 1
    INTEGER = 2
    BOOL = 3
    TEXT = 4
    JSON = 5

    @property
    def numeric(self) -> bool:
        """Whether its values may have a unit and bounds."""
        return self in (ValueKind.NUMBER, ValueKind.INTEGER)

    @classmethod
    def of(cls, number: int) -> ValueKind | None:
        """Return the kind of this number; None for one that is unknown here (a newer peer's)."""
        return _KINDS.get(number)


_KINDS: Final = {int(kind): kind for kind in ValueKind}
_WANTED: Final = {
    ValueKind.NUMBER: "a number",
    ValueKind.INTEGER: "a whole number",
    ValueKind.BOOL: "true or false",
    ValueKind.TEXT: "a text",
    ValueKind.JSON: "a JSON document",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueSpec:
    """What one named value may be; bounds and default are in `unit`.

    Attributes:
        name: unique among its kind.
        description: for people.
        required: must be stated, unless there is a default.
        kind: what it is.
        unit: as written by the type's author (UCUM code or alias).
        min_value: lowest valid number; None = no bound.
        max_value: highest valid number; None = no bound.
        allowed: the only values allowed; empty = any.
        default: taken where nothing is stated; None = nothing.
    """

    name: str
    description: str = ""
    required: bool = False
    kind: ValueKind = ValueKind.UNSPECIFIED
    unit: str = ""
    min_value: float | None = None
    max_value: float | None = None
    allowed: tuple[Value, ...] = ()
    default: Value | None = None

    def checked(self, value: Value, at: str) -> Value:
        """Return `value` as the Python type of the kind.

        Raises:
            InvalidArgument: it is of another kind, out of range or not among the allowed ones; names `at`.
        """
        found = value if self.kind is ValueKind.UNSPECIFIED else as_kind(value, self.kind)
        if found is None:
            raise invalid_field(at, f"must be {_WANTED[self.kind]}")
        if is_number(found) and not self._in_range(float(found)):
            raise invalid_field(at, f"{found} is outside the valid range {self.shown_range()}")
        if isinstance(found, str) and len(found.encode()) > MAX_TEXT_BYTES:
            raise invalid_field(at, f"must be at most {MAX_TEXT_BYTES:,} bytes")
        if self.allowed and not any(same_value(found, each) for each in self.allowed):
            raise invalid_field(at, f"{shown(found)} is none of the values allowed: {shown_values(self.allowed)}")
        return found

    def shown_range(self) -> str:
        """Return the valid range for an error message."""
        low = "-∞" if self.min_value is None else f"{self.min_value:g}"
        high = "∞" if self.max_value is None else f"{self.max_value:g}"
        return f"from {low} to {high} {self.unit}".rstrip()

    def _in_range(self, number: float) -> bool:
        above = self.min_value is None or number >= self.min_value
        return above and (self.max_value is None or number <= self.max_value)


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertySpec(ValueSpec):
    """One static property; without a kind it is a text among every twin's attributes.

    Attributes:
        inherited_from: ``id@version`` of the type that declares it; "" = the type itself.
    """

    inherited_from: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentSpec(ValueSpec):
    """One argument of a command."""


def as_kind(value: Value, kind: ValueKind) -> Value | None:
    """Return `value` as the Python type that `kind` holds; None where that would change it."""
    if kind is ValueKind.BOOL:
        return value if isinstance(value, bool) else None
    if kind is ValueKind.TEXT:
        return value if isinstance(value, str) and not isinstance(value, Json) else None
    if kind is ValueKind.JSON:
        return Json(value) if isinstance(value, str) and _is_document(value) else None
    if not is_number(value) or (isinstance(value, int) and not -_INT64 <= value < _INT64):
        return None
    if not math.isfinite(float(value)):
        return None
    if kind is ValueKind.NUMBER:
        # Above 2**53 not every whole number is one.
        return float(value) if float(value) == value else None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if whole and -_INT64 <= int(value) < _INT64 else None


def checked_values(specs: Iterable[ValueSpec], values: Mapping[str, Value], at: str, *, owner: str) -> dict[str, Value]:
    """Return values by name as their specs hold them, defaults filled in, in the order of the specs.

    Args:
        specs: all there are.
        values: what is stated.
        at: the field named in errors.
        owner: whose they are, for errors: "the type pump@1", "the command 'stop'".

    Raises:
        InvalidArgument: one is unknown, missing, or not what its spec says.
    """
    known = {spec.name: spec for spec in specs}
    for name in sorted(values.keys() - known.keys()):
        has = ", ".join(known) or "none"
        raise invalid_field(f"{at}[{name}]", f"{quoted(name)} is unknown to {owner}; it has: {has}")
    found: dict[str, Value] = {}
    for name, spec in known.items():
        if name in values:
            found[name] = spec.checked(values[name], f"{at}[{name}]")
        elif spec.default is not None:
            found[name] = spec.default
        elif spec.required:
            raise invalid_field(f"{at}[{name}]", f"is required by {owner}")
    return found


def spec_violations(at: str, spec: ValueSpec) -> Iterator[FieldViolation | None]:
    """Yield what is wrong with a spec by itself."""
    yield name_violation(f"{at}.name", spec.name)
    for name, number in (("min_value", spec.min_value), ("max_value", spec.max_value)):
        yield _bad(number is not None and not math.isfinite(number), f"{at}.{name}", "must be a finite number")
        yield _bad(number is not None and not spec.kind.numeric, f"{at}.{name}", "is for numbers and integers only")
    crossed = spec.min_value is not None and spec.max_value is not None and spec.min_value > spec.max_value
    yield _bad(crossed, f"{at}.min_value", "must not be above max_value")
    unit = spec.unit not in ("", "1") and not spec.kind.numeric
    yield _bad(unit, f"{at}.unit", "is for numbers and integers only; leave it empty")
    many = len(spec.allowed) > MAX_ALLOWED_VALUES
    yield _bad(many, f"{at}.allowed_values", f"must hold at most {MAX_ALLOWED_VALUES} values")
    kindless = spec.kind is ValueKind.UNSPECIFIED and (spec.allowed or spec.default is not None)
    yield _bad(bool(kindless), f"{at}.kind", "is required with allowed_values or default_value")
    if kindless or crossed or many:
        return
    listed = ValueSpec(name=spec.name, kind=spec.kind, min_value=spec.min_value, max_value=spec.max_value)
    for i, value in enumerate(spec.allowed):
        yield _value_violation(listed, value, f"{at}.allowed_values[{i}]")
        twice = any(same_value(value, before) for before in spec.allowed[:i])
        yield _bad(twice, f"{at}.allowed_values[{i}]", f"{shown(value)} is there twice")
    if spec.default is not None:
        yield _value_violation(spec, spec.default, f"{at}.default_value")


def _value_violation(spec: ValueSpec, value: Value, at: str) -> FieldViolation | None:
    found = as_kind(value, spec.kind)
    if found is None or not same_value(found, value):
        return FieldViolation(field=at, description=f"must be {_WANTED[spec.kind]}")
    try:
        spec.checked(value, at)
    except InvalidArgument as error:
        return error.field_violations[0]
    return None


def normal_spec_values(spec: ValueSpec) -> tuple[tuple[Value, ...], Value | None]:
    """Return allowed values and default as the kind holds them; what cannot be is left as it is, to be refused."""

    def normal(value: Value) -> Value:
        found = as_kind(value, spec.kind) if spec.kind else None
        return value if found is None else found

    return tuple(map(normal, spec.allowed)), None if spec.default is None else normal(spec.default)


def shown(value: Value) -> str:
    """Return a value for an error message."""
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def shown_values(values: tuple[Value, ...]) -> str:
    """Return values for an error message, shortened after the twentieth."""
    return ", ".join(map(shown, values[:20])) + (", …" if len(values) > 20 else "")


def _bad(wrong: bool, path: str, description: str) -> FieldViolation | None:
    return FieldViolation(field=path, description=description) if wrong else None


def _is_document(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
