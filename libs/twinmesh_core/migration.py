"""Bringing a twin to another version of its type: what becomes of each part of its identity.

A plan is made from the twin, both versions and the changes of unit alone, so that a dry run and the fold come to the
same one. What becomes of the twin's state (targets, predictions) follows from it and never stands in its way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

from twinmesh_core.edges import target_fault
from twinmesh_core.errors import InvalidArgument
from twinmesh_core.ids import quoted
from twinmesh_core.registry import ChannelSpec, KeptUnit, Twin, TwinType
from twinmesh_core.value_specs import PropertySpec, ValueKind, as_kind, shown
from twinmesh_core.values import Json, Value, is_number, same_value


class MigrationOutcome(IntEnum):
    """What becomes of a twin; numbers equal ``twinmesh.statesync.v1.MigrationOutcome``."""

    UNSPECIFIED = 0
    MIGRATED = 1
    UP_TO_DATE = 2
    BLOCKED = 3
    NOT_FOUND = 4


class MigrationEffect(IntEnum):
    """What becomes of a part; numbers equal ``twinmesh.statesync.v1.MigrationEffect``."""

    UNSPECIFIED = 0
    CARRIED = 1
    CONVERTED = 2
    DEFAULTED = 3
    DROPPED = 4
    BLOCKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationStep:
    """One part of a twin (``properties.power``; ``properties`` for all that are carried), and what becomes of it."""

    part: str
    effect: MigrationEffect
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitChange:
    """How values of one channel or property come from another version's unit to the target's.

    Attributes:
        name: the channel or property.
        from_unit: the other version's unit as it spells it.
        same_unit: both spellings mean the same.
        scale, offset: a value times `scale` plus `offset` is in the target's unit.
    """

    name: str
    from_unit: str
    same_unit: bool = False
    scale: float = 1.0
    offset: float = 0.0

    def apply(self, value: float) -> float:
        """Return a value in the target's unit."""
        return value * self.scale + self.offset


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitChanges:
    """Every change of unit between the versions of a type and the one migrated to."""

    channels: tuple[UnitChange, ...] = ()
    properties: tuple[UnitChange, ...] = ()

    def channel(self, name: str, unit: str, target: str) -> UnitChange | None:
        """Return how a channel's values change from `unit`; None = not known."""
        return _change(self.channels, name, unit, target)

    def property(self, name: str, unit: str, target: str) -> UnitChange | None:
        """Return how a property's value changes from `unit`; None = not known."""
        return _change(self.properties, name, unit, target)


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationPlan:
    """What becomes of one twin.

    Attributes:
        twin_id: the twin.
        from_version: the version it is of; 0 = there is no such twin of the type.
        outcome: MIGRATED also while it is only planned.
        steps: part by part.
        twin: as it will be, for MIGRATED.
        rescaled: how the values of its replica change, by channel.
    """

    twin_id: str
    from_version: int
    outcome: MigrationOutcome
    steps: tuple[MigrationStep, ...] = ()
    twin: Twin | None = None
    rescaled: tuple[UnitChange, ...] = ()


def plan_migration(
    twin: Twin,
    before: TwinType,
    after: TwinType,
    units: UnitChanges,
    type_by_id: Callable[[str], TwinType | None],
) -> MigrationPlan:
    """Return what becomes of a twin of the type `before` when it comes to `after`, another version of it."""
    if before.version == after.version:
        return MigrationPlan(twin_id=twin.twin_id, from_version=before.version, outcome=MigrationOutcome.UP_TO_DATE)
    journal = _Journal()
    kept, rescaled = _channels(twin, before, after, units, journal)
    migrated = _properties(twin, before, after, units, journal)
    _relationships(twin, after, type_by_id, journal)
    blocked = any(step.effect is MigrationEffect.BLOCKS for step in journal.steps)
    return MigrationPlan(
        twin_id=twin.twin_id,
        from_version=before.version,
        outcome=MigrationOutcome.BLOCKED if blocked else MigrationOutcome.MIGRATED,
        steps=tuple(journal.told()),
        twin=None if blocked else replace(migrated, twin_type_version=after.version, kept_units=tuple(kept)),
        rescaled=() if blocked else tuple(rescaled),
    )


