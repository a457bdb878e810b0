"""The units themselves: atoms of UCUM in base units, prefixes, and how people spell them.

Plain data, so that a reader can check it against the standard; `twinmesh_core.units` reads it. Not here: logarithmic
and arbitrary units, whose conversion is not linear (pH, dB), are atoms of an own dimension each, convertible to
themselves only.
"""

from __future__ import annotations

from math import pi
from types import MappingProxyType
from typing import Final

Dimension = tuple[int, ...]
"""Powers of metre, second, gram, ampere, kelvin, mole, candela, bit, and of a marker for logarithmic units."""

_1: Final[Dimension] = (0, 0, 0, 0, 0, 0, 0, 0, 0)
_M: Final[Dimension] = (1, 0, 0, 0, 0, 0, 0, 0, 0)
_S: Final[Dimension] = (0, 1, 0, 0, 0, 0, 0, 0, 0)
_G: Final[Dimension] = (0, 0, 1, 0, 0, 0, 0, 0, 0)
_A: Final[Dimension] = (0, 0, 0, 1, 0, 0, 0, 0, 0)
_K: Final[Dimension] = (0, 0, 0, 0, 1, 0, 0, 0, 0)
_MOL: Final[Dimension] = (0, 0, 0, 0, 0, 1, 0, 0, 0)
_CD: Final[Dimension] = (0, 0, 0, 0, 0, 0, 1, 0, 0)
_BIT: Final[Dimension] = (0, 0, 0, 0, 0, 0, 0, 1, 0)
_M2: Final[Dimension] = (2, 0, 0, 0, 0, 0, 0, 0, 0)
_M3: Final[Dimension] = (3, 0, 0, 0, 0, 0, 0, 0, 0)
_SPEED: Final[Dimension] = (1, -1, 0, 0, 0, 0, 0, 0, 0)
_PER_S: Final[Dimension] = (0, -1, 0, 0, 0, 0, 0, 0, 0)
_FORCE: Final[Dimension] = (1, -2, 1, 0, 0, 0, 0, 0, 0)
_PRESSURE: Final[Dimension] = (-1, -2, 1, 0, 0, 0, 0, 0, 0)
_ENERGY: Final[Dimension] = (2, -2, 1, 0, 0, 0, 0, 0, 0)
_POWER: Final[Dimension] = (2, -3, 1, 0, 0, 0, 0, 0, 0)
_CHARGE: Final[Dimension] = (0, 1, 0, 1, 0, 0, 0, 0, 0)
_VOLT: Final[Dimension] = (2, -3, 1, -1, 0, 0, 0, 0, 0)
_LOG_PH: Final[Dimension] = (0, 0, 0, 0, 0, 0, 0, 0, 1)
_LOG_BEL: Final[Dimension] = (0, 0, 0, 0, 0, 0, 0, 0, 2)

