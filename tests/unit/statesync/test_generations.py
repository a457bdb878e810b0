"""Which generations are kept: few, close together where the past is new, and reaching back to the horizon."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from twinmesh_core.time import US_PER_S
from twinmesh_statesync.domain.generations import Generation, Spacing, newest_at, newest_before

DAY = Spacing()
steps = st.lists(st.integers(1, 4_000), min_size=1, max_size=400)
"""Seconds from one save to the next."""


def grown(gaps: list[int], spacing: Spacing) -> tuple[list[Generation], tuple[Generation, ...]]:
    """Return all generations ever made, and those that are kept when it is tidied after each."""
    made: list[Generation] = []
    kept: tuple[Generation, ...] = ()
    time_s = 0
    for number, gap in enumerate(gaps):
        time_s += gap
        if spacing.due(kept[-1] if kept else None, time_s * US_PER_S):
            made.append(Generation(offset=10 * number, commit_time_unix_us=time_s * US_PER_S))
            kept = spacing.kept((*kept, made[-1]))
    return made, kept


@given(gaps=steps)
def test_every_age_has_a_generation_near_before_it(gaps: list[int]) -> None:
    made, kept = grown(gaps, DAY)
    newest = kept[-1]
    assert newest == made[-1]
    for older, newer in pairwise(kept):
        between = [g for g in made if older.offset < g.offset < newer.offset]
        age = newest.commit_time_unix_us - older.commit_time_unix_us
        apart = newer.commit_time_unix_us - older.commit_time_unix_us
        # Thinned while it was younger, a gap is never wider than what its present age allows.
        assert not between or apart <= max(60 * US_PER_S, age / 8)


@given(gaps=steps)
def test_the_horizon_is_reached_and_no_generation_beyond_it_is_kept_twice(gaps: list[int]) -> None:
    made, kept = grown(gaps, DAY)
    horizon = kept[-1].commit_time_unix_us - 86_400 * US_PER_S
    assert sum(g.commit_time_unix_us <= horizon for g in kept) <= 1
    if any(g.commit_time_unix_us <= horizon for g in made):
        assert kept[0].commit_time_unix_us <= horizon
    else:
        assert kept[0] == made[0]


def test_a_day_of_saves_keeps_few() -> None:
    _, kept = grown([10] * 9_000, DAY)
    assert 40 < len(kept) < 100
    fresh = [g for g in kept if kept[-1].commit_time_unix_us - g.commit_time_unix_us <= 600 * US_PER_S]
    assert len(fresh) >= 5


def test_the_nearest_before_a_place_or_a_time_is_found() -> None:
    kept = [Generation(offset=o, commit_time_unix_us=t) for o, t in ((0, 50), (10, 60), (20, 90))]
    assert [getattr(newest_at(kept, at), "offset", None) for at in (0, 9, 10, 25)] == [0, 0, 10, 20]
    assert newest_at(kept[1:], 9) is None
    # Before the first entry nothing was there, whatever the time.
    assert [getattr(newest_before(kept, at), "offset", None) for at in (1, 60, 89, 90)] == [0, 10, 10, 20]
    assert newest_before(kept[1:], 59) is None
