"""The ring: bounded, ordered, never cut through an offset."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.statesync.worlds import T0, S, World, doubles

from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.ring import Ring


def changes(count: int) -> list[tuple[Change, ...]]:
    world = World("a", "b", "c")
    rows = lambda i: [(t, "temperature", T0 + i * S, float(i), 1) for t in "abc"[: 1 + i % 3]]  # noqa: E731
    return [world.see(doubles(rows(i))).changes for i in range(count)]


HISTORY = changes(4_000)


@given(offset=st.integers(0, 4_010), limit=st.integers(1, 50))
def test_reading_goes_on_where_the_position_says_and_tells_offsets_whole(offset: int, limit: int) -> None:
    ring = Ring(floor=0, max_changes=100_000, max_bytes=1 << 30)
    for group in HISTORY[:200]:
        ring.append(group)
    index = ring.index_after(offset)
    assert index is not None
    told = []
    while index < ring.end:
        items = ring.read(index, limit)
        index += len(items)
        told.append([item.change.offset for item in items])
    flat = [o for part in told for o in part]
    assert flat == [c.offset for group in HISTORY[:200] for c in group if c.offset > offset]
    for one, other in itertools.pairwise(told):
        assert one[-1] < other[0]


def test_the_ring_is_bounded_by_number_and_by_bytes_and_says_where_it_begins() -> None:
    for bounds in ({"max_changes": 1_000, "max_bytes": 1 << 30}, {"max_changes": 1 << 30, "max_bytes": 500_000}):
        ring = Ring(floor=0, **bounds)
        for group in HISTORY:
            ring.append(group)
        kept = ring.read(ring.first, 1 << 30)
        assert len(kept) < 3_000
        if bounds["max_changes"] == 1_000:
            assert len(kept) >= 1_000
        assert sum(item.weight for item in kept) <= 1 << 30
        assert ring.index_after(ring.floor - 1) is None
        index = ring.index_after(ring.floor)
        assert index is not None
        assert ring.read(index, 1)[0].change.offset > ring.floor
