"""Twin types and twins as values; what they may hold is in `registry_rules`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from twinmesh_core.geometry import Geometry
from twinmesh_core.kinds import ChannelKind, PipelineStage
from twinmesh_core.rules import AlarmRule
from twinmesh_core.time import US_PER_MINUTE
from twinmesh_core.value_specs import ArgumentSpec, PropertySpec
from twinmesh_core.values import Value

MAX_TYPE_VERSION: Final = 2**31 - 1
DEFAULT_MAX_SILENCE_US: Final = 10 * US_PER_MINUTE
"""How long a deadband may keep a steady value from being stored, unless the channel says otherwise."""
_NO_ATTRIBUTES: Final[Mapping[str, str]] = MappingProxyType({})
_NO_PROPERTIES: Final[Mapping[str, Value]] = MappingProxyType({})
_REFERENCE: Final = re.compile(r"(?P<id>[a-z0-9][a-z0-9._-]{0,127})@(?P<version>[1-9]\d{0,9})")


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
        retention_class: names the rule of how long its history is kept; "" = none.
        inherited_from: ``id@version`` of the type that declares it; "" = the type itself.
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
    retention_class: str = ""
    inherited_from: str = field(default="", compare=False)

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
class CommandSpec:
    """One command that twins of a type understand.

    Attributes:
        name: unique in the type.
        description: for people.
        required_args: arguments it requires; with `args`, each is among them.
        args: all its arguments; empty = any are passed on as they are.
        inherited_from: ``id@version`` of the type that declares it; "" = the type itself.
    """

    name: str
    description: str = ""
    required_args: tuple[str, ...] = ()
    args: tuple[ArgumentSpec, ...] = ()
    inherited_from: str = field(default="", compare=False)

    def requires(self, arg: ArgumentSpec) -> bool:
        """Whether a call must state the argument: it is required and has no default."""
        return (arg.required or arg.name in self.required_args) and arg.default is None

    def arg(self, name: str) -> ArgumentSpec | None:
        """Return the argument of this name, or None."""
        return next((a for a in self.args if a.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationshipSpec:
    """A kind of edge from twins of a type.

    Attributes:
        name: unique in the type.
        description: for people.
        target_twin_type_id: targets are of this type, or of one that extends it; "" = of any.
        max_count: most edges of this name from one twin; 0 = no bound of its own.
        allow_missing_target: an edge may be written before its target exists.
        inherited_from: ``id@version`` of the type that declares it; "" = the type itself.
    """

    name: str
    description: str = ""
    target_twin_type_id: str = ""
    max_count: int = 0
    allow_missing_target: bool = False
    inherited_from: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinType:
    """A version of the model of a kind of entity; never changes once created.

    Attributes:
        twin_type_id: its id.
        version: from 1.
        display_name: for people.
        description: for people.
        channels: named quantities; inherited ones first, once resolved.
        properties: static properties.
        commands: what twins understand.
        relationships: kinds of edges; empty = any edge is allowed.
        geometry: the shape of such entities; None = none.
        extends: ``id@version`` of the type it extends; "" = none.
        ancestors: ids of the types it is one of, nearest first; filled in when it is resolved.
        create_offset: offset of the entry that created it; 0 before.
    """

    twin_type_id: str
    version: int
    display_name: str = ""
    channels: tuple[ChannelSpec, ...] = ()
    properties: tuple[PropertySpec, ...] = ()
    commands: tuple[CommandSpec, ...] = ()
    create_offset: int = field(default=0, compare=False)
    description: str = ""
    relationships: tuple[RelationshipSpec, ...] = ()
    geometry: Geometry | None = None
    extends: str = ""
    ancestors: tuple[str, ...] = field(default=(), compare=False)
    rules: tuple[AlarmRule, ...] = ()

    @property
    def reference(self) -> str:
        """``id@version``."""
        return f"{self.twin_type_id}@{self.version}"

    def is_a(self, twin_type_id: str) -> bool:
        """Whether a twin of this type is one of `twin_type_id`: the type itself, or one that it extends."""
        return twin_type_id == self.twin_type_id or twin_type_id in self.ancestors

    def channel(self, name: str) -> ChannelSpec | None:
        """Return the channel of this name, or None."""
        return next((c for c in self.channels if c.name == name), None)

    def property(self, name: str) -> PropertySpec | None:
        """Return the property of this name, or None."""
        return next((p for p in self.properties if p.name == name), None)

    def command(self, name: str) -> CommandSpec | None:
        """Return the command of this name, or None."""
        return next((c for c in self.commands if c.name == name), None)

    def relationship(self, name: str) -> RelationshipSpec | None:
        """Return the kind of edge of this name, or None."""
        return next((r for r in self.relationships if r.name == name), None)

    def channel_names(self) -> str:
        """Return the names of the channels for an error message, shortened after the twentieth."""
        names = [c.name for c in self.channels]
        return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Relationship:
    """A typed edge to another twin."""

    name: str
    target_twin_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptUnit:
    """A channel whose history is kept in another unit than the twin's type states.

    Attributes:
        channel: the channel.
        unit: the unit of its history, as the version in which it began spells it.
        scale, offset: a value of the history times `scale` plus `offset` is in the type's unit.
    """

    channel: str
    unit: str
    scale: float
    offset: float


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
        properties: values of the properties that the type gives a kind.
        geometry: its own shape and place; None = its type's.
        revision: offset of the entry that last changed any of this; 0 before.
        kept_units: channels whose history is in another unit than the type's, by name in order.
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
    properties: Mapping[str, Value] = field(default_factory=lambda: _NO_PROPERTIES)
    geometry: Geometry | None = None
    revision: int = field(default=0, compare=False)
    kept_units: tuple[KeptUnit, ...] = ()

    def kept_unit(self, channel: str) -> KeptUnit | None:
        """Return in which other unit the channel's history is; None = in the type's."""
        return next((kept for kept in self.kept_units if kept.channel == channel), None) if self.kept_units else None


def parse_reference(text: str) -> tuple[str, int] | None:
    """Return id and version of ``id@version``, or None for anything else."""
    found = _REFERENCE.fullmatch(text)
    if found is None or int(found["version"]) > MAX_TYPE_VERSION:
        return None
    return found["id"], int(found["version"])
