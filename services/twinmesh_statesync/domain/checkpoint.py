"""The fold as records and back: what a checkpoint keeps, and the digest that two folds of one log must share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final

from twinmesh_core.pace import Pace
from twinmesh_core.registry import Twin, TwinType
from twinmesh_core.registry_fold import RegistryFold, RegistrySnapshot
from twinmesh_statesync.domain.alarms.alarm import Alarm
from twinmesh_statesync.domain.alarms.memory import NO_MEMORY, AlarmMemory
from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.commands import Command
from twinmesh_statesync.domain.delivery.notices import Notice
from twinmesh_statesync.domain.entries import Verdict
from twinmesh_statesync.domain.events import Connectivity, Event, Prediction
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.generations import Generation
from twinmesh_statesync.domain.plain import from_text, to_text
from twinmesh_statesync.domain.replica import DeltaItem, Desired, Predicted, Replica, Reported
from twinmesh_statesync.domain.residuals import Residual, TrackRecord, tracks_of
from twinmesh_statesync.domain.twin_state import TwinState
from twinmesh_statesync.domain.unsaved import Unsaved

TWIN_TYPE: Final = "twin_type"
TWIN: Final = "twin"
EVENT: Final = "event"
VERDICT: Final = "verdict"
CHANGES: Final = "changes"
NOTICE: Final = "notice"
UNREADABLE: Final = (KeyError, TypeError, ValueError)
"""What `restore` raises for records that are not of this release's making."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A point of the log; offsets of different incarnations cannot be compared."""

    incarnation: str
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row of a checkpoint.

    Attributes:
        tenant: whose.
        kind: TWIN_TYPE, TWIN, EVENT, VERDICT, CHANGES or NOTICE.
        key: id within tenant and kind.
        offset: the entry it stems from; orders verdicts.
        body: JSON text; None = the record is gone.
    """

    tenant: str
    kind: str
    key: str
    offset: int
    body: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The fold at one position: all its records when loaded, the changed ones when saved.

    Attributes:
        position: the point of the log.
        records: rows, each key once or the last one counts.
        complete: in a save: these are all there are, and whatever was kept before is dropped.
        generations: in a save: positions to which the checkpoint can be taken back from now on.
        forget_before: in a save: earlier generations are dropped with all that only they needed.
    """

    position: Position
    records: tuple[Record, ...]
    complete: bool = False
    generations: tuple[Generation, ...] = ()
    forget_before: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentChanges:
    """The newest changes of a tenant before a checkpoint: all of them with offsets after `floor`."""

    floor: int
    changes: tuple[Change, ...]

    def record(self, tenant: str, offset: int, pace: Pace) -> Record:
        """Return the record that replaces the tenant's former one; whole twins before and after do not travel."""
        texts = []
        for change in self.changes:
            texts.append(to_text(replace(change, before=None, after=None)))
            pace.step()
        # The canonical text of all of it, made change by change: as one piece it takes a tenth of a second.
        body = f'{{"changes":[{",".join(texts)}],"floor":{self.floor}}}'
        return Record(tenant=tenant, kind=CHANGES, key="recent", offset=offset, body=body)


