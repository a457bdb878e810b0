"""What twin types and twins may hold, and the errors that say so.

The rules here depend on nothing but the value, so that every fold of the log, in every process, comes to the same
verdict. Rules that depend on tables outside (units, time zones) are checked before an entry is written, see
`check_writable`; rules that depend on other types and twins are the registry's, see `registry_fold`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import isfinite
from typing import Final

from twinmesh_core.calendar import require_time_zone
from twinmesh_core.errors import FieldViolation, InvalidArgument
from twinmesh_core.geometry import geometry_violations
from twinmesh_core.ids import (
    entity_id_violation,
    name_violation,
    quoted,
    resource_id_violation,
    retention_class_violation,
)
from twinmesh_core.kinds import ChannelKind, PipelineStage
from twinmesh_core.registry import MAX_TYPE_VERSION, ChannelSpec, CommandSpec, Twin, TwinType, parse_reference
from twinmesh_core.rules import rule_violations
from twinmesh_core.units import TABLE, Units
from twinmesh_core.value_specs import MAX_TEXT_BYTES, spec_violations

MAX_CHANNELS: Final = 1_000
MAX_ATTRIBUTES: Final = 64
MAX_ATTRIBUTE_BYTES: Final = 1_024
MAX_RELATIONSHIPS: Final = 256
MAX_PROPERTIES: Final = 1_000
MAX_ARGUMENTS: Final = 64
MAX_DESCRIPTION_BYTES: Final = 4 * 1_024


def check_twin_type(twin_type: TwinType) -> None:
    """Refuse a twin type that breaks a rule of the contract, naming every field that is wrong.

    Raises:
        InvalidArgument: reason INVALID_FIELD.
    """
    _raise(_twin_type_violations(twin_type))


def check_resolved(twin_type: TwinType) -> None:
    """Refuse a type that breaks a rule only together with what it inherits; raises `InvalidArgument`."""
    alone = replace(twin_type, extends="")
    _raise(_twin_type_violations(alone))


def check_twin(twin: Twin) -> None:
    """Refuse a twin that breaks a rule of the contract by itself (its type is not looked at).

    Raises:
        InvalidArgument: reason INVALID_FIELD.
    """
    _raise(_twin_violations(twin))


def check_writable(value: TwinType | Twin, units: Units = TABLE) -> None:
    """Check, before an entry is written, everything that can be known beforehand: also units and the time zone.

    Args:
        value: what is to be written.
        units: which units there are.

    Raises:
        InvalidArgument: INVALID_FIELD, or INCOMPATIBLE_UNIT for a unit that is not known.
    """
    if isinstance(value, Twin):
        check_twin(value)
        require_time_zone(value.time_zone, "twin.time_zone")
        return
    check_twin_type(value)
    for unit, path in _units(value):
        units.canonical(unit, path)


def units_of(twin_type: TwinType) -> set[str]:
    """Return every unit that a type names."""
    return {unit for unit, _ in _units(twin_type)}


def missing_properties(twin: Twin, twin_type: TwinType) -> list[str]:
    """Return the required properties of the type that the twin does not state."""
    return [
        p.name
        for p in twin_type.properties
        if p.required and p.default is None and p.name not in (twin.properties if p.kind else twin.attributes)
    ]


def _raise(violations: Iterable[FieldViolation | None]) -> None:
    found = [v for v in violations if v is not None]
    if found:
        first = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InvalidArgument(f"{first.field}: {first.description}{more}", field_violations=found)


def _bad(wrong: bool, path: str, description: str) -> FieldViolation | None:
    return FieldViolation(field=path, description=description) if wrong else None


def _twin_type_violations(t: TwinType) -> Iterable[FieldViolation | None]:
    at = "twin_type"
    yield resource_id_violation(f"{at}.twin_type_id", t.twin_type_id)
    yield _bad(not 1 <= t.version <= MAX_TYPE_VERSION, f"{at}.version", "must be 1 or greater")
    typed = any(p.kind for p in t.properties) or any(c.args for c in t.commands)
    hollow = not (t.channels or t.extends or t.relationships or typed)
    yield _bad(hollow, f"{at}.channels", "must hold at least one channel, unless the type describes something else")
    yield _bad(len(t.channels) > MAX_CHANNELS, f"{at}.channels", f"must hold at most {MAX_CHANNELS} channels")
    wrong = bool(t.extends) and parse_reference(t.extends) is None
    yield _bad(wrong, f"{at}.extends", f"{quoted(t.extends)} is not the id and version of a type, e.g. device@1")
    wordy = len(t.description.encode()) > MAX_DESCRIPTION_BYTES
    yield _bad(wordy, f"{at}.description", f"must be at most {MAX_DESCRIPTION_BYTES:,} bytes")
    yield _bad(
        len(t.relationships) > MAX_RELATIONSHIPS, f"{at}.relationships", f"must hold at most {MAX_RELATIONSHIPS} kinds"
    )
    for group, names in (
        ("channels", [c.name for c in t.channels]),
        ("properties", [p.name for p in t.properties]),
        ("commands", [c.name for c in t.commands]),
        ("relationships", [r.name for r in t.relationships]),
    ):
        for i, name in enumerate(names):
            yield name_violation(f"{at}.{group}[{i}].name", name)
            yield _bad(name in names[:i], f"{at}.{group}[{i}].name", f"{quoted(name)} is there twice")
    for i, command in enumerate(t.commands):
        for j, arg in enumerate(command.required_args):
            yield name_violation(f"{at}.commands[{i}].required_args[{j}]", arg)
        yield from _argument_violations(f"{at}.commands[{i}]", command)
    for i, each in enumerate(t.properties):
        yield from spec_violations(f"{at}.properties[{i}]", each)
        kindless = not each.kind and (each.unit not in ("", "1") or each.min_value is not None or bool(each.allowed))
        yield _bad(kindless, f"{at}.properties[{i}].kind", "is required with a unit, bounds or allowed_values")
    for i, edge in enumerate(t.relationships):
        target = edge.target_twin_type_id
        where = f"{at}.relationships[{i}]"
        yield resource_id_violation(f"{where}.target_twin_type_id", target) if target else None
        yield _bad(edge.max_count < 0, f"{where}.max_count", "must be 0 (no bound) or greater")
    if t.geometry is not None:
        yield from geometry_violations(f"{at}.geometry", t.geometry)
    for i, channel in enumerate(t.channels):
        yield from _channel_violations(f"{at}.channels[{i}]", channel, t)
    if not t.extends:  # else they may be about inherited channels, and are checked together with those
        yield from rule_violations(t.rules, {c.name: c for c in t.channels}, f"{at}.rules")


def _channel_violations(at: str, c: ChannelSpec, t: TwinType) -> Iterable[FieldViolation | None]:
    yield _bad(
        c.kind == ChannelKind.UNSPECIFIED, f"{at}.kind", "is required: gauge, counter, state, bool, text or json"
    )
    for name, number in (
        ("min_value", c.min_value),
        ("max_value", c.max_value),
        ("max_rate_per_s", c.max_rate_per_s),
        ("spike_threshold", c.spike_threshold),
        ("tolerance", c.tolerance),
        ("upper_limit", c.upper_limit),
        ("deadband", c.deadband),
        ("deadband_percent", c.deadband_percent),
    ):
        yield _bad(number is not None and not isfinite(number), f"{at}.{name}", "must be a finite number")
    crossed = c.min_value is not None and c.max_value is not None and c.min_value > c.max_value
    yield _bad(crossed, f"{at}.min_value", "must not be above max_value")
    yield _bad((c.max_rate_per_s or 0.0) < 0, f"{at}.max_rate_per_s", "must not be negative")
    yield _bad(c.spike_threshold < 0, f"{at}.spike_threshold", "must not be negative; 0 turns the test off")
    yield _bad(c.tolerance < 0, f"{at}.tolerance", "must not be negative")
    yield _bad(c.expected_interval_us < 0, f"{at}.expected_interval", "must not be negative")
    yield _bad(c.stuck_after_us < 0, f"{at}.stuck_after", "must not be negative")
    yield from _deadband_violations(at, c)
    yield retention_class_violation(f"{at}.retention_class", c.retention_class)
    wordy = c.kind in (ChannelKind.TEXT, ChannelKind.JSON)
    bounded = c.min_value is not None or c.max_value is not None or c.max_rate_per_s is not None
    yield _bad(wordy and bounded, at, "bounds and rates are for numbers; this channel holds text")
    unitless = c.kind in (ChannelKind.BOOL, ChannelKind.TEXT, ChannelKind.JSON)
    yield _bad(unitless and c.unit not in ("", "1"), f"{at}.unit", "a unit is for numbers; leave it empty")
    inherits = bool(t.extends)  # what is not stated may be inherited: judged again once the type is resolved
    lonely = bool(c.set_command) and not c.controllable and not inherits
    yield _bad(lonely, f"{at}.set_command", "is for controllable channels only")
    if c.set_command and not (inherits and t.command(c.set_command) is None):
        command = t.command(c.set_command)
        yield _bad(
            command is None,
            f"{at}.set_command",
            f"{quoted(c.set_command)} is not among the type's commands",
        )
        extra = set(command.required_args) - {"value"} if command is not None else set()
        extra |= {a.name for a in command.args if command.requires(a)} - {"value"} if command is not None else set()
        yield _bad(bool(extra), f"{at}.set_command", "its command may require no argument but 'value'")
        value = command.arg("value") if command is not None else None
        deaf = command is not None and bool(command.args) and value is None
        yield _bad(deaf, f"{at}.set_command", "its command takes no argument 'value'")
        other = value is not None and value.unit not in ("", c.unit) and not inherits
        yield _bad(other, f"{at}.set_command", "the argument 'value' of its command must have the channel's unit")


def _deadband_violations(at: str, c: ChannelSpec) -> Iterable[FieldViolation | None]:
    banded = c.deadband is not None or c.deadband_percent is not None
    ranged = c.min_value is not None and c.max_value is not None and c.min_value < c.max_value
    both = c.deadband is not None and c.deadband_percent is not None
    percent = c.deadband_percent if c.deadband_percent is not None else 1.0
    yield _bad(both, f"{at}.deadband_percent", "is given together with deadband; give one of them")
    yield _bad((c.deadband or 0.0) < 0, f"{at}.deadband", "must not be negative; 0 drops unchanged values only")
    yield _bad(not 0 < percent <= 100, f"{at}.deadband_percent", "must be above 0, and at most 100")
    span = c.deadband_percent is not None and not ranged
    yield _bad(span, f"{at}.deadband_percent", "is a part of max_value - min_value; give both")
    yield _bad(banded and not c.kind.numeric, f"{at}.deadband", "is for numbers; this channel holds text")
    yes_no = c.kind == ChannelKind.BOOL and bool(c.deadband or c.deadband_percent)
    yield _bad(yes_no, f"{at}.deadband", "of a bool can only be 0, which drops unchanged values")
    yield _bad(c.max_silence_us < 0, f"{at}.max_silence", "must not be negative; 0 = 10 min")
    yield _bad(bool(c.max_silence_us) and not banded, f"{at}.max_silence", "goes with deadband or deadband_percent")
    for i, stage in enumerate(c.disabled_stages):
        where = f"{at}.disabled_stages[{i}]"
        yield _bad(stage == PipelineStage.UNSPECIFIED, where, f"is none of {_STAGES}")
        yield _bad(stage in c.disabled_stages[:i], where, f"{stage.name.lower()} is there twice")


def _argument_violations(at: str, command: CommandSpec) -> Iterable[FieldViolation | None]:
    many = len(command.args) > MAX_ARGUMENTS
    yield _bad(many, f"{at}.args", f"must hold at most {MAX_ARGUMENTS} arguments")
    names = [arg.name for arg in command.args]
    for j, arg in enumerate(command.args):
        yield from spec_violations(f"{at}.args[{j}]", arg)
        yield _bad(arg.name in names[:j], f"{at}.args[{j}].name", f"{quoted(arg.name)} is there twice")
    for j, name in enumerate(command.required_args if command.args else ()):
        yield _bad(name not in names, f"{at}.required_args[{j}]", f"{quoted(name)} is not among args")


def _units(t: TwinType) -> Iterable[tuple[str, str]]:
    """Yield every unit of a type with its field."""
    for i, channel in enumerate(t.channels):
        yield channel.unit, f"twin_type.channels[{i}].unit"
    for i, each in enumerate(t.properties):
        yield each.unit, f"twin_type.properties[{i}].unit"
    for i, command in enumerate(t.commands):
        for j, arg in enumerate(command.args):
            yield arg.unit, f"twin_type.commands[{i}].args[{j}].unit"


_STAGES: Final = ", ".join(stage.name.lower() for stage in PipelineStage if stage)


def _twin_violations(t: Twin) -> Iterable[FieldViolation | None]:
    at = "twin"
    yield entity_id_violation(f"{at}.twin_id", t.twin_id)
    yield resource_id_violation(f"{at}.twin_type_id", t.twin_type_id)
    yield _bad(t.twin_type_version < 0, f"{at}.twin_type_version", "must be 0 (the newest) or greater")
    yield _bad(len(t.attributes) > MAX_ATTRIBUTES, f"{at}.attributes", f"must hold at most {MAX_ATTRIBUTES} entries")
    for name, text in t.attributes.items():
        too_long = max(len(name.encode()), len(text.encode())) > MAX_ATTRIBUTE_BYTES
        yield _bad(too_long, f"{at}.attributes", f"{quoted(name)} is longer than {MAX_ATTRIBUTE_BYTES} bytes")
    many = len(t.relationships) > MAX_RELATIONSHIPS
    yield _bad(many, f"{at}.relationships", f"must hold at most {MAX_RELATIONSHIPS} entries")
    for i, edge in enumerate(t.relationships):
        yield name_violation(f"{at}.relationships[{i}].name", edge.name)
        yield entity_id_violation(f"{at}.relationships[{i}].target_twin_id", edge.target_twin_id)
    many = len(t.properties) > MAX_PROPERTIES
    yield _bad(many, f"{at}.properties", f"must hold at most {MAX_PROPERTIES:,} entries")
    for name, value in t.properties.items():
        yield name_violation(f"{at}.properties[{name}]", name)
        long = isinstance(value, str) and len(value.encode()) > MAX_TEXT_BYTES
        yield _bad(long, f"{at}.properties[{name}]", f"must be at most {MAX_TEXT_BYTES:,} bytes")
    if t.geometry is not None:
        yield from geometry_violations(f"{at}.geometry", t.geometry)


def remedy_for_unknown_twin(twin_id: str, twin_type: TwinType | None = None) -> str:
    """Return the command that creates a twin of this id; with a type, ready to run."""
    kind = f"{twin_type.twin_type_id}@{twin_type.version}" if twin_type is not None else "TYPE@VERSION"
    return f"twinmesh twins create {twin_id} --type {kind}"
