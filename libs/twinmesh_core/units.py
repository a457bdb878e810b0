"""Units of measure: UCUM codes and their common spellings, one canonical code each, and linear conversion.

A unit is read once into a scale, an offset and the powers of the base dimensions; after that a conversion is two
numbers, so that a column converts in one numpy expression. Every unit of the table is compared with a UCUM library
in the tests; what the table does not know, such a library may tell (`UnitLibrary`).
Source: Schadow, McDonald, *The Unified Code for Units of Measure* (https://ucum.org/ucum).

Temperatures have an offset when they stand alone (``Cel``) and none inside a product (``Cel/min``), where a
difference is meant: a rate of 1 Cel/min is 1 K/min. Differences (tolerances, residuals, rates) never take the offset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

from twinmesh_core.errors import FieldViolation, InvalidArgument, Reason
from twinmesh_core.ids import quoted
from twinmesh_core.units_table import ALIASES, ATOMS, DIMENSION_NAMES, OFFSETS_K, PREFIXES, Dimension

MAX_UNIT_LENGTH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """How values change from one unit to another: ``value * scale + offset``."""

    scale: float
    offset: float

    @property
    def identity(self) -> bool:
        """Whether values stay as they are."""
        return self.scale == 1.0 and self.offset == 0.0

    def apply(self, value: float) -> float:
        """Return one value in the target unit."""
        return value * self.scale + self.offset


IDENTITY: Final = Conversion(scale=1.0, offset=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit in base units: ``base = value * scale + offset``, with the powers of the base dimensions."""

    scale: float
    offset: float
    dimension: Dimension


class UnitLibrary(Protocol):
    """A library of units, asked for codes that the table here does not know."""

    def meaning(self, code: str) -> Unit | None:
        """Return what a UCUM code means; None = it is none. May take a second the first time."""
        ...


class Units:
    """Reads units by the table of this module, and by a library where that does not know one; each code once.

    Args:
        library: asked for what the table does not know; None = the table alone.
    """

    def __init__(self, library: UnitLibrary | None = None) -> None:
        self._library = library
        self._learnt: dict[str, Unit | None] = {}

    def unlearnt(self, units: Iterable[str]) -> list[str]:
        """Return the codes that only the library can tell and was not asked for: `learn` them off the event loop."""
        if self._library is None:
            return []
        codes = dict.fromkeys(_spelling(unit) for unit in units)
        return [code for code in codes if _parsed(code) is None and code not in self._learnt and _plausible(code)]

    def learn(self, codes: Iterable[str]) -> None:
        """Ask the library for codes, and remember what it says."""
        for code in codes:
            self._meaning(code)

    def canonical(self, unit: str, field: str = "unit") -> str:
        """Return the UCUM code that a unit is stored under; empty (or blank) = ``1``, dimensionless.

        Common spellings become UCUM (``°C`` and ``degC`` become ``Cel``, ``kWh`` becomes ``kW.h``); UCUM codes stay as
        they are.

        Raises:
            InvalidArgument: reason INCOMPATIBLE_UNIT, if it is neither.
        """
        code = _spelling(unit)
        if self._meaning(code) is None:
            shown = quoted(unit)
            raise _incompatible(
                field, f"unit {shown} is not known; use a UCUM code, e.g. Cel, K, kW, bar, m/s, %, m3/h, 1"
            )
        return code

    def conversion(self, source: str, target: str, *, difference: bool = False, field: str = "unit") -> Conversion:
        """Return how values in `source` become values in `target`.

        Args:
            source: UCUM code or alias of the values; empty = dimensionless.
            target: UCUM code or alias wanted.
            difference: the values are differences (tolerances, rates, residuals): 1 K is 1.8 degF, never 33.8.
            field: the field named in the error.

        Raises:
            InvalidArgument: reason INCOMPATIBLE_UNIT: one of them is unknown, or they measure different things.
        """
        a, b = self._meaning(_spelling(source)), self._meaning(_spelling(target))
        found = _between(a, b, _spelling(source) == _spelling(target), difference)
        if found is not None:
            return found
        self.canonical(source, field)
        self.canonical(target, field)
        raise _incompatible(
            field,
            f"unit {quoted(source)}{_of(a)} cannot be converted to {quoted(target)}{_of(b)}; "
            f"send values in {_alternatives(_spelling(target), b)}",
        )

    def compatible(self, source: str, target: str) -> bool:
        """Return whether both units are known and measure the same thing."""
        a, b = self._meaning(_spelling(source)), self._meaning(_spelling(target))
        return _between(a, b, _spelling(source) == _spelling(target), False) is not None

    def _meaning(self, code: str) -> Unit | None:
        known = _parsed(code)
        if known is not None or self._library is None or not _plausible(code):
            return known
        if code not in self._learnt:
            if len(self._learnt) >= _MAX_LEARNT:
                self._learnt.clear()
            self._learnt[code] = self._library.meaning(code)
        return self._learnt[code]