class _Journal:
    def __init__(self) -> None:
        self.steps: list[MigrationStep] = []
        self._carried: dict[str, int] = {}

    def say(self, part: str, effect: MigrationEffect, detail: str) -> None:
        self.steps.append(MigrationStep(part=part, effect=effect, detail=detail))

    def carry(self, group: str, count: int = 1) -> None:
        self._carried[group] = self._carried.get(group, 0) + count

    def told(self) -> Iterator[MigrationStep]:
        """Yield what is carried as a count by group, then the rest."""
        for group, count in self._carried.items():
            if count:
                yield MigrationStep(part=group, effect=MigrationEffect.CARRIED, detail=str(count))
        yield from self.steps


def _channels(
    twin: Twin, before: TwinType, after: TwinType, units: UnitChanges, journal: _Journal
) -> tuple[list[KeptUnit], list[UnitChange]]:
    kept = {each.channel: each for each in twin.kept_units}
    rescaled: list[UnitChange] = []
    old = {c.name: c for c in before.channels}
    new = {c.name: c for c in after.channels}
    for name, channel in old.items():
        if name not in new:
            journal.say(f"channels.{name}", MigrationEffect.DROPPED, "its history stays")
            if channel.kind.has_unit and name not in kept:
                # Should it come back in a later version: its series goes on in this unit.
                kept[name] = KeptUnit(channel=name, unit=channel.unit, scale=1.0, offset=0.0)
    for name, channel in new.items():
        wrong = _rescale(channel, old.get(name), kept, rescaled, units)
        if wrong:
            journal.say(f"channels.{name}", MigrationEffect.BLOCKS, wrong)
        elif rescaled and rescaled[-1].name == name:
            detail = f"from {quoted(rescaled[-1].from_unit or '1')} to {quoted(channel.unit or '1')}"
            journal.say(f"channels.{name}", MigrationEffect.CONVERTED, f"{detail}; history stays in its unit")
        elif name in old:
            journal.carry("channels")
    return [kept[name] for name in sorted(kept)], rescaled


def _rescale(
    channel: ChannelSpec,
    old: ChannelSpec | None,
    kept: dict[str, KeptUnit],
    rescaled: list[UnitChange],
    units: UnitChanges,
) -> str:
    """Work out how one channel's history and present values relate to its unit; returns what stands in the way."""
    name = channel.name
    history = kept[name].unit if name in kept else old.unit if old is not None else channel.unit
    change = units.channel(name, history, channel.unit)
    if change is None:
        return _no_way(history, channel.unit)
    if change.same_unit:
        kept.pop(name, None)
    else:
        kept[name] = KeptUnit(channel=name, unit=history, scale=change.scale, offset=change.offset)
    if old is not None:
        present = units.channel(name, old.unit, channel.unit)
        if present is None:
            return _no_way(old.unit, channel.unit)
        if not present.same_unit:
            rescaled.append(present)
    return ""


def _properties(twin: Twin, before: TwinType, after: TwinType, units: UnitChanges, journal: _Journal) -> Twin:
    attributes = dict(twin.attributes)
    values: dict[str, Value] = {}
    stated = dict(twin.properties)
    for spec in after.properties:
        if spec.kind:
            _carry_typed(spec, before.property(spec.name), stated, attributes, values, units, journal)
        else:
            _carry_kindless(spec, stated, attributes, journal)
    for name in stated:
        journal.say(f"properties.{name}", MigrationEffect.DROPPED, f"{after.reference} does not have it")
    return replace(twin, attributes=attributes, properties=values)


