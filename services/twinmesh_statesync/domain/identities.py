"""What twins are, changed: many created at once, one updated, many brought to another version of their type."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from twinmesh_core.errors import invalid_field
from twinmesh_core.migration import MigrationOutcome
from twinmesh_core.registry_fold import Outcome
from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.entries import CreateTwins, LogEntry, MigrateTwins, TwinVerdict, UpdateTwin, Verdict
from twinmesh_statesync.domain.migration import StatePlan, plan_state
from twinmesh_statesync.domain.twin_state import Draft

if TYPE_CHECKING:
    from twinmesh_statesync.domain.fold import Fold

IdentityAction = CreateTwins | UpdateTwin | MigrateTwins
IDENTITY_ACTIONS: Final = (CreateTwins, UpdateTwin, MigrateTwins)
MAX_MIGRATED: Final = 1_000
"""Twins that one entry may bring to another version."""


def decide(fold: Fold, entry: LogEntry, action: IdentityAction) -> tuple[tuple[Change, ...], Verdict]:
    """Decide one entry; raises the `TwinmeshError` with which the whole of it is refused."""
    if isinstance(action, CreateTwins):
        return _create(fold, entry, action)
    if isinstance(action, UpdateTwin):
        return _update(fold, entry, action)
    return _migrate(fold, entry, action)


def _create(fold: Fold, entry: LogEntry, action: CreateTwins) -> tuple[tuple[Change, ...], Verdict]:
    verdicts = fold.registry.create_twins(
        entry.tenant,
        entry.offset,
        action.twins,
        if_absent=action.if_absent,
        all_or_nothing=action.all_or_nothing,
        commit_time_unix_us=entry.commit_time_unix_us,
    )
    changes: list[Change] = []
    told: list[TwinVerdict] = []
    for place, (twin, verdict) in enumerate(zip(action.twins, verdicts, strict=True)):
        if verdict.effective and verdict.twin is not None:
            changes.extend(fold.begin_twin(entry, verdict.twin))
        else:
            told.append(TwinVerdict(place=place, twin_id=twin.twin_id, outcome=verdict.outcome, error=verdict.error))
    outcome = Outcome.ACCEPTED if changes else Outcome.NO_OP
    return tuple(changes), Verdict(offset=entry.offset, outcome=outcome, twins=tuple(told))


def _update(fold: Fold, entry: LogEntry, action: UpdateTwin) -> tuple[tuple[Change, ...], Verdict]:
    verdict = fold.registry.update_twin(
        entry.tenant, entry.offset, action.twin, action.paths, if_revision=action.if_revision
    )
    if verdict.error is not None:
        raise verdict.error
    decided = Verdict(offset=entry.offset, outcome=verdict.outcome)
    state = fold.state(entry.tenant, action.twin.twin_id)
    if not verdict.effective or verdict.twin is None or state is None:
        return (), decided
    state.take_identity(verdict.twin, state.twin_type)
    draft = Draft(state, entry.offset, entry.commit_time_unix_us)
    draft.identity = True
    change = draft.finish()
    fold.unsaved.twins.add((entry.tenant, verdict.twin.twin_id))
    return (() if change is None else (change,)), decided


def _migrate(fold: Fold, entry: LogEntry, action: MigrateTwins) -> tuple[tuple[Change, ...], Verdict]:
    registry = fold.registry
    if action.to_version < 1:
        raise invalid_field("to_version", "must be the number of a version")
    target = registry.require_twin_type(entry.tenant, action.twin_type_id, action.to_version)
    limit = min(max(action.limit, 1), MAX_MIGRATED)
    ids = list(action.twin_ids[:MAX_MIGRATED]) or registry.ids_to_migrate(
        entry.tenant, target, action.from_version, action.after_twin_id, limit
    )
    more = not action.twin_ids and len(ids) == limit
    plans = registry.migrate_twins(entry.tenant, entry.offset, ids, target, action.from_version, action.units)
    changes: list[Change] = []
    told = []
    for plan in plans:
        state = fold.state(entry.tenant, plan.twin_id)
        if plan.outcome is MigrationOutcome.MIGRATED and plan.twin is not None and state is not None:
            state_plan: StatePlan = plan_state(state, plan, target, entry.offset, entry.commit_time_unix_us)
            changes.append(state_plan.carry_out(state, replace(plan.twin, revision=entry.offset), target))
            fold.unsaved.twins.add((entry.tenant, plan.twin_id))
            fold.unsaved.events.extend((entry.tenant, event) for event in state_plan.events)
            plan = replace(plan, steps=plan.steps + state_plan.steps)
        told.append(replace(plan, twin=None, rescaled=()))
    outcome = Outcome.ACCEPTED if changes else Outcome.NO_OP
    return tuple(changes), Verdict(offset=entry.offset, outcome=outcome, migrations=tuple(told), more=more)


def without_state(verdict: Verdict, twin_id: str) -> Verdict:
    """Return a verdict without what it tells of a twin's state; what it tells of its registration stays."""
    if all(plan.twin_id != twin_id for plan in verdict.migrations):
        return verdict
    plans = tuple(
        replace(plan, steps=tuple(step for step in plan.steps if step.part.partition(".")[0] in _REGISTERED))
        if plan.twin_id == twin_id
        else plan
        for plan in verdict.migrations
    )
    return verdict if plans == verdict.migrations else replace(verdict, migrations=plans)


_REGISTERED: Final = ("channels", "properties", "relationships")