TABLE: Final = Units()
"""The units that everybody knows, without a library."""
canonical = TABLE.canonical
conversion = TABLE.conversion
compatible = TABLE.compatible
_MAX_LEARNT: Final = 4_096


def dimension_name(dimension: Dimension) -> str:
    """Return what a unit measures, in a word where there is one: ``pressure``, else ``m2.s-1``."""
    named = DIMENSION_NAMES.get(dimension)
    if named is not None:
        return named
    powers = zip(("m", "s", "g", "A", "K", "mol", "cd", "bit"), dimension, strict=False)
    return ".".join(unit + ("" if power == 1 else str(power)) for unit, power in powers if power) or "a number"


def _of(unit: Unit | None) -> str:
    return f" ({dimension_name(unit.dimension)})" if unit is not None else ""


def _plausible(code: str) -> bool:
    """Whether a code is worth asking a library for: text of anybody's making goes no further."""
    return len(code) <= MAX_UNIT_LENGTH and code.isascii() and _CODE.fullmatch(code) is not None


_CODE: Final = re.compile(r"[A-Za-z0-9%'\"\[\]_./*^(){}+:-]+")


def _incompatible(field: str, description: str) -> InvalidArgument:
    return InvalidArgument(
        description,
        reason=Reason.INCOMPATIBLE_UNIT,
        field_violations=(FieldViolation(field=field, description=description),),
    )


def _alternatives(target: str, unit: Unit | None) -> str:
    same = [atom for atom, (_, dimension, _) in ATOMS.items() if unit is not None and dimension == unit.dimension]
    shown = list(dict.fromkeys([target, *same]))[:6]
    return " or ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _between(a: Unit | None, b: Unit | None, same: bool, difference: bool) -> Conversion | None:
    if a is None or b is None:
        return None
    if same:
        return IDENTITY
    if a.dimension != b.dimension:
        return None
    offset = 0.0 if difference else (a.offset - b.offset) / b.scale
    return Conversion(scale=_clean(a.scale / b.scale), offset=_clean(offset))


def _clean(number: float) -> float:
    """Drop the rounding of the last digit, so that 10*3/ul to 10*9/l is 1 and nothing is multiplied."""
    return float(f"{number:.15g}")


@lru_cache(maxsize=4096)
def _spelling(unit: str) -> str:
    """Translate common spellings into UCUM; what is not one passes unchanged and is judged by the parser."""
    text = unit.strip()
    if not text:
        return "1"
    if text in ALIASES:
        return ALIASES[text]
    for seen, meant in _TYPOGRAPHY:
        text = text.replace(seen, meant)
    # "kWh/d", "MB/s", "m³/h": factors around "/" and "." may be aliases by themselves.
    return "".join(part and ALIASES.get(part, part) for part in re.split(r"([/.])", text))


