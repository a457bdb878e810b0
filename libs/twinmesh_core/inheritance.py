"""Inheritance of twin types: a type has what its base has, and what it states anew may only narrow that.

Whoever knows the base can therefore deal with every twin of a type that extends it: its values lie within the base's
bounds, its channels have the base's kinds and units, its commands ask for nothing that the base's do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from twinmesh_core.errors import FieldViolation, InvalidArgument
from twinmesh_core.ids import quoted
from twinmesh_core.registry import ChannelSpec, CommandSpec, RelationshipSpec, TwinType
from twinmesh_core.value_specs import ArgumentSpec, PropertySpec, shown_values
from twinmesh_core.values import same_value

MAX_DEPTH: Final = 10
"""Types that one type may extend, directly or not."""

MemberT = TypeVar("MemberT", ChannelSpec, PropertySpec, CommandSpec, RelationshipSpec)
SpecT = TypeVar("SpecT", PropertySpec, ArgumentSpec)
IsA = Callable[[str, str], bool]
"""Whether the first type (by id) is one of the second."""


def resolve(declared: TwinType, base: TwinType, is_a: IsA) -> TwinType:
    """Return the type with all that it inherits; inherited members come first, in the order of the base.

    Args:
        declared: as written, extending `base`.
        base: resolved itself.
        is_a: for the targets of relationships.

    Raises:
        InvalidArgument: an override does not narrow; names the field, what it says, and what the base says.
    """
    clash = _Clash(declared, base)
    members = {
        "channels": _merged(declared.channels, base.channels, base.reference, "channels", clash, _channel),
        "properties": _merged(declared.properties, base.properties, base.reference, "properties", clash, _value_spec),
        "commands": _merged(declared.commands, base.commands, base.reference, "commands", clash, _command),
        "relationships": _merged(
            declared.relationships,
            base.relationships,
            base.reference,
            "relationships",
            clash,
            lambda mine, theirs, at, c: _relationship(mine, theirs, at, c, is_a),
        ),
    }
    clash.end()
    return replace(
        declared,
        geometry=declared.geometry or base.geometry,
        ancestors=(base.twin_type_id, *base.ancestors),
        # A rule of the same name takes the place of the inherited one whole.
        rules=(*(r for r in base.rules if r.name not in {own.name for own in declared.rules}), *declared.rules),
        **members,  # type: ignore[arg-type]  # each group under its own name
    )


def as_written(twin_type: TwinType) -> TwinType:
    """Return a type without what only a resolved one states: ancestors, and where members come from."""

    def own(members: tuple[MemberT, ...]) -> tuple[MemberT, ...]:
        return tuple(replace(member, inherited_from="") if member.inherited_from else member for member in members)

    return replace(
        twin_type,
        channels=own(twin_type.channels),
        properties=own(twin_type.properties),
        commands=own(twin_type.commands),
        relationships=own(twin_type.relationships),
        ancestors=(),
    )


class _Clash:
    """Gathers what does not narrow."""

    def __init__(self, declared: TwinType, base: TwinType) -> None:
        self._declared = declared
        self._base = base
        self._found: list[FieldViolation] = []

    def say(self, wrong: bool, field: str, mine: object, theirs: object, rule: str) -> None:
        """Note that `mine` breaks `rule` against `theirs`."""
        if wrong:
            text = f"{mine} of {self._declared.reference} {rule} {theirs} of {self._base.reference}, which it extends"
            self._found.append(FieldViolation(field=f"twin_type.{field}", description=text))

    def end(self) -> None:
        """Raise what was gathered."""
        if self._found:
            first, more = self._found[0], len(self._found) - 1
            text = f"{first.field}: {first.description}" + (f" (and {more} more)" if more else "")
            raise InvalidArgument(text, field_violations=self._found)


Narrow = Callable[[MemberT, MemberT, str, _Clash], MemberT]


def _merged(
    mine: Sequence[MemberT], theirs: Sequence[MemberT], base: str, group: str, clash: _Clash, narrow: Narrow[MemberT]
) -> tuple[MemberT, ...]:
    places = {member.name: i for i, member in enumerate(mine)}
    found: list[MemberT] = []
    for member in theirs:
        place = places.pop(member.name, None)
        if place is None:
            found.append(replace(member, inherited_from=member.inherited_from or base))
        else:
            found.append(narrow(mine[place], member, f"{group}[{place}]", clash))
    found.extend(member for member in mine if member.name in places)
    return tuple(found)


def _channel(mine: ChannelSpec, theirs: ChannelSpec, at: str, clash: _Clash) -> ChannelSpec:
    clash.say(mine.kind != theirs.kind, f"{at}.kind", mine.kind.name, theirs.kind.name, "is not the kind")
    _same_unit(mine.unit, theirs.unit, at, clash)
    low = _bound(mine.min_value, theirs.min_value, f"{at}.min_value", clash, upper=False)
    high = _bound(mine.max_value, theirs.max_value, f"{at}.max_value", clash)
    other = bool(mine.set_command and theirs.set_command and mine.set_command != theirs.set_command)
    clash.say(other, f"{at}.set_command", quoted(mine.set_command), quoted(theirs.set_command), "is not")
    stages = mine.disabled_stages or theirs.disabled_stages
    checks = ", ".join(stage.name.lower() for stage in stages if stage not in theirs.disabled_stages)
    clash.say(bool(checks), f"{at}.disabled_stages", checks, "those", "switches checks off beyond")
    banded = mine.deadband is not None or mine.deadband_percent is not None
    return replace(
        mine,
        unit=mine.unit or theirs.unit,
        description=mine.description or theirs.description,
        min_value=low,
        max_value=high,
        max_rate_per_s=_bound(mine.max_rate_per_s, theirs.max_rate_per_s, f"{at}.max_rate_per_s", clash),
        expected_interval_us=mine.expected_interval_us or theirs.expected_interval_us,
        stuck_after_us=_span(mine.stuck_after_us, theirs.stuck_after_us, f"{at}.stuck_after", clash),
        spike_threshold=_least(mine.spike_threshold, theirs.spike_threshold, f"{at}.spike_threshold", clash),
        tolerance=_least(mine.tolerance, theirs.tolerance, f"{at}.tolerance", clash),
        controllable=mine.controllable or theirs.controllable,
        set_command=mine.set_command or theirs.set_command,
        upper_limit=_bound(mine.upper_limit, theirs.upper_limit, f"{at}.upper_limit", clash),
        deadband=mine.deadband if banded else theirs.deadband,
        deadband_percent=mine.deadband_percent if banded else theirs.deadband_percent,
        max_silence_us=mine.max_silence_us or theirs.max_silence_us,
        disabled_stages=stages,
        retention_class=mine.retention_class or theirs.retention_class,
        inherited_from="",
    )


def _value_spec(mine: SpecT, theirs: SpecT, at: str, clash: _Clash) -> SpecT:
    kind = mine.kind or theirs.kind
    # An argument without a kind takes anything, and a kind narrows that; a property without one lives elsewhere.
    other = kind != theirs.kind and (bool(theirs.kind) or isinstance(mine, PropertySpec))
    clash.say(other, f"{at}.kind", kind.name, theirs.kind.name, "is not the kind")
    _same_unit(mine.unit, theirs.unit, at, clash)
    extra = [value for value in mine.allowed if not any(same_value(value, other) for other in theirs.allowed)]
    wider = bool(theirs.allowed and extra)
    clash.say(wider, f"{at}.allowed_values", shown_values(tuple(extra)), shown_values(theirs.allowed), "is not among")
    return replace(
        mine,
        kind=kind,
        unit=mine.unit or theirs.unit,
        description=mine.description or theirs.description,
        required=mine.required or theirs.required,
        min_value=_bound(mine.min_value, theirs.min_value, f"{at}.min_value", clash, upper=False),
        max_value=_bound(mine.max_value, theirs.max_value, f"{at}.max_value", clash),
        allowed=mine.allowed or theirs.allowed,
        default=theirs.default if mine.default is None else mine.default,
    )


def _command(mine: CommandSpec, theirs: CommandSpec, at: str, clash: _Clash) -> CommandSpec:
    """Merge two commands; a caller who knows the base's states nothing else than before."""
    args: list[ArgumentSpec] = []
    places = {arg.name: i for i, arg in enumerate(mine.args)}
    for arg in theirs.args:
        place = places.pop(arg.name, None)
        args.append(arg if place is None else _value_spec(mine.args[place], arg, f"{at}.args[{place}]", clash))
    args.extend(arg for arg in mine.args if arg.name in places)
    merged = replace(
        mine,
        description=mine.description or theirs.description,
        required_args=tuple(dict.fromkeys((*theirs.required_args, *mine.required_args))),
        args=tuple(args),
        inherited_from="",
    )
    before = {*theirs.required_args, *(arg.name for arg in theirs.args if theirs.requires(arg))}
    named = {*merged.required_args, *(arg.name for arg in merged.args if merged.requires(arg))}
    defaulted = {arg.name for arg in merged.args if arg.default is not None}
    new = sorted(named - defaulted - before)
    clash.say(bool(new), f"{at}.args", ", ".join(map(quoted, new)), "the command", "is required beyond what is by")
    return merged


