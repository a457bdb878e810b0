"""What state-sync says of a twin, as plain values: replicas, the events of a watch, events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import event_pb2, position_pb2, replica_pb2, twin_pb2
from twinmesh_client.alarm_values import Alarm, alarm, alarms_by_rule
from twinmesh_client.commands import Command, command
from twinmesh_client.durations import moment
from twinmesh_client.forecasts import Forecast
from twinmesh_client.offsets import Offset
from twinmesh_client.registry_mapping import twin_from_message
from twinmesh_client.residuals import Residual, residuals
from twinmesh_client.values import Scalar, from_proto, map_from_proto, show
from twinmesh_core import registry
from twinmesh_core.errors import FailedPrecondition
from twinmesh_core.quality import Quality

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A point in the log: offsets of one incarnation are comparable, across incarnations they mean nothing."""

    incarnation: str
    offset: int

    def __post_init__(self) -> None:
        # So that the bare number, handed on as min_offset, is still known to be of this log.
        object.__setattr__(self, "offset", Offset(self.offset, self.incarnation))


class NotConverged(FailedPrecondition):
    """A desired value was refused by the device, or its deadline passed before the facts met it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """The newest fact of one channel."""

    value: Scalar | None
    quality: Quality
    event_time: datetime
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """The target of one channel; `state` is PENDING, DELIVERED, APPLIED, REJECTED or EXPIRED.

    Attributes:
        delta_since: since when the facts do not meet it; None = they do.
        first_met: when they first did; None = never so far. With another state than APPLIED: it has drifted away.
        drift_count: how often it has.
        tolerance: of this target, in place of the type's; None = the type's.
    """

    value: Scalar | None
    state: str
    deadline: datetime | None
    offset: int
    rejection: str
    command_id: str
    set_time: datetime | None = None
    delta_since: datetime | None = None
    first_met: datetime | None = None
    drift_count: int = 0
    tolerance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaItem:
    """A desired value that the facts do not meet."""

    desired: Scalar | None
    reported: Scalar | None

    def __repr__(self) -> str:
        return f"want {show(self.desired)}, has {show(self.reported)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facet(Generic[ItemT]):
    """One facet of a replica: its revision, and its items by channel."""

    revision: int = 0
    items: Mapping[str, ItemT] = field(default_factory=dict)

    def __getitem__(self, channel: str) -> ItemT:
        return self.items[channel]

    def __contains__(self, channel: object) -> bool:
        return channel in self.items

    def __iter__(self) -> Iterator[str]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A dated fact of a twin; `kind` is FAILURE, MAINTENANCE, REPLACEMENT, OPERATING_MODE, NOTE or NOT_CONVERGED."""

    event_id: str
    twin_id: str
    kind: str
    start_time: datetime
    end_time: datetime | None
    mode: str
    message: str
    channel: str
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A twin's whole state at one offset; `residuals` tell, by channel and model id, how predictions did so far."""

    twin_id: str
    twin_type: str
    time_zone: str
    display_name: str
    attributes: Mapping[str, str]
    revision: int
    offset: int
    reported: Facet[Reported]
    desired: Facet[Desired]
    predicted: Facet[Forecast]
    delta: Mapping[str, DeltaItem]
    connectivity: str
    as_of: Position
    residuals: Mapping[tuple[str, str], Residual] = field(default_factory=dict)
    properties: Mapping[str, Scalar | None] = field(default_factory=dict)
    relationships: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    alarms: Mapping[str, Alarm] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinSummary:
    """One twin of a list; `replica` where the list was asked for it."""

    twin_id: str
    twin_type: str
    display_name: str
    time_zone: str
    connectivity: str
    last_event_time: datetime | None
    delta_count: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    replica: Replica | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredWrite:
    """The answer to `set_desired`: hand it to `WatchEvent.converged`.

    Attributes:
        before: the position just before the write; a watch that resumes after it sees the write and all that follows.
        offset: the write's own offset.
        channels: the channels set.
        revision: the desired facet's revision now.
        delta: what is open now.
        commands: orders that were queued for the device.
    """

    twin_id: str
    before: Position
    offset: int
    channels: frozenset[str]
    revision: int
    delta: Mapping[str, DeltaItem]
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """One change of one twin at one offset; what did not change is empty, or None for `delta`.

    Attributes:
        kind: SNAPSHOT, CREATED, CHANGED, DELETED, or ERASED (forget what was told of the twin); with a filter also
            ENTERED and LEFT, of a twin that comes to match and ceases to; SYNCED marks the end of the snapshot, RESET
            that the log was rewound or compacted and a new snapshot follows (neither belongs to a twin).
        previous_offset: with a filter or a mask: no change of the twin between it and this one is told.
        twin: what the twin is, where that changed (an update or a migration).
        through: resume after this to continue with what follows.
    """

    kind: str
    offset: int
    twin_id: str = ""
    revision: int = 0
    previous_revision: int = 0
    reported: Mapping[str, Reported] = field(default_factory=dict)
    desired: Mapping[str, Desired] = field(default_factory=dict)
    predicted: Mapping[str, Forecast] = field(default_factory=dict)
    delta: Mapping[str, DeltaItem] | None = None
    connectivity: str = ""
    commands: tuple[Command, ...] = ()
    events: tuple[Event, ...] = ()
    residuals: Mapping[tuple[str, str], Residual] = field(default_factory=dict)
    alarms: tuple[Alarm, ...] = ()
    replica: Replica | None = None
    merged_count: int = 0
    previous_offset: int = 0
    twin: registry.Twin | None = None
    through: Position

    def converged(self, want: DesiredWrite) -> bool:
        """Return whether, with this event, the facts meet what `want` asked for.

        Raises:
            NotConverged: the device refused it, or its deadline passed; the message carries the device's reason.
        """
        if self.twin_id != want.twin_id or self.offset < want.offset:
            return False
        for channel in want.channels & self.desired.keys():
            state = self.desired[channel]
            if state.offset == want.offset and state.state in ("REJECTED", "EXPIRED"):
                why = state.rejection or "its deadline passed before the device reported it"
                raise NotConverged(f"{self.twin_id}: {channel} = {show(state.value)} was not reached: {why}")
        # The write itself tells a delta only if it changed one: a target that the facts met already changes none.
        delta = want.delta if self.delta is None and self.offset == want.offset else self.delta
        return delta is not None and not want.channels & delta.keys()


