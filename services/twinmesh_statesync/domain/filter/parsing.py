"""From text to the checked tree.

::

    filter      = [ expression ]
    expression  = factor { "AND" factor }  |  factor { "OR" factor }
    factor      = [ "NOT" ] ( "(" expression ")" | hop | restriction )
    hop         = ( "~" name | name | "relationships" "." name ) "." ( "(" expression ")" | hop | restriction )
    restriction = path ( comparison value | ":" ( "*" | name ) )
    path        = name { "." name }

AND and OR do not mix without parentheses: SQL and AIP-160 bind them differently, and a filter must not be read in two
ways. Nothing but `FilterError` is ever raised, whatever the text.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

from twinmesh_core.ids import quoted
from twinmesh_statesync.domain.filter.errors import FilterError
from twinmesh_statesync.domain.filter.expressions import (
    EVERYTHING,
    ROOTS,
    And,
    Compare,
    Expression,
    Field,
    Hop,
    Not,
    Op,
    Or,
    Present,
    Step,
    path_of,
)
from twinmesh_statesync.domain.filter.fields import Kind, kind_of, read_literal, resolve
from twinmesh_statesync.domain.filter.scanning import Scanner

MAX_LENGTH: Final = 4_096
"""Characters of a filter."""
MAX_DEPTH: Final = 16
"""Parentheses, NOTs and hops inside one another."""
MAX_CONDITIONS: Final = 100
"""Comparisons of one filter."""
MAX_HOPS: Final = 3
"""Relationships followed one after another."""


def parse_filter(text: str) -> Expression:
    """Return the tree of a filter; an empty text lets everything pass.

    Raises:
        FilterError: names the column and the remedy.
    """
    if len(text) > MAX_LENGTH:
        raise FilterError(MAX_LENGTH + 1, f"a filter has at most {MAX_LENGTH:,} characters")
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self._scanner = Scanner(text)
        self._conditions = 0

    def whole(self) -> Expression:
        if self._scanner.ended:
            return EVERYTHING
        found = self._expression(0, 0)
        if not self._scanner.ended:
            column = self._scanner.column
            raise FilterError(
                column, f"expected AND, OR or the end, found {self._scanner.shown()}; put a text with spaces in quotes"
            )
        return found

    def _expression(self, depth: int, hops: int) -> Expression:
        parts = [self._factor(depth, hops)]
        binds = ""
        while True:
            column = self._scanner.column
            found = self._scanner.keyword("AND", "OR")
            if not found:
                break
            if binds and found != binds:
                raise FilterError(column, "AND and OR stand side by side; say with parentheses which binds first")
            binds = found
            parts.append(self._factor(depth, hops))
        if not binds:
            return parts[0]
        return And(tuple(parts)) if binds == "AND" else Or(tuple(parts))

    def _factor(self, depth: int, hops: int) -> Expression:
        column = self._scanner.column
        if depth > MAX_DEPTH:
            raise FilterError(column, f"parentheses, NOT and hops go at most {MAX_DEPTH} deep")
        if self._scanner.keyword("NOT"):
            return Not(self._factor(depth + 1, hops))
        if self._scanner.sign("("):
            return self._closed(depth, hops)
        return self._path(depth, hops)

    def _closed(self, depth: int, hops: int) -> Expression:
        column = self._scanner.column - 1
        inner = self._expression(depth + 1, hops)
        if not self._scanner.sign(")"):
            raise FilterError(
                self._scanner.column, f"expected ) for the ( at column {column}, found {self._scanner.shown()}"
            )
        return inner

    def _path(self, depth: int, hops: int) -> Expression:
        """Read hops and what stands behind the last of them."""
        column = self._scanner.column
        reverse = self._scanner.sign("~")
        first = self._scanner.name()
        if reverse:
            return self._hop(column, Step(first[0], reverse=True), depth, hops)
        names = [first]
        while self._scanner.sign("."):
            if self._scanner.sign("("):
                return self._grouped(column, names, depth, hops)
            if self._scanner.sign("~"):
                return self._before_reverse(column, names, depth, hops)
            names.append(self._scanner.name())
        return self._named(column, names, depth, hops)

    def _named(self, column: int, names: list[tuple[str, bool]], depth: int, hops: int) -> Expression:
        step, taken = _leading_hop(column, names)
        if step is not None:
            return self._nested(column, step, names[taken:], depth, hops)
        return self._restriction(column, names)

    def _nested(self, column: int, step: Step, names: list[tuple[str, bool]], depth: int, hops: int) -> Expression:
        self._check_hops(column, depth, hops)
        return Hop(step, self._named(column, names, depth + 1, hops + 1))

    def _grouped(self, column: int, names: list[tuple[str, bool]], depth: int, hops: int) -> Expression:
        step, taken = _all_hops(column, names)
        self._check_hops(column, depth, hops)
        if names[taken:]:
            return Hop(step, self._grouped(column, names[taken:], depth + 1, hops + 1))
        return Hop(step, self._closed(depth, hops + 1))

    def _before_reverse(self, column: int, names: list[tuple[str, bool]], depth: int, hops: int) -> Expression:
        step, taken = _all_hops(column, names)
        self._check_hops(column, depth, hops)
        if names[taken:]:
            return Hop(step, self._before_reverse(column, names[taken:], depth + 1, hops + 1))
        name, _ = self._scanner.name()
        return Hop(step, self._hop(column, Step(name, reverse=True), depth + 1, hops + 1))

    def _hop(self, column: int, step: Step, depth: int, hops: int) -> Expression:
        """Read what stands behind a reverse hop: a dot and a path, or a comparison with the twin at its other end."""
        self._check_hops(column, depth, hops)
        if self._scanner.sign("."):
            inner = self._closed(depth, hops + 1) if self._scanner.sign("(") else self._path(depth + 1, hops + 1)
            return Hop(step, inner)
        return Hop(step, self._restriction(column, [("twin_id", False)]))

    def _check_hops(self, column: int, depth: int, hops: int) -> None:
        if hops >= MAX_HOPS:
            raise FilterError(column, f"at most {MAX_HOPS} relationships are followed one after another")
        if depth >= MAX_DEPTH:
            raise FilterError(column, f"parentheses, NOT and hops go at most {MAX_DEPTH} deep")

    def _restriction(self, column: int, names: list[tuple[str, bool]]) -> Expression:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise FilterError(column, f"a filter has at most {MAX_CONDITIONS} conditions")
        field = resolve(column, names)
        place = self._scanner.column
        op = self._scanner.operator()
        if op is None:
            raise FilterError(
                place, f"expected =, !=, <, <=, >, >= or : after {names[0][0]}, found {self._scanner.shown()}"
            )
        if op is not Op.HAS or (kind_of(field) is Kind.TEXT and not self._star()):
            return Compare(field, op, read_literal(field, op, place, self._scanner))
        return self._has(field, place)

    def _star(self) -> bool:
        """Whether a lone star comes next."""
        ahead = Scanner(self._scanner.rest)
        found = ahead.optional_value()
        return found is not None and found.pieces == ("", "")

    def _has(self, field: Field, place: int) -> Expression:
        value = self._scanner.value()
        if value.pieces == ("", ""):
            return Present(field)
        if kind_of(field) is not Kind.KEYS:
            shown = path_of(field)
            raise FilterError(place, f"{shown} is one value; compare it, or ask whether it is there: {shown}:*")
        if len(value.pieces) > 1 or not value.raw:
            raise FilterError(value.column, "a name after a colon must not be empty nor hold a wildcard")
        return Present(Field(field.root, value.raw))


def _leading_hop(column: int, names: list[tuple[str, bool]]) -> tuple[Step | None, int]:
    """Return the hop that a path begins with, and how many names it takes."""
    name, in_quotes = names[0]
    if name == "relationships" and not in_quotes:
        return (Step(names[1][0]), 2) if len(names) > 2 else (None, 0)
    if (name in ROOTS and not in_quotes) or len(names) == 1:
        return None, 0
    near = get_close_matches(name, ROOTS, 1, 0.85)
    if near and not in_quotes:
        raise FilterError(
            column, f"there is no field {quoted(name)}; did you mean {near[0]}? (a relationship: relationships.{name})"
        )
    return Step(name), 1


def _all_hops(column: int, names: list[tuple[str, bool]]) -> tuple[Step, int]:
    """Return the first hop of a path that is nothing but hops, and how many names it takes."""
    name, in_quotes = names[0]
    if name == "relationships" and not in_quotes:
        if len(names) < 2:
            raise FilterError(column, "name the relationship: relationships.NAME")
        return Step(names[1][0]), 2
    if name in ROOTS and not in_quotes:
        raise FilterError(column, f"{name} is a field and leads to no twin; a relationship: relationships.{name}")
    return Step(name), 1
