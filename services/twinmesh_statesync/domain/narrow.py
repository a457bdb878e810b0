"""Folding few twins of a tenant: what of the log such a fold can decide by itself."""

from __future__ import annotations

from twinmesh_statesync.domain.entries import ControlEntry, CreateTwin, CreateTwins, LogEntry, MigrateTwins, UpdateTwin


class NeedsOthers(Exception):  # noqa: N818 -- not an error: the fold has to be begun again with all twins
    """An entry cannot be decided without twins that the fold does not have."""


def check_alone(entry: LogEntry) -> None:
    """Raise `NeedsOthers` if what becomes of an entry may depend on twins apart from each that it is about.

    Edges are judged by their targets, which a fold of few twins does not know; so is what picks twins by their order,
    and what creates all of many or none.
    """
    action = entry.body.action if isinstance(entry.body, ControlEntry) else None
    if isinstance(action, CreateTwin | UpdateTwin):
        others = bool(action.twin.relationships)
    elif isinstance(action, CreateTwins):
        others = action.all_or_nothing or any(twin.relationships for twin in action.twins)
    else:
        others = isinstance(action, MigrateTwins)
    if others:
        raise NeedsOthers
