"""The units of DTDL's QuantitativeTypes extension, version 1, and the UCUM codes that mean the same.

Source: *QuantitativeTypes extension, Version 1* (github.com/Azure/opendigitaltwins-dtdl). Units without a linear UCUM
code of their own meaning (bel) are None, and reported.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

_DATA: Final = {
    "bit": "bit", "byte": "By", "kibibit": "Kibit", "kibibyte": "KiBy", "mebibit": "Mibit", "mebibyte": "MiBy",
    "gibibit": "Gibit", "gibibyte": "GiBy", "tebibit": "Tibit", "tebibyte": "TiBy", "exbibit": f"{2**60}.bit",
    "exbibyte": f"{2**60}.By", "zebibit": f"{2**70}.bit", "zebibyte": f"{2**70}.By", "yobibit": f"{2**80}.bit",
    "yobibyte": f"{2**80}.By",
}  # fmt: skip

_UNITS: Final[dict[str, dict[str, str | None]]] = {
    "AccelerationUnit": {
        "centimetrePerSecondSquared": "cm/s2", "gForce": "[g]", "metrePerSecondSquared": "m/s2",
    },
    "AngleUnit": {
        "degreeOfArc": "deg", "minuteOfArc": "'", "radian": "rad", "secondOfArc": "''", "turn": "circ",
    },
    "AngularAccelerationUnit": {"radianPerSecondSquared": "rad/s2"},
    "AngularVelocityUnit": {
        "degreePerSecond": "deg/s", "radianPerSecond": "rad/s", "revolutionPerMinute": "/min",
        "revolutionPerSecond": "/s",
    },
    "ApparentEnergyUnit": {
        "gigavoltAmpereHour": "GV.A.h", "kilovoltAmpereHour": "kV.A.h", "megavoltAmpereHour": "MV.A.h",
        "voltAmpereHour": "V.A.h",
    },
    "ApparentPowerUnit": {
        "gigavoltAmpere": "GV.A", "kilovoltAmpere": "kV.A", "megavoltAmpere": "MV.A", "millivoltAmpere": "mV.A",
        "voltAmpere": "V.A",
    },
    "AreaUnit": {
        "acre": "[acr_us]", "hectare": "har", "squareCentimetre": "cm2", "squareFoot": "[sft_i]",
        "squareInch": "[sin_i]", "squareKilometre": "km2", "squareMetre": "m2", "squareMillimetre": "mm2",
    },
    "CapacitanceUnit": {
        "farad": "F", "microfarad": "uF", "millifarad": "mF", "nanofarad": "nF", "picofarad": "pF",
    },
    "ChargeUnit": {"ampereHour": "A.h", "coulomb": "C", "milliampereHour": "mA.h"},
    "CurrentUnit": {"ampere": "A", "kiloampere": "kA", "microampere": "uA", "milliampere": "mA"},
    "DataRateUnit": {f"{name}PerSecond": f"{code}/s" for name, code in _DATA.items()},
    "DataSizeUnit": dict(_DATA),
    "DensityUnit": {
        "gramPerCubicMetre": "g/m3", "kilogramPerCubicMetre": "kg/m3", "microgramPerCubicMetre": "ug/m3",
        "milligramPerCubicMetre": "mg/m3",
    },
    "EnergyUnit": {
        "britishThermalUnit": "[Btu_IT]", "electronvolt": "eV", "gigajoule": "GJ", "gigawattHour": "GW.h",
        "joule": "J", "kiloBritishThermalUnit": "1000.[Btu_IT]", "kilojoule": "kJ", "kilowattHour": "kW.h",
        "megaelectronvolt": "MeV", "megajoule": "MJ", "megawattHour": "MW.h", "milliwattHour": "mW.h",
        "terawattHour": "TW.h", "wattHour": "W.h",
    },
    "ForceUnit": {"newton": "N", "ounce": "[lbf_av]/16", "pound": "[lbf_av]", "ton": "2000.[lbf_av]"},
    "FrequencyUnit": {
        "gigahertz": "GHz", "hertz": "Hz", "kilohertz": "kHz", "megahertz": "MHz", "millihertz": "mHz",
    },
    "IlluminanceUnit": {"footcandle": "lm/[sft_i]", "lux": "lx"},
    "InductanceUnit": {"henry": "H", "microhenry": "uH", "millihenry": "mH"},
    "IonizingRadiationDoseUnit": {
        "gray": "Gy", "microgray": "uGy", "microsievert": "uSv", "milligray": "mGy", "millisievert": "mSv",
        "sievert": "Sv",
    },
    "IrradianceUnit": {"wattPerSquareMetre": "W/m2"},
    "LengthUnit": {
        "astronomicalUnit": "149597870700.m", "centimetre": "cm", "foot": "[ft_i]", "inch": "[in_i]",
        "kilometre": "km", "metre": "m", "micrometre": "um", "mile": "[mi_i]", "millimetre": "mm",
        "nanometre": "nm", "nauticalMile": "[nmi_i]",
    },
    "LuminanceUnit": {"candelaPerSquareMetre": "cd/m2"},
    "LuminousFluxUnit": {"lumen": "lm"},
    "LuminousIntensityUnit": {"candela": "cd"},
    "MagneticFluxUnit": {"maxwell": "G.cm2", "weber": "Wb"},
    "MagneticInductionUnit": {"gauss": "G", "tesla": "T"},
    "MassUnit": {
        "gram": "g", "kilogram": "kg", "massPound": "[lb_av]", "microgram": "ug", "milligram": "mg",
        "slug": "[lbf_av].s2/[ft_i]", "tonne": "t",
    },
    "MassFlowRateUnit": {
        "gramPerHour": "g/h", "gramPerSecond": "g/s", "kilogramPerHour": "kg/h", "kilogramPerSecond": "kg/s",
        "massPoundPerHour": "[lb_av]/h",
    },
    "PowerUnit": {
        "britishThermalUnitPerHour": "[Btu_IT]/h", "gigajoulePerHour": "GJ/h", "gigawatt": "GW",
        "horsepower": "[HP]", "joulePerHour": "J/h", "joulePerSecond": "J/s",
        "kiloBritishThermalUnitPerHour": "1000.[Btu_IT]/h", "kilojoulePerHour": "kJ/h",
        "kilojoulePerSecond": "kJ/s", "kilowatt": "kW", "kilowattHourPerYear": "kW.h/a",
        "megajoulePerHour": "MJ/h", "megawatt": "MW", "microwatt": "uW", "milliwatt": "mW",
        "tonOfRefrigeration": "12000.[Btu_IT]/h", "watt": "W",
    },
    "PressureUnit": {
        "bar": "bar", "decapascal": "daPa", "hectopascal": "hPa", "inchesOfMercury": "[in_i'Hg]",
        "inchesOfWater": "[in_i'H2O]", "kilopascal": "kPa", "millibar": "mbar",
        "millimetresOfMercury": "mm[Hg]", "pascal": "Pa", "poundPerSquareInch": "[psi]",
    },
    "RadioactivityUnit": {
        "becquerel": "Bq", "gigabecquerel": "GBq", "kilobecquerel": "kBq", "megabecquerel": "MBq",
    },
    "ReactiveEnergyUnit": {
        "gigavoltAmpereReactiveHour": "GV.A{reactive}.h", "kilovoltAmpereReactiveHour": "kV.A{reactive}.h",
        "megavoltAmpereReactiveHour": "MV.A{reactive}.h", "voltAmpereReactiveHour": "V.A{reactive}.h",
    },
    "ReactivePowerUnit": {
        "gigavoltAmpereReactive": "GV.A{reactive}", "kilovoltAmpereReactive": "kV.A{reactive}",
        "megavoltAmpereReactive": "MV.A{reactive}", "millivoltAmpereReactive": "mV.A{reactive}",
        "voltAmpereReactive": "V.A{reactive}",
    },
    "ResistanceUnit": {"kiloohm": "kOhm", "megaohm": "MOhm", "milliohm": "mOhm", "ohm": "Ohm"},
    "SoundPressureUnit": {"bel": None, "decibel": "dB"},
    "TemperatureUnit": {"degreeCelsius": "Cel", "degreeFahrenheit": "[degF]", "kelvin": "K"},
    "TimeUnit": {
        "day": "d", "hour": "h", "microsecond": "us", "millisecond": "ms", "minute": "min", "nanosecond": "ns",
        "second": "s", "year": "a",
    },
    "TorqueUnit": {"newtonMetre": "N.m"},
    "Unitless": {
        "partsPerBillion": "[ppb]", "partsPerMillion": "[ppm]", "partsPerQuadrillion": "10*-15",
        "partsPerTrillion": "10*-12", "percent": "%", "unity": "1",
    },
    "VelocityUnit": {
        "centimetrePerSecond": "cm/s", "kilometrePerHour": "km/h", "kilometrePerSecond": "km/s",
        "knot": "[kn_i]", "metrePerHour": "m/h", "metrePerSecond": "m/s", "milePerHour": "[mi_i]/h",
        "milePerSecond": "[mi_i]/s",
    },
    "VoltageUnit": {"kilovolt": "kV", "megavolt": "MV", "microvolt": "uV", "millivolt": "mV", "volt": "V"},
    "VolumeUnit": {
        "cubicCentimetre": "cm3", "cubicFoot": "[cft_i]", "cubicInch": "[cin_i]", "cubicMetre": "m3",
        "fluidOunce": "[gal_us]/128", "gallon": "[gal_us]", "litre": "l", "millilitre": "ml",
    },
    "VolumeFlowRateUnit": {
        "cubicFootPerMinute": "[cft_i]/min", "cubicMetrePerHour": "m3/h", "cubicMetrePerMinute": "m3/min",
        "cubicMetrePerSecond": "m3/s", "gallonPerHour": "[gal_us]/h", "gallonPerMinute": "[gal_us]/min",
        "litrePerHour": "l/h", "litrePerMinute": "l/min", "litrePerSecond": "l/s", "millilitrePerHour": "ml/h",
        "millilitrePerMinute": "ml/min", "millilitrePerSecond": "ml/s",
    },
}  # fmt: skip
UNITS: Final = MappingProxyType({kind: MappingProxyType(units) for kind, units in _UNITS.items()})
"""Unit type -> unit -> UCUM code."""

SEMANTIC_TYPES: Final[MappingProxyType[str, str]] = MappingProxyType(
    {
        **{kind.removesuffix("Unit"): kind for kind in UNITS if kind not in ("ChargeUnit", "Unitless", "TimeUnit")},
        "ElectricCharge": "ChargeUnit", "TimeSpan": "TimeUnit", "Concentration": "Unitless", "Distance": "LengthUnit",
        "EnergyRate": "PowerUnit", "Humidity": "DensityUnit", "Latitude": "AngleUnit", "Longitude": "AngleUnit",
        "Luminosity": "PowerUnit", "RelativeDensity": "Unitless", "RelativeHumidity": "Unitless", "Thrust": "ForceUnit",
    }
)  # fmt: skip
"""Semantic type -> its unit type; the first of a unit type is what units are exported with."""

_NO_RATIO: Final = ("percent", "unity")
"""Units that DTDL has only for concentrations and humidities: a plain ratio is exported without a unit."""


def ucum_of(unit: str) -> str | None:
    """Return the UCUM code of a DTDL unit; None = it has none, or there is no such unit."""
    return next((units[unit] for units in UNITS.values() if unit in units), None)


def is_unit(unit: str) -> bool:
    """Whether the extension has a unit of this name."""
    return any(unit in units for units in UNITS.values())


def semantic_of(code: str) -> tuple[str, str] | None:
    """Return semantic type and unit with which a canonical UCUM code is exported; None = DTDL has none for it."""
    return _BY_CODE.get(code)


def _by_code() -> dict[str, tuple[str, str]]:
    first = {kind: semantic for semantic, kind in reversed(list(SEMANTIC_TYPES.items()))}
    found: dict[str, tuple[str, str]] = {}
    for kind, units in UNITS.items():
        for unit, code in units.items():
            if code is not None and unit not in _NO_RATIO:
                found.setdefault(code, (first[kind], unit))
    return found


_BY_CODE: Final = _by_code()
