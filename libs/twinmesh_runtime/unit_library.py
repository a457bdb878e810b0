"""Arbitrary UCUM codes, by a units library: what our own table does not know.

The library takes most of a second and some 30 MB to load, so it is loaded when the first such code comes, off the event
loop (see `twinmesh_core.units.Units.unlearnt`), and never where all units are common ones.
"""

from __future__ import annotations

import re
import warnings
from threading import Lock
from typing import Any, Final
from zlib import crc32

from twinmesh_core.units import Unit

_BASE: Final = ("meter", "second", "gram", "ampere", "kelvin", "mole", "candela", "bit")
_BASE_UNITS: Final = {name: position for position, name in enumerate(_BASE)}
_RATIOS: Final = frozenset({"radian", "steradian", "count"})
_OWN: Final = 100
"""Dimension markers from here on stand for units that are convertible to themselves only."""
# Source: UCUM, section 4.5, table of units that are procedure-defined ("arbitrary").
_ARBITRARY: Final = re.compile(
    r"/?\[(?:[iI]U|arb'U|USP'U|GPL'U|MPL'U|APL'U|beth'U|anti'Xa'U|todd'U|dye'U|smgy'U|bdsk'U|ka'U|knk'U|mclg'U|tb'U"
    r"|CCID_50|TCID_50|EID_50|PFU|FFU|CFU|IR|BAU|AU|Amb'a'1'U|PNU|Lf|D'ag'U|FEU|ELU|EU)\][+-]?\d*"
)


class UcumLibrary:
    """Implements `twinmesh_core.units.UnitLibrary` with ucumvert on pint."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._registry: Any = None

    def meaning(self, code: str) -> Unit | None:
        """Return what a UCUM code means; see the port."""
        with self._lock:
            if self._registry is None:
                self._registry = _load()
            try:
                quantity = self._registry.from_ucum(_without_offsets(code))
                return _unit(code, quantity if hasattr(quantity, "to_root_units") else quantity * self._registry("1"))
            except Exception:  # noqa: BLE001  the library raises whatever its parser does: the code is none
                return None


def _load() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it redefines units of pint, as it should
        from ucumvert import PintUcumRegistry

        return PintUcumRegistry()


def _without_offsets(code: str) -> str:
    """Inside a product a difference is meant: 1 Cel/min is 1 K/min."""
    if not re.search(r"[./\d(]", code):
        return code
    return code.replace("Cel", "K").replace("[degF]", "[degR]")


def _unit(code: str, quantity: Any) -> Unit | None:
    kind = type(quantity)
    zero, one, two = (kind(x * float(quantity.magnitude), quantity.units).to_root_units() for x in (0.0, 1.0, 2.0))
    scale, offset = float(one.magnitude - zero.magnitude), float(zero.magnitude)
    linear = abs(float(two.magnitude - zero.magnitude) - 2 * scale) <= 1e-9 * abs(scale)
    if not linear or not scale:
        return Unit(scale=1.0, offset=0.0, dimension=(0,) * len(_BASE) + (_OWN + crc32(code.encode()),))
    powers = [0] * len(_BASE)
    for name, power in one.units._units.items():  # noqa: SLF001  the only view of names with powers
        if name in _RATIOS:
            continue
        if name not in _BASE_UNITS or power != int(power):
            return None
        powers[_BASE_UNITS[name]] = int(power)
    own = "".join(sorted(_ARBITRARY.findall(code)))
    marker = _OWN + crc32(own.encode()) if own else 0
    return Unit(scale=scale, offset=offset, dimension=(*powers, marker))