def _relationship(
    mine: RelationshipSpec, theirs: RelationshipSpec, at: str, clash: _Clash, is_a: IsA
) -> RelationshipSpec:
    target = mine.target_twin_type_id or theirs.target_twin_type_id
    other = bool(theirs.target_twin_type_id) and not is_a(target, theirs.target_twin_type_id)
    clash.say(
        other,
        f"{at}.target_twin_type_id",
        quoted(target),
        quoted(theirs.target_twin_type_id),
        "is not known to be one of",
    )
    wider = bool(theirs.max_count) and mine.max_count > theirs.max_count
    clash.say(wider, f"{at}.max_count", mine.max_count, theirs.max_count, "is more than")
    lax = mine.allow_missing_target and not theirs.allow_missing_target
    clash.say(lax, f"{at}.allow_missing_target", "true", "false", "is laxer than")
    return replace(
        mine,
        description=mine.description or theirs.description,
        target_twin_type_id=target,
        max_count=mine.max_count or theirs.max_count,
        inherited_from="",
    )


def _same_unit(mine: str, theirs: str, at: str, clash: _Clash) -> None:
    differs = mine not in ("", theirs)
    clash.say(differs, f"{at}.unit", quoted(mine), quoted(theirs), "is not spelt as")


def _bound(mine: float | None, theirs: float | None, at: str, clash: _Clash, *, upper: bool = True) -> float | None:
    """Return the narrower of two bounds, the base's where none is stated; a wider one clashes."""
    if mine is None or theirs is None:
        return theirs if mine is None else mine
    clash.say(mine > theirs if upper else mine < theirs, at, f"{mine:g}", f"{theirs:g}", "is wider than")
    return mine


def _least(mine: float, theirs: float, at: str, clash: _Clash) -> float:
    """The same of a number of which 0 means that nothing is stated."""
    clash.say(bool(theirs) and mine > theirs, at, f"{mine:g}", f"{theirs:g}", "is wider than")
    return mine or theirs


def _span(mine: int, theirs: int, at: str, clash: _Clash) -> int:
    clash.say(bool(theirs) and mine > theirs, at, f"{mine / 1e6:g} s", f"{theirs / 1e6:g} s", "is wider than")
    return mine or theirs


def path_between(edges: dict[str, set[str]], start: str, goal: str) -> list[str] | None:
    """Return ids from `start` to `goal` along who extends whom in any version, or None; both ends included."""
    came: dict[str, str] = {start: ""}
    queue = [start]
    for here in queue:
        if here == goal:
            path = [here]
            while came[path[-1]]:
                path.append(came[path[-1]])
            return path[::-1]
        for onward in sorted(edges.get(here, ())):
            if onward not in came:
                came[onward] = here
                queue.append(onward)
    return None
