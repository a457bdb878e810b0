"""Newest values written as bytes are the typed message, to the byte."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core import wire
from twinmesh_core.kinds import ChannelKind
from twinmesh_storage.domain.answers import to_batch
from twinmesh_storage.domain.history import SeriesRows
from twinmesh_storage.domain.latest_reader import Selection
from twinmesh_storage.domain.rows import Lane, Rows
from twinmesh_storage.domain.series import Series
from twinmesh_storage.rpc.latest import LatestEncoder
from twinmesh_storage.rpc.raw import latest_answer

KINDS = st.sampled_from([k for k in ChannelKind if k])
SERIES = st.lists(st.tuples(KINDS, st.booleans(), st.integers(-(2**62), 2**62), st.integers(1, 3)), max_size=40)


def newest(selection: Selection, found: list[tuple[ChannelKind, bool, int, int]]) -> dict[Lane, Rows]:
    by_lane = {}
    for lane, ids in selection.by_lane.items():
        there = [i for i in ids.tolist() if found[i - 1][1]]
        value = np.empty(len(there), np.int64 if lane is Lane.NUMERIC else object)
        for row, i in enumerate(there):
            kind, _, ts, _ = found[i - 1]
            value[row] = ts & 1 if kind is ChannelKind.BOOL else ts if kind.numeric else b"v%d" % ts
        by_lane[lane] = Rows(
            series=np.array(there, np.int64),
            ts=np.array([found[i - 1][2] for i in there], np.int64),
            value=value,
            quality=np.array([found[i - 1][3] for i in there], np.uint8),
            offset=np.ones(len(there), np.int64),
        )
    return by_lane


@given(SERIES, st.booleans())
def test_newest_values_are_written_as_protobuf_would(
    found: list[tuple[ChannelKind, bool, int, int]], lasting: bool
) -> None:
    series = [
        Series(
            tenant="t", series_id=i, twin_id=f"t{i}", channel="c", kind=kind, unit="", expected_interval_us=0
        )
        for i, (kind, *_) in enumerate(found, start=1)
    ]  # fmt: skip
    selection = Selection.of(series)
    by_lane = newest(selection, found)
    encoder = LatestEncoder()
    encoded = encoder.encode(selection, by_lane, lasting=lasting)
    message = storage_pb2.ReadLatestResponse.FromString(latest_answer(encoded, 0, "i", 7))
    parts = []
    for one in series:
        rows = by_lane[Lane.of(one.kind)]
        mine = rows.take(rows.series == one.series_id)
        if len(mine):
            parts.append(SeriesRows(series=one, rows=mine))
    assert message.batch.SerializeToString() == wire.encode(to_batch(parts))
    assert (message.as_of.incarnation, message.as_of.offset) == ("i", 7)
    all_there = len(parts) == len(series)
    remembered = all_there and lasting
    assert bool(message.dictionary_id) == remembered
    short: Any = storage_pb2.ReadLatestResponse.FromString(latest_answer(encoded, message.dictionary_id, "i", 7))
    if remembered:
        assert not short.batch.series
        short.batch.series.extend(message.batch.series)
    assert short == message
