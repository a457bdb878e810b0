"""Twin types written by hand, in few words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from twinmesh_client.durations import Span, span_us
from twinmesh_core.errors import invalid_field
from twinmesh_core.geometry import Geometry
from twinmesh_core.kinds import ChannelKind, PipelineStage
from twinmesh_core.registry import ChannelSpec, CommandSpec, RelationshipSpec, TwinType
from twinmesh_core.rules import AlarmRule
from twinmesh_core.value_specs import ArgumentSpec, PropertySpec, ValueKind, normal_spec_values
from twinmesh_core.values import Value


def channel(
    name: str,
    unit: str = "",
    *,
    kind: str = "gauge",
    every: Span | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    max_rate_per_s: float | None = None,
    stuck_after: Span | None = None,
    spike_threshold: float = 0.0,
    deadband: float | None = None,
    deadband_percent: float | None = None,
    max_silence: Span | None = None,
    disabled_stages: Sequence[str] = (),
    tolerance: float = 0.0,
    controllable: bool = False,
    set_command: str = "",
    upper_limit: float | None = None,
    retention_class: str = "",
    description: str = "",
) -> ChannelSpec:
    """Return one channel of a twin type.

    Args:
        name: ``[a-z][a-z0-9_]*``, unique in the type.
        unit: UCUM code or alias, e.g. ``Cel``, ``kW``, ``%``; empty = dimensionless.
        kind: gauge, counter, state, bool, text or json.
        every: how often a value is expected.
        minimum: values below are flagged BAD.
        maximum: values above are flagged BAD.
        max_rate_per_s: faster changes are flagged UNCERTAIN.
        stuck_after: unchanged for longer is flagged UNCERTAIN.
        spike_threshold: Hampel test in scaled median absolute deviations; 0 = off.
        deadband: a value within this distance of the one stored before is not stored; 0 = unchanged values only.
        deadband_percent: the same, in percent of maximum - minimum.
        max_silence: a value is stored at least this often, however steady; 10 min unless given.
        disabled_stages: stages this channel does without: time, repetition, range, rate, spike, stuck, deadband.
        tolerance: desired and reported within this distance count as equal.
        controllable: a desired value may be set.
        set_command: the command that carries a desired value to the device.
        upper_limit: planning limit shown in forecasts.
        retention_class: names the rule of how long its history is kept, see `Mesh.set_retention`; empty = none.
        description: for people.
    """
    if kind.upper() not in ChannelKind.__members__ or kind.upper() == "UNSPECIFIED":
        raise invalid_field("kind", f"{kind!r} is unknown; choose gauge, counter, state, bool, text or json")
    return ChannelSpec(
        name=name,
        kind=ChannelKind[kind.upper()],
        unit=unit,
        description=description,
        min_value=minimum,
        max_value=maximum,
        max_rate_per_s=max_rate_per_s,
        expected_interval_us=0 if every is None else span_us(every, "every"),
        stuck_after_us=0 if stuck_after is None else span_us(stuck_after, "stuck_after"),
        spike_threshold=spike_threshold,
        tolerance=tolerance,
        controllable=controllable,
        set_command=set_command,
        upper_limit=upper_limit,
        deadband=deadband,
        deadband_percent=deadband_percent,
        max_silence_us=0 if max_silence is None else span_us(max_silence, "max_silence"),
        disabled_stages=tuple(_stage(stage) for stage in disabled_stages),
        retention_class=retention_class,
    )


def _stage(name: str) -> PipelineStage:
    if name.upper() not in PipelineStage.__members__ or name.upper() == "UNSPECIFIED":
        known = ", ".join(stage.name.lower() for stage in PipelineStage if stage)
        raise invalid_field("disabled_stages", f"{name!r} is unknown; choose from {known}")
    return PipelineStage[name.upper()]


def command(name: str, *required_args: str, args: Sequence[ArgumentSpec] = (), description: str = "") -> CommandSpec:
    """Return one command of a twin type.

    Args:
        name: ``[a-z][a-z0-9_]*``, unique in the type.
        required_args: names of the arguments it requires.
        args: all its arguments, made by `argument`; none = any arguments are passed on as they are.
        description: for people.
    """
    return CommandSpec(name=name, description=description, required_args=required_args, args=tuple(args))


def argument(
    name: str,
    kind: str,
    unit: str = "",
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    allowed: Sequence[Value] = (),
    default: Value | None = None,
    required: bool = False,
    description: str = "",
) -> ArgumentSpec:
    """Return one argument of a command; see `property_spec` for the fields."""
    spec = property_spec(
        name, kind, unit, minimum=minimum, maximum=maximum, allowed=allowed, default=default, required=required,
        description=description,
    )  # fmt: skip
    return ArgumentSpec(
        name=name, kind=spec.kind, unit=unit, min_value=minimum, max_value=maximum, allowed=spec.allowed,
        default=spec.default, required=required, description=description,
    )  # fmt: skip


def property_spec(
    name: str,
    kind: str,
    unit: str = "",
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    allowed: Sequence[Value] = (),
    default: Value | None = None,
    required: bool = False,
    description: str = "",
) -> PropertySpec:
    """Return one static property of a twin type.

    Args:
        name: ``[a-z][a-z0-9_]*``, unique in the type.
        kind: number, integer, bool, text or json.
        unit: of numbers: UCUM code or alias.
        minimum: lowest valid number.
        maximum: highest valid number.
        allowed: the only values allowed; none = any.
        default: taken where a twin states none.
        required: every twin must state it, unless there is a default.
        description: for people.
    """
    if kind.upper() not in ValueKind.__members__ or kind.upper() == "UNSPECIFIED":
        raise invalid_field("kind", f"{kind!r} is unknown; choose number, integer, bool, text or json")
    spec = PropertySpec(
        name=name, kind=ValueKind[kind.upper()], unit=unit, min_value=minimum, max_value=maximum,
        allowed=tuple(allowed), default=default, required=required, description=description,
    )  # fmt: skip
    listed, taken = normal_spec_values(spec)
    return replace(spec, allowed=listed, default=taken)


def relationship(
    name: str,
    target: str = "",
    *,
    max_count: int = 0,
    allow_missing_target: bool = False,
    description: str = "",
) -> RelationshipSpec:
    """Return a kind of edge: to twins of the type `target` or that extend it, at most `max_count` (0 = any number)."""
    return RelationshipSpec(
        name=name, target_twin_type_id=target, max_count=max_count, allow_missing_target=allow_missing_target,
        description=description,
    )  # fmt: skip


def twin_type(
    reference: str,
    channels: Sequence[ChannelSpec],
    *,
    commands: Sequence[CommandSpec] = (),
    properties: Sequence[PropertySpec] = (),
    relationships: Sequence[RelationshipSpec] = (),
    geometry: Geometry | None = None,
    extends: str = "",
    description: str = "",
    display_name: str = "",
    rules: Sequence[AlarmRule] = (),
) -> TwinType:
    """Return a version of a twin type.

    Args:
        reference: ``id`` (version 1) or ``id@version``.
        channels: its named quantities.
        commands: what its twins understand.
        properties: static properties.
        relationships: kinds of edges; none = any edge is allowed.
        geometry: the shape of such entities.
        extends: ``id@version`` of the type whose members it inherits.
        description: for people.
        display_name: for people.
        rules: what raises alarms.
    """
    name, _, version = reference.partition("@")
    if version and not version.isdigit():
        raise invalid_field("reference", f"{reference!r}: the version after @ must be a number, e.g. {name}@1")
    return TwinType(
        twin_type_id=name,
        version=int(version or 1),
        display_name=display_name,
        channels=tuple(channels),
        properties=tuple(properties),
        commands=tuple(commands),
        relationships=tuple(relationships),
        geometry=geometry,
        extends=extends,
        description=description,
        rules=tuple(rules),
    )
