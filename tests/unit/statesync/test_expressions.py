"""Conditions in CEL: what they may say, what they cost at most, and when they have no answer."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinmesh_core.errors import InvalidArgument
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.registry import ChannelSpec, TwinType
from twinmesh_core.rules import AlarmRule
from twinmesh_core.units import TABLE
from twinmesh_statesync.domain.alarms.expression import Expression, compiled
from twinmesh_statesync.domain.alarms.writing import with_usable_rules


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("reported.oil >", "is no CEL expression at line 1"),
        ("oil > 1.0", "names 'oil'; there are reported, desired"),
        ("reported.all(x, x > 1.0)", "comprehension"),
        ("[1, 2].map(reported, reported)", "comprehension"),
        ("reported.label.matches('a')", "calls 'matches'; there are has, size"),
        ("1 < 2", "depends on nothing"),
        ("!" * 999 + "reported.on", "at most 1,000 characters"),
        ("(" * 400 + "reported.on" + ")" * 400, "is no CEL expression"),
    ],
)
def test_what_is_refused_says_why(source: str, words: str) -> None:
    found = compiled(source)
    assert isinstance(found, str)
    assert words in found


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("reported.oil > 90.0", True),
        ("reported.oil > 90 && connectivity == 'ONLINE'", True),
        ("has(reported.none) && reported.none > 1.0", False),
        ("reported.none > 1.0", None),
        ("reported.none > 1.0 || reported.oil > 90.0", True),
        ("reported.oil", None),
        ("reported.oil + 'x' == 'y'", None),
        ("1 / size(delta) > 2", None),
        ("'speed' in delta", False),
        ("attributes.site.startsWith('A')", True),
        ("desired.speed - reported.oil < 0.0", True),
    ],
)
def test_an_answer_or_none(source: str, answer: bool | None) -> None:
    found = compiled(source)
    assert isinstance(found, Expression), found
    context = {
        "reported": {"oil": 95.0},
        "desired": {"speed": 1.0},
        "delta": {},
        "attributes": {"site": "A1"},
        "connectivity": "ONLINE",
    }
    assert found.holds({name: context[name] for name in found.names}) is answer


@given(st.text("reportd.oil()[]{}<>=!&|?:+-*/%'\"\\ 19,\0\n", max_size=200))
def test_no_text_does_more_than_be_refused_or_have_an_answer(source: str) -> None:
    began = time.perf_counter()
    found = compiled(source)
    if isinstance(found, Expression):
        assert found.holds({"reported": {"oil": 1.0}}) in (True, False, None)
    assert time.perf_counter() - began < 2


def test_a_type_with_a_wrong_expression_names_the_rule_and_the_channels() -> None:
    twin_type = TwinType(
        twin_type_id="boiler",
        version=1,
        channels=(ChannelSpec(name="oil", kind=ChannelKind.GAUGE),),
        rules=(AlarmRule(name="odd", severity=1, expression="reported.oli > 1.0"),),
    )
    with pytest.raises(InvalidArgument) as caught:
        with_usable_rules(twin_type, TABLE)
    (violation,) = caught.value.field_violations
    assert violation.field == "twin_type.rules[0].expression"
    assert "rule 'odd'" in violation.description
    assert "names the channel 'oli'; the type has oil" in violation.description
