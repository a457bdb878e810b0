"""Twin types and twins as values: what they may hold, and the errors that say so.

The rules here depend on nothing but the value, so that every fold of the log, in every process, comes to the same
verdict. Rules that depend on tables outside (units, time zones) are checked before an entry is written, see
`check_writable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from types import MappingProxyType
from typing import Final

from twinmesh_core.calendar import require_time_zone
from twinmesh_core.errors import FieldViolation, InvalidArgument
from twinmesh_core.ids import entity_id_violation, name_violation, quoted, resource_id_violation
from twinmesh_core.kinds import ChannelKind, PipelineStage
from twinmesh_core.time import US_PER_MINUTE
from twinmesh_core.units import TABLE, Units

MAX_CHANNELS: Final = 1_000
MAX_ATTRIBUTES: Final = 64
MAX_ATTRIBUTE_BYTES: Final = 1_024
MAX_RELATIONSHIPS: Final = 256
MAX_TYPE_VERSION: Final = 2**31 - 1
DEFAULT_MAX_SILENCE_US: Final = 10 * US_PER_MINUTE
"""How long a deadband may keep a steady value from being stored, unless the channel says otherwise."""
_NO_ATTRIBUTES: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSpec:
    """One named quantity of a twin type; bounds, rate, tolerance and limit are in `unit`.

    Attributes:
        name: unique in the type.
        kind: what its values are.
        unit: as written by the type's author (UCUM code or alias); values are stored in its canonical code.
        description: for people.
        min_value: values below are flagged BAD; None = no bound.
        max_value: values above are flagged BAD; None = no bound.
        max_rate_per_s: faster changes are flagged UNCERTAIN; None = off.
        expected_interval_us: how often a value is expected; 0 = not known.
        stuck_after_us: unchanged for longer is flagged UNCERTAIN; 0 = off.
        spike_threshold: Hampel test, scaled median absolute deviations; 0 = off.
        tolerance: desired and reported within this distance count as equal.
        controllable: a desired value may be set.
        set_command: command that carries a desired value to the device; empty = the device watches.
        upper_limit: alarm and planning limit shown in forecasts; None = none.
        deadband: a value within this distance of the one stored before is not stored; None = off.
        deadband_percent: the same, in percent of the range; None = off.
        max_silence_us: a value is stored at least this often, however steady; 0 = `DEFAULT_MAX_SILENCE_US`.
        disabled_stages: stages of the pipeline that this channel does without.
    """

    name: str
    kind: ChannelKind
    unit: str = ""
    description: str = ""
    min_value: float | None = None
    max_value: float | None = None
    max_rate_per_s: float | None = None
    expected_interval_us: int = 0
    stuck_after_us: int = 0
    spike_threshold: float = 0.0
    tolerance: float = 0.0
    controllable: bool = False
    set_command: str = ""
    upper_limit: float | None = None
    deadband: float | None = None
    deadband_percent: float | None = None
    max_silence_us: int = 0
    disabled_stages: tuple[PipelineStage, ...] = ()

    def band(self) -> float | None:
        """Return the deadband in the channel's unit; None = off."""
        if PipelineStage.DEADBAND in self.disabled_stages:
            return None
        if self.deadband_percent is not None and self.min_value is not None and self.max_value is not None:
            return self.deadband_percent / 100 * (self.max_value - self.min_value)
        return self.deadband

    def longest_silence_us(self) -> int:
        """Return how long a steady value may go unstored because of the deadband; 0 = there is none."""
        return 0 if self.band() is None else self.max_silence_us or DEFAULT_MAX_SILENCE_US


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertySpec:
    """One static property; a required one must be among every twin's attributes."""

    name: str
    description: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSpec:
    """One command that twins of a type understand, with the arguments it requires."""

    name: str
    description: str = ""
    required_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinType:
    """A version of the model of a kind of entity; never changes once created."""

    twin_type_id: str
    version: int
    display_name: str = ""
    channels: tuple[ChannelSpec, ...] = ()
    properties: tuple[PropertySpec, ...] = ()
    commands: tuple[CommandSpec, ...] = ()
    create_offset: int = field(default=0, compare=False)

    def channel(self, name: str) -> ChannelSpec | None:
        """Return the channel of this name, or None."""
        return next((c for c in self.channels if c.name == name), None)

    def command(self, name: str) -> CommandSpec | None:
        """Return the command of this name, or None."""
        return next((c for c in self.commands if c.name == name), None)

    def channel_names(self) -> str:
        """Return the names of the channels for an error message, shortened after the twentieth."""
        names = [c.name for c in self.channels]
        return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Relationship:
    """A typed edge to another twin, which need not exist yet."""

    name: str
    target_twin_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """One entity's identity: which type it is of, where it is, and what it is related to.

    Attributes:
        twin_id: chosen by the caller.
        twin_type_id: its type.
        twin_type_version: 0 = the newest (only before the fold has decided).
        display_name: for people.
        time_zone: IANA name; empty = UTC.
        attributes: free facts such as site and serial.
        relationships: edges to other twins.
        create_offset: offset of the entry at which this life began; 0 before.
        create_time_unix_us: commit time of that entry; 0 before.
    """

    twin_id: str
    twin_type_id: str
    twin_type_version: int = 0
    display_name: str = ""
    time_zone: str = ""
    attributes: Mapping[str, str] = field(default_factory=lambda: _NO_ATTRIBUTES)
    relationships: tuple[Relationship, ...] = ()
    create_offset: int = field(default=0, compare=False)
    create_time_unix_us: int = field(default=0, compare=False)