def position(message: position_pb2.LogPosition) -> Position:
    """Return a log position."""
    return Position(incarnation=message.incarnation, offset=message.offset)


def reported_values(facet: replica_pb2.ReportedFacet) -> dict[str, Reported]:
    """Return the facts of a facet by channel."""
    return {
        v.channel: Reported(
            value=from_proto(v.value),
            quality=Quality(v.quality),
            event_time=moment(v.event_time),
            offset=v.offset,
        )
        for v in facet.values
    }


def desired_values(facet: replica_pb2.DesiredFacet) -> dict[str, Desired]:
    """Return the targets of a facet by channel."""
    return {
        v.channel: Desired(
            value=from_proto(v.value),
            state=replica_pb2.DesiredState.Name(v.state).removeprefix("DESIRED_STATE_"),
            deadline=moment(v.deadline) if v.HasField("deadline") else None,
            offset=v.offset,
            rejection=v.rejection,
            command_id=v.command_id,
            set_time=moment(v.set_time) if v.HasField("set_time") else None,
            delta_since=moment(v.delta_since) if v.HasField("delta_since") else None,
            first_met=moment(v.first_met_time) if v.HasField("first_met_time") else None,
            drift_count=v.drift_count,
            tolerance=v.tolerance if v.HasField("tolerance") else None,
        )
        for v in facet.values
    }


def delta_items(delta: replica_pb2.Delta) -> dict[str, DeltaItem]:
    """Return the open items of a delta by channel."""
    return {
        i.channel: DeltaItem(
            desired=from_proto(i.desired), reported=from_proto(i.reported) if i.HasField("reported") else None
        )
        for i in delta.items
    }


def predicted_values(facet: replica_pb2.PredictedFacet) -> dict[str, Forecast]:
    """Return the newest prediction of each channel of a facet."""
    newest: dict[str, Forecast] = {}
    for message in facet.predictions:
        forecast = Forecast.from_prediction(message)
        if forecast.channel not in newest or forecast.input_offset >= newest[forecast.channel].input_offset:
            newest[forecast.channel] = forecast
    return newest


