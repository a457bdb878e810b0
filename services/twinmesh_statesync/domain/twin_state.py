"""One twin as the fold holds it, and the draft in which one entry changes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from twinmesh_core.errors import NotFound, Reason
from twinmesh_core.ids import quoted
from twinmesh_core.registry import ChannelSpec, KeptUnit, Twin, TwinType
from twinmesh_statesync.domain.alarms.alarm import Alarm
from twinmesh_statesync.domain.alarms.desk import AlarmDesk, maintenance_among
from twinmesh_statesync.domain.alarms.memory import NO_MEMORY, AlarmMemory
from twinmesh_statesync.domain.alarms.rulebook import rulebook_of
from twinmesh_statesync.domain.changes import Change, ChangeKind
from twinmesh_statesync.domain.commands import Command
from twinmesh_statesync.domain.events import Connectivity, Event, Prediction
from twinmesh_statesync.domain.reduce import Fact
from twinmesh_statesync.domain.replica import (
    Desired,
    DesiredValue,
    Predicted,
    Replica,
    Reported,
    delta_of,
    settled,
)
from twinmesh_statesync.domain.residuals import Residual, Track
from twinmesh_statesync.domain.values import ReportedValue
from twinmesh_statesync.domain.version import TwinVersion

NO_REPLICA: Final = Replica(revision=0, offset=0)


class TwinState:
    """What the fold knows of one twin, through all its lives; only drafts write to it.

    Attributes:
        tenant: whose.
        twin: its identity; of the last life when it is deleted.
        twin_type: the version of its type.
        specs: the type's channels by name.
        alive: False = a tombstone that keeps the revisions.
        replica: its state; a tombstone's has revisions only.
        commands: every command remembered, by id.
        events: every event, by id.
        last_arrival_unix_us: commit time of the newest entry with observations of it; 0 = none.
        last_arrival_offset: its offset; 0 = none, or not known.
        tracks: predictions that are compared with facts, by channel and model.
        last_lag_us: how far the newest event time of that entry lay behind its commit time.
        delete_offset: where the last life ended; 0 = never.
        rescaled: channels whose facts come in another unit than the type states, and how they change.
        previous_create_offset: where the life before the present one began; 0 = there was none.
        erase_offset: where all that was known of it was forgotten last; 0 = never.
        rulebook: the rules of its type; None = it has none.
        alarm_memory: how they stand.
        maintenance: its MAINTENANCE events that are not over, by id.
    """

    __slots__ = (
        "_version",
        "alarm_memory",
        "alive",
        "commands",
        "delete_offset",
        "erase_offset",
        "events",
        "last_arrival_offset",
        "last_arrival_unix_us",
        "last_lag_us",
        "maintenance",
        "previous_create_offset",
        "replica",
        "rescaled",
        "rulebook",
        "specs",
        "tenant",
        "tracks",
        "twin",
        "twin_type",
    )

    def __init__(self, tenant: str, twin: Twin, twin_type: TwinType) -> None:
        self.tenant = tenant
        self.take_identity(twin, twin_type)
        self.alive = False
        self.replica = NO_REPLICA
        self.commands: dict[str, Command] = {}
        self.events: dict[str, Event] = {}
        self.tracks: dict[tuple[str, str], Track] = {}
        self.last_arrival_unix_us = 0
        self.last_arrival_offset = 0
        self.last_lag_us = 0
        self.delete_offset = 0
        self.previous_create_offset = 0
        self.erase_offset = 0
        self.alarm_memory: AlarmMemory = NO_MEMORY
        self.maintenance: dict[str, Event] = {}
        self._version: TwinVersion | None = None

    @property
    def version(self) -> TwinVersion | None:
        """The twin as its last change left it, as a value that stays; None while it does not live."""
        if not self.alive:
            return None
        if self._version is None:
            self._version = TwinVersion(self.twin, self.twin_type, self.replica)
        return self._version

    def renew_version(self) -> TwinVersion:
        """Return the twin as it is now, at the end of a change."""
        self._version = TwinVersion(self.twin, self.twin_type, self.replica)
        return self._version

    def begin_life(self, twin: Twin, twin_type: TwinType) -> None:
        """Take up the identity of a new life."""
        self.previous_create_offset = self.twin.create_offset if self.delete_offset else 0
        self.take_identity(twin, twin_type)
        self.alive = True
        self.tracks = {}
        self.last_arrival_unix_us = 0
        self.last_arrival_offset = 0
        self.last_lag_us = 0

    def take_identity(self, twin: Twin, twin_type: TwinType) -> None:
        """Take up what the twin is now."""
        self.twin = twin
        self.twin_type = twin_type
        self.specs: dict[str, ChannelSpec] = {channel.name: channel for channel in twin_type.channels}
        self.rescaled: dict[str, KeptUnit] = {kept.channel: kept for kept in twin.kept_units}
        self.rulebook = rulebook_of(twin_type)

    def note_maintenance(self, events: Iterable[Event]) -> None:
        """Keep the MAINTENANCE events among these that are not over."""
        looked = self.alarm_memory.looked_unix_us
        known = {**self.maintenance, **maintenance_among(events)}
        self.maintenance = {
            key: event
            for key, event in known.items()
            if event.end_time_unix_us is None or event.end_time_unix_us > looked
        }

    def open_commands(self) -> list[Command]:
        """Return the commands that have not ended, in the order of delivery."""
        return sorted((c for c in self.commands.values() if not c.state.ended), key=Command.order)

    @property
    def last_event_time_unix_us(self) -> int | None:
        """Newest event time of the reported values; None = nothing reported."""
        return max((v.event_time_unix_us for v in self.replica.reported.values.values()), default=None)


class Draft:
    """Gathers what one entry does to one twin; `finish` makes it one change with one new revision."""

    __slots__ = (
        "before",
        "commands",
        "commit_time_unix_us",
        "connectivity",
        "desired",
        "desired_changed",
        "desired_moves",
        "desk",
        "events",
        "identity",
        "offset",
        "predicted",
        "removed",
        "reported",
        "residuals",
        "state",
    )

    def __init__(self, state: TwinState, offset: int, commit_time_unix_us: int) -> None:
        self.state = state
        self.offset = offset
        self.commit_time_unix_us = commit_time_unix_us
        self.before = state.version
        self.reported: dict[str, ReportedValue] = {}
        self.desired: dict[str, DesiredValue] | None = None
        self.desired_changed: dict[str, None] = {}
        self.desired_moves = False
        self.removed: list[str] = []
        self.predicted: list[Prediction] = []
        self.residuals: dict[tuple[str, str], Residual] = {}
        self.connectivity: Connectivity | None = None
        self.commands: dict[str, Command] = {}
        self.events: list[Event] = []
        self.identity = False
        self.desk: AlarmDesk | None = None

    def observe(self, facts: list[Fact]) -> None:
        """Take the facts that are news: of a channel the twin has, not older than what is known, and not the same."""
        fresh = self.reported
        take_news(self.state, facts, fresh)
        if fresh and self.state.replica.desired.values:
            for channel in fresh:
                target = self.target(channel)
                if target is not None:
                    self.put_target(self.settled(target))

    def target(self, channel: str) -> DesiredValue | None:
        """Return the target of a channel as this draft has it."""
        values = self.state.replica.desired.values if self.desired is None else self.desired
        return values.get(channel)

    def targets(self) -> dict[str, DesiredValue]:
        """Return all targets as this draft has them; writing goes through `put_target` and `drop_target`."""
        if self.desired is None:
            self.desired = dict(self.state.replica.desired.values)
        return self.desired

    def put_target(self, target: DesiredValue) -> None:
        """Set or move a target; one that stays equal is no change."""
        targets = self.targets()
        if targets.get(target.channel) != target:
            targets[target.channel] = target
            self.desired_changed[target.channel] = None

    def drop_target(self, channel: str) -> None:
        """Remove a target."""
        if self.targets().pop(channel, None) is not None:
            self.desired_changed.pop(channel, None)
            self.removed.append(channel)

    def settled(self, target: DesiredValue) -> DesiredValue:
        """Return the target with what reported says about it now: newly met, drifted away, or as it was."""
        fact = self.reported.get(target.channel) or self.state.replica.reported.values.get(target.channel)
        return settled(target, fact, self.state.specs.get(target.channel), self.commit_time_unix_us)

    def put_command(self, command: Command) -> None:
        """Queue or move a command."""
        self.commands[command.command_id] = command

    def finish(self, kind: ChangeKind = ChangeKind.CHANGED) -> Change | None:
        """Write the draft to the state and return the change; None when nothing changed."""
        alarms = self._settle_alarms()
        touched = self.reported or self.desired_changed or self.removed or self.predicted or self.commands or alarms
        said = self.events or self.residuals or self.identity or self.connectivity is not None
        if kind is ChangeKind.CHANGED and not (touched or said):
            return None
        if kind is ChangeKind.CHANGED and self.reported and self._only_reported():
            return reported_change(self.state, self.reported, self.offset, self.before)
        state, before = self.state, self.state.replica
        desired = self._desired()
        reported = self._reported()
        delta = before.delta
        if desired is not before.desired or (self.reported and desired.values):
            fresh = delta_of(desired.values, reported.values)
            delta = before.delta if fresh == before.delta else fresh
        after = Replica(
            revision=before.revision + 1,
            offset=self.offset,
            reported=reported,
            desired=desired,
            predicted=self._predicted(),
            delta=delta,
            connectivity=before.connectivity if self.connectivity is None else self.connectivity,
            residuals={**before.residuals, **self.residuals} if self.residuals else before.residuals,
            alarms=before.alarms if alarms is None else alarms,
        )
        state.replica = after
        state.commands.update(self.commands)
        if self.events:
            state.events.update((event.event_id, event) for event in self.events)
            state.note_maintenance(self.events)
        return Change(
            tenant=state.tenant,
            twin=state.twin,
            kind=kind,
            offset=self.offset,
            revision=after.revision,
            previous_revision=before.revision,
            replica=after if kind is ChangeKind.CREATED else None,
            reported=tuple(self.reported.values()),
            reported_revision=reported.revision if self.reported else 0,
            desired=tuple(desired.values[channel] for channel in self.desired_changed),
            removed=tuple(self.removed),
            desired_revision=desired.revision if desired is not before.desired else 0,
            predicted=tuple(self.predicted),
            predicted_revision=after.predicted.revision if self.predicted else 0,
            delta=None if delta is before.delta else delta,
            connectivity=self.connectivity,
            commands=tuple(sorted(self.commands.values(), key=Command.order)),
            events=tuple(self.events),
            residuals=tuple(self.residuals.values()),
            identity=self.identity,
            before=None if kind is ChangeKind.CREATED else self.before,
            after=None if kind is ChangeKind.DELETED else state.renew_version(),
            alarms=tuple(self.desk.told) if alarms is not None and self.desk is not None else (),
        )

    def _settle_alarms(self) -> Mapping[str, Alarm] | None:
        """Have the state remember how its rules stand; return its alarms if something happened to any."""
        if self.desk is None:
            return None
        alarms, self.state.alarm_memory = self.desk.settle()
        return alarms if self.desk.told else None

    def _only_reported(self) -> bool:
        """Whether facts are all there is, of a twin without targets: nearly every change of a busy day."""
        told = self.desired or self.predicted or self.commands or self.events or self.connectivity is not None
        beside = self.residuals or self.identity or (self.desk is not None and self.desk.told)
        return not (told or beside) and not self.state.replica.desired.values

    def _reported(self) -> Reported:
        before = self.state.replica.reported
        if not self.reported:
            return before
        return Reported(revision=before.revision + 1, values={**before.values, **self.reported})

    def _desired(self) -> Desired:
        before = self.state.replica.desired
        if self.desired is None or not (self.desired_changed or self.removed or self.desired_moves):
            return before
        return Desired(revision=before.revision + int(self.desired_moves), values=self.desired)

    def _predicted(self) -> Predicted:
        before = self.state.replica.predicted
        if not self.predicted:
            return before
        newest = {(p.channel, p.model_id): p for p in self.predicted}
        return Predicted(revision=before.revision + 1, predictions={**before.predictions, **newest})


def take_news(state: TwinState, facts: Iterable[Fact], fresh: dict[str, ReportedValue]) -> None:
    """Put into `fresh`, by channel, the facts that are news: of a channel the twin has, and not known, or older."""
    known = state.replica.reported.values
    specs = state.specs
    rescaled = state.rescaled
    for kinds, fact in facts:
        channel = fact.channel
        spec = specs.get(channel)
        if spec is None or spec.kind not in kinds:
            continue
        if rescaled and channel in rescaled:
            fact = fact.rescaled(rescaled[channel])
        current = fresh.get(channel) or known.get(channel)
        if current is None or fact.event_time_unix_us > current.event_time_unix_us or fact.corrects(current):
            fresh[channel] = fact


def reported_change(
    state: TwinState, fresh: dict[str, ReportedValue], offset: int, version: TwinVersion | None, *, quiet: bool = False
) -> Change:
    """Take facts that are all an entry does to a twin: what `Draft.finish` does, and nothing that it need not build.

    Args:
        state: the twin.
        fresh: the facts, by channel.
        offset: of the entry.
        version: the twin before.
        quiet: nothing can follow from them.
    """
    before = state.replica
    facet = before.reported
    reported = Reported(revision=facet.revision + 1, values={**facet.values, **fresh})
    revision = before.revision + 1
    state.replica = Replica(
        revision=revision,
        offset=offset,
        reported=reported,
        desired=before.desired,
        predicted=before.predicted,
        delta=before.delta,
        connectivity=before.connectivity,
        residuals=before.residuals,
        alarms=before.alarms,
    )
    return Change(
        tenant=state.tenant,
        twin=state.twin,
        kind=ChangeKind.CHANGED,
        offset=offset,
        revision=revision,
        previous_revision=revision - 1,
        reported=tuple(fresh.values()),
        reported_revision=reported.revision,
        before=version,
        after=state.renew_version(),
        quiet=quiet,
    )


def require_channel(state: TwinState, channel: str) -> ChannelSpec:
    """Return a channel of the twin; raises `NotFound` (CHANNEL_NOT_FOUND) naming the channels that it has."""
    spec = state.specs.get(channel)
    if spec is None:
        names = state.twin_type.channel_names()
        raise NotFound(
            f"twin {quoted(state.twin.twin_id)} has no channel {quoted(channel)}; it has: {names}",
            reason=Reason.CHANNEL_NOT_FOUND,
            metadata={"channels": names},
        )
    return spec
