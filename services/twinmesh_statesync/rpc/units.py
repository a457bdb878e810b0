"""Values that callers give in another unit than their channel's: converted before an entry is written.

The fold must not depend on tables outside of it, so an entry holds values in the channel's own unit and names that
unit; the fold refuses it should the channel's unit have become another in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace

from twinmesh_core.errors import invalid_field
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.registry import ChannelSpec
from twinmesh_core.units import TABLE, Units
from twinmesh_core.values import is_number
from twinmesh_statesync.domain.conditions import StateCondition
from twinmesh_statesync.domain.entries import SetDesired
from twinmesh_statesync.domain.events import Prediction
from twinmesh_statesync.domain.twin_state import TwinState
from twinmesh_statesync.domain.values import Value

_NUMBERS = (ChannelKind.GAUGE, ChannelKind.COUNTER, ChannelKind.STATE)


class UnitConversions:
    """Converts what callers send to the units of a twin's channels.

    Args:
        units: which units there are.
    """

    def __init__(self, units: Units = TABLE) -> None:
        self._units = units

    async def targets(self, state: TwinState, action: SetDesired) -> SetDesired:
        """Return the action with values, tolerances and conditions in the channels' own units.

        Raises:
            InvalidArgument: INCOMPATIBLE_UNIT, or a unit beside a value that is no number.
        """
        conditions = await self.conditions(state, action.conditions)
        if not action.units:
            return replace(action, conditions=conditions)
        await self._learn((*action.units.values(), *(spec.unit for spec in state.specs.values())))
        values, units, tolerances = dict(action.values), {}, dict(action.tolerances)
        for channel, unit in action.units.items():
            spec = state.specs.get(channel)
            if spec is None:
                continue  # the fold refuses it, with the names of the channels that there are
            field = f"values[{channel}]"
            values[channel] = self._value(spec, values[channel], unit, field)
            units[channel] = spec.unit
            if channel in tolerances:
                steps = self._units.conversion(unit, spec.unit, difference=True, field=f"units[{channel}]")
                tolerances[channel] = steps.apply(tolerances[channel])
        return replace(action, values=values, units=units, tolerances=tolerances, conditions=conditions)

    async def conditions(self, state: TwinState, conditions: tuple[StateCondition, ...]) -> tuple[StateCondition, ...]:
        """Return conditions with their values in the channels' own units; raises as `targets`."""
        if not any(condition.unit for condition in conditions):
            return conditions
        await self._learn((*(c.unit for c in conditions), *(spec.unit for spec in state.specs.values())))
        return tuple(self._condition(state, c, f"conditions[{i}]") for i, c in enumerate(conditions))

    async def arguments(
        self, state: TwinState, name: str, args: Mapping[str, Value], units: Mapping[str, str]
    ) -> dict[str, Value]:
        """Return the arguments of a command in the units that the twin's type gives them.

        Raises:
            InvalidArgument: INCOMPATIBLE_UNIT, or a unit of what is no numeric argument of the call.
        """
        spec = state.twin_type.command(name)
        targets = {arg.name: arg.unit for arg in spec.args if arg.kind.numeric and arg.name in args} if spec else {}
        for wrong in sorted(units.keys() - targets.keys()):
            has = ", ".join(sorted(targets)) or "none"
            raise invalid_field(f"arg_units[{wrong}]", f"{wrong!r} is no numeric argument of this call; it has: {has}")
        await self._learn((*units.values(), *targets.values()))
        converted = dict(args)
        for arg, unit in units.items():
            found = self._units.conversion(unit, targets[arg], field=f"arg_units[{arg}]")
            value = args[arg]
            if is_number(value) and not found.identity:
                converted[arg] = found.apply(float(value))
        return converted

    async def prediction(self, state: TwinState, prediction: Prediction) -> Prediction:
        """Return a prediction in its channel's own unit; raises `InvalidArgument` (INCOMPATIBLE_UNIT)."""
        spec = state.specs.get(prediction.channel)
        if spec is None or prediction.unit in ("", spec.unit):
            return prediction
        await self._learn((prediction.unit, spec.unit))
        found = self._units.conversion(prediction.unit, spec.unit, field="prediction.unit")
        if found.identity:
            return prediction
        return replace(prediction, unit=spec.unit, values=tuple(map(found.apply, prediction.values)))

    def _condition(self, state: TwinState, condition: StateCondition, field: str) -> StateCondition:
        spec = state.specs.get(condition.channel)
        if not condition.unit or condition.value is None or spec is None:
            return replace(condition, unit="")
        return replace(condition, value=self._value(spec, condition.value, condition.unit, field), unit=spec.unit)

    def _value(self, spec: ChannelSpec, value: Value, unit: str, field: str) -> Value:
        if spec.kind not in _NUMBERS or isinstance(value, bool | str):
            raise invalid_field(field, f"a unit is for numbers; leave {unit!r} out")
        found = self._units.conversion(unit, spec.unit, field=field.replace("values", "units"))
        return value if found.identity else found.apply(float(value))

    async def _learn(self, codes: Iterable[str]) -> None:
        unlearnt = self._units.unlearnt(codes)
        if unlearnt:
            await asyncio.to_thread(self._units.learn, unlearnt)
