"""Generations: earlier positions that the checkpoint can be taken back to, from which the log is folded again.

A watcher behind the changes in memory, a question about the past and a log that was restored to an earlier point all
begin at the newest generation at or before their place. The newer the past, the closer they lie: a generation of age
`a` may be missing only while its neighbours lie at most `a / 8` apart, so what follows one is short for what is asked
most, and there are few of them (some 60 for a day).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from twinmesh_core.time import US_PER_S

_SPREAD: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A position that the checkpoint can be taken back to.

    Attributes:
        offset: the position; 0 = before the first entry, of a log that is complete.
        commit_time_unix_us: of the entry at that offset (of the first entry, for 0). No other history has an entry of
            this time at this offset, so it also tells whether a restored log still reaches up to here.
    """

    offset: int
    commit_time_unix_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spacing:
    """How far the generations reach and how close they lie.

    Attributes:
        interval_s: least time between two, in commit time.
        horizon_s: how far they reach back at least, in commit time before the newest.
    """

    interval_s: float = 60.0
    horizon_s: float = 86_400.0

    def due(self, last: Generation | None, commit_time_unix_us: int) -> bool:
        """Whether a save at an entry of this commit time should be a generation."""
        return last is None or commit_time_unix_us - last.commit_time_unix_us >= self.interval_s * US_PER_S

    def kept(self, generations: Sequence[Generation]) -> tuple[Generation, ...]:
        """Return those to keep, of generations in order: the oldest kept one reaches the horizon if any does."""
        if len(generations) < 2:
            return tuple(generations)
        newest = generations[-1].commit_time_unix_us
        beyond = [g for g in generations if g.commit_time_unix_us <= newest - self.horizon_s * US_PER_S]
        first = beyond[-1] if beyond else generations[0]
        kept = [first]
        within = [g for g in generations if g.offset > first.offset]
        for generation, following in pairwise(within):
            age = newest - generation.commit_time_unix_us
            apart = following.commit_time_unix_us - kept[-1].commit_time_unix_us
            if apart > max(self.interval_s * US_PER_S, age / _SPREAD):
                kept.append(generation)
        return (*kept, *within[-1:])


DEFAULT_SPACING: Final = Spacing()


def newest_at(generations: Sequence[Generation], offset: int) -> Generation | None:
    """Return the newest generation at or before an offset, of generations in order."""
    return next((g for g in reversed(generations) if g.offset <= offset), None)


def newest_before(generations: Sequence[Generation], time_unix_us: int) -> Generation | None:
    """Return the newest generation that holds no entry committed after a time, of generations in order."""
    return next((g for g in reversed(generations) if not g.offset or g.commit_time_unix_us <= time_unix_us), None)
