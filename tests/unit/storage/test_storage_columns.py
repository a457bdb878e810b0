"""Packing is exactly reversible, and folding keeps the laws that reading rests on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinmesh_core.kinds import ChannelKind
from twinmesh_storage.domain import column_sets, columns
from twinmesh_storage.domain.blocks import Block, build_blocks
from twinmesh_storage.domain.folding import settle
from twinmesh_storage.domain.merging import Merging
from twinmesh_storage.domain.rows import Lane, Rows, merge, no_rows
from twinmesh_storage.domain.series import Series, cell_us

INT64 = st.integers(-(2**63), 2**63 - 1)
SERIES = {
    1: Series(
        tenant="t", series_id=1, twin_id="a", channel="x", kind=ChannelKind.GAUGE, unit="", expected_interval_us=10
    ),
    2: Series(
        tenant="t", series_id=2, twin_id="a", channel="y", kind=ChannelKind.STATE, unit="", expected_interval_us=0
    ),
}


def series_of(series_id: int) -> Series:
    return SERIES[series_id]


@given(st.lists(INT64, min_size=1, max_size=60))
def test_ints_come_back(values: list[int]) -> None:
    array = np.array(values, np.int64)
    assert columns.decode_ints(columns.encode_ints(array), len(array)).tolist() == values


@given(st.lists(st.floats() | st.integers(-1000, 1000).map(lambda i: i / 100), min_size=1, max_size=60))
def test_doubles_come_back_to_the_bit(values: list[float]) -> None:
    bits = np.array(values).view(np.int64)
    assert columns.decode_ints(columns.encode_doubles(bits), len(bits)).tolist() == bits.tolist()


@given(st.sets(st.integers(-(10**15), 10**15), min_size=1, max_size=60))
def test_times_come_back(values: set[int]) -> None:
    array = np.array(sorted(values), np.int64)
    assert columns.decode_ints(columns.encode_times(array), len(array)).tolist() == array.tolist()


def edges_of(blocks: list[list[Any]]) -> Any:
    return np.append(0, np.cumsum([len(block) for block in blocks]))


DOUBLES = st.one_of(
    st.floats(),
    st.integers(-1000, 1000).map(lambda i: i / 100),
    st.integers(-(2**40), 2**40).map(lambda i: i / 10**5),
    st.sampled_from([0.0, -0.0, 1.5, 9e15, 1e300]),
)
BLOCKS_OF_DOUBLES = st.lists(
    st.one_of(
        st.lists(DOUBLES, min_size=1, max_size=20),
        st.lists(st.integers(-1000, 1000).map(lambda i: i / 100), min_size=1, max_size=20),
        st.lists(st.sampled_from([1.0, 2.0]), min_size=1, max_size=60).map(sorted),
        st.tuples(st.integers(0, 10**6), st.integers(2, 30)).map(lambda f: [(f[0] + i) / 10 for i in range(f[1])]),
    ),
    min_size=1,
    max_size=8,
)
BLOCKS_OF_INTS = st.lists(
    st.one_of(
        st.lists(INT64, min_size=1, max_size=20),
        st.lists(st.integers(-300, 300), min_size=1, max_size=20),
        st.tuples(st.integers(0, 10**6), st.integers(2, 30)).map(lambda f: [f[0] + 9 * i for i in range(f[1])]),
        st.lists(st.sampled_from([1, 2**62]), min_size=1, max_size=60).map(sorted),
    ),
    min_size=1,
    max_size=8,
)


@given(BLOCKS_OF_DOUBLES)
def test_doubles_of_many_blocks_are_packed_as_each_by_itself(blocks: list[list[float]]) -> None:
    packed = column_sets.pack_doubles(np.concatenate(blocks).astype(np.float64).view(np.int64), edges_of(blocks))
    assert packed == [columns.encode_doubles(np.array(block, np.float64).view(np.int64)) for block in blocks]


@given(BLOCKS_OF_INTS)
def test_ints_of_many_blocks_are_packed_as_each_by_itself(blocks: list[list[int]]) -> None:
    packed = column_sets.pack_ints(np.concatenate([np.array(b, np.int64) for b in blocks]), edges_of(blocks))
    assert packed == [columns.encode_ints(np.array(block, np.int64)) for block in blocks]


@given(BLOCKS_OF_INTS)
def test_times_and_bytes_of_many_blocks_are_packed_as_each_by_itself(blocks: list[list[int]]) -> None:
    times = [sorted({value % 10**15 for value in block}) for block in blocks]
    packed = column_sets.pack_times(np.concatenate([np.array(t, np.int64) for t in times]), edges_of(times))
    assert packed == [columns.encode_times(np.array(block, np.int64)) for block in times]
    small = [[value % 3 for value in block] for block in blocks]
    packed = column_sets.pack_bytes(np.concatenate([np.array(b, np.uint8) for b in small]), edges_of(small))
    assert packed == [columns.encode_bytes(np.array(block, np.uint8)) for block in small]


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=30), st.lists(st.integers(1, 3), min_size=1, max_size=80))
def test_texts_and_qualities_come_back(texts: list[bytes], qualities: list[int]) -> None:
    array = np.empty(len(texts), object)
    array[:] = texts
    assert columns.decode_texts(columns.encode_texts(array), len(array)).tolist() == texts
    quality = np.array(qualities, np.uint8)
    assert columns.decode_bytes(columns.encode_bytes(quality), len(quality)).tolist() == qualities


@pytest.mark.parametrize(
    ("values", "bytes_each"),
    [
        (np.full(2000, 21.5), 0.01),
        (np.round(20 + np.sin(np.arange(2000) / 50), 2), 1.02),
        (np.random.default_rng(1).normal(size=2000), 8.01),
    ],
)
def test_what_telemetry_usually_is_takes_little_room(values: Any, bytes_each: float) -> None:
    assert len(columns.encode_doubles(values.view(np.int64))) <= bytes_each * 2000


def test_evenly_spaced_times_take_no_room() -> None:
    assert len(columns.encode_times(np.arange(0, 3_600_000_000, 1_000_000, dtype=np.int64))) == 17


POINT = st.tuples(st.sampled_from([1, 2]), st.integers(0, 40_000_000), st.integers(-5, 5), st.integers(1, 3))


def rows_of(points: list[tuple[int, int, int, int]], first_offset: int) -> Rows:
    """Return points as rows, each with an offset of its own."""
    if not points:
        return no_rows(Lane.NUMERIC)
    series, ts, value, quality = (np.array(c, np.int64) for c in zip(*points, strict=True))
    bits = np.where(series == 1, value.astype(np.float64).view(np.int64), value)
    offsets = first_offset + np.arange(len(points))
    return Rows(series=series, ts=ts, value=bits, quality=quality.astype(np.uint8), offset=offsets)


def as_dict(rows: Rows) -> dict[tuple[int, int], tuple[int, int, int]]:
    return {
        (s, t): (v, q, o)
        for s, t, v, q, o in zip(
            rows.series.tolist(), rows.ts.tolist(), rows.value.tolist(), rows.quality.tolist(), rows.offset.tolist(),
            strict=True,
        )
    }  # fmt: skip


def model(points: list[tuple[int, int, int, int]]) -> dict[tuple[int, int], tuple[int, int, int]]:
    """The law in one line: the last one sent wins."""
    return as_dict(rows_of(points, 1))


def folded(batches: list[list[tuple[int, int, int, int]]], small: int = 4, most: int = 9) -> list[Block]:
    """Fold batches one after the other, as the compactor does with the database."""
    blocks: dict[tuple[str, int, int], Block] = {}
    merging = Merging(series_of=series_of, small_rows=small)
    offset = 1
    for batch in batches:
        fresh = {Lane.NUMERIC: merge([rows_of(batch, offset)])} if batch else {}
        offset += len(batch)
        touched = {}
        for span in merging.spans(fresh):
            cell = [
                b for b in blocks.values() if b.series_id == span.series_id and span.cell_start <= b.t0 <= span.last
            ]
            wall = max((b.t0 for b in cell if b.t1 < span.first and b.n >= span.small), default=span.cell_start - 1)
            for block in cell:
                if block.t1 >= span.first or (block.n < span.small and block.t0 > wall):
                    touched[block.key] = block
        for key in touched:
            del blocks[key]
        settled = settle([*(b.rows() for b in touched.values()), *fresh.values()] or [no_rows(Lane.NUMERIC)], ())
        for block in build_blocks(settled.readable, Lane.NUMERIC, series_of, most):
            assert block.key not in blocks
            blocks[block.key] = block
    return sorted(blocks.values(), key=lambda b: (b.series_id, b.t0))


BATCHES = st.lists(st.lists(POINT, max_size=25), min_size=1, max_size=5)


@given(BATCHES)
def test_folding_batches_gives_what_the_last_offset_says(batches: list[list[tuple[int, int, int, int]]]) -> None:
    blocks = folded(batches)
    stored = merge([no_rows(Lane.NUMERIC), *(b.rows() for b in blocks)])
    assert as_dict(stored) == model([p for batch in batches for p in batch])
    for before, after in pairwise(blocks):
        assert before.series_id != after.series_id or before.t1 < after.t0, "blocks of a series overlap"
    for block in blocks:
        span = cell_us(SERIES[block.series_id].expected_interval_us)
        assert block.t0 // span == block.t1 // span, "a block leaves its cell"


@given(st.lists(POINT, min_size=1, max_size=40), st.lists(st.integers(0, 40), max_size=3))
def test_merging_does_not_care_how_rows_were_divided(points: list[tuple[int, int, int, int]], cuts: list[int]) -> None:
    whole = rows_of(points, 1)
    edges = sorted({0, len(points), *(c for c in cuts if c <= len(points))})
    parts = [whole.take(slice(a, b)) for a, b in pairwise(edges)]
    assert as_dict(merge(parts[::-1])) == model(points)


def test_statistics_of_a_block_are_those_of_its_good_values() -> None:
    rows = rows_of([(1, i * 10, i % 7, 1 + (i % 5 == 0)) for i in range(100)], 1)
    (block,) = build_blocks(merge([rows]), Lane.NUMERIC, series_of)
    good = np.array([i % 7 for i in range(100) if i % 5])
    assert block.statistics is not None
    assert block.counts == (80, 20, 0)
    np.testing.assert_allclose(
        [block.statistics.sum, block.statistics.m2, block.statistics.first, block.statistics.last],
        [good.sum(), ((good - good.mean()) ** 2).sum(), good[0], good[-1]],
    )


def test_a_live_series_is_written_once_per_tier_and_leaves_few_small_blocks() -> None:
    """What a fold merges is chosen by size: 1 Hz, folded every 5 s over 3 hours of 1 h cells."""
    hourly = replace(SERIES[1], expected_interval_us=1_000_000)
    blocks: dict[int, int] = {}
    merging = Merging(series_of=lambda _: hourly)
    written = most_small = 0
    for fold in range(3 * 720):
        ts = np.arange(fold * 5, fold * 5 + 5) * 1_000_000
        rows = replace(rows_of([(1, 0, 0, 1)] * 5, 1), ts=ts)
        for span in merging.spans({Lane.NUMERIC: rows}):
            n, start = span.n, span.first
            for t0 in sorted((t for t in blocks if span.cell_start <= t <= span.last), reverse=True):
                if blocks[t0] >= span.small:
                    break
                n += blocks.pop(t0)
                start = t0
            if n:
                blocks[start] = n
                written += n
        most_small = max(most_small, sum(n < 1024 for n in blocks.values()))
    assert sum(blocks.values()) == 3 * 3600
    assert written / (3 * 3600) < 7
    assert most_small <= 20
