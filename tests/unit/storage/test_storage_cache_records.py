"""The cache's records as bytes: what was sealed comes back, and nothing else does."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twinmesh_storage.domain.cache_records import (
    WINDOW_ROWS,
    WINDOW_SLOT_SERIES,
    Stamp,
    Vouched,
    decode_manifest,
    decode_windows,
    encode_manifest,
    encode_windows,
    seal,
    unseal,
)
from twinmesh_storage.domain.hot import HotSeries
from twinmesh_storage.domain.latest import CHUNK_SERIES, LatestTable
from twinmesh_storage.domain.rows import Lane, Rows

INT64 = st.integers(-(2**63), 2**63 - 1)
STAMPS = st.builds(
    Stamp, incarnation=st.uuids().map(str), fold_offset=st.integers(0, 2**62), reach=st.integers(0, 2**62)
)
NAMES = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=12)


@st.composite
def hot_series(draw: Any, series_id: int) -> tuple[int, HotSeries]:
    ts = sorted(draw(st.sets(st.integers(-(2**61), 2**61), max_size=12)))
    n = len(ts)
    column = lambda element: draw(st.lists(element, min_size=n, max_size=n))  # noqa: E731
    since = draw(st.integers(-(2**62), ts[0] if ts else 2**62))
    rows = Rows(
        series=np.full(n, series_id, np.int64),
        ts=np.array(ts, np.int64),
        value=np.array(column(INT64), np.int64),
        quality=np.array(column(st.integers(1, 3)), np.uint8),
        offset=np.array(column(st.integers(1, 2**62)), np.int64),
    )
    return series_id, HotSeries(since=since, rows=rows)


@st.composite
def slots(draw: Any) -> tuple[int, list[tuple[int, HotSeries]]]:
    slot = draw(st.integers(0, 2**40))
    places = sorted(draw(st.sets(st.integers(0, WINDOW_SLOT_SERIES - 1))))
    return slot, [draw(hot_series(slot * WINDOW_SLOT_SERIES + place)) for place in places]


def same(one: HotSeries, other: HotSeries) -> bool:
    columns = ("series", "ts", "value", "quality", "offset")
    return one.since == other.since and all(
        getattr(one.rows, c).tolist() == getattr(other.rows, c).tolist() for c in columns
    )


@given(slots(), NAMES, STAMPS)
def test_a_slot_comes_back_as_it_was(slot_and_series, name, stamp):
    slot, series = slot_and_series
    opened = unseal(name, seal(name, stamp, encode_windows(series)))
    assert opened is not None
    assert opened[0] == stamp
    found = decode_windows(slot, opened[1])
    assert found is not None
    assert list(found) == [series_id for series_id, _ in series]
    assert all(same(found[series_id], hot) for series_id, hot in series)


@given(slots(), NAMES, STAMPS, st.data())
def test_a_changed_record_is_none(slot_and_series, name, stamp, data):
    record = bytearray(seal(name, stamp, encode_windows(slot_and_series[1])))
    kind = data.draw(st.sampled_from(["flip", "cut", "grow", "rename"]))
    at = data.draw(st.integers(0, len(record) - 1))
    if kind == "flip":
        record[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del record[at:]
    elif kind == "grow":
        record.insert(at, data.draw(st.integers(0, 255)))
    assert unseal(name + ("x" if kind == "rename" else ""), bytes(record)) is None


@given(st.binary(max_size=300), st.integers(0, 3))
def test_bytes_that_are_no_record_are_told(data, slot):
    assert unseal("a", data) is None
    found = decode_windows(slot, data)
    assert found is None or all(len(hot.rows) <= WINDOW_ROWS for hot in found.values())
    decode_manifest(data)


@given(st.dictionaries(INT64, st.builds(Vouched, fold_offset=INT64, size=INT64), max_size=20))
def test_a_manifest_comes_back_in_its_order(slots_vouched):
    body = encode_manifest(slots_vouched)
    assert list((decode_manifest(body) or {}).items()) == list(slots_vouched.items())
    if slots_vouched:
        assert decode_manifest(body + body[:24]) is None, "a slot twice"


def test_a_long_series_is_kept_from_its_newest_rows_on():
    n = WINDOW_ROWS + 10
    ts = np.arange(n, dtype=np.int64) * 1000
    rows = Rows(series=np.zeros(n, np.int64), ts=ts, value=ts, quality=np.ones(n, np.uint8), offset=ts + 1)
    found = decode_windows(0, encode_windows([(0, HotSeries(since=-5, rows=rows))]))
    assert found is not None
    assert found[0].since == 10_000, "older rows are not known to be complete"
    assert len(found[0].rows) == WINDOW_ROWS


@given(st.lists(st.tuples(st.integers(0, CHUNK_SERIES - 1), INT64, INT64, st.integers(1, 9)), max_size=30))
def test_a_chunk_of_newest_values_makes_a_table_that_answers_alike(given_rows):
    table = LatestTable()
    ids = np.array(sorted({r[0] for r in given_rows}), np.int64)
    by_id = {r[0]: r for r in given_rows}
    chosen = [by_id[i] for i in ids.tolist()]
    rows = Rows(
        series=ids,
        ts=np.array([r[1] for r in chosen], np.int64),
        value=np.array([r[2] for r in chosen], np.int64),
        quality=np.ones(len(chosen), np.uint8),
        offset=np.array([r[3] for r in chosen], np.int64),
    )
    table.put_base(ids, rows, Lane.NUMERIC)
    other = LatestTable()
    assert other.put_chunk(0, table.chunk(0)) == len(ids)
    assert other.put_chunk(0, table.chunk(0)[:-1]) == 0
    found = other.rows(ids, Lane.NUMERIC)
    assert (found.ts.tolist(), found.value.tolist()) == (rows.ts.tolist(), rows.value.tolist())


def test_texts_are_never_in_a_chunk():
    table = LatestTable()
    text = np.empty(1, object)
    text[0] = b"on"
    one = np.array([7], np.int64)
    row = Rows(series=one, ts=one, value=text, quality=np.ones(1, np.uint8), offset=one)
    table.put_base(one, row, Lane.TEXT)
    other = LatestTable()
    assert other.put_chunk(0, table.chunk(0)) == 0
    assert other.without_base(one).tolist() == [7]
