"""Conditions in CEL: compiled once per rule, without loops, over the few names that a replica has.

What an expression may cost is bounded by its length: no comprehension is allowed (the only loops of CEL), no function
but a few whose work is linear in their arguments, and nothing nests deeper than the parser's own bound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from twinmesh_core.rules import MAX_EXPRESSION_CHARACTERS

if TYPE_CHECKING:
    import cel

NAMES: Final = ("reported", "desired", "delta", "predicted", "attributes", "connectivity")
"""What an expression may name."""
FUNCTIONS: Final = ("size", "contains", "startsWith", "endsWith", "int", "double")
_OPERATORS: Final = frozenset(
    {"!_", "-_", "_&&_", "_||_", "_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "_+_", "_-_", "_*_", "_/_", "_%_",
     "_?_:_", "_[_]", "@in"}
)  # fmt: skip
_COMPREHENSION: Final = re.compile(r"\.\s*(all|exists|exists_one|map|filter)\s*\(")
_CHANNEL: Final = re.compile(r"\b(reported|desired|delta|predicted)\s*\.\s*([a-z][a-z0-9_]*)")
_BARE: Final = re.compile(r"\b(reported|desired|delta|predicted)\b(?!\s*\.\s*[a-z])")


class Expression:
    """A compiled condition.

    Attributes:
        names: which of `NAMES` it uses.
        channels: (facet, channel) pairs that it names.
        whole: facets that it uses as a whole, not only by the name of a channel.
    """

    __slots__ = ("_program", "channels", "names", "whole")

    def __init__(self, program: cel.Program, source: str) -> None:
        self._program = program
        self.names = frozenset(program.variables())
        self.channels = frozenset(_CHANNEL.findall(source))
        self.whole = frozenset(_BARE.findall(source))

    def holds(self, context: Mapping[str, Any]) -> bool | None:
        """Return whether it holds; None = it cannot be told: something that it names is not there, or does not fit."""
        try:
            found = self._program.execute(dict(context))
        except Exception:  # noqa: BLE001  whatever it is: the expression has no answer
            return None
        return found if isinstance(found, bool) else None


@lru_cache(maxsize=4_096)
def compiled(source: str) -> Expression | str:
    """Return a condition ready to be asked, or what is wrong with it and what would be right."""
    if len(source) > MAX_EXPRESSION_CHARACTERS:
        return f"must be at most {MAX_EXPRESSION_CHARACTERS:,} characters; split it into several rules"
    if _COMPREHENSION.search(source):
        return "uses a comprehension (all, exists, exists_one, map, filter); name the channels instead"
    # It brings its command line along, a quarter of the whole start of a process that may have no such rule.
    import cel

    try:
        program = cel.compile(source)
    except ValueError as error:
        found = re.search(r"<input>:(\d+):(\d+): ([^\n]*)", str(error))
        where = f" at line {found[1]}, column {int(found[2]) + 1}" if found else ""
        return f"is no CEL expression{where}; e.g. reported.oil > 90.0 && connectivity == 'ONLINE'"
    unknown = sorted(set(program.variables()) - set(NAMES))
    if unknown:
        return f"names {unknown[0]!r}; there are {', '.join(NAMES)}"
    strange = sorted(set(program.functions()) - _OPERATORS - set(FUNCTIONS))
    if strange:
        return f"calls {strange[0]!r}; there are has, {', '.join(FUNCTIONS)}, and operators"
    if not program.variables():
        return f"depends on nothing; name at least one of {', '.join(NAMES)}"
    return Expression(program, source)
