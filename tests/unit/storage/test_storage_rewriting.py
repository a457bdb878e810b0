"""What a fold makes of blocks does not depend on how many series are looked at together."""

from __future__ import annotations

from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from twinmesh_core.kinds import ChannelKind
from twinmesh_storage.adapters.postgres import rewriting
from twinmesh_storage.adapters.postgres.rewriting import Rewriting, Written
from twinmesh_storage.domain.blocks import build_blocks
from twinmesh_storage.domain.folding import Hide
from twinmesh_storage.domain.rows import Lane, Rows, sort_rows
from twinmesh_storage.domain.series import Series

S = 1_000_000
T0 = 1_700_000_000 * S
KINDS = (ChannelKind.GAUGE, ChannelKind.STATE, ChannelKind.TEXT)


def series_of(series_id: int) -> Series:
    kind = KINDS[series_id % 3]
    return Series(
        tenant="t",
        series_id=series_id,
        twin_id=f"w{series_id}",
        channel="c",
        kind=kind,
        unit="",
        expected_interval_us=0,
    )


def rows_of(places: list[tuple[int, int]], lane: Lane, offset: int, seed: int) -> Rows:
    """Return rows at (series, second), values of the lane's kind, all of one entry, sorted."""
    random = np.random.default_rng(seed)
    mine = [(s, t) for s, t in sorted(set(places)) if Lane.of(series_of(s).kind) is lane]
    n = len(mine)
    value = np.array([f"text {v}".encode() for v in random.integers(0, 9, n)] + [b""], object)[:n]
    return sort_rows(
        Rows(
            series=np.array([s for s, _ in mine], np.int64),
            ts=np.array([T0 + t * S for _, t in mine], np.int64),
            value=value if lane is Lane.TEXT else random.integers(0, 1 << 60, n),
            quality=random.integers(1, 4, n).astype(np.uint8),
            offset=np.full(n, offset, np.int64),
        )
    )


places = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 40)), max_size=120)
hides = st.lists(
    st.builds(
        lambda ids, start, length: Hide(
            tenant="t", series_ids=frozenset(ids), start=T0 + start * S, end=T0 + (start + length) * S, offset=3
        ),
        st.sets(st.integers(0, 99), min_size=1, max_size=5),
        st.integers(0, 40),
        st.integers(1, 10),
    ),
    max_size=2,
)


@settings(max_examples=100)
@given(before=places, now=places, hidden=hides, seed=st.integers(0, 1 << 30))
def test_slices_make_the_same_of_blocks(
    before: list[tuple[int, int]], now: list[tuple[int, int]], hidden: list[Hide], seed: int
) -> None:
    touched = [b for lane in Lane for b in build_blocks(rows_of(before, lane, 1, seed), lane, series_of)]
    fresh = {lane: rows for lane in Lane if len(rows := rows_of(now, lane, 2, seed + 1))}

    def rewritten(few_rows: int, pauses_s: float) -> Written:
        with mock.patch.multiple(rewriting, _FEW_ROWS=few_rows, _PAUSES_S=pauses_s, _SLICE_SERIES=4):
            made = Rewriting(series_of=series_of, small_rows=8, max_rows=16)
            return made.rewrite(fresh, touched, hidden)

    whole, sliced = rewritten(-1, 0.0), rewritten(1_000, 0.02)
    assert sliced.blocks == whole.blocks
    assert sliced.partitions == whole.partitions
    assert [n for n, _ in sliced.replaced] == [n for n, _ in whole.replaced]
    assert len(sliced.superseded) == len(whole.superseded)
    for mine, other in zip(sliced.superseded, whole.superseded, strict=True):
        assert mine.by_offset.tolist() == other.by_offset.tolist()
        for column in ("series", "ts", "value", "quality", "offset"):
            assert getattr(mine.rows, column).tolist() == getattr(other.rows, column).tolist()
