"""Names of aggregates, and rows split by series."""

from __future__ import annotations

import numpy as np
import pytest

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2, position_pb2
from twinmesh_client import aggregates
from twinmesh_client.packed_reads import read_answer
from twinmesh_client.readings import split_series
from twinmesh_core import wire
from twinmesh_core.errors import DataLoss, InvalidArgument
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section, text_section


def test_names_keep_their_order_though_storage_orders_them_by_kind() -> None:
    asked = aggregates.columns(["p95", "mean", "time_at:2", "median", "increase"])
    assert [storage_pb2.AggregateFunction.Name(f) for f in asked.functions] == [
        "AGGREGATE_FUNCTION_MEAN",
        "AGGREGATE_FUNCTION_INCREASE",
    ]
    assert asked.quantiles == (0.95, 0.5)
    assert asked.states == (2.0,)
    assert asked.order == (2, 0, 4, 3, 1)


@pytest.mark.parametrize("name", ["avg", "p101", "p", "time_at:", "", "MEAN"])
def test_an_unknown_name_is_told_with_the_choice(name: str) -> None:
    with pytest.raises(InvalidArgument, match="time_weighted_mean"):
        aggregates.columns([name])


def test_every_function_of_the_proto_has_a_name() -> None:
    named = {f"AGGREGATE_FUNCTION_{name.upper()}" for name in aggregates.FUNCTIONS}
    assert named == set(storage_pb2.AggregateFunction.keys()) - {"AGGREGATE_FUNCTION_UNSPECIFIED"}
    units = {f"CALENDAR_UNIT_{name.upper()}" for name in aggregates.CALENDAR_UNITS}
    assert units == set(storage_pb2.CalendarUnit.keys()) - {"CALENDAR_UNIT_UNSPECIFIED"}
    methods = {f"DOWNSAMPLE_METHOD_{name.upper()}" for name in aggregates.METHODS}
    assert methods == set(storage_pb2.DownsampleMethod.keys()) - {"DOWNSAMPLE_METHOD_UNSPECIFIED"}


def test_an_answer_is_read_from_its_bytes() -> None:
    keys = tuple(SeriesKey(twin_id="t", channel=c, kind=ChannelKind.GAUGE) for c in "abc")
    batch = ObservationBatch(
        series=keys,
        doubles=double_section([1, 0, 1, 0], [5, 1, 6, 2], [1.0, 2.0, 3.0, 4.0], [1, 2, 3, 1]),
        texts=text_section([2], [9], ["x"], [1]),
    )
    message = storage_pb2.ReadLatestResponse(
        batch=observation_pb2.ObservationBatch.FromString(wire.encode(batch)),
        as_of=position_pb2.LogPosition(incarnation="i", offset=7),
        dictionary_id=2**63,
    )
    answer = read_answer(message.SerializeToString())
    assert (answer.as_of.incarnation, answer.as_of.offset, answer.dictionary_id) == ("i", 7, 2**63)
    found = {s.channel: (s.time_unix_us.tolist(), s.values.tolist()) for s in split_series([answer.batch])}
    assert found == {"a": ([1, 2], [2.0, 4.0]), "b": ([5, 6], [1.0, 3.0]), "c": ([9], ["x"])}
    both = {s.channel: s.time_unix_us.tolist() for s in split_series([answer.batch, answer.batch])}
    assert both["b"] == [5, 6, 5, 6]
    assert split_series([]) == ()
    with pytest.raises(DataLoss):
        read_answer(b"\xff\xff\xff")


def test_one_series_alone_is_not_copied() -> None:
    key = SeriesKey(twin_id="t", channel="a", kind=ChannelKind.GAUGE)
    batch = ObservationBatch(series=(key,), doubles=double_section([0, 0], [1, 2], [1.0, 2.0], [1, 1]))
    (one,) = split_series([batch])
    assert np.shares_memory(one.values, batch.doubles.values)