def check_twin_type(twin_type: TwinType) -> None:
    """Refuse a twin type that breaks a rule of the contract, naming every field that is wrong.

    Raises:
        InvalidArgument: reason INVALID_FIELD.
    """
    _raise(_twin_type_violations(twin_type))


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
    for i, channel in enumerate(value.channels):
        units.canonical(channel.unit, f"twin_type.channels[{i}].unit")


def missing_properties(twin: Twin, twin_type: TwinType) -> list[str]:
    """Return the required properties of the type that the twin does not state."""
    return [p.name for p in twin_type.properties if p.required and p.name not in twin.attributes]


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
    yield _bad(not t.channels, f"{at}.channels", "must hold at least one channel")
    yield _bad(len(t.channels) > MAX_CHANNELS, f"{at}.channels", f"must hold at most {MAX_CHANNELS} channels")
    for group, names in (
        ("channels", [c.name for c in t.channels]),
        ("properties", [p.name for p in t.properties]),
        ("commands", [c.name for c in t.commands]),
    ):
        for i, name in enumerate(names):
            yield name_violation(f"{at}.{group}[{i}].name", name)
            yield _bad(name in names[:i], f"{at}.{group}[{i}].name", f"{quoted(name)} is there twice")
    for i, command in enumerate(t.commands):
        for j, arg in enumerate(command.required_args):
            yield name_violation(f"{at}.commands[{i}].required_args[{j}]", arg)
    for i, channel in enumerate(t.channels):
        yield from _channel_violations(f"{at}.channels[{i}]", channel, t)


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
    wordy = c.kind in (ChannelKind.TEXT, ChannelKind.JSON)
    bounded = c.min_value is not None or c.max_value is not None or c.max_rate_per_s is not None
    yield _bad(wordy and bounded, at, "bounds and rates are for numbers; this channel holds text")
    unitless = c.kind in (ChannelKind.BOOL, ChannelKind.TEXT, ChannelKind.JSON)
    yield _bad(unitless and c.unit not in ("", "1"), f"{at}.unit", "a unit is for numbers; leave it empty")
    yield _bad(bool(c.set_command) and not c.controllable, f"{at}.set_command", "is for controllable channels only")
    if c.set_command:
        command = t.command(c.set_command)
        yield _bad(
            command is None,
            f"{at}.set_command",
            f"{quoted(c.set_command)} is not among the type's commands",
        )
        extra = set(command.required_args) - {"value"} if command is not None else set()
        yield _bad(bool(extra), f"{at}.set_command", "its command may require no argument but 'value'")


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


def remedy_for_unknown_twin(twin_id: str, twin_type: TwinType | None = None) -> str:
    """Return the command that creates a twin of this id; with a type, ready to run."""
    kind = f"{twin_type.twin_type_id}@{twin_type.version}" if twin_type is not None else "TYPE@VERSION"
    return f"twinmesh twins create {twin_id} --type {kind}"
