"""What the fold eats and what it says: log entries in, a verdict and the changes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.migration import MigrationPlan, UnitChanges
from twinmesh_core.observations import ObservationBatch
from twinmesh_core.registry import Twin, TwinType
from twinmesh_core.registry_fold import Outcome
from twinmesh_statesync.domain.alarms.actions import AlarmAction
from twinmesh_statesync.domain.commands import CommandState
from twinmesh_statesync.domain.conditions import StateCondition
from twinmesh_statesync.domain.events import Connectivity, Event, Prediction
from twinmesh_statesync.domain.replica import DesiredState
from twinmesh_statesync.domain.values import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTwinType:
    """Creates a version of a twin type."""

    twin_type: TwinType


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTwin:
    """Creates a twin; `if_absent` accepts an existing one of the same type."""

    twin: Twin
    if_absent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTwins:
    """Creates many twins, each with its own verdict, or all or none."""

    twins: tuple[Twin, ...]
    if_absent: bool = False
    all_or_nothing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateTwin:
    """Changes what a twin is, at `paths`; `if_revision` None = unconditionally."""

    twin: Twin
    paths: tuple[str, ...]
    if_revision: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateTwins:
    """Brings twins to another version of their type: those named, or the next `limit` of the type."""

    twin_type_id: str
    to_version: int
    twin_ids: tuple[str, ...] = ()
    after_twin_id: str = ""
    limit: int = 0
    from_version: int = 0
    units: UnitChanges = field(default_factory=UnitChanges)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteTwin:
    """Deletes a twin: a tombstone; its history stays."""

    twin_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDesired:
    """Sets and removes targets of one twin, all or nothing; `if_revision` None = unconditionally.

    `units` are those that values were converted to (the channel's own at that time); `tolerances` are in that unit.
    """

    twin_id: str
    values: Mapping[str, Value]
    remove: tuple[str, ...] = ()
    if_revision: int | None = None
    deadline_unix_us: int | None = None
    units: Mapping[str, str] = field(default_factory=dict)
    tolerances: Mapping[str, float] = field(default_factory=dict)
    conditions: tuple[StateCondition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredAcknowledgement:
    """What a device says of the target that the entry at `set_offset` set: DELIVERED, or REJECTED and why."""

    channel: str
    set_offset: int
    state: DesiredState
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcknowledgeDesired:
    """States what a device makes of its targets."""

    twin_id: str
    items: tuple[DesiredAcknowledgement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPrediction:
    """Writes a prediction; one from older inputs never replaces a newer one."""

    twin_id: str
    prediction: Prediction
    if_revision: int | None = None
    conditions: tuple[StateCondition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCommand:
    """Queues a command under an id that the writer chose; `type_version` 0 = no argument was converted."""

    command_id: str
    twin_id: str
    name: str
    args: Mapping[str, Value]
    expire_time_unix_us: int | None = None
    conditions: tuple[StateCondition, ...] = ()
    type_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateCommand:
    """Moves a command to another state; DELIVERED may tell progress, an end may bring a result."""

    command_id: str
    twin_id: str
    state: CommandState
    message: str = ""
    progress_percent: float | None = None
    progress_message: str = ""
    result: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelCommand:
    """Cancels a command, or asks the device that has it to give it up; `force` does not wait for the device."""

    command_id: str
    twin_id: str
    message: str = ""
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordEvent:
    """Records an event."""

    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireDesired:
    """Marks targets whose deadline passed; `set_offsets` (same order) leaves newer targets alone."""

    twin_id: str
    channels: tuple[str, ...]
    set_offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetConnectivity:
    """States a twin's connectivity, derived from the arrival at `last_arrival_unix_us`."""

    twin_id: str
    connectivity: Connectivity
    last_arrival_unix_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectivityChange:
    """One twin fell silent: STALE or OFFLINE, as of the arrival at `last_arrival_offset`."""

    twin_id: str
    connectivity: Connectivity
    last_arrival_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetConnectivities:
    """States that twins fell silent; one that was heard from since, or is gone, is passed over."""

    items: tuple[ConnectivityChange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseTwin:
    """Forgets all that is known of a twin but its registration; written by storage alone."""

    twin_id: str


SingleAction = (
    CreateTwinType
    | CreateTwin
    | DeleteTwin
    | SetDesired
    | RecordPrediction
    | QueueCommand
    | UpdateCommand
    | RecordEvent
    | ExpireDesired
    | SetConnectivity
    | SetConnectivities
    | AcknowledgeDesired
    | CancelCommand
    | EraseTwin
    | AlarmAction
)
"""What is about one type or one twin, or about nothing but silence."""
Action = SingleAction | CreateTwins | UpdateTwin | MigrateTwins


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlEntry:
    """One conditional fact to be decided at its own offset.

    Attributes:
        request_id: the same id again has no second effect; unique within the tenant.
        principal: who wrote it.
        action: what it does; None = something this release does not know, without effect.
    """

    request_id: str
    principal: str
    action: Action | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One entry of the log; `body` None = nothing that concerns replicas."""

    offset: int
    tenant: str
    commit_time_unix_us: int
    body: ObservationBatch | ControlEntry | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinVerdict:
    """What became of one twin of an entry about many; told only where it was not simply created.

    Attributes:
        place: its index in the entry.
        twin_id: the twin.
        outcome: NO_OP = it existed; REJECTED without an error = it was left out for another's sake.
        error: why it was rejected.
    """

    place: int
    twin_id: str
    outcome: Outcome
    error: TwinmeshError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the fold decided about one control entry; remembered by request id.

    Attributes:
        offset: the entry's offset.
        outcome: accepted, without effect, or rejected.
        error: why it was rejected; None otherwise.
        ids: ids of what it made (commands), in order.
        twin_id: the twin whose erasure empties the entry; "" = none does.
        twins: of CreateTwins: the twins that were not created, in order.
        migrations: of MigrateTwins: what became of each twin.
        more: of MigrateTwins: further twins of the type may follow.
    """

    offset: int
    outcome: Outcome
    error: TwinmeshError | None = None
    ids: tuple[str, ...] = ()
    twin_id: str = ""
    twins: tuple[TwinVerdict, ...] = ()
    migrations: tuple[MigrationPlan, ...] = ()
    more: bool = False

    @property
    def weight(self) -> int:
        """How many parts it holds, for the bound on what is remembered."""
        return 1 + len(self.twins) + sum(1 + len(plan.steps) for plan in self.migrations)