def event(message: event_pb2.Event) -> Event:
    """Return an event."""
    return Event(
        event_id=message.event_id,
        twin_id=message.twin_id,
        kind=event_pb2.EventKind.Name(message.kind).removeprefix("EVENT_KIND_"),
        start_time=moment(message.start_time),
        end_time=moment(message.end_time) if message.HasField("end_time") else None,
        mode=message.mode,
        message=message.message,
        channel=message.channel,
        offset=message.offset,
    )


def type_reference(twin: twin_pb2.Twin) -> str:
    """Return the twin type as people write it: ``transformer@1``."""
    return f"{twin.twin_type_id}@{twin.twin_type_version}"


def connectivity_name(number: replica_pb2.Connectivity.ValueType) -> str:
    """Return ONLINE, STALE, OFFLINE, REPLAY, or NEVER when nothing was ever received."""
    name = replica_pb2.Connectivity.Name(number).removeprefix("CONNECTIVITY_")
    return "NEVER" if name == "UNSPECIFIED" else name


def replica(message: replica_pb2.Replica, as_of: Position) -> Replica:
    """Return a replica."""
    return Replica(
        twin_id=message.twin.twin_id,
        twin_type=type_reference(message.twin),
        time_zone=message.twin.time_zone,
        display_name=message.twin.display_name,
        attributes=dict(message.twin.attributes),
        revision=message.revision,
        offset=message.offset,
        reported=Facet(revision=message.reported.revision, items=reported_values(message.reported)),
        desired=Facet(revision=message.desired.revision, items=desired_values(message.desired)),
        predicted=Facet(revision=message.predicted.revision, items=predicted_values(message.predicted)),
        delta=delta_items(message.delta),
        connectivity=connectivity_name(message.connectivity),
        as_of=as_of,
        residuals=residuals(message.residuals),
        properties=map_from_proto(message.twin.properties),
        relationships=_edges(message.twin.relationships),
        alarms=alarms_by_rule(message.alarms),
    )


def _edges(edges: Iterable[twin_pb2.Relationship]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for edge in edges:
        found[edge.name] = (*found.get(edge.name, ()), edge.target_twin_id)
    return found


def watch_event(message: statesync_pb2.WatchEvent, through: Position) -> WatchEvent:
    """Return one change of a watch."""
    whole = replica(message.replica, through) if message.HasField("replica") else None
    return WatchEvent(
        kind=statesync_pb2.WatchEventKind.Name(message.kind).removeprefix("WATCH_EVENT_KIND_"),
        offset=message.offset,
        twin_id=message.twin_id,
        revision=message.revision,
        previous_revision=message.previous_revision,
        # With policy "latest" a whole replica may come with changes that were made to it since.
        reported={**(whole.reported.items if whole else {}), **reported_values(message.reported)},
        desired={**(whole.desired.items if whole else {}), **desired_values(message.desired)},
        predicted={**(whole.predicted.items if whole else {}), **predicted_values(message.predicted)},
        delta=delta_items(message.delta) if message.HasField("delta") else (whole.delta if whole else None),
        connectivity=_changed_connectivity(message) or (whole.connectivity if whole else ""),
        commands=tuple(command(c) for c in message.commands),
        events=tuple(event(e) for e in message.events),
        residuals=whole.residuals if whole else residuals(message.residuals),
        alarms=tuple(alarm(a) for a in message.alarms),
        replica=whole,
        merged_count=message.merged_count,
        previous_offset=message.previous_offset,
        twin=twin_from_message(message.twin) if message.HasField("twin") else None,
        through=through,
    )


def _changed_connectivity(message: statesync_pb2.WatchEvent) -> str:
    return connectivity_name(message.connectivity) if message.connectivity else ""


def twin_summary(message: statesync_pb2.TwinSummary, as_of: Position) -> TwinSummary:
    """Return one twin of a list."""
    return TwinSummary(
        twin_id=message.twin.twin_id,
        twin_type=type_reference(message.twin),
        display_name=message.twin.display_name,
        time_zone=message.twin.time_zone,
        connectivity=connectivity_name(message.connectivity),
        last_event_time=moment(message.last_event_time) if message.HasField("last_event_time") else None,
        delta_count=message.delta_count,
        attributes=dict(message.twin.attributes),
        replica=replica(message.replica, as_of) if message.HasField("replica") else None,
    )
