"""The fold: from the ordered log to every tenant's replicas; pure, deterministic, resumable, rebuildable.

It decides each control entry at the entry's own offset and remembers the verdict by request id. Nothing here reads a
clock: whatever time must do (a deadline, a time to live, silence) arrives as an entry like everything else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.observations import ObservationBatch
from twinmesh_core.registry import Twin
from twinmesh_core.registry_fold import Outcome, RegistryFold
from twinmesh_statesync.domain.alarms.actions import AlarmAction, act_on_alarms
from twinmesh_statesync.domain.alarms.desk import desk_of, judge
from twinmesh_statesync.domain.alarms.memory import NO_MEMORY
from twinmesh_statesync.domain.arrivals import (
    arrive_quietly,
    fall_silent,
    is_quiet,
    newest_time,
    note_arrival,
    set_connectivity,
)
from twinmesh_statesync.domain.changes import Change, ChangeKind
from twinmesh_statesync.domain.commands import CommandState
from twinmesh_statesync.domain.conditions import check_conditions
from twinmesh_statesync.domain.delivery.notices import Journals
from twinmesh_statesync.domain.entries import (
    AcknowledgeDesired,
    CancelCommand,
    ControlEntry,
    CreateTwin,
    CreateTwinType,
    DeleteTwin,
    EraseTwin,
    ExpireDesired,
    LogEntry,
    QueueCommand,
    RecordEvent,
    RecordPrediction,
    SetConnectivities,
    SetConnectivity,
    SetDesired,
    SingleAction,
    UpdateCommand,
    Verdict,
)
from twinmesh_statesync.domain.erasing import emptied, erasable_twin, erase
from twinmesh_statesync.domain.identities import IDENTITY_ACTIONS, decide, without_state
from twinmesh_statesync.domain.orders import cancel_command, queued, touched, update_command
from twinmesh_statesync.domain.predicted import compare, record_prediction
from twinmesh_statesync.domain.recording import record_event
from twinmesh_statesync.domain.reduce import Rows, newest_facts
from twinmesh_statesync.domain.replica import (
    NO_ALARMS,
    NO_RESIDUALS,
    NOTHING_DESIRED,
    NOTHING_PREDICTED,
    NOTHING_REPORTED,
)
from twinmesh_statesync.domain.room import check_room, forget_old_commands
from twinmesh_statesync.domain.targets import acknowledge_desired, expire_desired, set_desired
from twinmesh_statesync.domain.twin_state import Draft, TwinState
from twinmesh_statesync.domain.unsaved import Unsaved

MAX_VERDICTS: Final = 100_000
"""Verdicts remembered per tenant; the storage service refuses a repeated request id for as long as the log lives, so
beyond this number only the wording of an old answer is lost, never its effect."""
MAX_REMEMBERED: Final = 500_000
"""Parts of verdicts remembered per tenant: a verdict about many twins has many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """What one entry did: the changes, at most one per twin, and the verdict of a control entry."""

    changes: tuple[Change, ...] = ()
    verdict: Verdict | None = None


_NOTHING: Final = Folded()


