"""Inheritance of twin types: what is inherited, what may be stated anew, and the errors that name both sides."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twinmesh_core.errors import InvalidArgument, NotFound, TwinmeshError
from twinmesh_core.geometry import Geometry
from twinmesh_core.inheritance import as_written, resolve
from twinmesh_core.kinds import ChannelKind as K
from twinmesh_core.registry import ChannelSpec, CommandSpec, RelationshipSpec, TwinType
from twinmesh_core.registry_fold import Outcome, RegistryFold
from twinmesh_core.value_specs import ArgumentSpec, PropertySpec, ValueKind

DEVICE = TwinType(
    twin_type_id="device",
    version=1,
    channels=(ChannelSpec(name="power", kind=K.GAUGE, unit="kW", min_value=0.0, max_value=100.0),),
    properties=(PropertySpec(name="serial", kind=ValueKind.TEXT, required=True),),
    commands=(CommandSpec(name="stop", args=(ArgumentSpec(name="delay", kind=ValueKind.NUMBER, unit="s"),)),),
    relationships=(RelationshipSpec(name="feeds", target_twin_type_id="device", max_count=4),),
    geometry=Geometry(uri="https://example.org/box.glb"),
)
PUMP = TwinType(
    twin_type_id="pump",
    version=1,
    extends="device@1",
    channels=(
        ChannelSpec(name="flow", kind=K.GAUGE, unit="m3/h"),
        ChannelSpec(name="power", kind=K.GAUGE, max_value=50.0, description="drive"),
    ),
)


def world(*types: TwinType) -> RegistryFold:
    fold = RegistryFold()
    for offset, each in enumerate(types, start=1):
        verdict = fold.create_twin_type("t", offset, each)
        assert verdict.outcome is Outcome.ACCEPTED, verdict.error
    return fold


def refusal(fold: RegistryFold, twin_type: TwinType) -> TwinmeshError:
    verdict = fold.create_twin_type("t", fold.offset + 1, twin_type)
    assert verdict.outcome is Outcome.REJECTED
    assert verdict.error is not None
    return verdict.error


def test_a_type_has_what_its_base_has_and_its_own() -> None:
    pump = world(DEVICE, PUMP).require_twin_type("t", "pump")
    assert [c.name for c in pump.channels] == ["power", "flow"]
    power = pump.channels[0]
    assert (power.min_value, power.max_value, power.unit, power.description) == (0.0, 50.0, "kW", "drive")
    assert (power.inherited_from, pump.properties[0].inherited_from) == ("", "device@1")
    assert pump.geometry == DEVICE.geometry
    assert pump.ancestors == ("device",)
    assert pump.is_a("device")
    assert pump.is_a("pump")
    assert not world(DEVICE).require_twin_type("t", "device").is_a("pump")


def test_a_channel_keeps_the_class_of_retention_of_its_base_unless_it_names_another() -> None:
    device = replace(DEVICE, channels=(replace(DEVICE.channels[0], retention_class="slow"),))
    other = replace(PUMP, version=2, channels=(replace(PUMP.channels[1], retention_class="fast"),))
    fold = world(device, PUMP, other)
    found = [fold.require_twin_type("t", "pump", version).channels[0] for version in (1, 2)]
    assert [(c.name, c.retention_class) for c in found] == [("power", "slow"), ("power", "fast")]


def test_what_was_written_and_what_is_read_are_the_same_version() -> None:
    fold = world(DEVICE, PUMP)
    pump = fold.require_twin_type("t", "pump")
    assert fold.declared_type("t", pump) == PUMP
    assert fold.create_twin_type("t", 3, PUMP).outcome is Outcome.NO_OP
    assert fold.create_twin_type("t", 4, as_written(pump)).outcome is Outcome.NO_OP
    again = RegistryFold(fold.snapshot())
    assert again.require_twin_type("t", "pump") == pump
    assert again.require_twin_type("t", "pump").ancestors == ("device",)
    # Also in the order in which a checkpoint may hand them out.
    assert [t.reference for _, t in fold.snapshot().twin_types] == ["device@1", "pump@1"]


def test_a_base_is_not_changed_under_those_who_extend_it() -> None:
    fold = world(DEVICE, PUMP)
    wider = replace(DEVICE, version=2, channels=(replace(DEVICE.channels[0], max_value=900.0),))
    assert fold.create_twin_type("t", 3, wider).effective
    pump = fold.require_twin_type("t", "pump")
    assert pump.channels[0].max_value == 50.0


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("channels[0].max_value", {"channels": (ChannelSpec(name="power", kind=K.GAUGE, max_value=101.0),)}),
        ("channels[0].min_value", {"channels": (ChannelSpec(name="power", kind=K.GAUGE, min_value=-1.0),)}),
        ("channels[0].kind", {"channels": (ChannelSpec(name="power", kind=K.STATE),)}),
        ("channels[0].unit", {"channels": (ChannelSpec(name="power", kind=K.GAUGE, unit="W"),)}),
        ("properties[0].kind", {"properties": (PropertySpec(name="serial", kind=ValueKind.INTEGER),)}),
        (
            "commands[0].args",
            {"commands": (CommandSpec(name="stop", args=(ArgumentSpec(name="why", required=True),)),)},
        ),
        ("relationships[0].max_count", {"relationships": (RelationshipSpec(name="feeds", max_count=5),)}),
        (
            "relationships[0].target_twin_type_id",
            {"relationships": (RelationshipSpec(name="feeds", target_twin_type_id="other"),)},
        ),
        (
            "relationships[0].allow_missing_target",
            {"relationships": (RelationshipSpec(name="feeds", allow_missing_target=True),)},
        ),
    ],
)
def test_an_override_that_does_not_narrow_is_refused_and_both_sides_are_named(field: str, change: dict) -> None:
    error = refusal(world(DEVICE), replace(PUMP, **change))
    assert isinstance(error, InvalidArgument)
    assert error.field_violations[0].field == f"twin_type.{field}"
    assert "pump@1" in error.message
    assert "device@1" in error.message


def test_a_relationship_may_lead_to_a_subtype_only() -> None:
    to_pumps = replace(
        PUMP,
        twin_type_id="line",
        relationships=(RelationshipSpec(name="feeds", target_twin_type_id="pump", max_count=1),),
    )
    assert "pump" in refusal(world(DEVICE), to_pumps).message
    line = world(DEVICE, PUMP, to_pumps).require_twin_type("t", "line")
    assert line.relationships[0].max_count == 1


def test_cycles_are_refused_over_all_versions() -> None:
    assert "the same type" in refusal(world(DEVICE), replace(DEVICE, version=2, extends="device@1")).message
    error = refusal(world(DEVICE, PUMP), replace(DEVICE, version=2, extends="pump@1"))
    assert "'pump' extends 'device' already" in error.message
    station = TwinType(twin_type_id="station", version=1, extends="pump@1")
    error = refusal(world(DEVICE, PUMP, station), replace(DEVICE, version=2, extends="station@1"))
    assert "'station' extends 'pump' extends 'device'" in error.message


def test_a_base_must_exist_and_the_depth_is_bounded() -> None:
    assert isinstance(refusal(world(), PUMP), NotFound)
    assert isinstance(refusal(world(DEVICE), replace(PUMP, extends="device@7")), NotFound)
    assert "id and version" in refusal(world(DEVICE), replace(PUMP, extends="device")).message
    fold = world(DEVICE)
    for depth in range(10):
        base = "device@1" if depth == 0 else f"t{depth - 1}@1"
        each = TwinType(twin_type_id=f"t{depth}", version=1, extends=base)
        assert fold.create_twin_type("t", fold.offset + 1, each).effective
    assert "most one may extend" in refusal(fold, TwinType(twin_type_id="t10", version=1, extends="t9@1")).message


def test_what_is_inherited_counts_for_what_is_stated() -> None:
    settable = ChannelSpec(name="valve", kind=K.GAUGE, controllable=True, set_command="open")
    opens = CommandSpec(name="open", required_args=("value",))
    base = replace(DEVICE, commands=(*DEVICE.commands, opens))
    assert world(base, replace(PUMP, channels=(settable,))).require_twin_type("t", "pump").channel("valve") is not None
    error = refusal(world(base), replace(PUMP, channels=(replace(settable, set_command="shut"),)))
    assert "'shut' is not among the type's commands" in error.message


bounds = st.one_of(st.none(), st.integers(-4, 4).map(float))
channels = st.builds(
    ChannelSpec,
    name=st.sampled_from(["a", "b"]),
    kind=st.sampled_from([K.GAUGE, K.STATE]),
    unit=st.sampled_from(["", "m"]),
    min_value=bounds,
    max_value=bounds,
    tolerance=st.sampled_from([0.0, 0.5, 1.0]),
    controllable=st.booleans(),
)
properties = st.builds(
    PropertySpec,
    name=st.sampled_from(["p", "q"]),
    kind=st.sampled_from([ValueKind.NUMBER, ValueKind.INTEGER]),
    min_value=bounds,
    max_value=bounds,
    required=st.booleans(),
    allowed=st.lists(st.sampled_from([1.0, 2.0]), max_size=2, unique=True).map(tuple),
)
types = st.builds(
    TwinType,
    twin_type_id=st.just("x"),
    version=st.just(1),
    channels=st.lists(channels, max_size=2, unique_by=lambda c: c.name).map(tuple),
    properties=st.lists(properties, max_size=2, unique_by=lambda p: p.name).map(tuple),
)


def same(kind: str, other: str) -> bool:
    return kind == other


@given(base=types, own=types, tried=st.integers(-5, 5).map(float))
def test_what_fits_a_type_fits_what_it_extends(base: TwinType, own: TwinType, tried: float) -> None:
    try:
        resolved = resolve(replace(own, twin_type_id="y"), replace(base, twin_type_id="x"), same)
    except InvalidArgument:
        assume(False)
        return
    assert {c.name for c in resolved.channels} == {c.name for c in (*base.channels, *own.channels)}
    for theirs in base.channels:
        mine = resolved.channel(theirs.name)
        assert mine is not None
        assert (mine.kind, mine.unit) == (theirs.kind, theirs.unit or mine.unit)
        assert not (theirs.controllable and not mine.controllable)
        inside = (mine.min_value is None or tried >= mine.min_value) and (
            mine.max_value is None or tried <= mine.max_value
        )
        if inside:
            assert theirs.min_value is None or tried >= theirs.min_value
            assert theirs.max_value is None or tried <= theirs.max_value
    for spec in base.properties:
        narrowed = resolved.property(spec.name)
        assert narrowed is not None
        assert narrowed.required or not spec.required
        try:
            value = narrowed.checked(tried, "x")
        except InvalidArgument:
            continue
        spec.checked(value, "x")


@given(base=types, middle=types, own=types)
def test_resolution_is_idempotent_and_steps_may_be_taken_together(
    base: TwinType, middle: TwinType, own: TwinType
) -> None:
    try:
        low = resolve(replace(middle, twin_type_id="m"), replace(base, twin_type_id="b"), same)
        top = resolve(replace(own, twin_type_id="o"), low, same)
    except InvalidArgument:
        assume(False)
        return
    assert resolve(as_written(top), low, same) == top
    empty = replace(own, twin_type_id="o", channels=(), properties=())
    assert resolve(empty, low, same).channels == low.channels
    # What narrows the resolved middle narrows the base, too.
    assert resolve(as_written(top), replace(base, twin_type_id="b"), same).channels == top.channels
