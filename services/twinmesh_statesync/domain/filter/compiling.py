"""From the checked tree to a function of a twin at one offset.

One rule for all: a comparison is true only where the twin has the value, for ``!=`` too; ``NOT`` alone is true without.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from typing import Any, Final

from twinmesh_core.errors import InvalidArgument
from twinmesh_core.registry import TwinType
from twinmesh_core.units import TABLE, Conversion
from twinmesh_statesync.domain.events import Prediction
from twinmesh_statesync.domain.filter.expressions import (
    And,
    Choice,
    Compare,
    Expression,
    Field,
    Hop,
    Literal,
    Moment,
    Not,
    Op,
    Or,
    Pattern,
    Present,
    Quantity,
    Span,
)
from twinmesh_statesync.domain.filter.fields import Kind, kind_of
from twinmesh_statesync.domain.filter.lineage import lineage
from twinmesh_statesync.domain.replica import DesiredValue
from twinmesh_statesync.domain.values import Json, ReportedValue, Value
from twinmesh_statesync.domain.version import Population, TwinVersion

Test = Callable[[TwinVersion, Population], bool]
"""Whether a living twin matches, among the twins of the same offset."""
_Judge = Callable[[object], bool]
_ORDERS: Final[dict[Op, Callable[[Any, Any], bool]]] = {
    Op.LESS: operator.lt,
    Op.LESS_OR_EQUAL: operator.le,
    Op.GREATER: operator.gt,
    Op.GREATER_OR_EQUAL: operator.ge,
}
_MAX_TYPES: Final = 256
_NEARLY: Final = 1e-9
"""Relative distance within which a converted number is equal: conversion rounds."""
_keys = count()


def compiled(expression: Expression) -> Test:
    """Return the filter as a function."""
    match expression:
        case And(parts):
            return _all(tuple(map(compiled, parts)))
        case Or(parts):
            return _any(tuple(map(compiled, parts)))
        case Not(part):
            return _not(compiled(part))
        case Hop(step, inner):
            return _hop(step.relation, step.reverse, compiled(inner))
        case Present(field):
            return _present(field)
        case Compare(field, op, literal):
            return _compare(field, op, literal)


def _all(tests: tuple[Test, ...]) -> Test:
    if len(tests) == 2:
        first, second = tests
        return lambda v, p: first(v, p) and second(v, p)
    return lambda v, p: all(test(v, p) for test in tests)


def _any(tests: tuple[Test, ...]) -> Test:
    return lambda v, p: any(test(v, p) for test in tests)


def _not(test: Test) -> Test:
    return lambda v, p: not test(v, p)


def _hop(relation: str, reverse: bool, inner: Test) -> Test:
    key = next(_keys)

    def matches(other: TwinVersion, population: Population) -> bool:
        # A twin that many lead to is judged once per offset.
        known = population.memo.get((key, other.twin.twin_id))
        if known is None:
            known = population.memo[key, other.twin.twin_id] = inner(other, population)
        return known

    def forward(version: TwinVersion, population: Population) -> bool:
        for edge in version.twin.relationships:
            if edge.name == relation:
                other = population.version(edge.target_twin_id)
                if other is not None and matches(other, population):
                    return True
        return False

    def backward(version: TwinVersion, population: Population) -> bool:
        return any(matches(other, population) for other in population.sources(relation, version.twin.twin_id))

    return backward if reverse else forward


def _present(field: Field) -> Test:
    if field.root == "delta":
        if not field.key:
            return lambda v, _: bool(v.replica.delta)
        return lambda v, _: any(item.channel == field.key for item in v.replica.delta)
    if field.root == "relationships":
        return lambda v, _: any(not field.key or edge.name == field.key for edge in v.twin.relationships)
    if not field.key and field.root in _COLLECTIONS:
        collection = _COLLECTIONS[field.root]
        return lambda v, _: bool(collection(v))
    values = values_of(field)
    return lambda v, _: any(True for _value in values(v))


_COLLECTIONS: Final[dict[str, Callable[[TwinVersion], object]]] = {
    "attributes": lambda v: v.twin.attributes,
    "reported": lambda v: v.replica.reported.values,
    "desired": lambda v: v.replica.desired.values,
    "predicted": lambda v: v.replica.predicted.predictions,
}


def _compare(field: Field, op: Op, literal: Literal) -> Test:
    if op is Op.NOT_EQUAL:
        present, equal = _present(field), _compare(field, Op.EQUAL, literal)
        return lambda v, p: present(v, p) and not equal(v, p)
    if kind_of(field) is Kind.VALUE:
        return _compare_value(field, op, literal)
    if field.root == "twin_type":
        return _compare_type(op, literal)
    judge, values = _judge(op, literal), values_of(field)
    if field.root == "attributes" and isinstance(literal, Pattern):
        return _compare_attribute(field.key, judge)
    return lambda v, _: any(judge(value) for value in values(v))


def _compare_attribute(key: str, judge: _Judge) -> Test:
    def test(version: TwinVersion, _: Population) -> bool:
        text = version.twin.attributes.get(key)
        return text is not None and judge(text)

    return test


def _compare_type(op: Op, literal: Literal) -> Test:
    """Equal is a type that the twin's type is one of; with ``@2`` only that version of it, itself."""
    judge = _judge(op, literal)
    exact = isinstance(literal, Pattern) and "@" in "".join(literal.pieces)

    def test(version: TwinVersion, _: Population) -> bool:
        if exact:
            return judge(f"{version.twin_type.twin_type_id}@{version.twin_type.version}")
        return any(judge(name) for name in lineage(version.twin_type))

    return test