class Fold:
    """Replicas of all tenants as of `offset`; not safe for use from several threads.

    Attributes:
        offset: everything up to here is folded.
        registry: twin types and living twins.
        unsaved: what changed since a checkpoint last took it.
        journals: what others may want to be told.
    """

    def __init__(self) -> None:
        self.offset = 0
        self.registry = RegistryFold()
        self.unsaved = Unsaved()
        self._twins: dict[str, dict[str, TwinState]] = {}
        self._verdicts: dict[str, OrderedDict[str, Verdict]] = {}
        self._remembered: dict[str, int] = {}
        self.journals = Journals()

    def apply(self, entry: LogEntry) -> Folded:
        """Fold one entry; entries at or before `offset` are without effect, so a repeated delivery is harmless."""
        if entry.offset <= self.offset:
            return _NOTHING
        self.offset = entry.offset
        if isinstance(entry.body, ObservationBatch):
            changes = self._observe(entry, entry.body)
            if any(not change.quiet and change.alarms for change in changes):
                self._note(entry, changes)
            return Folded(changes=tuple(changes))
        if isinstance(entry.body, ControlEntry):
            folded = self._decide(entry, entry.body)
            self._note(entry, folded.changes)
            return folded
        return _NOTHING

    def seed(self, tenant: str, batch: ObservationBatch) -> None:
        """Take newest facts in place of observations up to `offset` that cannot be folded any more.

        They count as arrived when they were measured. Nobody is told of changes: who follows starts with a snapshot.
        """
        times = [int(section.time_unix_us.max()) for _, section in batch.sections() if len(section)]
        entry = LogEntry(offset=self.offset, tenant=tenant, commit_time_unix_us=max(times, default=0), body=batch)
        self._observe(entry, batch, seeding=True)

    def take_unsaved(self) -> Unsaved:
        """Return what changed since the last call, and begin anew."""
        taken, self.unsaved = self.unsaved, Unsaved()
        return taken

    def advance(self, offset: int) -> None:
        """Note that nothing up to `offset` concerns replicas."""
        self.offset = max(self.offset, offset)

    def state(self, tenant: str, twin_id: str) -> TwinState | None:
        """Return what is known of a twin, a tombstone included, or None."""
        return self._twins.get(tenant, {}).get(twin_id)

    def states(self, tenant: str) -> dict[str, TwinState]:
        """Return all twins of a tenant by id, tombstones included; not to be written to."""
        return self._twins.get(tenant, {})

    def tenants(self) -> tuple[str, ...]:
        """Return the tenants that ever had a twin."""
        return tuple(self._twins)

    def verdict(self, tenant: str, request_id: str) -> Verdict | None:
        """Return the decision about a request, or None if it is not remembered (or was never folded)."""
        remembered = self._verdicts.get(tenant)
        return remembered.get(request_id) if remembered is not None else None

    def verdicts(self, tenant: str) -> dict[str, Verdict]:
        """Return the remembered decisions of a tenant, oldest first; not to be written to."""
        return self._verdicts.get(tenant, OrderedDict())

    def verdict_tenants(self) -> tuple[str, ...]:
        """Return the tenants with remembered decisions."""
        return tuple(self._verdicts)

    def put_state(self, state: TwinState) -> None:
        """Put back a twin from a checkpoint."""
        self._twins.setdefault(state.tenant, {})[state.twin.twin_id] = state

    def put_verdict(self, tenant: str, request_id: str, verdict: Verdict) -> None:
        """Put back a verdict from a checkpoint; oldest first."""
        self._verdicts.setdefault(tenant, OrderedDict())[request_id] = verdict
        self._remembered[tenant] = self._remembered.get(tenant, 0) + verdict.weight

    def _observe(self, entry: LogEntry, batch: ObservationBatch, *, seeding: bool = False) -> list[Change]:
        states = self._twins.get(entry.tenant, {})
        now = entry.commit_time_unix_us
        changes: list[Change] = []
        rows: Rows | None = None
        for twin_id, facts in newest_facts(batch, entry.offset).items():
            state = states.get(twin_id)
            if state is None or not state.alive:
                continue
            self.unsaved.twins.add((entry.tenant, twin_id))
            if not seeding and is_quiet(state, facts, now):
                change = arrive_quietly(state, facts, entry.offset, now)
            else:
                draft = Draft(state, entry.offset, now)
                draft.observe(facts)
                if state.tracks:
                    rows = rows or Rows(batch)
                    compare(draft, rows)
                note_arrival(draft, newest_time(facts), seeding=seeding)
                if state.rulebook is not None:
                    judge(draft, state.rulebook)
                change = draft.finish()
            if change is not None:
                changes.append(change)
        return changes

    def _note(self, entry: LogEntry, changes: Iterable[Change]) -> None:
        for notice, kept in self.journals.note(entry.tenant, changes, entry.commit_time_unix_us):
            self.unsaved.notices[entry.tenant, notice.key] = notice if kept else None

    def _decide(self, entry: LogEntry, control: ControlEntry) -> Folded:
        if control.request_id:
            known = self.verdict(entry.tenant, control.request_id)
            if known is not None:
                return Folded(verdict=known)
        try:
            if isinstance(control.action, IDENTITY_ACTIONS):
                changes, verdict = decide(self, entry, control.action)
            else:
                outcome, changes, ids = self._act(entry, control.action, control.principal)
                verdict = Verdict(offset=entry.offset, outcome=outcome, ids=ids, twin_id=erasable_twin(control.action))
        except TwinmeshError as error:
            changes = ()
            verdict = Verdict(
                offset=entry.offset, outcome=Outcome.REJECTED, error=error, twin_id=erasable_twin(control.action)
            )
        if control.request_id:
            self._remember(entry.tenant, control.request_id, verdict)
        return Folded(changes=changes, verdict=verdict)

    def _remember(self, tenant: str, request_id: str, verdict: Verdict) -> None:
        verdicts = self._verdicts.setdefault(tenant, OrderedDict())
        verdicts[request_id] = verdict
        self.unsaved.verdicts[tenant, request_id] = verdict
        parts = self._remembered.get(tenant, 0) + verdict.weight
        while len(verdicts) > MAX_VERDICTS or (parts > MAX_REMEMBERED and len(verdicts) > 1):
            forgotten, old = verdicts.popitem(last=False)
            parts -= old.weight
            self.unsaved.verdicts[tenant, forgotten] = None
        self._remembered[tenant] = parts

    def _act(
        self, entry: LogEntry, action: SingleAction | None, principal: str
    ) -> tuple[Outcome, tuple[Change, ...], tuple[str, ...]]:
        if action is None:
            return Outcome.NO_OP, (), ()
        if isinstance(action, CreateTwinType):
            return self._create_twin_type(entry, action), (), ()
        if isinstance(action, CreateTwin):
            return *self._create_twin(entry, action), ()
        if isinstance(action, SetConnectivities):
            changes = tuple(self._fall_silent(entry, action))
            # Whether anything changed or not: an erasure may take out the one that did.
            return Outcome.ACCEPTED, changes, ()
        if isinstance(action, EraseTwin):
            return *self._erase_twin(entry, action.twin_id), ()
        state = self._require(entry.tenant, action.event.twin_id if isinstance(action, RecordEvent) else action.twin_id)
        if isinstance(action, DeleteTwin):
            return *self._delete_twin(entry, state), ()
        draft = Draft(state, entry.offset, entry.commit_time_unix_us)
        if isinstance(action, AlarmAction):
            act_on_alarms(draft, action, principal)
        ids = self._draft(draft, action)
        if state.rulebook is not None:
            judge(draft, state.rulebook)
        change = draft.finish()
        if change is None:
            if draft.desk is not None:  # what its rules remember may have changed
                self.unsaved.twins.add((entry.tenant, state.twin.twin_id))
            return Outcome.NO_OP, (), ids
        self.unsaved.events.extend((entry.tenant, event) for event in change.events)
        self.unsaved.twins.add((entry.tenant, state.twin.twin_id))
        forget_old_commands(state)
        return Outcome.ACCEPTED, (change,), ids

    def _draft(self, draft: Draft, action: SingleAction) -> tuple[str, ...]:
        match action:
            case SetDesired():
                check_room(draft.state)
                return set_desired(draft, action)
            case RecordPrediction():
                record_prediction(draft, action)
            case QueueCommand():
                check_conditions(draft.state, action.conditions)
                check_room(draft.state)
                draft.put_command(queued(draft, action))
                return (action.command_id,)
            case UpdateCommand():
                update_command(draft, action)
                return (action.command_id,)
            case CancelCommand():
                cancel_command(draft, action)
                return (action.command_id,)
            case AcknowledgeDesired():
                acknowledge_desired(draft, action)
            case RecordEvent():
                record_event(draft, action)
            case ExpireDesired():
                expire_desired(draft, action)
            case SetConnectivity():
                set_connectivity(draft, action)
        return ()

    def _fall_silent(self, entry: LogEntry, action: SetConnectivities) -> Iterator[Change]:
        states = self._twins.get(entry.tenant, {})
        for item in {item.twin_id: item for item in action.items}.values():
            state = states.get(item.twin_id)
            if state is None or not state.alive:
                continue
            draft = Draft(state, entry.offset, entry.commit_time_unix_us)
            fall_silent(draft, item)
            if state.rulebook is not None:
                judge(draft, state.rulebook)
            yield from self._finished(draft, ChangeKind.CHANGED)

    def _create_twin_type(self, entry: LogEntry, action: CreateTwinType) -> Outcome:
        created = self.registry.create_twin_type(entry.tenant, entry.offset, action.twin_type)
        verdict = created.unless_rejected()
        if verdict.effective and verdict.twin_type is not None:
            self.unsaved.twin_types.append((entry.tenant, verdict.twin_type))
        return verdict.outcome

    def _create_twin(self, entry: LogEntry, action: CreateTwin) -> tuple[Outcome, tuple[Change, ...]]:
        verdict = self.registry.create_twin(
            entry.tenant,
            entry.offset,
            action.twin,
            if_absent=action.if_absent,
            commit_time_unix_us=entry.commit_time_unix_us,
        ).unless_rejected()
        if not verdict.effective or verdict.twin is None:
            return verdict.outcome, ()
        return verdict.outcome, self.begin_twin(entry, verdict.twin)

    def begin_twin(self, entry: LogEntry, twin: Twin) -> tuple[Change, ...]:
        """Begin the life of a twin that the registry has created."""
        twin_type = self.registry.type_of(entry.tenant, twin)
        states = self._twins.setdefault(entry.tenant, {})
        state = states.get(twin.twin_id)
        if state is None:
            state = states[twin.twin_id] = TwinState(entry.tenant, twin, twin_type)
        state.begin_life(twin, twin_type)
        draft = Draft(state, entry.offset, entry.commit_time_unix_us)
        if state.rulebook is not None:
            desk_of(draft, state.rulebook).begin()
        return self._finished(draft, ChangeKind.CREATED)

    def _delete_twin(self, entry: LogEntry, state: TwinState) -> tuple[Outcome, tuple[Change, ...]]:
        verdict = self.registry.delete_twin(entry.tenant, entry.offset, state.twin.twin_id).unless_rejected()
        draft = Draft(state, entry.offset, entry.commit_time_unix_us)
        for command in state.open_commands():
            draft.put_command(touched(draft, replace(command, message="The twin was deleted."), CommandState.CANCELLED))
        if state.rulebook is not None:
            desk_of(draft, state.rulebook).end()
        changes = self._finished(draft, ChangeKind.DELETED)
        # What it looked at it has looked at: a maintenance event that was over stays over.
        state.alarm_memory = replace(NO_MEMORY, looked_unix_us=state.alarm_memory.looked_unix_us)
        replica = state.replica
        # The revisions go on: a compare-and-set from the former life must never match in the next one.
        state.replica = replace(
            replica,
            reported=replace(NOTHING_REPORTED, revision=replica.reported.revision),
            desired=replace(NOTHING_DESIRED, revision=replica.desired.revision),
            predicted=replace(NOTHING_PREDICTED, revision=replica.predicted.revision),
            delta=(),
            connectivity=type(replica.connectivity).UNSPECIFIED,
            residuals=NO_RESIDUALS,
            alarms=NO_ALARMS,
        )
        state.tracks = {}
        state.alive = False
        state.tracks = {}
        state.delete_offset = entry.offset
        return verdict.outcome, changes

    def _erase_twin(self, entry: LogEntry, twin_id: str) -> tuple[Outcome, tuple[Change, ...]]:
        verdicts = self._verdicts.get(entry.tenant, OrderedDict())
        for request_id, verdict in verdicts.items():
            left = emptied(verdict) if verdict.twin_id == twin_id else without_state(verdict, twin_id)
            if left is not verdict:
                self.unsaved.verdicts[entry.tenant, request_id] = verdicts[request_id] = left
                self._remembered[entry.tenant] += left.weight - verdict.weight
        state = self.state(entry.tenant, twin_id)
        if state is None:
            return Outcome.NO_OP, ()
        self.unsaved.events = [e for e in self.unsaved.events if (e[0], e[1].twin_id) != (entry.tenant, twin_id)]
        for gone in self.journals.of(entry.tenant).forget(twin_id):
            self.unsaved.notices[entry.tenant, gone.key] = None
        self.unsaved.erased.update((entry.tenant, twin_id, event_id) for event_id in state.events)
        self.unsaved.twins.add((entry.tenant, twin_id))
        return Outcome.ACCEPTED, (erase(state, entry.offset, entry.commit_time_unix_us),)

    def _finished(self, draft: Draft, kind: ChangeKind) -> tuple[Change, ...]:
        change = draft.finish(kind)
        self.unsaved.twins.add((draft.state.tenant, draft.state.twin.twin_id))
        return (change,) if change is not None else ()

    def _require(self, tenant: str, twin_id: str) -> TwinState:
        self.registry.require_twin(tenant, twin_id)
        return self._twins[tenant][twin_id]
