"""The registry's rules and its fold: the same entries give the same registry, from the start or from any snapshot."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinmesh.type.v1 import entry_pb2
from twinmesh_client.registry_mapping import (
    fold_control_entry,
    twin_from_message,
    twin_to_message,
    twin_type_from_message,
    twin_type_to_message,
)
from twinmesh_core.errors import InvalidArgument, NotFound
from twinmesh_core.kinds import ChannelKind as K
from twinmesh_core.kinds import PipelineStage as Stage
from twinmesh_core.registry import (
    ChannelSpec,
    CommandSpec,
    Relationship,
    Twin,
    TwinType,
)
from twinmesh_core.registry_fold import Outcome, RegistryFold
from twinmesh_core.registry_rules import check_twin_type, check_writable
from twinmesh_core.value_specs import PropertySpec

CHANNELS = (
    ChannelSpec(name="speed", kind=K.GAUGE, unit="rpm", controllable=True, set_command="set_speed", tolerance=0.5),
    ChannelSpec(name="note", kind=K.TEXT),
)
PUMP = TwinType(
    twin_type_id="pump",
    version=1,
    channels=CHANNELS,
    commands=(CommandSpec(name="set_speed", required_args=("value",)),),
)
P1 = Twin(twin_id="P1", twin_type_id="pump")


def folded(*values, tenant="default"):
    fold = RegistryFold()
    for value in values:
        create = fold.create_twin_type if isinstance(value, TwinType) else fold.create_twin
        assert create(tenant, fold.offset + 1, value).outcome is Outcome.ACCEPTED
    return fold


def test_a_version_is_created_once_and_never_changes():
    fold = RegistryFold()
    created = fold.create_twin_type("default", 7, PUMP)
    assert created.effective
    assert created.twin_type is not None
    assert created.twin_type.create_offset == 7
    assert fold.create_twin_type("default", 8, PUMP).outcome is Outcome.NO_OP
    other = fold.create_twin_type("default", 9, replace(PUMP, display_name="Pump"))
    assert other.outcome is Outcome.REJECTED
    assert other.error is not None
    assert other.error.reason == "ALREADY_EXISTS"
    assert "create version 2" in other.error.message
    assert fold.create_twin_type("default", 10, replace(PUMP, version=2, display_name="Pump")).effective


def test_a_channel_keeps_its_kind_through_all_versions():
    fold = folded(PUMP)
    changed = (replace(CHANNELS[0], kind=K.STATE), CHANNELS[1])
    verdict = fold.create_twin_type("default", 2, replace(PUMP, version=2, channels=changed))
    assert verdict.outcome is Outcome.REJECTED
    assert isinstance(verdict.error, InvalidArgument)
    assert verdict.error.field_violations[0].field == "twin_type.channels[0].kind"


def test_a_twin_takes_the_newest_version_and_keeps_it():
    fold = folded(PUMP, P1, replace(PUMP, version=3))
    twin = fold.twin("default", "P1")
    assert twin is not None
    assert (twin.twin_type_version, twin.create_offset) == (1, 2)
    assert fold.create_twin("default", 4, replace(P1, twin_id="P2"), commit_time_unix_us=5).effective
    assert fold.type_of("default", fold.require_twin("default", "P2")).version == 3


def test_creating_an_existing_twin_is_refused_unless_that_is_fine():
    fold = folded(PUMP, replace(PUMP, twin_type_id="fan"), P1)
    assert fold.create_twin("default", 4, P1).outcome is Outcome.REJECTED
    assert fold.create_twin("default", 5, P1, if_absent=True).outcome is Outcome.NO_OP
    assert fold.create_twin("default", 6, replace(P1, twin_type_id="fan"), if_absent=True).outcome is Outcome.REJECTED


def test_unknown_things_are_named_with_what_would_be_right():
    fold = folded(PUMP)
    missing = fold.create_twin("default", 2, replace(P1, twin_type_id="pmp"))
    assert isinstance(missing.error, NotFound)
    assert missing.error.reason == "TWIN_TYPE_NOT_FOUND"
    with pytest.raises(NotFound, match="has no version 9; it has the versions 1"):
        fold.require_twin_type("default", "pump", 9)
    with pytest.raises(NotFound) as refused:
        fold.require_twin("default", "P9")
    assert refused.value.metadata["remedy"] == "twinmesh twins create P9 --type pump@1"
    fold.create_twin("default", 3, P1)
    with pytest.raises(NotFound, match="it has: speed, note"):
        fold.require_channel("default", "P1", "spede")
    deleted = fold.delete_twin("default", 4, "nobody")
    assert deleted.outcome is Outcome.REJECTED


def test_a_deleted_twin_may_live_again_and_tenants_are_apart():
    fold = folded(PUMP, P1)
    assert fold.twin("other", "P1") is None
    assert fold.delete_twin("other", 3, "P1").outcome is Outcome.REJECTED
    assert fold.delete_twin("default", 4, "P1").effective
    assert fold.twin("default", "P1") is None
    assert fold.create_twin("default", 5, P1).effective
    assert fold.require_twin("default", "P1").create_offset == 5


def test_required_properties_must_be_stated():
    fold = folded(replace(PUMP, properties=(PropertySpec(name="serial", required=True), PropertySpec(name="site"))))
    refused = fold.create_twin("default", 2, P1)
    assert refused.error is not None
    assert "serial" in refused.error.message
    assert fold.create_twin("default", 3, replace(P1, attributes={"serial": "7"})).effective


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("twin_type.twin_type_id", {"twin_type_id": "Pump!"}),
        ("twin_type.version", {"version": 0}),
        ("twin_type.channels", {"channels": ()}),
        ("twin_type.channels[1].name", {"channels": (CHANNELS[1], CHANNELS[1])}),
        ("twin_type.channels[0].name", {"channels": (ChannelSpec(name="Größe", kind=K.GAUGE),)}),
        ("twin_type.channels[0].kind", {"channels": (ChannelSpec(name="a", kind=K.UNSPECIFIED),)}),
        (
            "twin_type.channels[0].min_value",
            {"channels": (ChannelSpec(name="a", kind=K.GAUGE, min_value=2, max_value=1),)},
        ),
        (
            "twin_type.channels[0].max_value",
            {"channels": (ChannelSpec(name="a", kind=K.GAUGE, max_value=float("nan")),)},
        ),
        ("twin_type.channels[0].tolerance", {"channels": (ChannelSpec(name="a", kind=K.GAUGE, tolerance=-1),)}),
        ("twin_type.channels[0].set_command", {"channels": (replace(CHANNELS[0], controllable=False),)}),
        ("twin_type.channels[0].set_command", {"channels": (replace(CHANNELS[0], set_command="go"),)}),
        ("twin_type.channels[0].set_command", {"commands": (CommandSpec(name="set_speed", required_args=("x",)),)}),
        ("twin_type.channels[0]", {"channels": (ChannelSpec(name="a", kind=K.TEXT, max_value=1),)}),
        ("twin_type.channels[0].unit", {"channels": (ChannelSpec(name="a", kind=K.BOOL, unit="m"),)}),
    ],
)
def test_a_type_that_breaks_a_rule_is_refused_by_its_field(field, change):
    with pytest.raises(InvalidArgument) as refused:
        check_twin_type(replace(PUMP, **change))
    assert refused.value.field_violations[0].field == field


@pytest.mark.parametrize(
    ("field", "channel"),
    [
        ("deadband", {"deadband": -1.0}),
        ("deadband", {"deadband": float("inf")}),
        ("deadband", {"kind": K.TEXT, "deadband": 0.0}),
        ("deadband", {"kind": K.BOOL, "deadband": 1.0}),
        ("deadband_percent", {"deadband_percent": float("nan"), "min_value": 0, "max_value": 1}),
        ("deadband_percent", {"deadband_percent": 1.0}),
        ("deadband_percent", {"deadband_percent": 1.0, "min_value": 3, "max_value": 3}),
        ("deadband_percent", {"deadband_percent": 0.0, "min_value": 0, "max_value": 1}),
        ("deadband_percent", {"deadband_percent": 100.1, "min_value": 0, "max_value": 1}),
        ("deadband_percent", {"deadband_percent": 1.0, "deadband": 1.0, "min_value": 0, "max_value": 1}),
        ("max_silence", {"deadband": 1.0, "max_silence_us": -1}),
        ("max_silence", {"max_silence_us": 1}),
        ("disabled_stages[0]", {"disabled_stages": (Stage.UNSPECIFIED,)}),
        ("disabled_stages[1]", {"disabled_stages": (Stage.RATE, Stage.RATE)}),
        ("retention_class", {"retention_class": "Raw"}),
        ("retention_class", {"retention_class": "7d"}),
        ("retention_class", {"retention_class": "a" * 64}),
    ],
)
def test_a_deadband_switch_or_class_that_cannot_be_is_refused_by_its_field(field, channel):
    with pytest.raises(InvalidArgument) as refused:
        check_twin_type(replace(PUMP, channels=(ChannelSpec(**{"name": "a", "kind": K.GAUGE, **channel}),)))
    assert refused.value.field_violations[0].field == f"twin_type.channels[0].{field}"


def test_a_deadband_is_in_the_channel_s_unit_or_a_part_of_its_range():
    gauge = ChannelSpec(name="a", kind=K.GAUGE, min_value=-50, max_value=150)
    assert gauge.band() is None
    assert replace(gauge, deadband=0.0).band() == 0.0
    assert replace(gauge, deadband_percent=0.5).band() == 1.0
    assert replace(gauge, deadband=2.0, disabled_stages=(Stage.DEADBAND,)).band() is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("twin.twin_id", replace(P1, twin_id="-")),
        ("twin.twin_type_id", replace(P1, twin_type_id="")),
        ("twin.time_zone", replace(P1, time_zone="Europe/Nowhere")),
        ("twin.attributes", replace(P1, attributes={"a": "x" * 1_025})),
        (
            "twin.relationships[0].target_twin_id",
            replace(P1, relationships=(Relationship(name="feeds", target_twin_id=""),)),
        ),
        ("twin_type.channels[0].unit", replace(PUMP, channels=(ChannelSpec(name="a", kind=K.GAUGE, unit="parsecs?"),))),
    ],
)
def test_what_can_be_known_before_is_refused_before_it_is_written(field, value):
    with pytest.raises(InvalidArgument) as refused:
        check_writable(value)
    assert refused.value.field_violations[0].field == field


TENANTS, TWINS, TYPES = st.sampled_from(["a", "b"]), st.sampled_from(["P1", "P2"]), st.sampled_from(["pump", "fan"])
ACTIONS = st.one_of(
    st.tuples(st.just("type"), TENANTS, TYPES, st.integers(0, 3), st.sampled_from(["", "x"])),
    st.tuples(st.just("twin"), TENANTS, TWINS, TYPES, st.integers(0, 3), st.booleans()),
    st.tuples(st.just("delete"), TENANTS, TWINS),
)


def entry_of(action):
    kind, _, *rest = action
    if kind == "type":
        made = replace(PUMP, twin_type_id=rest[0], version=rest[1], display_name=rest[2])
        return entry_pb2.ControlEntry(
            create_twin_type=entry_pb2.CreateTwinTypeEntry(twin_type=twin_type_to_message(made))
        )
    if kind == "twin":
        twin = Twin(twin_id=rest[0], twin_type_id=rest[1], twin_type_version=rest[2], attributes={"k": "v"})
        return entry_pb2.ControlEntry(
            create_twin=entry_pb2.CreateTwinEntry(twin=twin_to_message(twin), if_absent=rest[3])
        )
    return entry_pb2.ControlEntry(delete_twin=entry_pb2.DeleteTwinEntry(twin_id=rest[0]))


@given(st.lists(ACTIONS, max_size=30), st.integers(0, 30))
def test_going_on_from_a_snapshot_is_the_same_as_never_having_stopped(actions, stop):
    def fold(registry, part, first):
        return [
            str(
                fold_control_entry(
                    registry, tenant=action[1], offset=first + i, commit_time_unix_us=first + i, entry=entry_of(action)
                )
            )
            for i, action in enumerate(part, start=1)
        ]

    whole = RegistryFold()
    verdicts = fold(whole, actions, 0)
    half = RegistryFold()
    before = fold(half, actions[:stop], 0)
    resumed = RegistryFold(half.snapshot())
    assert before + fold(resumed, actions[stop:], min(stop, len(actions))) == verdicts
    assert resumed.snapshot() == whole.snapshot()
    for tenant, twin in whole.snapshot().twins:
        assert whole.type_of(tenant, twin).twin_type_id == twin.twin_type_id


def test_values_and_messages_turn_into_each_other():
    rich = TwinType(
        twin_type_id="pump",
        version=2,
        display_name="Pump",
        channels=(
            replace(
                CHANNELS[0], min_value=0.0, max_value=3_000.0, max_rate_per_s=5.0, expected_interval_us=1_500_000,
                stuck_after_us=60_000_000, spike_threshold=4.0, upper_limit=2_500.0, deadband=0.5,
                max_silence_us=90_000_000, disabled_stages=(Stage.TIME, Stage.SPIKE), description="shaft",
                retention_class="raw-7d",
            ),
            CHANNELS[1],
        ),
        properties=(PropertySpec(name="serial", description="plate", required=True),),
        commands=PUMP.commands,
        create_offset=9,
    )  # fmt: skip
    back = twin_type_from_message(twin_type_to_message(rich))
    assert (back, back.create_offset) == (rich, 9)
    twin = replace(P1, time_zone="Europe/Berlin", attributes={"a": "b"}, create_offset=3, create_time_unix_us=1_500_001)
    twin = replace(twin, relationships=(Relationship(name="feeds", target_twin_id="T2"),))
    again = twin_from_message(twin_to_message(twin))
    assert (again, again.create_offset, again.create_time_unix_us) == (twin, 3, 1_500_001)