def values_of(field: Field) -> Callable[[TwinVersion], Iterable[object]]:
    """Return how to find the values of a field: none, one, or several."""
    if field.root in ("reported", "desired", "predicted"):
        return partial(_of_facet, field)
    if field.root == "attributes":
        return lambda v: (v.twin.attributes[field.key],) if field.key in v.twin.attributes else ()
    if field.root == "relationships":
        return lambda v: [edge.target_twin_id for edge in v.twin.relationships if edge.name == field.key]
    if field.root in ("revision", "offset", "connectivity"):
        return lambda v: (getattr(v.replica, field.root),)
    if field.root == "create_time":
        return lambda v: (v.twin.create_time_unix_us,)
    if field.root == "last_event_time":
        return _last_event_time
    if field.root == "twin_type":
        return lambda v: lineage(v.twin_type)
    return lambda v: (getattr(v.twin, field.root),)


def _last_event_time(version: TwinVersion) -> Iterable[object]:
    times = [value.event_time_unix_us for value in version.replica.reported.values.values()]
    return (max(times),) if times else ()


def _of_facet(field: Field, version: TwinVersion) -> Iterable[object]:
    replica = version.replica
    found: ReportedValue | DesiredValue | Prediction | None
    if field.root == "reported":
        found = replica.reported.values.get(field.key)
    elif field.root == "desired":
        found = replica.desired.values.get(field.key)
    else:
        found = newest_prediction(version, field.key)
    if found is None:
        return ()
    value = _PARTS[field.root, field.part](found)
    return () if value is None else (value,)


def newest_prediction(version: TwinVersion, channel: str) -> Prediction | None:
    """Return the freshest prediction of a channel, by whatever model."""
    found = [p for p in version.replica.predicted.predictions.values() if p.channel == channel]
    return max(found, key=lambda p: (p.freshness, p.model_id)) if found else None


_PARTS: Final[dict[tuple[str, str], Callable[..., object]]] = {
    ("reported", ""): lambda f: f.value,
    ("reported", "quality"): lambda f: f.quality,
    ("reported", "event_time"): lambda f: f.event_time_unix_us,
    ("reported", "offset"): lambda f: f.offset,
    ("desired", ""): lambda d: d.value,
    ("desired", "state"): lambda d: d.state,
    ("desired", "deadline"): lambda d: d.deadline_unix_us,
    ("desired", "offset"): lambda d: d.offset,
    ("predicted", ""): lambda p: p.values,
    ("predicted", "model_id"): lambda p: p.model_id,
    ("predicted", "at"): lambda p: p.at_unix_us,
    ("predicted", "valid_until"): lambda p: p.valid_until_unix_us,
    ("predicted", "horizon"): lambda p: p.step_us * (len(p.values) // len(p.quantile_levels)),
}


def _compare_value(field: Field, op: Op, literal: Literal) -> Test:
    """Compare the value of a channel; a literal of another kind than the value is never equal to it."""
    key = field.key
    if not isinstance(literal, Quantity):
        judge = _judge(op, literal)
        if field.root == "predicted":
            return lambda _v, _p: False
        return lambda v, _: any(judge(value) for value in _of_facet(field, v))
    judges = _NumberJudges(key, op, literal)
    if field.root == "reported":
        if not literal.unit:
            plain = judges.in_unit("")

            def as_reported(version: TwinVersion, _: Population) -> bool:
                fact = version.replica.reported.values.get(key)
                return fact is not None and plain(fact.value)

            return as_reported

        def reported(version: TwinVersion, _: Population) -> bool:
            fact = version.replica.reported.values.get(key)
            return fact is not None and judges.of(version.twin_type)(fact.value)

        return reported
    if field.root == "desired":

        def desired(version: TwinVersion, _: Population) -> bool:
            target = version.replica.desired.values.get(key)
            return target is not None and judges.of(version.twin_type)(target.value)

        return desired

    def predicted(version: TwinVersion, _: Population) -> bool:
        prediction = newest_prediction(version, key)
        if prediction is None:
            return False
        levels = prediction.quantile_levels
        middle = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.5))
        judge = judges.in_unit(prediction.unit)
        return any(judge(value) for value in prediction.values[middle :: len(levels)])

    return predicted


