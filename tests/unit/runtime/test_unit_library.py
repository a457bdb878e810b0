"""Arbitrary UCUM codes through the library: what they mean, what converts, what is refused and in which words."""

from __future__ import annotations

import subprocess
import sys

import pytest

from twinmesh_core.errors import InvalidArgument
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.registry import ChannelSpec, TwinType
from twinmesh_core.registry_rules import check_writable
from twinmesh_core.units import Units, canonical
from twinmesh_runtime.unit_library import UcumLibrary


@pytest.fixture(scope="module")
def units():
    return Units(UcumLibrary())


@pytest.mark.parametrize(
    ("value", "source", "target", "expected"),
    [
        (1.0, "kW.h/m2", "J/m2", 3.6e6),
        (7.2, "m3/h", "l/s", 2.0),
        (1.0, "[in_i]", "mm", 25.4),
        (5.0, "mmol/L", "mol/m3", 5.0),
        (1.0, "[lb_av]", "kg", 0.45359237),
        (1.0, "[acr_us]", "m2", 4046.87261),
        (2.0, "[oz_av]/[gal_us]", "g/l", 14.978302),
        (1.0, "[gr]", "mg", 64.79891),
        (80.0, "[degRe]", "Cel", 100.0),
        (1.0, "Cel/[lb_av]", "K/kg", 2.2046226),
        (9.0, "[degF]/[lb_av]", "K/[lb_av]", 5.0),
        (1.0, "[iU]/mL", "[iU]/L", 1_000.0),
        (1.0, "B[SPL]", "B[SPL]", 1.0),
        (100.0, "°C", "K", 373.15),
        (1.0, "kWh", "kW.h", 1.0),
    ],
)
def test_values_convert_whoever_knows_the_unit(units, value, source, target, expected):
    assert units.conversion(source, target).apply(value) == pytest.approx(expected, rel=1e-6)


def test_differences_take_no_offset(units):
    assert units.conversion("[degRe]", "Cel", difference=True).apply(4.0) == pytest.approx(5.0)
    assert units.conversion("[degRe]", "Cel").apply(4.0) == pytest.approx(5.0)
    assert units.conversion("Cel", "degF", difference=True).apply(1.0) == pytest.approx(1.8)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("bar", "Cel", "'bar' \\(pressure\\) cannot be converted to 'Cel' \\(temperature\\)"),
        ("[lb_av]", "m", "'\\[lb_av\\]' \\(mass\\) cannot be converted to 'm' \\(length\\)"),
        ("[lb_av].m3", "m", "\\(m3.g\\)"),
        ("[iU]/L", "[arb'U]/L", "cannot be converted"),
        ("[iU]", "1", "cannot be converted"),
        ("B[SPL]", "Pa", "cannot be converted"),
        ("bananas", "m", "unit 'bananas' is not known"),
        ("m", "[nonsense]", "is not known"),
    ],
)
def test_what_does_not_convert_is_refused_with_both_dimensions(units, source, target, words):
    with pytest.raises(InvalidArgument, match=words) as refused:
        units.conversion(source, target, field="batch.series[0].unit")
    assert refused.value.reason == "INCOMPATIBLE_UNIT"
    assert refused.value.field_violations[0].field == "batch.series[0].unit"


@pytest.mark.parametrize("text", ["x" * 65, "m;drop", "__import__('os')", "é", "{", "((((", "[", "/", "m m"])
def test_text_that_is_no_unit_is_refused_typed(units, text):
    with pytest.raises(InvalidArgument) as refused:
        units.canonical(text)
    assert refused.value.reason == "INCOMPATIBLE_UNIT"


def test_a_code_is_asked_for_once_and_common_ones_never():
    asked = []

    class Library:
        def meaning(self, code):
            asked.append(code)

    units = Units(Library())
    assert units.unlearnt(["kW", "°C", "m3/h", "[acr_us]", "spaces in it"]) == ["[acr_us]"]
    units.learn(["[acr_us]"])
    assert units.unlearnt(["[acr_us]"]) == []
    for _ in range(2):
        with pytest.raises(InvalidArgument):
            units.canonical("[acr_us]")
    units.canonical("kW")
    assert asked == ["[acr_us]"]


def test_types_are_validated_with_the_library_where_there_is_one(units):
    wanted = TwinType(
        twin_type_id="t", version=1, channels=(ChannelSpec(name="dose", kind=ChannelKind.GAUGE, unit="[iU]/mL"),)
    )
    check_writable(wanted, units)
    with pytest.raises(InvalidArgument, match="not known"):
        check_writable(wanted)
    with pytest.raises(InvalidArgument):
        canonical("[iU]/mL")


def test_the_library_is_not_loaded_before_a_unit_needs_it():
    program = (
        "import sys, twinmesh_ingestion.main, twinmesh_statesync.main\n"
        "from twinmesh_core.units import Units\n"
        "from twinmesh_runtime.unit_library import UcumLibrary\n"
        "units = Units(UcumLibrary()); units.conversion('kWh', 'J'); assert 'pint' not in sys.modules\n"
        "units.canonical('[acr_us]'); assert 'pint' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=50)
