"""What is done to the rules of a type before it is written: limits converted, expressions compiled once."""

from __future__ import annotations

from dataclasses import replace

from twinmesh_core.errors import FieldViolation, InvalidArgument
from twinmesh_core.ids import quoted
from twinmesh_core.registry import TwinType
from twinmesh_core.rules import in_channel_units
from twinmesh_core.units import Units
from twinmesh_statesync.domain.alarms.rulebook import expression_problems

_AT = "twin_type.rules"


def limit_units(twin_type: TwinType) -> set[str]:
    """Return the units that limits are given in."""
    conditions = [c for rule in twin_type.rules for c in (rule.threshold, rule.rate, rule.prediction)]
    return {condition.unit for condition in conditions if condition is not None and condition.unit}


def with_usable_rules(twin_type: TwinType, units: Units) -> TwinType:
    """Return the type with limits in the units of their channels; the rest of its rules is checked with the type.

    Raises:
        InvalidArgument: INCOMPATIBLE_UNIT for a limit, or INVALID_FIELD for an expression, naming the rule and what
            would be right.
    """
    if not twin_type.rules:
        return twin_type
    channels = {channel.name: channel for channel in twin_type.channels}
    rules = in_channel_units(twin_type.rules, channels, units, _AT)
    problems = [
        FieldViolation(
            field=f"{_AT}[{i}].expression", description=f"rule {quoted(rules[i].name)}: the expression {problem}"
        )
        for i, problem in expression_problems(rules, channels).items()
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InvalidArgument(f"{problems[0].field}: {problems[0].description}{more}", field_violations=tuple(problems))
    return replace(twin_type, rules=rules)
