"""Our units against a UCUM library: same scale, same offset, same verdict on what converts."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinmesh_core.errors import InvalidArgument
from twinmesh_core.units import MAX_UNIT_LENGTH, _parsed, canonical, compatible, conversion
from twinmesh_core.units_table import ALIASES, ATOMS, PREFIXES


@pytest.fixture(scope="module")
def ucum():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ucumvert import PintUcumRegistry

        return PintUcumRegistry()


# Where the library departs from the standard, or cannot say; each read in the standard instead.
NOT_COMPARED = {
    "'": "read there as a minute of time",
    "''": "read there as a second of time",
    "[cft_i]": "read there as centifoot",
    "[in_i'Hg]": "taken there at 60 degF; UCUM defines it by m[Hg]",
    "[in_i'H2O]": "likewise",
    "G": "of the CGS system there; UCUM defines it as 10*-4 T",
    "[pH]": "not linear",
    "B": "not linear",
}
COMPOUNDS = [
    "kW.h", "m3/h", "l/min", "mm/s", "m/s2", "km/h", "mbar", "hPa", "kPa", "MPa", "kV.A", "uS/cm", "mg/dl", "10*9/l",
    "W/m2", "J/(kg.K)", "N.m", "/min", "kg/m3", "MBy/s", "Mbit/s", "ug/m3", "mm[Hg]", "[mi_i]/h", "[gal_us]/min",
    "[Btu_IT]/h", "mol/l", "kcal/d", "Ohm.m", "m2.K/W", "daPa", "mS/m", "GW.h", "A.h", "nT", "cm3", "dm3",
]  # fmt: skip
COMPARED = [*(code for code in ATOMS if code not in NOT_COMPARED), *COMPOUNDS]


@pytest.mark.parametrize("code", COMPARED)
def test_scale_and_dimension_agree_with_a_ucum_library(ucum, code):
    ours = _parsed(code)
    assert ours is not None
    theirs = ucum.from_ucum(code)
    quantity = (theirs if hasattr(theirs, "to") else 1.0 * theirs).to_base_units()
    metre_gram = ("meter", "second", "gram", "ampere", "kelvin", "mole", "candela", "bit")
    base = " * ".join(f"{unit} ** {power}" for unit, power in zip(metre_gram, ours.dimension, strict=False))
    factor = type(quantity)(1.0, base).to_base_units()
    assert (quantity / factor).dimensionless
    assert ours.scale == pytest.approx(float(quantity.magnitude / factor.magnitude), rel=1e-9)


@pytest.mark.parametrize(
    ("value", "source", "target", "expected"),
    [
        (0.0, "°C", "K", 273.15),
        (100.0, "degC", "degF", 212.0),
        (-40.0, "degF", "Cel", -40.0),
        (491.67, "degR", "Cel", 0.0),
        (1.0, "kWh", "J", 3.6e6),
        (60.0, "rpm", "Hz", 1.0),
        (1.0, "bar", "psi", 14.503773773),
        (1.0, "m³/h", "l/s", 1 / 3.6),
        (50.0, "%", "1", 0.5),
        (8.0, "Mbps", "MB/s", 1.0),
        (1.0, "MiB", "By", 2.0**20),
        (180.0, "deg", "rad", 3.14159265358979),
        (1.0, "Cel/min", "K/h", 60.0),
        (1.0, "µm", "mm", 1e-3),
        (1.0, "in", "cm", 2.54),
        (1.0, "kvar", "VA", 1000.0),
        (1.0, "{beats}/min", "/s", 1 / 60),
        (760.0, "mmHg", "atm", 1.0),
    ],
)
def test_values_convert(value, source, target, expected):
    assert conversion(source, target).apply(value) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert conversion(target, source).apply(expected) == pytest.approx(value, rel=1e-6, abs=1e-6)


def test_a_difference_of_one_kelvin_is_1_8_degrees_fahrenheit_never_33_8():
    assert conversion("K", "degF", difference=True).apply(1.0) == pytest.approx(1.8)
    assert conversion("Cel", "degF", difference=True).apply(0.0) == 0.0
    assert conversion("Cel", "degF").apply(1.0) == pytest.approx(33.8)


def test_every_alias_and_every_prefixed_atom_is_a_unit():
    for alias, code in ALIASES.items():
        assert canonical(alias) == code
        assert canonical(code) == code
        assert conversion(alias, code).identity
    for atom, (_, _, metric) in ATOMS.items():
        assert canonical(atom) == ALIASES.get(atom, atom)
        for prefix, factor in PREFIXES.items():
            together = prefix + atom
            if metric and together not in ATOMS and canonical(together) == together and atom not in ALIASES:
                assert conversion(together, atom).scale == pytest.approx(factor), together


@pytest.mark.parametrize("text", ["", " ", "1", "-", "count", "{events}"])
def test_no_unit_is_dimensionless(text):
    assert conversion(text, "1").identity


@pytest.mark.parametrize(
    "text",
    ["bananas", "Cel bar", "((m", "m//s", "m..s", "é", "m/", "/", ".", "x" * 100, "m)", "{", "10*", "0x1", "km/"],
)
def test_what_is_no_unit_is_refused_with_examples(text):
    with pytest.raises(InvalidArgument) as refused:
        canonical(text)
    assert refused.value.reason == "INCOMPATIBLE_UNIT"
    assert "use a UCUM code, e.g. Cel" in refused.value.message


@pytest.mark.parametrize(("source", "target"), [("bar", "Cel"), ("kW", "kWh"), ("By", "1"), ("pH", "1"), ("dB", "%")])
def test_units_of_different_things_do_not_convert(source, target):
    with pytest.raises(InvalidArgument, match="cannot be converted") as refused:
        conversion(source, target, field="unit")
    assert refused.value.field_violations[0].field == "unit"
    assert canonical(target) in refused.value.message


@given(st.text(max_size=MAX_UNIT_LENGTH + 5))
def test_any_text_is_a_unit_or_is_refused_typed(text):
    try:
        code = canonical(text)
    except InvalidArgument:
        return
    assert conversion(text, code).identity
    assert canonical(code) == code


@given(st.sampled_from(COMPARED), st.sampled_from(COMPARED), st.floats(-1e6, 1e6))
def test_there_and_back_is_the_same_value(source, target, value):
    if compatible(source, target):
        there = conversion(source, target).apply(value)
        assert conversion(target, source).apply(there) == pytest.approx(value, rel=1e-9, abs=1e-9)
