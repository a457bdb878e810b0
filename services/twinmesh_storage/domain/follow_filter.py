"""What a follower wants of the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from twinmesh_core.shards import shard_of
from twinmesh_storage.domain.entries import EntryKind, LogEntry

TwinsOf = Callable[[LogEntry], frozenset[str] | None]
"""Tells the twins that an entry names; None = it is of no twin in particular, or cannot be told, and concerns all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which entries pass; followers with equal filters share their frames.

    An observation batch passes whole if its dictionary names a wanted twin: cutting it would cost every follower what
    one look at the dictionary saves, and whoever wants few twins skips the other handles in a vector operation. An
    entry of no twin (a twin type) passes every filter by twin and shard, since a fold of some twins needs it too.

    Attributes:
        tenant: only this tenant's; None = all tenants'.
        kinds: only these kinds; empty = all.
        twins: only entries that name one of these; empty = all.
        shards: only entries that name a twin of one of these shards; empty = all.
    """

    tenant: str | None = None
    kinds: frozenset[EntryKind] = frozenset()
    twins: frozenset[str] = frozenset()
    shards: frozenset[int] = frozenset()

    @property
    def by_twin(self) -> bool:
        """Whether it matters which twins an entry names."""
        return bool(self.twins or self.shards)

    def passes(self, entry: LogEntry, twins_of: TwinsOf) -> bool:
        """Return whether the follower wants an entry."""
        if self.tenant is not None and entry.tenant != self.tenant:
            return False
        if self.kinds and entry.kind not in self.kinds:
            return False
        if not self.by_twin:
            return True
        named = twins_of(entry)
        if named is None:
            return True
        wanted = named & self.twins if self.twins else named
        return any(shard_of(entry.tenant, twin) in self.shards for twin in wanted) if self.shards else bool(wanted)


EVERYTHING: Final = Filter()