class _NumberJudges:
    """Compares numbers of a channel with a quantity, in the unit that each twin type has for it."""

    def __init__(self, channel: str, op: Op, quantity: Quantity) -> None:
        self._channel = channel
        self._op = op
        self._quantity = quantity
        self._plain = _number_judge(op, quantity.number, nearly=False)
        self._by_type: dict[int, tuple[TwinType, Callable[[Value], bool]]] = {}

    def of(self, twin_type: TwinType) -> Callable[[Value], bool]:
        """Return the judge for the channel of a type."""
        if not self._quantity.unit:
            return self._plain
        known = self._by_type.get(id(twin_type))
        if known is not None and known[0] is twin_type:
            return known[1]
        spec = twin_type.channel(self._channel)
        judge = self.in_unit(spec.unit) if spec is not None else _never
        if len(self._by_type) >= _MAX_TYPES:
            self._by_type.clear()
        self._by_type[id(twin_type)] = (twin_type, judge)
        return judge

    def in_unit(self, unit: str) -> Callable[[Value], bool]:
        """Return the judge for values in `unit`; nothing compares with what cannot be converted."""
        if not self._quantity.unit:
            return self._plain
        try:
            conversion: Conversion = TABLE.conversion(self._quantity.unit, unit)
        except InvalidArgument:
            return _never
        if conversion.identity:
            return self._plain
        return _number_judge(self._op, conversion.apply(self._quantity.number), nearly=True)


def _never(_value: Value) -> bool:
    return False


def _number_judge(op: Op, number: float | int, *, nearly: bool) -> Callable[[Value], bool]:
    if op is Op.EQUAL:
        if nearly:
            return lambda value: _is_number(value) and math.isclose(value, number, rel_tol=_NEARLY, abs_tol=_NEARLY)  # type: ignore[arg-type]  # checked
        return lambda value: _is_number(value) and value == number
    compare = _ORDERS[op]
    return lambda value: _is_number(value) and compare(value, number)


def _is_number(value: object) -> bool:
    kind = type(value)
    return kind is float or kind is int


def _judge(op: Op, literal: Literal) -> _Judge:
    """Return the comparison with a literal that needs no unit."""
    match literal:
        case bool():
            return lambda value: value is literal
        case Pattern(pieces):
            return _text_judge(op, pieces)
        case Quantity(number) | Moment(number) | Span(number) | Choice(_, number):
            if op is Op.EQUAL:
                return lambda value: value == number
            compare = _ORDERS[op]
            return lambda value: compare(value, number)


def _text_judge(op: Op, pieces: tuple[str, ...]) -> _Judge:
    if op.orders:
        compare, wanted = _ORDERS[op], pieces[0]
        return lambda value: _is_text(value) and compare(value, wanted)
    if op is Op.HAS:
        pieces = ("", *pieces, "")
    if len(pieces) == 1:
        wanted = pieces[0]
        return lambda value: value == wanted and _is_text(value)
    return lambda value: _is_text(value) and _fits(str(value), pieces)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not isinstance(value, Json)


def _fits(text: str, pieces: tuple[str, ...]) -> bool:
    """Whether a text is these pieces with anything between them; linear, unlike a regular expression of stars."""
    first, last = pieces[0], pieces[-1]
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for piece in pieces[1:-1]:
        found = text.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True
