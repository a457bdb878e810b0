"""The checked tree of a filter, and its text in one canonical spelling."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from twinmesh_core.time import format_time


class Op(Enum):
    """How a field is compared; HAS is the colon."""

    EQUAL = "="
    NOT_EQUAL = "!="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="
    HAS = ":"

    @property
    def orders(self) -> bool:
        """Whether it needs values that have an order."""
        return self in (Op.LESS, Op.LESS_OR_EQUAL, Op.GREATER, Op.GREATER_OR_EQUAL)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text in pieces; between two pieces stands a wildcard for any text, so a single piece is that text itself."""

    pieces: tuple[str, ...]

    @property
    def exact(self) -> str | None:
        """The text, or None if there is a wildcard."""
        return self.pieces[0] if len(self.pieces) == 1 else None


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and its unit; "" = the unit of whatever it is compared with."""

    number: float | int
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Moment:
    """A time, in microseconds since the Unix epoch."""

    unix_us: int


@dataclass(frozen=True, slots=True)
class Span:
    """A length of time, in microseconds."""

    us: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One word of a fixed set, and its number."""

    word: str
    number: int


Literal = Pattern | Quantity | Moment | Span | Choice | bool


@dataclass(frozen=True, slots=True)
class Field:
    """What is looked at: ``revision``, ``attributes.site``, ``reported.temperature.quality``."""

    root: str
    key: str = ""
    part: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """A hop along edges named `relation`; reversed, to the twins whose edge points here."""

    relation: str
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class Compare:
    """A field compared with a literal; false wherever the twin has no such value, whatever the operator."""

    field: Field
    op: Op
    literal: Literal


@dataclass(frozen=True, slots=True)
class Present:
    """Whether the twin has such a value at all."""

    field: Field


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    part: Expression


@dataclass(frozen=True, slots=True)
class And:
    """All of them; of nothing: true."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of them."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Hop:
    """Whether some living twin at the other end of the step matches."""

    step: Step
    inner: Expression


Expression = Compare | Present | Not | And | Or | Hop
EVERYTHING: Final = And(())

_BARE_UNIT: Final = re.compile(r"[A-Za-z°%µΩ\[][A-Za-z0-9°%µΩ\[\]/.*^_-]*")
_BARE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
KEYWORDS: Final = frozenset({"AND", "OR", "NOT"})
ROOTS: Final = (
    "twin_id", "display_name", "twin_type", "time_zone", "connectivity", "revision", "offset", "create_time",
    "last_event_time", "attributes", "relationships", "reported", "desired", "predicted", "delta",
)  # fmt: skip


def children(expression: Expression) -> tuple[Expression, ...]:
    """Return the expressions directly inside one."""
    match expression:
        case And(parts) | Or(parts):
            return parts
        case Not(part):
            return (part,)
        case Hop(_, inner):
            return (inner,)
    return ()


def hops(expression: Expression) -> Iterator[Hop]:
    """Yield every hop, outermost first."""
    if isinstance(expression, Hop):
        yield expression
    for inner in children(expression):
        yield from hops(inner)


def text_of(expression: Expression) -> str:
    """Return the filter in canonical spelling: parsed again it is the same tree."""
    match expression:
        case Compare(field, op, literal):
            sign = ":" if op is Op.HAS else f" {op.value} "
            return f"{path_of(field)}{sign}{_literal(literal)}"
        case Present(field):
            return f"{path_of(field)}:*"
        case Not(part):
            return f"NOT {_inside(part)}"
        case And(parts):
            return " AND ".join(_inside(part) for part in parts)
        case Or(parts):
            return " OR ".join(_inside(part) for part in parts)
        case Hop(step, inner):
            return f"{_step(step)}.({text_of(inner)})"


def _inside(part: Expression) -> str:
    return f"({text_of(part)})" if isinstance(part, And | Or) else text_of(part)


def path_of(field: Field) -> str:
    """Return a field as the language writes it."""
    return ".".join(filter(None, (field.root, _name(field.key) if field.key else "", field.part)))


def _step(step: Step) -> str:
    return f"~{_name(step.relation)}" if step.reverse else f"relationships.{_name(step.relation)}"


def _name(text: str) -> str:
    return text if _BARE_NAME.fullmatch(text) else quoted(text)


def _literal(literal: Literal) -> str:
    match literal:
        case bool():
            return "true" if literal else "false"
        case Pattern(pieces):
            return '"' + "*".join(_escaped(piece) for piece in pieces) + '"'
        case Quantity(number, unit):
            bare = _BARE_UNIT.fullmatch(unit) is not None and unit not in KEYWORDS
            return f"{number!r} {unit if bare else quoted(unit)}" if unit else repr(number)
        case Moment(unix_us):
            return f'"{format_time(unix_us)}"'
        case Span(us):
            return f"{us / 1_000_000!r}s"
        case Choice(word):
            return word


def quoted(text: str) -> str:
    """Return a text as the language writes it, wildcards escaped."""
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in '\\"*' else c for c in text)
