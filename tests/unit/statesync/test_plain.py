"""Checkpoints' text: exact both ways, canonical, and without a way to run code."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.statesync.worlds import PUMP

from twinmesh_core.errors import Conflict, FieldViolation, InvalidArgument, NotFound, TwinmeshError
from twinmesh_core.registry import TwinType
from twinmesh_core.registry_fold import Outcome
from twinmesh_statesync.domain.commands import Command, CommandState
from twinmesh_statesync.domain.entries import Verdict
from twinmesh_statesync.domain.plain import from_text, to_text
from twinmesh_statesync.domain.values import Json, Value

values = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.text(),
    st.text().map(Json),
)


@given(args=st.dictionaries(st.text(), values))
def test_values_come_back_as_they_went(args: dict[str, Value]) -> None:
    command = Command(
        command_id="c",
        twin_id="t",
        name="n",
        args=args,
        state=CommandState.QUEUED,
        message="ü",
        create_time_unix_us=1,
        expire_time_unix_us=None,
        create_offset=1,
        offset=2,
        update_time_unix_us=3,
    )
    back = from_text(Command, to_text(command))
    assert back == command
    for name, value in args.items():
        assert type(back.args[name]) is type(value)
        if isinstance(value, float):
            assert math.copysign(1, value) == math.copysign(1, float(back.args[name]))


def test_twin_types_come_back_with_their_offset() -> None:
    back = from_text(TwinType, to_text(PUMP))
    assert back == PUMP
    assert back.create_offset == PUMP.create_offset


@pytest.mark.parametrize(
    "error",
    [
        Conflict("taken", metadata={"current_revision": "7"}),
        NotFound("gone", reason="TWIN_NOT_FOUND"),
        InvalidArgument("bad", field_violations=[FieldViolation(field="f", description="d")]),
    ],
)
def test_verdicts_keep_their_error(error: TwinmeshError) -> None:
    back = from_text(Verdict, to_text(Verdict(offset=3, outcome=Outcome.REJECTED, error=error))).error
    assert type(back) is type(error)
    assert back is not None
    assert (back.message, back.reason, back.metadata, back.field_violations) == (
        error.message,
        error.reason,
        error.metadata,
        error.field_violations,
    )


def test_equal_values_have_equal_text_whatever_the_order_of_keys() -> None:
    assert to_text({"b": 1, "a": 2.0}) == to_text({"a": 2.0, "b": 1}) == '{"a":2.0,"b":1}'
