"""Erasing a twin: what the fold forgets of it, so that nothing is left that the erased log could not tell again.

Storage takes the twin's rows and decisions out of every entry before the erasure's own. A fold that meets the log
afterwards must reach the same state as one that had folded it before. So whatever came of such entries is dropped
here, and the revisions, which counted them, go on from the offset of the erasure: no twin has had more changes than the
log has entries, hence that is above every revision told before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from twinmesh_core.registry_fold import Outcome
from twinmesh_statesync.domain.alarms.desk import fresh_memory
from twinmesh_statesync.domain.alarms.memory import NO_MEMORY
from twinmesh_statesync.domain.changes import Change, ChangeKind
from twinmesh_statesync.domain.entries import (
    Action,
    CreateTwin,
    CreateTwinType,
    DeleteTwin,
    EraseTwin,
    RecordEvent,
    Verdict,
)
from twinmesh_statesync.domain.events import Connectivity
from twinmesh_statesync.domain.replica import NOTHING_DESIRED, NOTHING_PREDICTED, NOTHING_REPORTED, Replica
from twinmesh_statesync.domain.twin_state import TwinState

_STAYS: Final = (CreateTwinType, CreateTwin, DeleteTwin, EraseTwin)
"""What an erasure leaves in the log: that the twin is registered, or was, and that it was erased."""


def erasable_twin(action: Action | None) -> str:
    """Return the twin whose erasure takes this action out of the log; "" = none does."""
    if isinstance(action, RecordEvent):
        return action.event.twin_id
    if action is None or isinstance(action, _STAYS):
        return ""
    twin_id: str = getattr(action, "twin_id", "")
    return twin_id


def erase(state: TwinState, offset: int, commit_time_unix_us: int) -> Change:
    """Forget all that is known of a twin but its registration, and return the change that tells it.

    Of a twin that is deleted watchers are told DELETED again: they know that it has nothing, and learn the revision.
    """
    version, before = state.version, state.replica
    after = Replica(
        revision=offset,
        offset=offset,
        reported=replace(NOTHING_REPORTED, revision=offset),
        desired=replace(NOTHING_DESIRED, revision=offset),
        predicted=replace(NOTHING_PREDICTED, revision=offset),
    )
    state.replica = after
    state.commands = {}
    state.events = {}
    state.tracks = {}
    state.last_arrival_unix_us = 0
    state.last_lag_us = 0
    state.last_arrival_offset = 0
    state.erase_offset = offset
    state.maintenance = {}
    state.alarm_memory = fresh_memory(state.rulebook, commit_time_unix_us) if state.alive else NO_MEMORY
    return Change(
        tenant=state.tenant,
        twin=state.twin,
        kind=ChangeKind.ERASED if state.alive else ChangeKind.DELETED,
        offset=offset,
        revision=offset,
        previous_revision=before.revision,
        replica=after if state.alive else None,
        before=version,
        after=state.renew_version() if state.alive else None,
    )


def without_values(change: Change) -> Change:
    """Return a change of a twin that is erased, or its erasure, with nothing of what was erased."""
    return replace(change, before=None) if change.kind is ChangeKind.ERASED else stripped(change)


def emptied(verdict: Verdict) -> Verdict:
    """Return what is decided about the request once its entry is emptied: it is known, and was without effect."""
    return Verdict(offset=verdict.offset, outcome=Outcome.NO_OP)


def stripped(change: Change) -> Change:
    """Return a change as it may still be told after the erasure: that it was, and its place among the revisions."""
    bare = Replica(revision=change.revision, offset=change.offset, connectivity=Connectivity.UNSPECIFIED)
    return Change(
        tenant=change.tenant,
        twin=change.twin,
        kind=change.kind,
        offset=change.offset,
        revision=change.revision,
        previous_revision=change.previous_revision,
        replica=bare if change.replica is not None else None,
        identity=change.identity,
        merged_count=change.merged_count,
    )


def is_erasure(change: Change) -> bool:
    """Whether a change tells an erasure: what was kept or folded from before it must not be told any more."""
    return change.kind is ChangeKind.ERASED or (change.kind is ChangeKind.DELETED and change.revision == change.offset)