_TYPOGRAPHY: Final = (
    ("²", "2"), ("³", "3"), ("⁻¹", "-1"), ("µ", "u"), ("μ", "u"), ("·", "."), ("⋅", "."), ("*", "."), ("^", ""),
    ("Ω", "Ohm"), ("Ω", "Ohm"), ("10.-", "10*-"), ("10.", "10*"),
)  # fmt: skip

_TOKEN: Final = re.compile(r"\{[^{}]*\}|[/.()]|10[*^][+-]?\d+|(?:[A-Za-z%'\"]|\[[^\[\]]*\])+|\d+|[+-]\d+")


@lru_cache(maxsize=4096)
def _parsed(code: str) -> Unit | None:
    """Return the unit that a UCUM code names, or None; the grammar's terms, without its arbitrary units."""
    if len(code) > MAX_UNIT_LENGTH or not code.isascii():
        return None
    tokens = _TOKEN.findall(code)
    if "".join(tokens) != code:
        return None
    bare = [token for token in tokens if not token.startswith("{")]
    if len(bare) == 1 and bare[0] in OFFSETS_K:
        scale, offset = OFFSETS_K[bare[0]]
        return Unit(scale=scale, offset=offset, dimension=_KELVIN)
    try:
        scale, dimension, rest = _term(tokens)
    except (ValueError, OverflowError, ZeroDivisionError):
        return None
    return None if rest else Unit(scale=scale, offset=0.0, dimension=dimension)


_NONE: Final[Dimension] = (0, 0, 0, 0, 0, 0, 0, 0, 0)
_KELVIN: Final[Dimension] = (0, 0, 0, 0, 1, 0, 0, 0, 0)


def _term(tokens: list[str]) -> tuple[float, Dimension, list[str]]:
    """Read ``a.b/c`` from the left up to a closing bracket; return scale, dimension and what is left."""
    scale, dimension, sign = 1.0, _NONE, 1
    rest = tokens
    if rest and rest[0] == "/":
        sign, rest = -1, rest[1:]
    while True:
        factor, powers, rest = _component(rest)
        scale *= factor**sign
        dimension = tuple(d + sign * p for d, p in zip(dimension, powers, strict=True))
        if not rest or rest[0] == ")":
            return scale, dimension, rest
        if rest[0] not in "/.":
            raise ValueError("two units without a sign between them")
        sign, rest = (-1 if rest[0] == "/" else 1), rest[1:]


def _component(tokens: list[str]) -> tuple[float, Dimension, list[str]]:
    if not tokens:
        raise ValueError("a unit is missing")
    head, rest = tokens[0], tokens[1:]
    if head == "(":
        scale, dimension, rest = _term(rest)
        if not rest:
            raise ValueError("a bracket is not closed")
        return scale, dimension, _without_annotation(rest[1:])
    if head.startswith("{"):
        return 1.0, _NONE, rest
    if head[:3] in ("10*", "10^"):
        return 10.0 ** int(head[3:]), _NONE, _without_annotation(rest)
    if head.isdigit():
        return float(head), _NONE, _without_annotation(rest)
    scale, dimension = _atom(head)
    if rest and re.fullmatch(r"[+-]?\d+", rest[0]):
        power, rest = int(rest[0]), rest[1:]
        scale, dimension = scale**power, tuple(power * p for p in dimension)
    return scale, dimension, _without_annotation(rest)


def _without_annotation(tokens: list[str]) -> list[str]:
    return tokens[1:] if tokens and tokens[0].startswith("{") else tokens


def _atom(text: str) -> tuple[float, Dimension]:
    found = ATOMS.get(text)
    if found is not None:
        return found[0], found[1]
    if text in OFFSETS_K:
        return OFFSETS_K[text][0], _KELVIN
    for prefix, factor in PREFIXES.items():
        if text.startswith(prefix):
            metric = ATOMS.get(text[len(prefix) :])
            if metric is not None and metric[2]:
                return factor * metric[0], metric[1]
            if text[len(prefix) :] == "Cel":
                return factor, _KELVIN
    raise ValueError("not a unit")
