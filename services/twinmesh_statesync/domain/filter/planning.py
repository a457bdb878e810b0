"""From the tree to the few twins that can match: what an index narrows, the compiled filter then judges."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from twinmesh_statesync.domain.events import Connectivity
from twinmesh_statesync.domain.filter.expressions import (
    And,
    Choice,
    Compare,
    Expression,
    Field,
    Hop,
    Op,
    Or,
    Pattern,
    Present,
    Step,
    hops,
)


class Index(Protocol):
    """Sets of twin ids by what many filters ask for; none may be changed by who gets it."""

    def with_id(self, twin_id: str) -> Set[str]:
        """Return the twin of this id, if it lives."""
        ...

    def of_type(self, twin_type_id: str) -> Set[str]:
        """Return the twins whose type is (one of) this type."""
        ...

    def with_attribute(self, key: str, text: str) -> Set[str]:
        """Return the twins with this attribute."""
        ...

    def with_connectivity(self, connectivity: Connectivity) -> Set[str]:
        """Return the twins heard from in this way."""
        ...

    def with_delta(self) -> Set[str]:
        """Return the twins with open targets."""
        ...

    def pointing_to(self, relation: str, twin_id: str) -> Set[str]:
        """Return the twins with an edge of this name to `twin_id`."""
        ...

    def pointed_to_by(self, relation: str, twin_id: str) -> Set[str]:
        """Return the twins to which `twin_id` has an edge of this name."""
        ...


def plan(expression: Expression, index: Index, changed: Set[str] = frozenset()) -> Set[str] | None:
    """Return twins among which all matching ones are; None = any twin may match.

    Args:
        expression: the filter.
        index: of the present.
        changed: twins that changed between the offset asked for and the present; the index may be wrong about them.
    """
    match expression:
        case And(parts):
            # Hops are walked only where nothing else narrows: that may cost more than it saves.
            for group in (_without_hops(parts), parts):
                found = [narrowed for part in group if (narrowed := plan(part, index, changed)) is not None]
                if found:
                    return min(found, key=len)
            return None
        case Or(parts):
            union: set[str] = set()
            for part in parts:
                narrowed = plan(part, index, changed)
                if narrowed is None:
                    return None
                union |= narrowed
            return union
        case Hop(step, inner):
            # What changed may have had other edges then, and the twins at their ends are not among `changed`.
            ends = plan(inner, index) if not changed else None
            return None if ends is None else _starts(step, ends, index)
        case Compare() | Present():
            found_here = _leaf(expression, index)
            return found_here if found_here is None or not changed else found_here | changed
    return None


def _without_hops(parts: Sequence[Expression]) -> list[Expression]:
    return [part for part in parts if next(hops(part), None) is None]


def _starts(step: Step, ends: Set[str], index: Index) -> Set[str]:
    """Return the twins from which the step leads to one of `ends`."""
    walk = index.pointed_to_by if step.reverse else index.pointing_to
    starts: set[str] = set()
    for twin_id in ends:
        starts |= walk(step.relation, twin_id)
    return starts


def _leaf(leaf: Compare | Present, index: Index) -> Set[str] | None:
    match leaf:
        case Present(Field("delta")):
            return index.with_delta()
        case Compare(Field("connectivity"), Op.EQUAL, Choice(_, number)):
            return index.with_connectivity(Connectivity(number))
        case Compare(Field(root, key), Op.EQUAL, Pattern((text,))):
            match root:
                case "twin_id":
                    return index.with_id(text)
                case "twin_type":
                    return index.of_type(text.partition("@")[0])
                case "attributes":
                    return index.with_attribute(key, text)
                case "relationships":
                    return index.pointing_to(key, text)
    return None


@dataclass(frozen=True, slots=True)
class Anchor:
    """A bucket of twins outside which a filter matches nothing: by id, by attribute or by type, narrowest first."""

    rank: int
    key: str
    text: str


def anchors(expression: Expression) -> frozenset[Anchor] | None:
    """Return buckets of which every matching twin is in one; None = it may be in any.

    Unlike `plan` this needs no index: it is asked once, when a watch begins.
    """
    match expression:
        case And(parts):
            found = [held for part in parts if (held := anchors(part)) is not None]
            return min(found, key=_breadth) if found else None
        case Or(parts):
            union: set[Anchor] = set()
            for part in parts:
                held = anchors(part)
                if held is None:
                    return None
                union |= held
            return frozenset(union)
        case Compare(Field("twin_id"), Op.EQUAL, Pattern((text,))):
            return frozenset({Anchor(0, "", text)})
        case Compare(Field("attributes", key), Op.EQUAL, Pattern((text,))):
            return frozenset({Anchor(1, key, text)})
        case Compare(Field("twin_type"), Op.EQUAL, Pattern((text,))):
            return frozenset({Anchor(2, "", text.partition("@")[0])})
    return None


def _breadth(held: frozenset[Anchor]) -> tuple[int, int]:
    return max((anchor.rank for anchor in held), default=0), len(held)
