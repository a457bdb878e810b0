"""The filter language: total, exact, the same by plan and by scan, and plain about what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.statesync.populations import T0, S, Still, filters, matches, moment_text, populations

from twinmesh_statesync.domain.filter import FilterError, anchors, compiled, parse_filter, plan
from twinmesh_statesync.domain.filter import expressions as ex
from twinmesh_statesync.domain.filter.parsing import MAX_CONDITIONS, MAX_DEPTH, MAX_LENGTH

fragments = st.sampled_from(
    ["AND", "OR", "NOT", "(", ")", "~", ".", ":", "*", "=", "!=", "<=", '"', "'", "\\", "twin_id", "attributes", "site",
     "relationships", "feeds", "reported", "temp", "quality", "GOOD", "delta", "5", "-1e9", "degC", "50degC", "1e999",
     "2026-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "true", "connectivity", "ONLINE",
     "predicted", "horizon", "h", " ", "\n", "°C", "\x00"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(fragments, max_size=12).flatmap(lambda f: st.sampled_from(["", " "]).map(lambda s: s.join(f)))
    | st.text(max_size=40)
)
def test_any_text_is_read_or_refused_with_a_column(text: str) -> None:
    error, expression = read(text)
    if error is None:
        assert expression == ex.EVERYTHING or parse_filter(ex.text_of(expression)) == expression
    else:
        assert 1 <= error.column <= len(text) + 1
        assert error.metadata["column"] == str(error.column)
        assert error.field_violations[0].field == "filter"
        assert error.reason in ("INVALID_FIELD", "INCOMPATIBLE_UNIT")


def read(text: str) -> tuple[FilterError | None, ex.Expression]:
    try:
        return None, parse_filter(text)
    except FilterError as error:
        return error, ex.EVERYTHING


@settings(max_examples=100, deadline=None)
@given(expression=filters())
def test_a_filter_printed_and_read_again_is_the_same(expression: ex.Expression) -> None:
    assert parse_filter(ex.text_of(expression)) == expression


@settings(max_examples=100, deadline=None)
@given(twins=populations, expression=filters())
def test_a_compiled_filter_means_what_it_says(twins: dict[str, Any], expression: ex.Expression) -> None:
    test, population = compiled(expression), Still(twins)
    for version in twins.values():
        assert test(version, population) is matches(expression, version, twins)


@settings(max_examples=100, deadline=None)
@given(twins=populations, expression=filters())
def test_a_plan_leaves_no_matching_twin_out(twins: dict[str, Any], expression: ex.Expression) -> None:
    found = {twin_id for twin_id, version in twins.items() if matches(expression, version, twins)}
    planned = plan(expression, Still(twins).index())
    assert planned is None or found <= planned
    held = anchors(expression)
    if held is not None:
        assert found <= {twin_id for twin_id in twins if any(_within(twins[twin_id], anchor) for anchor in held)}


def _within(version: Any, anchor: Any) -> bool:
    twin = version.twin
    where = {0: twin.twin_id, 1: twin.attributes.get(anchor.key), 2: twin.twin_type_id}
    return bool(where[anchor.rank] == anchor.text)


@pytest.mark.parametrize(
    ("text", "narrow"),
    [
        ("twin_id = a", True),
        ("attributes.site = north AND reported.temp > 50", True),
        ("twin_type = pump OR delta:*", True),
        ("feeds.attributes.site = north", True),
        ("~feeds = a", True),
        ("connectivity = OFFLINE", True),
        ("reported.temp > 50", False),
        ("NOT twin_id = a", False),
    ],
)
def test_what_an_index_knows_is_not_scanned(text: str, narrow: bool) -> None:
    assert (plan(parse_filter(text), Still({}).index()) is not None) is narrow


@settings(max_examples=40, deadline=None)
@given(before=populations, after=populations, expression=filters())
def test_an_index_that_followed_is_as_one_built_anew(before: Any, after: Any, expression: ex.Expression) -> None:
    index = Still(before).index()
    for twin_id in sorted(before.keys() | after.keys()):
        index.move(twin_id, before.get(twin_id), after.get(twin_id))
    assert plan(expression, index) == plan(expression, Still(after).index())
    for twin_id, version in after.items():
        index.move(twin_id, version, None)
    assert not any(vars(index).values())


SAID: list[tuple[str, ex.Expression]] = [
    ("", ex.EVERYTHING),
    ("attributes.site='north'", ex.Compare(ex.Field("attributes", "site"), ex.Op.EQUAL, ex.Pattern(("north",)))),
    ('twin_id = T1*', ex.Compare(ex.Field("twin_id"), ex.Op.EQUAL, ex.Pattern(("T1", "")))),
    (r'twin_id = "T1\*"', ex.Compare(ex.Field("twin_id"), ex.Op.EQUAL, ex.Pattern(("T1*",)))),
    ("reported.temp > 50degC", ex.Compare(ex.Field("reported", "temp"), ex.Op.GREATER, ex.Quantity(50, "degC"))),
    ("reported.flow<=1.5 m3/h", ex.Compare(ex.Field("reported", "flow"), ex.Op("<="), ex.Quantity(1.5, "m3/h"))),
    ("reported.on = true", ex.Compare(ex.Field("reported", "on"), ex.Op.EQUAL, True)),
    ('reported.mode = "true"', ex.Compare(ex.Field("reported", "mode"), ex.Op.EQUAL, ex.Pattern(("true",)))),
    ("connectivity=offline", ex.Compare(ex.Field("connectivity"), ex.Op.EQUAL, ex.Choice("OFFLINE", 3))),
    (f"create_time>={moment_text(T0)}", ex.Compare(ex.Field("create_time"), ex.Op.GREATER_OR_EQUAL, ex.Moment(T0))),
    ("predicted.temp.horizon > 2h", ex.Compare(ex.Field("predicted", "temp", "horizon"), ex.Op(">"), ex.Span(7_200 * S))),  # noqa: E501
    ("delta:speed", ex.Present(ex.Field("delta", "speed"))),
    ("attributes:'serial no'", ex.Present(ex.Field("attributes", "serial no"))),
    ("relationships.feeds = T2", ex.Compare(ex.Field("relationships", "feeds"), ex.Op.EQUAL, ex.Pattern(("T2",)))),
    ("feeds.revision=1", ex.Hop(ex.Step("feeds"), ex.Compare(ex.Field("revision"), ex.Op.EQUAL, ex.Quantity(1)))),
    ("relationships.delta.delta:*", ex.Hop(ex.Step("delta"), ex.Present(ex.Field("delta")))),
    ("~feeds:*", ex.Hop(ex.Step("feeds", reverse=True), ex.Present(ex.Field("twin_id")))),
    ("a.~b.(delta:* OR NOT delta:x)", ex.Hop(ex.Step("a"), ex.Hop(ex.Step("b", reverse=True), ex.Or((
        ex.Present(ex.Field("delta")), ex.Not(ex.Present(ex.Field("delta", "x")))))))),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expression"), SAID, ids=[text or "empty" for text, _ in SAID])
def test_the_language_reads_as_documented(text: str, expression: ex.Expression) -> None:
    assert parse_filter(text) == expression


REFUSED = [
    ("twin_id = a AND twin_id = b OR twin_id = c", 29, "parentheses"),
    ("conectivity = ONLINE", 1, "did you mean connectivity"),
    ("atributes.site = x", 1, "did you mean attributes"),
    ("connectivity = ONLIN", 16, "none of NEVER, ONLINE"),
    ("connectivity > ONLINE", 14, "no order"),
    ("revision = 1.5", 12, "whole number"),
    ("revision = x", 12, "not a number"),
    ("reported > 5", 10, "reported.NAME"),
    ("delta.speed = 5", 13, "delta.speed:*"),
    ("reported.temp.qualty = GOOD", 1, ".quality"),
    ("reported.temp > 50 furlong", 20, "UCUM"),
    ("reported.temp", 14, "expected ="),
    ("reported.temp >", 16, "expected a value"),
    ("twin_id = 'a", 11, "no closing '"),
    ("(twin_id = a", 13, "expected ) for the ( at column 1"),
    ("twin_id = a twin_id = b", 13, "expected AND, OR or the end"),
    ("create_time > yesterday", 15, "2026-11-23T08:00:00Z"),
    ("predicted.t.horizon > 5", 23, "90s"),
    ("a.b.c.d.revision = 1", 1, "at most 3"),
    ("reported.temp < 5*", 17, "no order"),
    ("reported.temp:5", 14, "compare it"),
]


@pytest.mark.parametrize(("text", "column", "remedy"), REFUSED, ids=[text for text, *_ in REFUSED])
def test_a_refusal_names_the_column_and_the_remedy(text: str, column: int, remedy: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(text)
    assert (caught.value.column, remedy in caught.value.message) == (column, True), caught.value.message
    again = copy.copy(caught.value)
    assert (again.column, again.message, again.reason) == (column, caught.value.message, caught.value.reason)


def test_length_depth_and_conditions_are_bounded() -> None:
    parse_filter("NOT " * MAX_DEPTH + "delta:*")
    for text in (
        "NOT " * (MAX_DEPTH + 1) + "delta:*",
        "(" * 2_000,
        " OR ".join(["delta:*"] * (MAX_CONDITIONS + 1)),
        "twin_id = a" + " " * MAX_LENGTH,
    ):
        with pytest.raises(FilterError):
            parse_filter(text)
