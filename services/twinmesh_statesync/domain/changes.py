"""One change of one twin at one offset: what watchers are told, and how several become one."""

from __future__ import annotations

from dataclasses import field, replace
from enum import IntEnum

from twinmesh_core.immutable import frozen_for_checkers
from twinmesh_core.registry import Twin
from twinmesh_statesync.domain.alarms.alarm import Alarm
from twinmesh_statesync.domain.commands import Command
from twinmesh_statesync.domain.events import Connectivity, Event, Prediction
from twinmesh_statesync.domain.replica import DeltaItem, DesiredValue, Replica
from twinmesh_statesync.domain.residuals import Residual
from twinmesh_statesync.domain.values import ReportedValue
from twinmesh_statesync.domain.version import TwinVersion


class ChangeKind(IntEnum):
    """What a change tells; numbers equal ``twinmesh.statesync.v1.WatchEventKind``."""

    SNAPSHOT = 1
    CREATED = 2
    CHANGED = 3
    DELETED = 4
    ENTERED = 5
    LEFT = 6
    ERASED = 9


@frozen_for_checkers(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of one twin at one offset; of the facets only what changed is set.

    Attributes:
        tenant: whose.
        twin: the twin's identity (of the life that ended, for DELETED).
        kind: what it tells.
        offset: the entry that made it.
        revision: the twin's dense revision after it.
        previous_revision: the one before.
        replica: the whole replica, for SNAPSHOT, CREATED, ENTERED and ERASED, and for a CHANGED that replaces what was
            known.
        reported: facts that changed.
        reported_revision: revision of that facet, when `reported` is not empty.
        desired: targets that changed, their progress included.
        removed: channels whose target was removed.
        desired_revision: revision of that facet after the change.
        predicted: predictions that changed.
        predicted_revision: revision of that facet, when `predicted` is not empty.
        delta: the whole delta if it changed, else None.
        connectivity: the new one if it changed, else None.
        commands: commands that were queued or moved.
        events: events that were recorded, or ended.
        alarms: alarms that something happened to, in order; one alarm once for each thing.
        merged_count: changes folded into this one beyond itself.
        residuals: those that changed.
        identity: what the twin is changed too.
        before: the twin before it; None = it did not live, or (read from a checkpoint) not kept.
        after: the twin after it; None likewise. With both, any filter can tell whether the twin came, stayed or went.
        quiet: facts are all there is, of a twin that has nothing that could follow from them: no target, no rule, no
            prediction to compare. Nearly every change of a busy day is.
    """

    tenant: str
    twin: Twin
    kind: ChangeKind
    offset: int
    revision: int
    previous_revision: int
    replica: Replica | None = None
    reported: tuple[ReportedValue, ...] = ()
    reported_revision: int = 0
    desired: tuple[DesiredValue, ...] = ()
    removed: tuple[str, ...] = ()
    desired_revision: int = 0
    predicted: tuple[Prediction, ...] = ()
    predicted_revision: int = 0
    delta: tuple[DeltaItem, ...] | None = None
    connectivity: Connectivity | None = None
    commands: tuple[Command, ...] = ()
    events: tuple[Event, ...] = ()
    merged_count: int = 0
    residuals: tuple[Residual, ...] = ()
    identity: bool = False
    before: TwinVersion | None = field(default=None, compare=False, repr=False)
    after: TwinVersion | None = field(default=None, compare=False, repr=False)
    alarms: tuple[Alarm, ...] = ()
    quiet: bool = field(default=False, compare=False, repr=False)


def merge(earlier: Change, later: Change) -> Change:
    """Return one change with the effect of both on one twin, for watchers that only want the newest state.

    A deletion swallows what came before it; a creation takes the later facts with it as a creation whose own facets are
    applied after its replica. An erasure does both, and lets nothing pass that was told before it.
    """
    merged = earlier.merged_count + later.merged_count + 1
    if later.kind is ChangeKind.ERASED:
        return replace(later, previous_revision=earlier.previous_revision, merged_count=merged)
    if later.kind is not ChangeKind.CHANGED or later.replica is not None:
        return replace(
            later,
            kind=earlier.kind if later.kind is ChangeKind.CHANGED else later.kind,
            previous_revision=earlier.previous_revision,
            commands=_latest_commands(earlier, later),
            events=earlier.events + later.events,
            alarms=_latest_alarms(earlier, later),
            merged_count=merged,
            before=earlier.before,
        )
    desired = {value.channel: value for value in earlier.desired} | {value.channel: value for value in later.desired}
    removed = tuple(dict.fromkeys((*earlier.removed, *later.removed)))
    still_removed = tuple(c for c in removed if c in later.removed or all(v.channel != c for v in later.desired))
    predicted = {(p.channel, p.model_id): p for p in (*earlier.predicted, *later.predicted)}
    residuals = {(r.channel, r.model_id): r for r in (*earlier.residuals, *later.residuals)}
    return replace(
        earlier,
        twin=later.twin,
        offset=later.offset,
        revision=later.revision,
        reported=tuple(({v.channel: v for v in earlier.reported} | {v.channel: v for v in later.reported}).values()),
        reported_revision=max(earlier.reported_revision, later.reported_revision),
        desired=tuple(value for channel, value in desired.items() if channel not in later.removed),
        removed=still_removed,
        desired_revision=max(earlier.desired_revision, later.desired_revision),
        predicted=tuple(predicted.values()),
        predicted_revision=max(earlier.predicted_revision, later.predicted_revision),
        delta=earlier.delta if later.delta is None else later.delta,
        connectivity=earlier.connectivity if later.connectivity is None else later.connectivity,
        commands=_latest_commands(earlier, later),
        events=earlier.events + later.events,
        alarms=_latest_alarms(earlier, later),
        merged_count=merged,
        residuals=tuple(residuals.values()),
        identity=earlier.identity or later.identity,
        after=later.after,
        quiet=earlier.quiet and later.quiet,
    )


def without_facets(change: Change) -> Change:
    """Return a change without what it did to the facets, for when the whole replica, or none, tells it better."""
    return replace(
        change,
        replica=None,
        reported=(),
        desired=(),
        removed=(),
        predicted=(),
        residuals=(),
        delta=None,
        connectivity=None,
        identity=False,
    )


def _latest_alarms(earlier: Change, later: Change) -> tuple[Alarm, ...]:
    return tuple({alarm.rule: alarm for alarm in (*earlier.alarms, *later.alarms)}.values())


def _latest_commands(earlier: Change, later: Change) -> tuple[Command, ...]:
    by_id = {command.command_id: command for command in (*earlier.commands, *later.commands)}
    return tuple(sorted(by_id.values(), key=Command.order))
