"""Who is told of changes right after they are folded, on the event loop and in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.erasing import is_erasure


class Listeners:
    """Functions to call with the changes of each entry; most changes are quiet, and few want those."""

    def __init__(self) -> None:
        self._all: list[Callable[[Sequence[Change]], None]] = []
        self._loud: list[Callable[[Sequence[Change]], None]] = []
        self._erasures: list[Callable[[Change], None]] = []

    def on_changes(self, listener: Callable[[Sequence[Change]], None]) -> None:
        """Have `listener` called with the changes of each entry."""
        self._all.append(listener)

    def on_loud_changes(self, listener: Callable[[Sequence[Change]], None]) -> None:
        """Have `listener` called with those that are not quiet (see `Change.quiet`), if there are any."""
        self._loud.append(listener)

    def on_erasure(self, listener: Callable[[Change], None]) -> None:
        """Have `listener` called with each change that tells an erasure, after everybody was told of it as a change."""
        self._erasures.append(listener)

    def tell(self, changes: Sequence[Change]) -> None:
        """Call them with the changes of one entry."""
        for listener in self._all:
            listener(changes)
        loud = [change for change in changes if not change.quiet]
        if not loud:
            return
        for listener in self._loud:
            listener(loud)
        for change in filter(is_erasure, loud):
            for notice in self._erasures:
                notice(change)
