"""What the SDK asks of the past."""

import pytest

import twinmesh_client as tm
from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_client.aio.questions import ask_past
from twinmesh_client.offsets import Offset


def asked(min_offset=0, at_offset=None, at=None) -> statesync_pb2.GetReplicaRequest:
    request = statesync_pb2.GetReplicaRequest(twin_id="t")
    ask_past(request, min_offset, at_offset, at)
    return request


def test_offsets_that_know_their_log_are_bound_to_it():
    assert asked(7) == statesync_pb2.GetReplicaRequest(twin_id="t", min_offset=7)
    place = Offset(7, "i")
    assert asked(place) == statesync_pb2.GetReplicaRequest(twin_id="t", min_offset=7, incarnation="i")
    assert asked(3, place) == statesync_pb2.GetReplicaRequest(twin_id="t", min_offset=3, at_offset=7, incarnation="i")


def test_offsets_of_two_logs_are_refused():
    with pytest.raises(tm.InvalidArgument, match="another incarnation"):
        asked(Offset(1, "i"), Offset(1, "j"))


def test_a_moment_is_read():
    assert asked(at="2026-03-01T12:00:00Z").at_event_time.seconds == 1_772_366_400
    with pytest.raises(tm.InvalidArgument):
        asked(at="yesterday")
