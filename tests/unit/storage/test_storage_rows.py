"""Sorting rows: one key or three columns, the order is the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twinmesh_storage.domain.rows import Rows, sort_rows

NEAR = st.integers(0, 6)
FAR = st.sampled_from([0, 1, 2**62, -(2**62), 2**63 - 1, -(2**63)])


@given(st.lists(st.tuples(NEAR | FAR, NEAR | FAR, NEAR), max_size=40))
def test_rows_are_in_order_of_series_time_and_offset(drawn: list[tuple[int, int, int]]) -> None:
    columns = np.array(drawn, np.int64).reshape(-1, 3).T
    numbers = np.arange(len(drawn))
    rows = Rows(series=columns[0], ts=columns[1], value=numbers, quality=numbers.astype(np.uint8), offset=columns[2])
    # Python's sort is stable: rows equal in all three keep their order.
    expected = sorted(range(len(drawn)), key=lambda i: drawn[i])
    assert sort_rows(rows).value.tolist() == expected