ATOMS: Final = MappingProxyType[str, tuple[float, Dimension, bool]](
    {
        # code: (value in m, s, g, A, K, mol, cd, bit; dimension; whether prefixes may stand before it)
        "%": (1e-2, _1, False), "[ppth]": (1e-3, _1, False), "[ppm]": (1e-6, _1, False), "[ppb]": (1e-9, _1, False),
        "m": (1.0, _M, True), "s": (1.0, _S, True), "g": (1.0, _G, True), "A": (1.0, _A, True), "K": (1.0, _K, True),
        "mol": (1.0, _MOL, True), "cd": (1.0, _CD, True), "bit": (1.0, _BIT, True), "By": (8.0, _BIT, True),
        "Bd": (1.0, _PER_S, True),
        # angle (a ratio: radians are 1)
        "rad": (1.0, _1, True), "sr": (1.0, _1, True), "deg": (pi / 180, _1, False), "gon": (pi / 200, _1, False),
        "circ": (2 * pi, _1, False), "'": (pi / 10_800, _1, False), "''": (pi / 648_000, _1, False),
        # time
        "min": (60.0, _S, False), "h": (3_600.0, _S, False), "d": (86_400.0, _S, False),
        "wk": (604_800.0, _S, False), "mo": (2_629_800.0, _S, False), "a": (31_557_600.0, _S, False),
        "Hz": (1.0, _PER_S, True), "Bq": (1.0, _PER_S, True),
        # length, area, volume
        "[in_i]": (0.0254, _M, False), "[ft_i]": (0.3048, _M, False), "[yd_i]": (0.9144, _M, False),
        "[mi_i]": (1_609.344, _M, False), "[nmi_i]": (1_852.0, _M, False), "Ao": (1e-10, _M, False),
        "ar": (100.0, _M2, True), "[sft_i]": (0.3048**2, _M2, False), "[sin_i]": (0.0254**2, _M2, False),
        "l": (1e-3, _M3, True), "L": (1e-3, _M3, True), "[gal_us]": (231 * 0.0254**3, _M3, False),
        "[gal_br]": (4.54609e-3, _M3, False), "[cft_i]": (0.3048**3, _M3, False), "[cin_i]": (0.0254**3, _M3, False),
        "[bbl_us]": (42 * 231 * 0.0254**3, _M3, False),
        "[kn_i]": (1_852 / 3_600, _SPEED, False),
        # mass, force, pressure
        "t": (1e6, _G, True), "[lb_av]": (453.59237, _G, False), "[oz_av]": (28.349523125, _G, False),
        "N": (1e3, _FORCE, True), "gf": (9.80665, _FORCE, True), "[lbf_av]": (4448.2216152605, _FORCE, False),
        "[g]": (9.80665, (1, -2, 0, 0, 0, 0, 0, 0, 0), True),
        "Pa": (1e3, _PRESSURE, True), "bar": (1e8, _PRESSURE, True), "atm": (101_325e3, _PRESSURE, False),
        "[psi]": (4448.2216152605 / 0.0254**2, _PRESSURE, False), "m[Hg]": (133.322387415e6, _PRESSURE, True),
        "m[H2O]": (9.80665e6, _PRESSURE, True), "[in_i'Hg]": (133.322387415e6 * 0.0254, _PRESSURE, False),
        "[in_i'H2O]": (9.80665e6 * 0.0254, _PRESSURE, False),
        # energy, power
        "J": (1e3, _ENERGY, True), "W": (1e3, _POWER, True), "cal": (4_184.0, _ENERGY, True),
        "eV": (1.602176634e-16, _ENERGY, True), "[Btu_IT]": (1_055.05585262e3, _ENERGY, False),
        "[HP]": (550 * 0.3048 * 4448.2216152605, _POWER, False),
        # electricity and magnetism
        "V": (1e3, _VOLT, True), "C": (1.0, _CHARGE, True), "Ohm": (1e3, (2, -3, 1, -2, 0, 0, 0, 0, 0), True),
        "S": (1e-3, (-2, 3, -1, 2, 0, 0, 0, 0, 0), True), "mho": (1e-3, (-2, 3, -1, 2, 0, 0, 0, 0, 0), True),
        "F": (1e-3, (-2, 4, -1, 2, 0, 0, 0, 0, 0), True), "H": (1e3, (2, -2, 1, -2, 0, 0, 0, 0, 0), True),
        "Wb": (1e3, (2, -2, 1, -1, 0, 0, 0, 0, 0), True), "T": (1e3, (0, -2, 1, -1, 0, 0, 0, 0, 0), True),
        "G": (1e-1, (0, -2, 1, -1, 0, 0, 0, 0, 0), True),
        # light, radiation, chemistry, flow
        "lm": (1.0, _CD, True), "lx": (1.0, (-2, 0, 0, 0, 0, 0, 1, 0, 0), True),
        "Gy": (1.0, (2, -2, 0, 0, 0, 0, 0, 0, 0), True), "Sv": (1.0, (2, -2, 0, 0, 0, 0, 0, 0, 0), True),
        "Ci": (3.7e10, _PER_S, True), "kat": (1.0, (0, -1, 0, 0, 0, 1, 0, 0, 0), True),
        "U": (1e-6 / 60, (0, -1, 0, 0, 0, 1, 0, 0, 0), True), "P": (100.0, (-1, -1, 1, 0, 0, 0, 0, 0, 0), True),
        "St": (1e-4, (2, -1, 0, 0, 0, 0, 0, 0, 0), True),
        # temperature without an offset of its own
        "[degR]": (5 / 9, _K, False),
        # logarithmic: comparable with themselves only
        "[pH]": (1.0, _LOG_PH, False), "B": (1.0, _LOG_BEL, True),
    }
)  # fmt: skip
"""UCUM atoms; masses are in grams, so every unit of force, pressure, energy and voltage carries a factor of 1000."""

OFFSETS_K: Final = MappingProxyType[str, tuple[float, float]]({"Cel": (1.0, 273.15), "[degF]": (5 / 9, 459.67 * 5 / 9)})
"""Temperatures with a zero of their own: kelvins per degree, and kelvins at zero."""

PREFIXES: Final = MappingProxyType[str, float](
    {
        "da": 1e1, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40,
        "Y": 1e24, "Z": 1e21, "E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "h": 1e2,
        "d": 1e-1, "c": 1e-2, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12, "f": 1e-15, "a": 1e-18,
    }
)  # fmt: skip
"""Decimal and binary prefixes; two-letter ones first, so that ``da`` is not read as deci-a."""