def _carry_typed(
    spec: PropertySpec,
    old: PropertySpec | None,
    stated: dict[str, Value],
    attributes: dict[str, str],
    values: dict[str, Value],
    units: UnitChanges,
    journal: _Journal,
) -> None:
    part = f"properties.{spec.name}"
    before: Value | None = stated.pop(spec.name, None)
    how = ""
    value = before
    if value is None and old is not None and not old.kind and spec.name in attributes:
        before = attributes.pop(spec.name)
        value = _parsed(before, spec.kind)
        how = "from the attribute of that name"
    elif value is not None and old is not None and is_number(value) and spec.kind.numeric:
        change = units.property(spec.name, old.unit, spec.unit)
        if change is None:
            journal.say(part, MigrationEffect.BLOCKS, _no_way(old.unit, spec.unit))
            return
        if not change.same_unit:
            value = change.apply(float(value))
            how = f"{shown(before) if before is not None else ''} {old.unit or '1'}"
    if before is None:
        if spec.default is not None:
            values[spec.name] = spec.default
            journal.say(part, MigrationEffect.DEFAULTED, shown(spec.default))
        elif spec.required:
            journal.say(
                part, MigrationEffect.BLOCKS, "is required and has no value; set it before (attribute or property)"
            )
        return
    try:
        found = None if value is None else spec.checked(value, part)
    except InvalidArgument as error:
        journal.say(part, MigrationEffect.BLOCKS, error.field_violations[0].description)
        return
    if found is None:
        journal.say(part, MigrationEffect.BLOCKS, f"{shown(before)} cannot become {spec.kind.name}")
        return
    values[spec.name] = found
    if how or not same_value(found, before):
        journal.say(part, MigrationEffect.CONVERTED, f"{how or shown(before)} -> {shown(found)} {spec.unit}".strip())
    else:
        journal.carry("properties")


def _carry_kindless(
    spec: PropertySpec, stated: dict[str, Value], attributes: dict[str, str], journal: _Journal
) -> None:
    """Carry a property that is a text among the attributes, also out of one that had a kind before."""
    part = f"properties.{spec.name}"
    if spec.name in stated and spec.name not in attributes:
        value = stated.pop(spec.name)
        attributes[spec.name] = value if isinstance(value, str) else json.dumps(value)
        journal.say(part, MigrationEffect.CONVERTED, "into the attribute of that name")
    elif spec.required and spec.name not in attributes:
        journal.say(part, MigrationEffect.BLOCKS, "is required among the attributes; set it before")


def _relationships(
    twin: Twin, after: TwinType, type_by_id: Callable[[str], TwinType | None], journal: _Journal
) -> None:
    names = list(dict.fromkeys(edge.name for edge in twin.relationships))
    for name in names:
        edges = [edge for edge in twin.relationships if edge.name == name]
        wrong = ""
        spec = after.relationship(name)
        if after.relationships and spec is None:
            wrong = f"{after.reference} has no such relationship"
        elif spec is not None and spec.max_count and len(edges) > spec.max_count:
            wrong = f"the twin has {len(edges)}, {after.reference} allows {spec.max_count}"
        elif spec is not None:
            faults = (
                target_fault(spec, e.target_twin_id, type_by_id(e.target_twin_id), missing_is_wrong=False)
                for e in edges
            )
            wrong = next(filter(None, faults), "")
        if wrong:
            journal.say(f"relationships.{name}", MigrationEffect.BLOCKS, wrong)
        else:
            journal.carry("relationships", len(edges))


def _parsed(text: str, kind: ValueKind) -> Value | None:
    """Return what a text says as a value of a kind; None where it says none."""
    if kind is ValueKind.TEXT:
        return text
    if kind is ValueKind.JSON:
        return as_kind(Json(text), kind)
    if kind is ValueKind.BOOL:
        return {"true": True, "false": False}.get(text.strip().lower())
    try:
        return as_kind(int(text) if kind is ValueKind.INTEGER else float(text), kind)
    except ValueError:
        return None


def _change(changes: tuple[UnitChange, ...], name: str, unit: str, target: str) -> UnitChange | None:
    if unit == target:
        return UnitChange(name=name, from_unit=unit, same_unit=True)
    return next((c for c in changes if c.name == name and c.from_unit == unit), None)


def _no_way(unit: str, target: str) -> str:
    return f"{quoted(unit or '1')} cannot be converted to {quoted(target or '1')}; give the new one another name"
