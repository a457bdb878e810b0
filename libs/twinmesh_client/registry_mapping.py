"""Twin types and twins between protobuf and `twinmesh_core.registry`, and the control entries that change them."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from twinmesh.type.v1 import entry_pb2, observation_pb2, twin_pb2
from twinmesh_client.keepable import can_be_kept
from twinmesh_client.rule_mapping import rule_from_message, rule_to_message
from twinmesh_client.spec_mapping import (
    command_from_message,
    command_to_message,
    geometry_from_message,
    geometry_to_message,
    property_from_message,
    property_to_message,
    relationship_from_message,
    relationship_to_message,
    values_from_messages,
    values_to_messages,
)
from twinmesh_core.errors import InvalidArgument
from twinmesh_core.kinds import ChannelKind, PipelineStage
from twinmesh_core.migration import MigrationOutcome, UnitChange, UnitChanges
from twinmesh_core.registry import ChannelSpec, KeptUnit, Relationship, Twin, TwinType
from twinmesh_core.registry_fold import Outcome, RegistryFold, Verdict
from twinmesh_core.time import US_PER_S


def twin_type_from_message(message: twin_pb2.TwinType) -> TwinType:
    """Return the type as a value; its rules are checked elsewhere (see `twinmesh_core.registry_rules`).

    Raises:
        InvalidArgument: a property or argument has a kind unknown here, or a value that is none.
    """
    return TwinType(
        twin_type_id=message.twin_type_id,
        version=message.version,
        display_name=message.display_name,
        channels=tuple(map(_channel_from_message, message.channels)),
        properties=tuple(
            property_from_message(p, f"twin_type.properties[{i}]") for i, p in enumerate(message.properties)
        ),
        commands=tuple(command_from_message(c, f"twin_type.commands[{i}]") for i, c in enumerate(message.commands)),
        create_offset=message.create_offset,
        description=message.description,
        relationships=tuple(map(relationship_from_message, message.relationships)),
        geometry=geometry_from_message(message.geometry) if message.HasField("geometry") else None,
        extends=message.extends,
        ancestors=tuple(message.ancestors),
        rules=tuple(map(rule_from_message, message.rules)),
    )


def twin_type_to_message(value: TwinType) -> twin_pb2.TwinType:
    """Return the type as its message."""
    message = twin_pb2.TwinType(
        twin_type_id=value.twin_type_id,
        version=value.version,
        display_name=value.display_name,
        channels=map(_channel_to_message, value.channels),
        properties=map(property_to_message, value.properties),
        commands=map(command_to_message, value.commands),
        create_offset=value.create_offset,
        description=value.description,
        relationships=map(relationship_to_message, value.relationships),
        extends=value.extends,
        ancestors=value.ancestors,
        rules=map(rule_to_message, value.rules),
    )
    if value.geometry is not None:
        message.geometry.CopyFrom(geometry_to_message(value.geometry))
    return message


def twin_from_message(message: twin_pb2.Twin) -> Twin:
    """Return the twin as a value; its rules are checked elsewhere (see `twinmesh_core.registry_rules`).

    Raises:
        InvalidArgument: a property holds no value, or NaN.
    """
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
        properties=values_from_messages(message.properties, "twin.properties"),
        geometry=geometry_from_message(message.geometry) if message.HasField("geometry") else None,
        revision=message.revision,
        kept_units=tuple(
            KeptUnit(channel=k.channel, unit=k.unit, scale=k.scale, offset=k.offset) for k in message.kept_units
        ),
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
        revision=value.revision or value.create_offset,
        kept_units=(
            twin_pb2.KeptUnit(channel=k.channel, unit=k.unit, scale=k.scale, offset=k.offset) for k in value.kept_units
        ),
    )
    if value.create_time_unix_us:
        message.create_time.CopyFrom(time_to_message(value.create_time_unix_us))
    if value.properties:
        for name, each in values_to_messages(value.properties).items():
            message.properties[name].CopyFrom(each)
    if value.geometry is not None:
        message.geometry.CopyFrom(geometry_to_message(value.geometry))
    return message


def unit_changes_from_message(message: entry_pb2.MigrateTwinsEntry) -> UnitChanges:
    """Return the changes of unit that a migration states."""

    def change(m: entry_pb2.UnitChange) -> UnitChange:
        return UnitChange(name=m.name, from_unit=m.from_unit, same_unit=m.same_unit, scale=m.scale, offset=m.offset)

    return UnitChanges(
        channels=tuple(map(change, message.channel_units)), properties=tuple(map(change, message.property_units))
    )


def unit_changes_to_message(units: UnitChanges, message: entry_pb2.MigrateTwinsEntry) -> None:
    """Write the changes of unit into a migration."""
    for changes, fields in ((units.channels, message.channel_units), (units.properties, message.property_units)):
        for c in changes:
            fields.add(name=c.name, from_unit=c.from_unit, same_unit=c.same_unit, scale=c.scale, offset=c.offset)


def fold_control_entry(
    registry: RegistryFold, *, tenant: str, offset: int, commit_time_unix_us: int, entry: entry_pb2.ControlEntry
) -> Verdict | None:
    """Fold one control entry into the registry; None = the entry is about something else, only the offset moves."""
    action = entry.WhichOneof("action")
    if action in _ACTIONS and can_be_kept(entry):
        try:
            return _fold(registry, tenant, offset, commit_time_unix_us, entry, action)
        except InvalidArgument:
            pass  # a value without content: no writer of ours appends one, and no fold takes it
    registry.advance(offset)
    return None


_ACTIONS = frozenset(("create_twin_type", "create_twin", "delete_twin", "update_twin", "create_twins", "migrate_twins"))


def _fold(
    registry: RegistryFold,
    tenant: str,
    offset: int,
    commit_time_unix_us: int,
    entry: entry_pb2.ControlEntry,
    action: str,
) -> Verdict:
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
    if action == "update_twin":
        update = entry.update_twin
        condition = update.if_revision if update.HasField("if_revision") else None
        wanted = twin_from_message(update.twin)
        return registry.update_twin(tenant, offset, wanted, tuple(update.update_mask), if_revision=condition)
    if action == "create_twins":
        many = entry.create_twins
        verdicts = registry.create_twins(
            tenant,
            offset,
            tuple(map(twin_from_message, many.twins)),
            if_absent=many.if_absent,
            all_or_nothing=many.all_or_nothing,
            commit_time_unix_us=commit_time_unix_us,
        )
        created = any(verdict.effective for verdict in verdicts)
        return Verdict(outcome=Outcome.ACCEPTED if created else Outcome.NO_OP)
    return _migrate(registry, tenant, offset, entry.migrate_twins)


def _migrate(registry: RegistryFold, tenant: str, offset: int, entry: entry_pb2.MigrateTwinsEntry) -> Verdict:
    registry.advance(offset)
    target = registry.twin_type(tenant, entry.twin_type_id, entry.to_version) if entry.to_version > 0 else None
    if target is None:
        return Verdict(outcome=Outcome.REJECTED)
    ids = list(entry.twin_ids) or registry.ids_to_migrate(
        tenant, target, entry.from_version, entry.after_twin_id, entry.limit
    )
    plans = registry.migrate_twins(tenant, offset, ids, target, entry.from_version, unit_changes_from_message(entry))
    moved = any(plan.outcome is MigrationOutcome.MIGRATED for plan in plans)
    return Verdict(outcome=Outcome.ACCEPTED if moved else Outcome.NO_OP)


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
        retention_class=message.retention_class,
        inherited_from=message.inherited_from,
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
        retention_class=value.retention_class,
        inherited_from=value.inherited_from,
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