ALIASES: Final = MappingProxyType[str, str](
    {
        # temperature
        "°C": "Cel", "℃": "Cel", "degC": "Cel", "deg C": "Cel", "celsius": "Cel", "Celsius": "Cel", "ºC": "Cel",
        "°F": "[degF]", "℉": "[degF]", "degF": "[degF]", "deg F": "[degF]", "fahrenheit": "[degF]",
        "kelvin": "K", "degK": "K", "°R": "[degR]", "degR": "[degR]",
        # energy and power
        "Wh": "W.h", "kWh": "kW.h", "MWh": "MW.h", "GWh": "GW.h", "TWh": "TW.h", "VA": "V.A", "kVA": "kV.A",
        "MVA": "MV.A", "var": "V.A{reactive}", "kvar": "kV.A{reactive}", "Mvar": "MV.A{reactive}",
        "VAr": "V.A{reactive}", "kVAr": "kV.A{reactive}", "MVAr": "MV.A{reactive}", "Ah": "A.h", "mAh": "mA.h",
        "hp": "[HP]", "HP": "[HP]", "BTU": "[Btu_IT]", "Btu": "[Btu_IT]", "kcal": "kcal", "Ws": "W.s",
        # pressure, force, mass
        "psi": "[psi]", "PSI": "[psi]", "mmHg": "mm[Hg]", "inHg": "[in_i'Hg]", "mmH2O": "mm[H2O]",
        "inH2O": "[in_i'H2O]",
        "Nm": "N.m", "kNm": "kN.m", "kgf": "kgf", "lbf": "[lbf_av]", "lb": "[lb_av]", "lbs": "[lb_av]", "oz": "[oz_av]",
        "tonne": "t", "mbar": "mbar",
        # length, volume, speed, flow
        "in": "[in_i]", "inch": "[in_i]", "ft": "[ft_i]", "yd": "[yd_i]", "mi": "[mi_i]", "mile": "[mi_i]",
        "nmi": "[nmi_i]", "micron": "um", "gal": "[gal_us]", "bbl": "[bbl_us]", "litre": "l", "liter": "l",
        "mph": "[mi_i]/h", "kmh": "km/h", "km/hr": "km/h", "kph": "km/h", "kn": "[kn_i]", "knot": "[kn_i]",
        "gpm": "[gal_us]/min", "lpm": "l/min", "cfm": "[cft_i]/min", "Nm3/h": "m3/h{normal}", "ha": "har",
        # time and frequency
        "sec": "s", "second": "s", "seconds": "s", "minute": "min", "minutes": "min", "hr": "h", "hour": "h",
        "hours": "h", "day": "d", "days": "d", "week": "wk", "month": "mo", "yr": "a", "year": "a", "years": "a",
        "rpm": "/min", "RPM": "/min", "r/min": "/min", "1/min": "/min", "bpm": "/min{beats}", "cpm": "/min",
        "1/s": "/s", "1/h": "/h",
        # ratio, angle, count
        "": "1", "1": "1", "-": "1", "none": "1", "unitless": "1", "dimensionless": "1", "ratio": "1", "count": "1",
        "counts": "1", "percent": "%", "pct": "%", "‰": "[ppth]", "ppm": "[ppm]", "ppb": "[ppb]", "pu": "1{per_unit}",
        "p.u.": "1{per_unit}", "°": "deg", "degree": "deg", "degrees": "deg", "radian": "rad", "rev": "circ",
        "pH": "[pH]", "dBm": "dB{mW}",
        # data: UCUM's B is the bel, but nobody means megabel
        "byte": "By", "bytes": "By", "Byte": "By", "B": "By", "kB": "kBy", "KB": "kBy", "MB": "MBy", "GB": "GBy",
        "TB": "TBy", "KiB": "KiBy", "MiB": "MiBy", "GiB": "GiBy", "TiB": "TiBy", "bits": "bit", "bps": "bit/s",
        "kbps": "kbit/s", "Mbps": "Mbit/s", "Gbps": "Gbit/s",
        # electricity, light, acceleration
        "ohm": "Ohm", "ohms": "Ohm", "Ω": "Ohm", "lux": "lx", "amp": "A", "volt": "V", "volts": "V", "watt": "W",
        "gee": "[g]", "mho": "mho",
    }
)  # fmt: skip
"""What people write, and the UCUM code that is meant."""

DIMENSION_NAMES: Final = MappingProxyType[Dimension, str](
    {
        _1: "a number", _M: "length", _S: "time", _G: "mass", _A: "electric current", _K: "temperature",
        _MOL: "amount of substance", _CD: "luminous intensity", _BIT: "data", _M2: "area", _M3: "volume",
        _SPEED: "speed", _PER_S: "frequency", _FORCE: "force", _PRESSURE: "pressure", _ENERGY: "energy",
        _POWER: "power", _CHARGE: "electric charge", _VOLT: "voltage", _LOG_PH: "acidity", _LOG_BEL: "level",
        (1, -2, 0, 0, 0, 0, 0, 0, 0): "acceleration", (3, -1, 0, 0, 0, 0, 0, 0, 0): "volume flow",
        (0, -1, 1, 0, 0, 0, 0, 0, 0): "mass flow", (-3, 0, 1, 0, 0, 0, 0, 0, 0): "density",
        (-3, 0, 0, 0, 0, 1, 0, 0, 0): "concentration", (0, -3, 1, 0, 0, 0, 0, 0, 0): "power by area",
        (0, -2, 1, 0, 0, 0, 0, 0, 0): "energy by area", (0, -1, 0, 0, 0, 0, 0, 1, 0): "data rate",
    }
)  # fmt: skip
"""What a dimension is called."""
