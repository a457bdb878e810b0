"""DTDL v3 in and out: what is carried, what is told, which rules hold, and that our own types come back exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from twinmesh_client.dtdl import Loss, export_dtdl, import_dtdl
from twinmesh_client.dtdl.dtmi import dtmi_fault, dtmi_of, snake, type_id_of
from twinmesh_client.dtdl.units import SEMANTIC_TYPES, UNITS, semantic_of
from twinmesh_client.type_documents import type_document, type_from_document
from twinmesh_core.errors import InvalidArgument
from twinmesh_core.geometry import Geometry
from twinmesh_core.inheritance import resolve
from twinmesh_core.kinds import ChannelKind, PipelineStage
from twinmesh_core.registry import ChannelSpec, CommandSpec, RelationshipSpec, TwinType
from twinmesh_core.registry_rules import check_twin_type
from twinmesh_core.rules import Absence, AlarmRule, NotConverging, PredictedCrossing, RateOfChange, Threshold
from twinmesh_core.units import TABLE
from twinmesh_core.value_specs import ArgumentSpec, PropertySpec, ValueKind
from twinmesh_core.values import Json
from twinmesh_runtime.unit_library import UcumLibrary

names = st.from_regex(r"[a-d][a-z0-9_]{0,5}", fullmatch=True)
texts = st.one_of(st.just(""), st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.just("long " * 120))
unit_codes = st.sampled_from(["", "Cel", "kWh", "°F", "%", "m3/h", "rpm", "mol/l", "kW"])
bounds = st.one_of(st.none(), st.integers(-9, 9).map(float), st.floats(-1e9, 1e9))
spans = st.one_of(st.just(0), st.integers(1, 10**12))


def sorted_bounds(low: float | None, high: float | None) -> dict[str, float | None]:
    if low is not None and high is not None and low > high:
        low, high = high, low
    return {"min_value": low, "max_value": high}


@st.composite
def channels(draw: st.DrawFn) -> ChannelSpec:
    kind = draw(st.sampled_from([k for k in ChannelKind if k]))
    numeric = kind in (ChannelKind.GAUGE, ChannelKind.COUNTER, ChannelKind.STATE)
    more: dict[str, Any] = sorted_bounds(draw(bounds), draw(bounds)) if numeric else {}
    if kind.has_unit:
        more |= {"unit": draw(unit_codes), "deadband": draw(st.sampled_from([None, 0.0, 0.5]))}
        if more["deadband"] is not None:
            more["max_silence_us"] = draw(spans)
    return ChannelSpec(
        name=draw(names), kind=kind, description=draw(texts), expected_interval_us=draw(spans),
        stuck_after_us=draw(spans), tolerance=draw(st.sampled_from([0.0, 0.1])), controllable=draw(st.booleans()),
        upper_limit=draw(bounds), disabled_stages=draw(st.sampled_from([(), (PipelineStage.TIME,)])), **more,
    )  # fmt: skip


@st.composite
def specs(draw: st.DrawFn, made: type) -> Any:
    kind = draw(st.sampled_from(ValueKind))
    values = {
        ValueKind.NUMBER: st.sampled_from([0.0, 1.5, 2.0]),
        ValueKind.INTEGER: st.sampled_from([0, 7, 2**40]),
        ValueKind.BOOL: st.booleans(),
        ValueKind.TEXT: st.sampled_from(["a", "b c", "", "1"]),
        ValueKind.JSON: st.sampled_from([Json("{}"), Json("[1, 2.0]"), Json('"x"')]),
    }.get(kind)
    more: dict[str, Any] = {}
    if values is not None:
        more["allowed"] = tuple(draw(st.lists(values, max_size=3, unique_by=repr)))
        more["default"] = draw(st.one_of(st.none(), st.sampled_from(more["allowed"]) if more["allowed"] else values))
    if kind.numeric:
        more["unit"] = draw(unit_codes)
    return made(name=draw(names), kind=kind, description=draw(texts), required=draw(st.booleans()), **more)


def unique(members: Any, most: int = 4) -> Any:
    return st.lists(members, max_size=most, unique_by=lambda m: m.name).map(tuple)


@st.composite
def commands(draw: st.DrawFn) -> CommandSpec:
    args = draw(unique(specs(ArgumentSpec), 3))
    free = () if args else draw(st.sampled_from([(), ("value",), ("a", "b")]))
    required = tuple(arg.name for arg in args if draw(st.booleans())) or free
    return CommandSpec(name=draw(names), description=draw(texts), args=args, required_args=required)


relationships = st.builds(
    RelationshipSpec,
    name=names,
    description=texts,
    target_twin_type_id=st.sampled_from(["", "tank", "tank-b", "1.x_"]),
    max_count=st.integers(0, 3),
    allow_missing_target=st.booleans(),
)
geometries = st.sampled_from(
    [None, Geometry(uri="https://e.org/a.glb", frame="EPSG:4978", translation=(1.0, 2.5, 3.0))]
)

conditions = st.one_of(
    st.builds(
        Threshold,
        channel=names,
        low=st.none() | st.just(-1.0),
        high=st.just(9.5),
        hysteresis=st.sampled_from([0.0, 2.0]),
    ),
    st.builds(Absence, channel=names, after_us=st.integers(1, 10**9)),
    st.builds(RateOfChange, channel=names, max_rise_per_s=st.just(0.5), window_us=st.sampled_from([0, 7_000_000])),
    st.builds(NotConverging, channel=st.just("") | names, after_us=st.integers(1, 10**9)),
    st.builds(PredictedCrossing, channel=names, high=st.just(1.0), within_us=st.sampled_from([0, 60_000_000])),
    st.just("reported.oil > 1.0"),
)


@st.composite
def rules(draw: st.DrawFn) -> AlarmRule:
    condition = draw(conditions)
    kinds = {Threshold: "threshold", Absence: "absence", RateOfChange: "rate", NotConverging: "not_converging"}
    kind = "expression" if isinstance(condition, str) else kinds.get(type(condition), "prediction")
    return AlarmRule(
        name=draw(names), severity=draw(st.integers(1, 1_000)), on_delay_us=draw(st.sampled_from([0, 1_500_000])),
        message=draw(texts), description=draw(texts), **{kind: condition},
    )  # fmt: skip


@st.composite
def twin_types(draw: st.DrawFn, extends: str = "") -> TwinType:
    return TwinType(
        twin_type_id=draw(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,9}", fullmatch=True)),
        version=draw(st.sampled_from([1, 2, 999_999_999, 2**31 - 1])),
        display_name=draw(texts), description=draw(texts), extends=extends,
        channels=draw(unique(channels())), properties=draw(unique(specs(PropertySpec))),
        commands=draw(unique(commands(), 2)), relationships=draw(unique(relationships, 2)), geometry=draw(geometries),
        rules=draw(unique(rules(), 2)),
    )  # fmt: skip


@given(found=twin_types())
def test_a_type_and_its_document_are_the_same(found: TwinType) -> None:
    assert type_from_document(json.loads(json.dumps(type_document(found)))) == found


@settings(max_examples=40, deadline=None)
@given(found=twin_types())
def test_our_own_types_come_back_exactly(found: TwinType) -> None:
    exported = export_dtdl([(found, None)])
    assert import_dtdl(json.loads(json.dumps(exported.document))).types == (found,)


@settings(max_examples=25, deadline=None)
@given(base=twin_types(), own=twin_types(extends="base@1"))
def test_types_that_extend_each_other_come_back_exactly(base: TwinType, own: TwinType) -> None:
    base = replace(base, twin_type_id="base", version=1)
    own = replace(own, twin_type_id=f"x{own.twin_type_id}")
    try:
        resolve(own, base, lambda kind, other: kind == other)
    except InvalidArgument:
        assume(False)
    exported = export_dtdl([(own, base), (base, None)])
    assert import_dtdl(json.loads(json.dumps(exported.document))).types == (base, own)


@settings(max_examples=20, deadline=None)
@given(found=twin_types())
def test_plain_dtdl_holds_nothing_of_ours_and_tells_each_thing_that_is_missing(found: TwinType) -> None:
    exported = export_dtdl([(found, None)], extension=False)
    text = json.dumps(exported.document)
    assert '"twinmesh"' not in text
    assert "TwinmeshAdjunct" not in text
    back = import_dtdl(json.loads(text)).types[0]
    if back.channels:
        check_twin_type(back)
    if not exported.findings:
        assert back == found
    assert {finding.loss for finding in exported.findings} <= {Loss.LOST}


def test_what_stands_in_the_extension_is_told_with_its_place() -> None:
    found = TwinType(
        twin_type_id="pump",
        version=2,
        channels=(ChannelSpec(name="flow", kind=ChannelKind.GAUGE, unit="m3/h", max_value=9.0),),
    )
    exported = export_dtdl([(found, None)])
    assert isinstance(exported.document, dict)
    assert exported.document["@id"] == "dtmi:twinmesh:pump;2"
    flow = exported.document["contents"][0]
    assert flow["@type"] == ["Telemetry", "VolumeFlowRate", "TwinmeshAdjunct"]
    assert (flow["unit"], flow["twinmesh"]) == ("cubicMetrePerHour", {"set": {"maximum": 9.0}})
    assert [(f.pointer, f.loss) for f in exported.findings] == [("/channels/0/maximum", Loss.CHANGED)]


THERMOSTAT: dict[str, Any] = {
    "@context": ["dtmi:dtdl:context;3", "dtmi:dtdl:extension:quantitativeTypes;1"],
    "@id": "dtmi:com:example:Thermostat;1",
    "@type": "Interface",
    "displayName": {"en": "Thermostat", "it": "Termostato"},
    "comment": "for authors",
    "contents": [
        {"@type": ["Telemetry", "Temperature"], "name": "roomTemp", "schema": "double", "unit": "degreeCelsius"},
        {
            "@type": ["Property", "Temperature"],
            "name": "setPoint",
            "writable": True,
            "schema": "float",
            "unit": "degreeFahrenheit",
        },
        {"@type": "Property", "name": "serial", "schema": "string", "displayName": "Serial number"},
        {
            "@type": "Property",
            "name": "mode",
            "schema": {
                "@type": "Enum",
                "valueSchema": "integer",
                "enumValues": [{"name": "off", "enumValue": 0}, {"name": "on", "enumValue": 1}],
            },
        },
        {
            "@type": "Command",
            "name": "reboot",
            "request": {
                "name": "how",
                "schema": {
                    "@type": "Object",
                    "fields": [
                        {"@type": ["Field", "TimeSpan"], "name": "delayTime", "schema": "integer", "unit": "second"},
                        {"name": "reasons", "schema": {"@type": "Array", "elementSchema": "string"}},
                    ],
                },
            },
            "response": {"name": "done", "schema": "boolean"},
        },
        {"@type": "Relationship", "name": "floor", "target": "dtmi:com:example:Floor;1", "maxMultiplicity": 1},
        {"@type": "Telemetry", "name": "position", "schema": "point"},
        {"@type": "Telemetry", "name": "log", "schema": "dtmi:com:example:entry;1"},
        {"@type": "Component", "name": "fan", "schema": "dtmi:com:example:Fan;2"},
    ],
    "schemas": [
        {
            "@id": "dtmi:com:example:entry;1",
            "@type": "Map",
            "mapKey": {"name": "key", "schema": "string"},
            "mapValue": {"name": "value", "schema": "dateTime"},
        }
    ],
}
FAN: dict[str, Any] = {
    "@context": "dtmi:dtdl:context;3",
    "@id": "dtmi:com:example:Fan;2",
    "@type": "Interface",
    "contents": [
        {"@type": "Telemetry", "name": "rpm", "schema": "integer"},
        {"@type": "Command", "name": "stop"},
    ],
}


def test_a_foreign_model_becomes_types_and_every_loss_is_told() -> None:
    imported = import_dtdl([THERMOSTAT, FAN])
    thermostat, fan = imported.types
    assert (thermostat.reference, fan.reference) == ("com.example.thermostat@1", "com.example.fan@2")
    assert thermostat.display_name == "Thermostat"
    kinds = {c.name: (c.kind.name, c.unit, c.controllable) for c in thermostat.channels}
    assert kinds == {
        "room_temp": ("GAUGE", "Cel", False),
        "set_point": ("GAUGE", "[degF]", True),
        "position": ("JSON", "", False),
        "log": ("JSON", "", False),
        "fan_rpm": ("STATE", "", False),
    }
    properties = {p.name: p for p in thermostat.properties}
    assert properties["serial"].description == "Serial number"
    assert (properties["mode"].kind, properties["mode"].allowed) == (ValueKind.INTEGER, (0, 1))
    reboot = thermostat.command("reboot")
    assert reboot is not None
    assert [(a.name, a.kind.name, a.unit, a.required) for a in reboot.args] == [
        ("delay_time", "INTEGER", "s", True),
        ("reasons", "JSON", "", True),
    ]
    assert thermostat.command("fan_stop") is not None
    assert thermostat.relationships[0] == RelationshipSpec(
        name="floor", target_twin_type_id="com.example.floor", max_count=1
    )
    check_twin_type(thermostat)
    told = {(f.pointer, f.loss.value) for f in imported.findings}
    assert told >= {
        ("/0/comment", "lost"),
        ("/0/displayName", "lost"),
        ("/0/contents/0/name", "changed"),
        ("/0/contents/2/displayName", "changed"),
        ("/0/contents/3/schema/enumValues", "lost"),
        ("/0/contents/4/response", "lost"),
        ("/0/contents/4/request", "changed"),
        ("/0/contents/6/schema", "lost"),
        ("/0/contents/8", "changed"),
    }


def test_what_is_extended_twice_is_taken_over() -> None:
    one = {**FAN, "@id": "dtmi:x:One;1"}
    two = {
        **FAN,
        "@id": "dtmi:x:Two;1",
        "contents": [{"@type": "Telemetry", "name": "heat", "schema": "double"}],
    }
    both = {
        "@context": "dtmi:dtdl:context;3",
        "@id": "dtmi:x:Both;1",
        "@type": "Interface",
        "extends": ["dtmi:x:One;1", "dtmi:x:Two;1"],
    }
    imported = import_dtdl([both, one, two])
    found = next(t for t in imported.types if t.twin_type_id == "x.both")
    assert found.extends == "x.one@1"
    assert [c.name for c in found.channels] == ["heat"]
    assert [t.twin_type_id for t in imported.types].index("x.one") < len(imported.types) - 1
    assert any("taken over" in f.reason for f in imported.findings)


def contents(*found: dict[str, Any], **more: Any) -> dict[str, Any]:
    context = ["dtmi:dtdl:context;3", "dtmi:dtdl:extension:quantitativeTypes;1"]
    return {"@context": context, "@id": "dtmi:x:a;1", "@type": "Interface", "contents": list(found), **more}


def telemetry(schema: Any, **more: Any) -> dict[str, Any]:
    return {"@type": "Telemetry", "name": "t", "schema": schema, **more}


def nested(depth: int) -> Any:
    return "string" if depth == 0 else {"@type": "Array", "elementSchema": nested(depth - 1)}


SELF = {"@id": "dtmi:x:s;1", "@type": "Object", "fields": [{"name": "me", "schema": "dtmi:x:s;1"}]}


@pytest.mark.parametrize(
    ("document", "pointer", "words"),
    [
        ([1], "/0", "Interface"),
        ({**FAN, "@context": "dtmi:dtdl:context;2"}, "/@context", "version 3"),
        ({**FAN, "@context": ["dtmi:x:y;1", "dtmi:dtdl:context;3"]}, "/@context", "begin"),
        ({**FAN, "@id": "dtmi:x:_a;1"}, "/@id", "no DTMI"),
        ({**FAN, "@id": "dtmi:x:a;01"}, "/@id", "no DTMI"),
        ({**FAN, "@id": "dtmi:dtdl:a;1"}, "/@id", "reserves"),
        ({**FAN, "@id": f"dtmi:{'a' * 130};1"}, "/@id", "at most 128"),
        ([FAN, FAN], "/1/@id", "twice"),
        ({**FAN, "extends": "dtmi:com:example:Fan;2"}, "/extends", "circle"),
        (contents(telemetry("double", name="1a")), "/contents/0/name", "no name"),
        (contents(telemetry("double"), telemetry("double")), "/contents/1/name", "already"),
        (contents(telemetry("number")), "/contents/0/schema", "no schema"),
        (contents(telemetry(None)), "/contents/0/schema", "required"),
        (contents(telemetry(nested(6))), "/contents/0/schema" + "/elementSchema" * 5, "deeper than 5"),
        (contents(telemetry("dtmi:x:s;1"), schemas=[SELF]), "/schemas/0/fields/0/schema", "contains itself"),
        (contents(telemetry("double", unit="metre")), "/contents/0/unit", "semantic type"),
        (
            contents({**telemetry("double", unit="metre"), "@type": ["Telemetry", "Temperature"]}),
            "/contents/0/unit",
            "degreeCelsius",
        ),
        (
            contents({**telemetry("string", unit="kelvin"), "@type": ["Telemetry", "Temperature"]}),
            "/contents/0/schema",
            "a number",
        ),
        (
            contents({"@type": ["Telemetry", "Temperature"], "name": "t", "schema": "double"}),
            "/contents/0/unit",
            "required",
        ),
        (contents({"@type": "Relationship", "name": "r", "minMultiplicity": 1}), "/contents/0/minMultiplicity", "0"),
        (contents({"@type": "Relationship", "name": "r", "maxMultiplicity": 0}), "/contents/0/maxMultiplicity", "1"),
        (contents(telemetry("double", description="x" * 513)), "/contents/0/description", "512"),
        (
            contents({"@type": "Component", "name": "c", "schema": "dtmi:x:none;1"}),
            "/contents/0/schema",
            "not in the document",
        ),
        (
            contents(telemetry({"@type": "Enum", "valueSchema": "double", "enumValues": []})),
            "/contents/0/schema/valueSchema",
            "integer or string",
        ),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_of_dtdl_is_refused_with_its_place(document: Any, pointer: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        import_dtdl(document)
    found = {v.field: v.description for v in refused.value.field_violations}
    assert pointer in found
    assert words in found[pointer]


def test_a_component_within_a_component_is_refused() -> None:
    inner = {**FAN, "@id": "dtmi:x:inner;1"}
    middle = contents({"@type": "Component", "name": "c", "schema": "dtmi:x:inner;1"}, **{"@id": "dtmi:x:middle;1"})
    outer = contents({"@type": "Component", "name": "c", "schema": "dtmi:x:middle;1"}, **{"@id": "dtmi:x:outer;1"})
    with pytest.raises(InvalidArgument, match="holds a component itself"):
        import_dtdl([outer, middle, inner])


def test_depth_of_inheritance_is_bounded() -> None:
    chain = [
        {"@context": "dtmi:dtdl:context;3", "@id": f"dtmi:x:t{i};1", "@type": "Interface",
         "extends": f"dtmi:x:t{i + 1};1"}
        for i in range(12)
    ]  # fmt: skip
    with pytest.raises(InvalidArgument, match="deeper than 10"):
        import_dtdl([*chain, {**FAN, "@id": "dtmi:x:t12;1"}])


def test_every_unit_of_the_extension_is_a_unit_of_ours_and_comes_back() -> None:
    assert (len(SEMANTIC_TYPES), sum(map(len, UNITS.values()))) == (52, 240)
    library = UcumLibrary()
    for kind, units in UNITS.items():
        for unit, code in units.items():
            if code is None:
                continue
            if code.startswith("[acr"):
                assert library.meaning(code) is not None
                continue
            assert TABLE.canonical(code) == code
            told = semantic_of(code)
            if kind != "Unitless":
                assert told is not None, unit
                assert told[0] in SEMANTIC_TYPES


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,127}", fullmatch=True), st.integers(1, 999_999_999))
def test_an_id_of_a_type_is_a_valid_dtmi(type_id: str, version: int) -> None:
    made = dtmi_of(type_id, version)
    assert dtmi_fault(made, interface=True) == ""
    assert made.endswith(f";{version}")


def test_different_ids_never_fall_together() -> None:
    ids = ["a-b", "a_b", "a.b", "a..b", "a.b.", "a_b_", "1a", "x1a", "A".lower(), "x" * 128, "x" * 127 + "y"]
    assert len({dtmi_of(each, 1) for each in ids}) == len(ids)
    assert type_id_of("dtmi:twinmesh:pump;2") == "pump"
    assert [snake(name) for name in ("batteryLevel", "HTTPServer", "a_b", "RPM2x")] == [
        "battery_level", "http_server", "a_b", "rpm2x",
    ]  # fmt: skip
