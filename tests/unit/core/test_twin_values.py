"""Properties, arguments, geometry and relationships: what they may be, on creation and on every change."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinmesh_core.errors import Conflict, FailedPrecondition, InvalidArgument
from twinmesh_core.geometry import Geometry
from twinmesh_core.kinds import ChannelKind as K
from twinmesh_core.registry import ChannelSpec, Relationship, RelationshipSpec, Twin, TwinType
from twinmesh_core.registry_fold import Outcome, RegistryFold
from twinmesh_core.registry_rules import check_twin_type
from twinmesh_core.twin_updates import check_paths
from twinmesh_core.value_specs import PropertySpec, ValueKind, ValueSpec, as_kind
from twinmesh_core.values import Json, Value

PLAIN = (ChannelSpec(name="flow", kind=K.GAUGE),)
PUMP = TwinType(
    twin_type_id="pump",
    version=1,
    channels=PLAIN,
    properties=(
        PropertySpec(name="power", kind=ValueKind.NUMBER, unit="kW", min_value=0.0, max_value=90.0, required=True),
        PropertySpec(name="stages", kind=ValueKind.INTEGER, default=1),
        PropertySpec(name="seal", kind=ValueKind.TEXT, allowed=("soft", "hard")),
        PropertySpec(name="serial", required=True),
    ),
    relationships=(
        RelationshipSpec(name="feeds", target_twin_type_id="tank", max_count=1),
        RelationshipSpec(name="near", allow_missing_target=True),
    ),
)
TANK = TwinType(twin_type_id="tank", version=1, channels=PLAIN)
P1 = Twin(twin_id="P1", twin_type_id="pump", attributes={"serial": "7"}, properties={"power": 4})


def world(*twins: Twin) -> RegistryFold:
    fold = RegistryFold()
    for each in (PUMP, TANK):
        assert fold.create_twin_type("t", fold.offset + 1, each).effective
    for twin in twins:
        verdict = fold.create_twin("t", fold.offset + 1, twin)
        assert verdict.effective, verdict.error
    return fold


def test_properties_are_held_to_their_kind_and_defaults_are_filled_in() -> None:
    twin = world(P1).require_twin("t", "P1")
    assert dict(twin.properties) == {"power": 4.0, "stages": 1}
    assert type(twin.properties["power"]) is float
    assert twin.revision == twin.create_offset == 3


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({}, "power"),
        ({"power": 91.0}, "from 0 to 90 kW"),
        ({"power": "much"}, "a number"),
        ({"power": True}, "a number"),
        ({"power": 1.0, "stages": 1.5}, "a whole number"),
        ({"power": 1.0, "seal": "wet"}, "'soft', 'hard'"),
        ({"power": 1.0, "colour": "red"}, "it has: power, stages, seal"),
        ({"power": 1.0, "serial": "7"}, "among the attributes"),
    ],
)
def test_a_property_that_does_not_fit_is_refused(properties: dict, words: str) -> None:
    verdict = world().create_twin("t", 3, replace(P1, properties=properties))
    assert isinstance(verdict.error, InvalidArgument)
    assert words in str(verdict.error)


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("default_value", {"kind": ValueKind.NUMBER, "max_value": 1.0, "default": 2.0}),
        ("default_value", {"kind": ValueKind.TEXT, "default": 2.0}),
        ("kind", {"default": "x"}),
        ("kind", {"unit": "m"}),
        ("unit", {"kind": ValueKind.TEXT, "unit": "m"}),
        ("min_value", {"kind": ValueKind.NUMBER, "min_value": 2.0, "max_value": 1.0}),
        ("min_value", {"kind": ValueKind.BOOL, "min_value": 2.0}),
        ("allowed_values[1]", {"kind": ValueKind.INTEGER, "allowed": (1, 1)}),
        ("allowed_values[0]", {"kind": ValueKind.INTEGER, "allowed": (1.5,)}),
    ],
)
def test_a_property_that_cannot_be_is_refused_by_its_field(field: str, spec: dict) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_twin_type(replace(PUMP, properties=(PropertySpec(name="a", **spec),)))
    assert f"twin_type.properties[0].{field}" in [v.field for v in refused.value.field_violations]


values = st.one_of(
    st.floats(allow_nan=True), st.integers(), st.booleans(), st.text(max_size=5), st.just(Json("[1]")), st.just("{")
)


@given(value=values, kind=st.sampled_from([k for k in ValueKind if k]))
def test_a_value_of_a_kind_stays_what_it_is(value: Value, kind: ValueKind) -> None:
    found = as_kind(value, kind)
    if found is not None:
        assert found == value
        assert as_kind(found, kind) == found
        assert ValueSpec(name="a", kind=kind).checked(found, "x") == found


@pytest.mark.parametrize(
    ("geometry", "words"),
    [
        (Geometry(uri=""), "is required"),
        (Geometry(uri="javascript:alert(1)"), "scheme"),
        (Geometry(uri="file:///etc/passwd"), "scheme"),
        (Geometry(uri="data:model/gltf,xyz"), "scheme"),
        (Geometry(uri="box.glb"), "absolute"),
        (Geometry(uri="https:///box.glb"), "no host"),
        (Geometry(uri="https://me:secret@example.org/a"), "password"),
        (Geometry(uri="https://example.org/a b"), "absolute"),
        (Geometry(uri="https://e.org/a", matrix=(1.0,) * 15), "16"),
        (Geometry(uri="https://e.org/a", matrix=(1.0,) * 16), "0 0 0 1"),
        (Geometry(uri="https://e.org/a", matrix=(0.0,) * 15 + (1.0,)), "inverted"),
        (Geometry(uri="https://e.org/a", translation=(0.0, 0.0)), "3 finite"),
        (Geometry(uri="https://e.org/a", translation=(0.0,) * 3, rotation=(1.0,) * 4), "unit quaternion"),
        (Geometry(uri="https://e.org/a", rotation=(0.0, 0.0, 0.0, 1.0)), "translation"),
        (Geometry(uri="https://e.org/a", translation=(0.0,) * 3, matrix=(1.0,) * 16), "one of them"),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(geometry: Geometry, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        check_twin_type(replace(PUMP, geometry=geometry))


def test_geometries_that_can_be() -> None:
    turned = (0.0, 0.0, 0.6, 0.8)
    unit = (1.0, 0.0, 0.0, 5.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    for geometry in (
        Geometry(uri="s3://bucket/pump.usd", frame="EPSG:4978", matrix=unit),
        Geometry(uri="urn:ifc:1abc", translation=(1.0, 2.0, 3.0), rotation=turned),
    ):
        check_twin_type(replace(PUMP, geometry=geometry))


def edges(*pairs: tuple[str, str]) -> tuple[Relationship, ...]:
    return tuple(Relationship(name=name, target_twin_id=target) for name, target in pairs)


TANKS = (Twin(twin_id="T1", twin_type_id="tank"), Twin(twin_id="T2", twin_type_id="tank"))


@pytest.mark.parametrize(
    ("relationships", "kind", "words"),
    [
        (edges(("feeds", "T9")), FailedPrecondition, "'T9' does not exist"),
        (edges(("feeds", "P0")), FailedPrecondition, "is a pump@1"),
        (edges(("feeds", "T1"), ("feeds", "T2")), InvalidArgument, "at most 1"),
        (edges(("near", "T1"), ("near", "T1")), InvalidArgument, "twice"),
        (edges(("above", "T1")), InvalidArgument, "it has: feeds, near"),
    ],
)
def test_an_edge_that_the_type_does_not_allow_is_refused(
    relationships: tuple[Relationship, ...], kind: type, words: str
) -> None:
    fold = world(*TANKS, replace(P1, twin_id="P0"))
    verdict = fold.create_twin("t", fold.offset + 1, replace(P1, relationships=relationships))
    assert isinstance(verdict.error, kind)
    assert words in str(verdict.error)
    updated = fold.update_twin("t", fold.offset + 1, Twin(twin_id="P0", twin_type_id="", relationships=relationships),
                               ("relationships",))  # fmt: skip
    assert isinstance(updated.error, kind)


def test_an_edge_outlives_its_target_and_bulk_twins_may_point_to_each_other() -> None:
    fold = world(*TANKS)
    pump = replace(P1, relationships=edges(("feeds", "T1"), ("near", "later")))
    assert fold.create_twin("t", 5, pump).effective
    assert fold.delete_twin("t", 6, "T1").effective
    renamed = Twin(twin_id="P1", twin_type_id="", display_name="Pump")
    assert fold.update_twin("t", 7, renamed, ("display_name",)).effective
    again = fold.create_twins(
        "t", 8, (replace(P1, twin_id="P2", relationships=edges(("feeds", "T3"))), replace(TANKS[0], twin_id="T3"))
    )
    assert all(verdict.effective for verdict in again)


def test_a_twin_that_is_refused_takes_those_with_it_that_need_it() -> None:
    fold = world(*TANKS)
    tank = replace(TANKS[0], twin_id="T3", twin_type_version=9)
    pump = replace(P1, twin_id="P2", relationships=edges(("feeds", "T3")))
    alone = replace(P1, twin_id="P3")
    verdicts = fold.create_twins("t", 5, (pump, tank, alone))
    assert [verdict.outcome for verdict in verdicts] == [Outcome.REJECTED, Outcome.REJECTED, Outcome.ACCEPTED]
    assert fold.twin("t", "P2") is None
    none = fold.create_twins("t", 6, (tank, replace(P1, twin_id="P4")), all_or_nothing=True)
    assert [verdict.outcome for verdict in none] == [Outcome.REJECTED, Outcome.REJECTED]
    assert (none[0].error is None, none[1].error is None) == (False, True)
    assert fold.twin("t", "P4") is None


def test_an_update_changes_what_the_mask_names_and_nothing_else() -> None:
    fold = world(*TANKS, replace(P1, attributes={"serial": "7", "site": "north", "a.b": "1"}))
    wanted = Twin(
        twin_id="P1", twin_type_id="", display_name="never read", attributes={"site": "south"}, properties={"power": 9}
    )
    first = fold.update_twin("t", 10, wanted, ("attributes.site", "attributes.`a.b`", "properties.power"))
    assert first.effective
    twin = fold.require_twin("t", "P1")
    assert dict(twin.attributes) == {"serial": "7", "site": "south"}
    assert dict(twin.properties) == {"power": 9.0, "stages": 1}
    assert (twin.display_name, twin.revision, twin.create_offset) == ("", 10, 5)
    assert fold.update_twin("t", 11, wanted, ("attributes.site",)).outcome is Outcome.NO_OP
    assert fold.require_twin("t", "P1").revision == 10
    gone = fold.update_twin("t", 12, wanted, ("attributes.serial",))
    assert "serial" in str(gone.error)
    back = Twin(twin_id="P1", twin_type_id="", properties={"power": 9})
    assert fold.update_twin("t", 13, replace(back, properties={"stages": 3}), ("properties.stages",)).effective
    assert fold.update_twin("t", 14, back, ("properties.stages",)).effective
    assert fold.require_twin("t", "P1").properties["stages"] == 1
    assert "no property" in str(fold.update_twin("t", 15, back, ("properties.colour",)).error)


def test_of_racing_updates_on_one_revision_one_wins() -> None:
    fold = world(P1)
    racers = [Twin(twin_id="P1", twin_type_id="", display_name=name) for name in "abc"]
    verdicts = [fold.update_twin("t", 20 + i, twin, ("display_name",), if_revision=3) for i, twin in enumerate(racers)]
    assert [verdict.outcome for verdict in verdicts] == [Outcome.ACCEPTED, Outcome.REJECTED, Outcome.REJECTED]
    conflict = verdicts[1].error
    assert isinstance(conflict, Conflict)
    assert conflict.metadata["current_revision"] == "20"
    # A life that begins anew never has a revision of the life before.
    fold.delete_twin("t", 30, "P1")
    fold.create_twin("t", 31, P1)
    assert fold.update_twin("t", 32, racers[0], ("display_name",), if_revision=20).outcome is Outcome.REJECTED


@pytest.mark.parametrize("path", ["", "twin_id", "attributes.", "display_name.x", "kept_units", "revision"])
def test_a_mask_that_names_what_cannot_be_changed_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument, match="display_name"):
        check_paths((path,))
    with pytest.raises(InvalidArgument, match="is required"):
        check_paths(())