def recent_changes(checkpoint: Checkpoint) -> dict[str, RecentChanges]:
    """Return what a complete checkpoint holds of them, by tenant."""
    return {
        record.tenant: from_text(RecentChanges, record.body or "")
        for record in checkpoint.records
        # A record that a later save did not renew has a gap behind it.
        if record.kind == CHANGES and record.offset == checkpoint.position.offset
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _TwinRecord:
    twin: Twin
    alive: bool
    revision: int
    offset: int
    reported: Reported
    desired: Desired
    predicted_revision: int
    predictions: tuple[Prediction, ...]
    delta: tuple[DeltaItem, ...]
    connectivity: Connectivity
    commands: tuple[Command, ...]
    last_arrival_unix_us: int
    last_lag_us: int
    delete_offset: int
    previous_create_offset: int = 0
    last_arrival_offset: int = 0
    residuals: tuple[Residual, ...] = ()
    tracks: tuple[TrackRecord, ...] = ()
    erase_offset: int = 0
    alarms: Mapping[str, Alarm] = field(default_factory=dict)
    alarm_memory: AlarmMemory = NO_MEMORY


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """References to what a checkpoint will hold: cheap to take, encoded later and elsewhere.

    The twins' values are immutable, so the fold may go on meanwhile.
    """

    twins: tuple[tuple[str, _TwinRecord], ...]
    twin_types: tuple[tuple[str, TwinType], ...]
    events: tuple[tuple[str, Event], ...]
    verdicts: Mapping[tuple[str, str], Verdict | None] = field(default_factory=dict)
    erased: frozenset[tuple[str, str, str]] = frozenset()
    notices: Mapping[tuple[str, str], Notice | None] = field(default_factory=dict)

    def after(self, earlier: Captured) -> Captured:
        """Return both together, this one being the newer: for a save that failed before."""
        mine = {(tenant, record.twin.twin_id) for tenant, record in self.twins}
        return Captured(
            twins=tuple(t for t in earlier.twins if (t[0], t[1].twin.twin_id) not in mine) + self.twins,
            twin_types=earlier.twin_types + self.twin_types,
            events=tuple(
                (tenant, event)
                for tenant, event in earlier.events
                if (tenant, event.twin_id, event.event_id) not in self.erased
            )
            + self.events,
            verdicts={**earlier.verdicts, **self.verdicts},
            erased=earlier.erased | self.erased,
            notices={**earlier.notices, **self.notices},
        )

    def records(self) -> Iterable[Record]:
        """Yield the records, types first."""
        for tenant, twin_type in self.twin_types:
            key = f"{twin_type.twin_type_id}@{twin_type.version}"
            yield Record(
                tenant=tenant, kind=TWIN_TYPE, key=key, offset=twin_type.create_offset, body=to_text(twin_type)
            )
        for tenant, twin in self.twins:
            yield Record(tenant=tenant, kind=TWIN, key=twin.twin.twin_id, offset=twin.offset, body=to_text(twin))
        for tenant, twin_id, event_id in sorted(self.erased):
            yield Record(tenant=tenant, kind=EVENT, key=f"{twin_id}/{event_id}", offset=0, body=None)
        for tenant, event in self.events:
            key = f"{event.twin_id}/{event.event_id}"
            yield Record(tenant=tenant, kind=EVENT, key=key, offset=event.offset, body=to_text(event))
        for (tenant, request_id), verdict in self.verdicts.items():
            yield Record(
                tenant=tenant,
                kind=VERDICT,
                key=request_id,
                offset=verdict.offset if verdict is not None else 0,
                body=None if verdict is None else to_text(verdict),
            )
        for (tenant, key), notice in self.notices.items():
            yield Record(
                tenant=tenant,
                kind=NOTICE,
                key=key,
                offset=notice.offset if notice is not None else 0,
                body=None if notice is None else to_text(notice),
            )


def capture(fold: Fold, unsaved: Unsaved) -> Captured:
    """Take what changed; call it in the same step as `Fold.take_unsaved`."""
    states = [(tenant, fold.state(tenant, twin_id)) for tenant, twin_id in sorted(unsaved.twins)]
    return Captured(
        twins=tuple((tenant, _twin_record(state)) for tenant, state in states if state is not None),
        twin_types=tuple(unsaved.twin_types),
        events=tuple(unsaved.events),
        verdicts=unsaved.verdicts,
        erased=frozenset(unsaved.erased),
        notices=unsaved.notices,
    )


def capture_all(fold: Fold, only: str | None = None) -> Captured:
    """Take everything that the fold holds, of one tenant or of all."""
    everything = Unsaved()
    for tenant in (t for t in fold.tenants() if only in (None, t)):
        everything.twins.update((tenant, twin_id) for twin_id in fold.states(tenant))
        everything.events += [
            (tenant, event) for state in fold.states(tenant).values() for event in state.events.values()
        ]
    for tenant in (t for t in fold.verdict_tenants() if only in (None, t)):
        everything.verdicts.update({(tenant, key): verdict for key, verdict in fold.verdicts(tenant).items()})
    for tenant in (t for t in fold.journals.tenants() if only in (None, t)):
        everything.notices.update({(tenant, notice.key): notice for notice in fold.journals.of(tenant)})
    everything.twin_types += (t for t in fold.registry.snapshot().twin_types if only in (None, t[0]))
    return capture(fold, everything)


def digest(fold: Fold) -> str:
    """Return a hash (hex) of everything the fold holds: equal for equal folds of one log, however they came about."""
    sums = sorted(
        f"{record.tenant}\0{record.kind}\0{record.key}\0{record.body}" for record in capture_all(fold).records()
    )
    total = blake2b(str(fold.offset).encode(), digest_size=16)
    for line in sums:
        total.update(blake2b(line.encode(), digest_size=16).digest())
    return total.hexdigest()


def restore(checkpoint: Checkpoint) -> Fold:
    """Return the fold that a complete checkpoint describes."""
    by_kind: dict[str, list[Record]] = {TWIN_TYPE: [], TWIN: [], EVENT: [], VERDICT: [], NOTICE: []}
    for record in checkpoint.records:
        by_kind.setdefault(record.kind, []).append(record)
    types = tuple((r.tenant, _read_type(r)) for r in by_kind[TWIN_TYPE])
    fold = Fold()
    fold.registry = RegistryFold(RegistrySnapshot(twin_types=types))
    living: list[tuple[str, Twin]] = []
    for record in by_kind[TWIN]:
        state = _read_twin(record, fold.registry)
        fold.put_state(state)
        if state.alive:
            living.append((record.tenant, state.twin))
    for record in by_kind[EVENT]:
        event = from_text(Event, record.body or "")
        owner = fold.state(record.tenant, event.twin_id)
        if owner is not None:
            owner.events[event.event_id] = event
            owner.note_maintenance((event,))
    for record in sorted(by_kind[VERDICT], key=lambda r: r.offset):
        fold.put_verdict(record.tenant, record.key, from_text(Verdict, record.body or ""))
    for record in sorted(by_kind[NOTICE], key=lambda r: r.key):
        fold.journals.put(record.tenant, from_text(Notice, record.body or ""))
    fold.registry = RegistryFold(
        RegistrySnapshot(offset=checkpoint.position.offset, twin_types=types, twins=tuple(living))
    )
    fold.advance(checkpoint.position.offset)
    return fold


def _twin_record(state: TwinState) -> _TwinRecord:
    replica = state.replica
    return _TwinRecord(
        twin=state.twin,
        alive=state.alive,
        revision=replica.revision,
        offset=replica.offset,
        reported=replica.reported,
        desired=replica.desired,
        predicted_revision=replica.predicted.revision,
        predictions=tuple(replica.predicted.predictions[key] for key in sorted(replica.predicted.predictions)),
        delta=replica.delta,
        connectivity=replica.connectivity,
        commands=tuple(sorted(state.commands.values(), key=Command.order)),
        last_arrival_unix_us=state.last_arrival_unix_us,
        last_lag_us=state.last_lag_us,
        delete_offset=state.delete_offset,
        previous_create_offset=state.previous_create_offset,
        last_arrival_offset=state.last_arrival_offset,
        residuals=tuple(replica.residuals[key] for key in sorted(replica.residuals)),
        tracks=tuple(state.tracks[key].record() for key in sorted(state.tracks)),
        erase_offset=state.erase_offset,
        alarms=replica.alarms,
        alarm_memory=state.alarm_memory,
    )


def _read_type(record: Record) -> TwinType:
    return from_text(TwinType, record.body or "")


def _read_twin(record: Record, registry: RegistryFold) -> TwinState:
    kept = from_text(_TwinRecord, record.body or "")
    state = TwinState(record.tenant, kept.twin, registry.type_of(record.tenant, kept.twin))
    predictions = {(p.channel, p.model_id): p for p in kept.predictions}
    state.alive = kept.alive
    state.replica = Replica(
        revision=kept.revision,
        offset=kept.offset,
        reported=kept.reported,
        desired=kept.desired,
        predicted=Predicted(revision=kept.predicted_revision, predictions=predictions),
        delta=kept.delta,
        connectivity=kept.connectivity,
        residuals={(r.channel, r.model_id): r for r in kept.residuals},
        alarms=kept.alarms,
    )
    state.tracks = tracks_of(kept.tracks, predictions)
    state.alarm_memory = kept.alarm_memory
    state.commands = {command.command_id: command for command in kept.commands}
    state.last_arrival_unix_us = kept.last_arrival_unix_us
    state.last_lag_us = kept.last_lag_us
    state.delete_offset = kept.delete_offset
    state.previous_create_offset = kept.previous_create_offset
    state.last_arrival_offset = kept.last_arrival_offset
    state.erase_offset = kept.erase_offset
    if state.alive:
        state.renew_version()
    return state
