"""The table of fields: what each holds, which operators suit it, and how a literal for it is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from enum import Enum, auto
from math import isfinite
from types import MappingProxyType
from typing import Final

from twinmesh_core.errors import InvalidArgument, Reason
from twinmesh_core.ids import quoted
from twinmesh_core.quality import Quality
from twinmesh_core.time import MAX_SPAN_US, US_PER_DAY, US_PER_HOUR, US_PER_MINUTE, US_PER_MS, US_PER_S, parse_time
from twinmesh_core.units import TABLE
from twinmesh_statesync.domain.events import Connectivity
from twinmesh_statesync.domain.filter.errors import FilterError
from twinmesh_statesync.domain.filter.expressions import (
    ROOTS,
    Choice,
    Field,
    Literal,
    Moment,
    Op,
    Pattern,
    Quantity,
    Span,
    path_of,
)
from twinmesh_statesync.domain.filter.scanning import Scanner, Text
from twinmesh_statesync.domain.replica import DesiredState


class Kind(Enum):
    """What a field holds."""

    TEXT = auto()
    TYPE = auto()
    """A twin type; equal also to the types it is one of."""
    WHOLE = auto()
    TIME = auto()
    SPAN = auto()
    CHOICE = auto()
    VALUE = auto()
    """The value of a channel, whose kind depends on the twin."""
    KEYS = auto()
    """Several things by name."""
    ITEM = auto()
    """One of them that is only there or not."""


CONNECTIVITY: Final[Mapping[str, int]] = MappingProxyType(
    {("NEVER" if c is Connectivity.UNSPECIFIED else c.name): int(c) for c in Connectivity}
)
_QUALITY: Final[Mapping[str, int]] = MappingProxyType({q.name: int(q) for q in Quality if q})
_STATE: Final[Mapping[str, int]] = MappingProxyType({s.name: int(s) for s in DesiredState if s})
_PLAIN: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "twin_id": Kind.TEXT,
        "display_name": Kind.TEXT,
        "twin_type": Kind.TYPE,
        "time_zone": Kind.TEXT,
        "connectivity": Kind.CHOICE,
        "revision": Kind.WHOLE,
        "offset": Kind.WHOLE,
        "create_time": Kind.TIME,
        "last_event_time": Kind.TIME,
    }
)
_KEYED: Final[Mapping[str, Mapping[str, Kind]]] = MappingProxyType(
    {
        "attributes": {"": Kind.TEXT},
        "relationships": {"": Kind.TEXT},
        "reported": {"": Kind.VALUE, "quality": Kind.CHOICE, "event_time": Kind.TIME, "offset": Kind.WHOLE},
        "desired": {"": Kind.VALUE, "state": Kind.CHOICE, "deadline": Kind.TIME, "offset": Kind.WHOLE},
        "predicted": {
            "": Kind.VALUE,
            "model_id": Kind.TEXT,
            "at": Kind.TIME,
            "valid_until": Kind.TIME,
            "horizon": Kind.SPAN,
        },
        "delta": {"": Kind.ITEM},
    }
)
_UNITS_US: Final[Mapping[str, int]] = MappingProxyType(
    {"us": 1, "ms": US_PER_MS, "s": US_PER_S, "min": US_PER_MINUTE, "m": US_PER_MINUTE, "h": US_PER_HOUR,
     "d": US_PER_DAY}
)  # fmt: skip
_NUMBER: Final = re.compile(r"([-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)(.*)", re.DOTALL)
_INT64: Final = 1 << 63
MAX_TEXT: Final = 1_024
"""Longest text of a literal; attributes are no longer."""


def resolve(column: int, names: list[tuple[str, bool]]) -> Field:
    """Return the field that a path names; raises `FilterError` with those that would be right."""
    root, in_quotes = names[0]
    if in_quotes or root not in ROOTS:
        near = get_close_matches(root, ROOTS, 1)
        fields = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(ROOTS)}"
        raise FilterError(column, f"there is no field {quoted(root)}; {fields}")
    rest = [name for name, _ in names[1:]]
    if root in _PLAIN:
        if rest:
            raise FilterError(column, f"{root} has no parts; write {root} alone")
        return Field(root)
    parts = _KEYED[root]
    if len(rest) <= 1:
        return Field(root, *rest)
    if len(rest) > 2 or rest[1] not in parts or not rest[1]:
        allowed = ", ".join(f".{part}" for part in parts if part) or "no parts"
        raise FilterError(
            column, f"{root}.{rest[0]} has {allowed}; put a name with dots in quotes: {root}.{_whole(rest)}"
        )
    return Field(root, rest[0], rest[1])


def kind_of(field: Field) -> Kind:
    """Return what a field holds."""
    if field.root in _PLAIN:
        return _PLAIN[field.root]
    return _KEYED[field.root][field.part] if field.key else Kind.KEYS


def read_literal(field: Field, op: Op, column: int, scanner: Scanner) -> Literal:
    """Take the literal that follows an operator; raises `FilterError` when it does not suit the field."""
    kind = kind_of(field)
    text = scanner.value()
    _check_operator(field, kind, op, column)
    if kind in (Kind.TEXT, Kind.TYPE):
        return _pattern(text, op)
    if kind is Kind.CHOICE:
        return _choice(field, text)
    if kind is Kind.TIME:
        return _moment(text)
    if kind is Kind.VALUE:
        return _value(text, op, scanner)
    quantity = _quantity(text, scanner)
    if quantity is None:
        raise FilterError(text.column, f"{quoted(text.raw)} is not a number")
    if kind is Kind.SPAN:
        return _span(text, quantity)
    if quantity.unit or not isinstance(quantity.number, int):
        raise FilterError(text.column, f"{field.root} is a whole number without a unit")
    return quantity


def _check_operator(field: Field, kind: Kind, op: Op, column: int) -> None:
    shown = path_of(field)
    if kind in (Kind.KEYS, Kind.ITEM):
        example = f"{field.root}.NAME" if kind is Kind.KEYS and field.root != "delta" else f"{shown}:*"
        raise FilterError(column, f"{shown} is not one value; ask whether it is there with ':', or for {example}")
    if kind in (Kind.TYPE, Kind.CHOICE) and op.orders:
        raise FilterError(column, f"{shown} has no order; use = or !=")


def _pattern(text: Text, op: Op) -> Pattern:
    if len(text.raw) > MAX_TEXT:
        raise FilterError(text.column, f"a text has at most {MAX_TEXT:,} characters")
    if op.orders and len(text.pieces) > 1:
        raise FilterError(text.column, "a wildcard has no order; escape the star as \\* or use =")
    return Pattern(text.pieces)


def _choice(field: Field, text: Text) -> Choice:
    words = CONNECTIVITY if field.root == "connectivity" else _QUALITY if field.part == "quality" else _STATE
    word = text.raw.upper()
    if word not in words:
        raise FilterError(text.column, f"{quoted(text.raw)} is none of {', '.join(words)}")
    return Choice(word, words[word])


def _moment(text: Text) -> Moment:
    try:
        return Moment(parse_time(text.raw))
    except (InvalidArgument, OverflowError) as error:
        why = str(error.message).removeprefix("time: ") if isinstance(error, InvalidArgument) else "is out of range"
        raise FilterError(text.column, why) from None


def _value(text: Text, op: Op, scanner: Scanner) -> Literal:
    if not text.quoted:
        quantity = _quantity(text, scanner)
        if quantity is not None:
            return quantity
        if text.raw in ("true", "false"):
            if op.orders:
                raise FilterError(text.column, "true and false have no order; use = or !=")
            return text.raw == "true"
    return _pattern(text, op)


def _quantity(text: Text, scanner: Scanner) -> Quantity | None:
    """Read a number with its unit, attached or after a space; None if it is no number."""
    found = None if text.quoted or len(text.pieces) > 1 else _NUMBER.fullmatch(text.raw)
    if found is None:
        return None
    digits, unit = found[1], found[2]
    at = text.column + len(digits)
    if not unit:
        following = scanner.optional_value()
        if following is not None:
            unit, at = following.raw, following.column
    number = _number(digits, text.column)
    if unit:
        try:
            TABLE.canonical(unit)
        except InvalidArgument as error:
            raise FilterError(at, error.message, reason=Reason.INCOMPATIBLE_UNIT) from None
    return Quantity(number, unit)


def _number(digits: str, column: int) -> float | int:
    if len(digits) > 64:
        raise FilterError(column, "a number has at most 64 characters")
    whole = re.fullmatch(r"[-+]?[0-9]+", digits) is not None
    number = int(digits) if whole else float(digits)
    if not isfinite(float(number)) or (whole and not -_INT64 <= number < _INT64):
        raise FilterError(column, f"{quoted(digits)} is out of range")
    return number


def _span(text: Text, quantity: Quantity) -> Span:
    scale = _UNITS_US.get(quantity.unit)
    if scale is None:
        raise FilterError(text.column, f"a length of time needs a unit: {', '.join(_UNITS_US)}, e.g. 90s")
    us = quantity.number * scale
    if not 0 <= us <= MAX_SPAN_US:
        raise FilterError(text.column, "a length of time is 0 to 100 years")
    return Span(round(us))


def _whole(names: list[str]) -> str:
    return quoted(".".join(names), 60)
