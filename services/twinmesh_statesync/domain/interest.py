"""What a watcher wants, and what a change means to it, judged from the twin before and after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from twinmesh_statesync.domain.changes import Change, ChangeKind, without_facets
from twinmesh_statesync.domain.filter import EVERYTHING, Anchor, Expression, anchors, compiled
from twinmesh_statesync.domain.filter.lineage import lineage
from twinmesh_statesync.domain.mask import ALL, Mask
from twinmesh_statesync.domain.version import TwinVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Interest:
    """Which twins, and which parts of them; watchers with equal interests share all work.

    Attributes:
        twin_ids: only these; empty = all.
        twin_type_id: only twins of this type, or of one that extends it; "" = all.
        expression: only twins that match.
        mask: the parts told.
    """

    twin_ids: frozenset[str] = frozenset()
    twin_type_id: str = ""
    expression: Expression = EVERYTHING
    mask: Mask = ALL

    @property
    def plain(self) -> bool:
        """Whether every change of every twin is wanted as it is."""
        return not self.twin_ids and not self.twin_type_id and not self.chosen

    @property
    def chosen(self) -> bool:
        """Whether it chooses by state or parts, so that revisions alone do not show that nothing was missed."""
        return self.expression != EVERYTHING or not self.mask.whole

    def buckets(self) -> frozenset[Anchor] | None:
        """Return buckets of which every wanted twin is in one; None = it may be in any."""
        if self.twin_ids:
            return frozenset(Anchor(0, "", twin_id) for twin_id in self.twin_ids)
        held = anchors(self.expression)
        return frozenset({Anchor(2, "", self.twin_type_id)}) if held is None and self.twin_type_id else held


class _Alone:
    """No population: what is watched follows no relationships."""

    def __init__(self) -> None:
        self.memo: dict[tuple[int, str], bool] = {}

    def version(self, _twin_id: str) -> TwinVersion | None:
        return None

    def sources(self, _relation: str, _twin_id: str) -> tuple[TwinVersion, ...]:
        return ()


_ALONE: Final = _Alone()


class Judge:
    """Says what changes mean to one interest.

    Args:
        interest: it; its filter must not follow relationships.
    """

    def __init__(self, interest: Interest) -> None:
        self.interest = interest
        self._test = compiled(interest.expression) if interest.expression != EVERYTHING else None

    def wants(self, version: TwinVersion) -> bool:
        """Whether a twin is among those wanted."""
        wanted = self.interest
        if wanted.twin_ids and version.twin.twin_id not in wanted.twin_ids:
            return False
        if wanted.twin_type_id and wanted.twin_type_id not in lineage(version.twin_type):
            return False
        return self._test is None or self._test(version, _ALONE)

    def told(self, change: Change) -> Change | None:
        """Return what the watcher is told of a change; None = nothing, it is none of its business.

        A twin that comes to match is ENTERED with its whole replica (or CREATED), one that ceases to is LEFT (or
        DELETED), one that stays is CHANGED where something that is wanted changed.
        """
        if self.interest.plain:
            return change
        before, after = change.before, change.after
        if before is None and after is None:
            return change if not self.interest.chosen and self._wants_unknown(change) else None
        was = before is not None and self.wants(before)
        is_now = after is not None and self.wants(after)
        if was and is_now:
            return self.interest.mask.cut(change)
        if after is not None and is_now:
            if change.kind is not ChangeKind.CREATED:
                change = replace(without_facets(change), kind=ChangeKind.ENTERED, replica=after.replica)
            return self.interest.mask.cut(change)
        if not was:
            return None
        if change.kind is not ChangeKind.DELETED:
            change = replace(without_facets(change), kind=ChangeKind.LEFT)
        return self.interest.mask.cut(change)

    def _wants_unknown(self, change: Change) -> bool:
        """Whether a change from a checkpoint, without the twin before and after it, is of a twin that is named."""
        wanted = self.interest
        if wanted.twin_ids and change.twin.twin_id not in wanted.twin_ids:
            return False
        return wanted.twin_type_id in ("", change.twin.twin_type_id)
