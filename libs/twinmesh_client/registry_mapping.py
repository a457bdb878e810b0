"""Twin types and twins between protobuf and `twinmesh_core.registry`, and the control entries that change them."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from twinmesh.type.v1 import entry_pb2, observation_pb2, twin_pb2
from twinmesh_core.kinds import ChannelKind, PipelineStage
from twinmesh_core.registry import ChannelSpec, CommandSpec, PropertySpec, Relationship, Twin, TwinType
from twinmesh_core.registry_fold import RegistryFold, Verdict
from twinmesh_core.time import US_PER_S


def twin_type_from_message(message: twin_pb2.TwinType) -> TwinType:
    """Return the type as a value; nothing is checked (see `twinmesh_core.registry.check_twin_type`)."""
    return TwinType(
        twin_type_id=message.twin_type_id,
        version=message.version,
        display_name=message.display_name,
        channels=tuple(map(_channel_from_message, message.channels)),
        properties=tuple(
            PropertySpec(name=p.name, description=p.description, required=p.required) for p in message.properties
        ),
        commands=tuple(
            CommandSpec(name=c.name, description=c.description, required_args=tuple(c.required_args))
            for c in message.commands
        ),
        create_offset=message.create_offset,
    )


def twin_type_to_message(value: TwinType) -> twin_pb2.TwinType:
    """Return the type as its message."""
    return twin_pb2.TwinType(
        twin_type_id=value.twin_type_id,
        version=value.version,
        display_name=value.display_name,
        channels=map(_channel_to_message, value.channels),
        properties=(
            twin_pb2.PropertySpec(name=p.name, description=p.description, required=p.required) for p in value.properties
        ),
        commands=(
            twin_pb2.CommandSpec(name=c.name, description=c.description, required_args=c.required_args)
            for c in value.commands
        ),
        create_offset=value.create_offset,
    )


def twin_from_message(message: twin_pb2.Twin) -> Twin:
    """Return the twin as a value; nothing is checked (see `twinmesh_core.registry.check_twin`)."""
    return Twin(
        twin_id=message.twin_id,
        twin_type_id=message.twin_type_id,
        twin_type_version=message.twin_type_version,
        display_name=message.display_name,
        time_zone=message.time_zone,
        attributes=dict(message.attributes),
        relationships=tuple(Relationship(name=r.name, target_twin_id=r.target_twin_id) for r in message.relationships),
        create_offset=message.create_offset,
        create_time_unix_us=time_from_message(message.create_time),
    )


def twin_to_message(value: Twin) -> twin_pb2.Twin:
    """Return the twin as its message; a create time of 0 is left out."""
    message = twin_pb2.Twin(
        twin_id=value.twin_id,
        twin_type_id=value.twin_type_id,
        twin_type_version=value.twin_type_version,
        display_name=value.display_name,
        time_zone=value.time_zone,
        attributes=dict(value.attributes),
        relationships=(
            twin_pb2.Relationship(name=r.name, target_twin_id=r.target_twin_id) for r in value.relationships
        ),
        create_offset=value.create_offset,
    )
    if value.create_time_unix_us:
        message.create_time.CopyFrom(time_to_message(value.create_time_unix_us))
    return message


def fold_control_entry(
    registry: RegistryFold, *, tenant: str, offset: int, commit_time_unix_us: int, entry: entry_pb2.ControlEntry
) -> Verdict | None:
    """Fold one control entry into the registry; None = the entry is about something else, only the offset moves."""
    action = entry.WhichOneof("action")
    if action == "create_twin_type":
        return registry.create_twin_type(tenant, offset, twin_type_from_message(entry.create_twin_type.twin_type))
    if action == "create_twin":
        return registry.create_twin(
            tenant,
            offset,
            twin_from_message(entry.create_twin.twin),
            if_absent=entry.create_twin.if_absent,
            commit_time_unix_us=commit_time_unix_us,
        )
    if action == "delete_twin":
        return registry.delete_twin(tenant, offset, entry.delete_twin.twin_id)
    registry.advance(offset)
    return None


def time_from_message(message: Timestamp) -> int:
    """Return a Timestamp as microseconds since the Unix epoch, finer decimals floored; absent = 0."""
    return message.seconds * US_PER_S + message.nanos // 1_000


def time_to_message(time_unix_us: int) -> Timestamp:
    """Return microseconds since the Unix epoch as a Timestamp."""
    seconds, rest = divmod(time_unix_us, US_PER_S)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)


def duration_from_message(message: Duration) -> int:
    """Return a Duration as microseconds, finer decimals floored; absent = 0."""
    return message.seconds * US_PER_S + message.nanos // 1_000


def duration_to_message(duration_us: int) -> Duration:
    """Return microseconds as a Duration."""
    seconds, rest = divmod(abs(duration_us), US_PER_S)
    sign = -1 if duration_us < 0 else 1  # of both parts, as the message demands
    return Duration(seconds=sign * seconds, nanos=sign * rest * 1_000)


def _channel_from_message(message: twin_pb2.ChannelSpec) -> ChannelSpec:
    return ChannelSpec(
        name=message.name,
        kind=ChannelKind.of(message.kind),
        unit=message.unit,
        description=message.description,
        min_value=message.min_value if message.HasField("min_value") else None,
        max_value=message.max_value if message.HasField("max_value") else None,
        max_rate_per_s=message.max_rate_per_s if message.HasField("max_rate_per_s") else None,
        expected_interval_us=duration_from_message(message.expected_interval),
        stuck_after_us=duration_from_message(message.stuck_after),
        spike_threshold=message.spike_threshold,
        tolerance=message.tolerance,
        controllable=message.controllable,
        set_command=message.set_command,
        upper_limit=message.upper_limit if message.HasField("upper_limit") else None,
        deadband=message.deadband if message.HasField("deadband") else None,
        deadband_percent=message.deadband_percent if message.HasField("deadband_percent") else None,
        max_silence_us=duration_from_message(message.max_silence),
        disabled_stages=tuple(_stage(number) for number in message.disabled_stages),
    )


def _stage(number: int) -> PipelineStage:
    # A newer peer's stage is refused as none of those known here, when a type is created.
    return PipelineStage(number) if number in _STAGES else PipelineStage.UNSPECIFIED


_STAGES = frozenset(PipelineStage)


def _channel_to_message(value: ChannelSpec) -> twin_pb2.ChannelSpec:
    message = twin_pb2.ChannelSpec(
        name=value.name,
        kind=observation_pb2.ChannelKind.ValueType(value.kind),
        unit=value.unit,
        description=value.description,
        min_value=value.min_value,
        max_value=value.max_value,
        max_rate_per_s=value.max_rate_per_s,
        tolerance=value.tolerance,
        controllable=value.controllable,
        set_command=value.set_command,
        upper_limit=value.upper_limit,
        deadband=value.deadband,
        deadband_percent=value.deadband_percent,
        disabled_stages=[twin_pb2.PipelineStage.ValueType(stage) for stage in value.disabled_stages],
    )
    if value.expected_interval_us:
        message.expected_interval.CopyFrom(duration_to_message(value.expected_interval_us))
    if value.stuck_after_us:
        message.stuck_after.CopyFrom(duration_to_message(value.stuck_after_us))
    if value.max_silence_us:
        message.max_silence.CopyFrom(duration_to_message(value.max_silence_us))
    if value.spike_threshold:
        message.spike_threshold = value.spike_threshold
    return message
