"""Offsets remember of which log they are, and are plain numbers otherwise."""

import json
import pickle

import pytest

from twinmesh_client.acks import WriteAck, total
from twinmesh_client.aio.history import Scope
from twinmesh_client.offsets import Offset, incarnation_of
from twinmesh_client.replicas import Position
from twinmesh_core.errors import InvalidArgument


def test_what_an_answer_told_goes_with_its_incarnation_into_the_next_question() -> None:
    ack = WriteAck(accepted=1, offset=7, incarnation="one")
    assert Scope(min_offset=ack.offset).incarnation == "one"
    assert Scope(as_of=Position(incarnation="two", offset=3).offset).incarnation == "two"
    assert incarnation_of(total([ack, WriteAck(offset=9, incarnation="one")]).offset) == "one"
    assert Scope(min_offset=7).incarnation == ""
    assert incarnation_of(0, Offset(0, "one")) == ""  # the present is of every log


def test_offsets_of_two_logs_in_one_question_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        incarnation_of(Offset(1, "one"), Offset(2, "two"))


def test_an_offset_is_a_number() -> None:
    offset = Offset(7, "one")
    assert (offset, offset + 1, f"{offset:,}", json.dumps({"offset": offset})) == (7, 8, "7", '{"offset": 7}')
    assert pickle.loads(pickle.dumps(offset)).incarnation == "one"  # noqa: S301 -- what was made a line before
