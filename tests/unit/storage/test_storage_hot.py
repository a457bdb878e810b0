"""Hot rows: bounded, and how rows lie is known of the rows as they are now."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from twinmesh_storage.domain.hot import Even, HotRows, HotSeries
from twinmesh_storage.domain.rows import Lane, Rows
from twinmesh_storage.domain.tail import Run

MAX_ROWS = 60


def rows_of(series_id: int, times: list[int], quality: int = 1) -> Rows:
    n = len(times)
    return Rows(
        series=np.full(n, series_id, np.int64),
        ts=np.array(times, np.int64),
        value=np.zeros(n, np.int64),
        quality=np.full(n, quality, np.uint8),
        offset=np.ones(n, np.int64),
    )


def test_how_rows_lie() -> None:
    assert Even.of(rows_of(1, [10, 20, 30], 2)) == Even(start=10, step=10, worst=2, value=np.zeros(3, np.int64))
    for times in ([], [10], [10, 20, 31], [10, 20, 40, 60]):
        assert Even.of(rows_of(1, times)) is None


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "absorb", "forget", "even", "clear"]),
        st.integers(1, 5),
        st.integers(0, 100),
        st.integers(1, 30),
        st.sampled_from([1, 2]),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(steps)
def test_what_is_known_is_of_the_rows_that_are_there(acts: list[tuple[str, int, int, int, int]]) -> None:
    hot = HotRows(MAX_ROWS)
    for act, series_id, start, count, step in acts:
        times = [start + i * step for i in range(count)]
        if act == "put":
            hot.put(series_id, HotSeries(since=start, rows=rows_of(series_id, times)), hot.version)
        elif act == "absorb":
            hot.absorb({Lane.NUMERIC: Run.of(Lane.NUMERIC, rows_of(series_id, times))})
        elif act == "forget":
            hot.forget([series_id])
        elif act == "clear":
            hot.clear()
        held = {i: hot.peek(i) for i in range(1, 6)}
        for i, one in held.items():
            found = hot.even(i, 1_000)
            expected = None if one is None else Even.of(one.rows)
            assert found == expected
            assert found is None or (one is not None and found.value is one.rows.value)
        # Nothing is kept of a series that has left: its rows would escape the bound.
        assert set(hot._even) <= {i for i, one in held.items() if one is not None}
