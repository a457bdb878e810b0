"""Conditions of writes: a small list of comparisons with a twin's state, made by the fold at the write's own offset.

So of any number of racers that demand the same state exactly one finds it; the others are told what they met instead.
What is absent meets no comparison, NOT_EQUAL included: a condition never holds by ignorance.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from twinmesh_core.errors import Conflict, FailedPrecondition, Reason, invalid_field
from twinmesh_core.ids import quoted
from twinmesh_core.quality import Quality
from twinmesh_core.registry import ChannelSpec
from twinmesh_statesync.domain.twin_state import TwinState, require_channel
from twinmesh_statesync.domain.values import Value, as_kind, values_agree

MAX_CONDITIONS: Final = 16
_MAX_STATE_TEXT: Final = 900
"""Characters of the current state in an error: its details travel as headers, which are small."""
_MAX_TEXT: Final = 120


class ConditionFacet(IntEnum):
    """What is looked at; numbers equal ``twinmesh.type.v1.ConditionFacet``."""

    UNSPECIFIED = 0
    REPORTED = 1
    DESIRED = 2
    PREDICTED = 3
    DELTA = 4
    CONNECTIVITY = 5


class ConditionOperator(IntEnum):
    """How it is compared; numbers equal ``twinmesh.type.v1.ConditionOperator``."""

    UNSPECIFIED = 0
    EQUAL = 1
    NOT_EQUAL = 2
    LESS = 3
    LESS_OR_EQUAL = 4
    GREATER = 5
    GREATER_OR_EQUAL = 6
    PRESENT = 7
    ABSENT = 8

    @property
    def compares(self) -> bool:
        """Whether it needs a value."""
        return ConditionOperator.EQUAL <= self <= ConditionOperator.GREATER_OR_EQUAL

    @property
    def orders(self) -> bool:
        """Whether it needs a number."""
        return ConditionOperator.LESS <= self <= ConditionOperator.GREATER_OR_EQUAL


_SIGNS: Final = {
    ConditionOperator.EQUAL: "=",
    ConditionOperator.NOT_EQUAL: "!=",
    ConditionOperator.LESS: "<",
    ConditionOperator.LESS_OR_EQUAL: "<=",
    ConditionOperator.GREATER: ">",
    ConditionOperator.GREATER_OR_EQUAL: ">=",
    ConditionOperator.PRESENT: "is present",
    ConditionOperator.ABSENT: "is absent",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StateCondition:
    """One comparison.

    Attributes:
        facet: what is looked at.
        channel: of which channel; "" for CONNECTIVITY, and for DELTA of any channel.
        operator: how.
        value: what it is compared with, in `unit`; None for PRESENT and ABSENT.
        unit: the channel's own, as the type wrote it; "" = the channel's own, whatever that is.
    """

    facet: ConditionFacet
    operator: ConditionOperator
    channel: str = ""
    value: Value | None = None
    unit: str = ""

    def __str__(self) -> str:
        subject = f"{self.facet.name.lower()}{f'[{self.channel}]' if self.channel else ''}"
        return f"{subject} {_SIGNS.get(self.operator, '?')}{'' if self.value is None else f' {self.value}'}"


def check_conditions(state: TwinState, conditions: Iterable[StateCondition]) -> None:
    """Return if all of them hold.

    Raises:
        FailedPrecondition: CONDITION_NOT_MET, naming the first that does not, with the current state as metadata
            ``current``; INCOMPATIBLE_UNIT, if the channel's unit is not the one its value was converted to.
        InvalidArgument: a value is of another kind than its channel.
        NotFound: CHANNEL_NOT_FOUND.
    """
    conditions = tuple(conditions)
    for i, condition in enumerate(conditions):
        if not _holds(state, condition, f"conditions[{i}]"):
            channels = [c.channel for c in conditions if c.channel]
            raise FailedPrecondition(
                f"conditions[{i}]: {condition} does not hold for {quoted(state.twin.twin_id)}; look at metadata "
                '"current", decide again and send it anew.',
                reason=Reason.CONDITION_NOT_MET,
                metadata={"condition": str(condition)[:_MAX_TEXT], "current": current_state(state, channels)},
            )


def check_revision(
    state: TwinState, facet: str, current: int, if_revision: int | None, channels: Iterable[str]
) -> None:
    """Return if a facet has the revision that a caller demands; raises `Conflict` with the current state."""
    if if_revision is not None and if_revision != current:
        raise Conflict(
            f"The {facet} facet of {quoted(state.twin.twin_id)} is at revision {current}, not {if_revision}; "
            "read the replica, decide again and send its revision.",
            metadata={"current_revision": str(current), "current": current_state(state, channels)},
        )


def check_unit(spec: ChannelSpec, unit: str, field: str) -> None:
    """Return unless a value was converted to a unit that the channel no longer has; raises `FailedPrecondition`."""
    if unit and unit != spec.unit:
        raise FailedPrecondition(
            f"{field}: channel {quoted(spec.name)} is in {quoted(spec.unit)} by now, and the value was converted to "
            f"{quoted(unit)}; send it again.",
            reason=Reason.INCOMPATIBLE_UNIT,
        )


def current_state(state: TwinState, channels: Iterable[str]) -> str:
    """Return as JSON what a writer needs to decide again: revisions, connectivity, and the channels it wrote about.

    Channels that do not fit into an error's details are left out; ``GetReplica`` has them.
    """
    replica = state.replica
    told: dict[str, Any] = {}
    answer = {
        "revisions": {
            "reported": replica.reported.revision,
            "desired": replica.desired.revision,
            "predicted": replica.predicted.revision,
        },
        "connectivity": replica.connectivity.name,
        "channels": told,
    }
    text = _compact(answer)
    for channel in dict.fromkeys(channels):
        told[channel] = _channel_state(state, channel)
        longer = _compact(answer)
        if len(longer) > _MAX_STATE_TEXT:
            break
        text = longer
    return text


def _channel_state(state: TwinState, channel: str) -> dict[str, Any]:
    fact = state.replica.reported.values.get(channel)
    target = state.replica.desired.values.get(channel)
    found: dict[str, Any] = {}
    if fact is not None:
        found["reported"] = _short(fact.value)
    if target is not None:
        found["desired"] = _short(target.value)
        found["state"] = target.state.name
        found["offset"] = target.offset
    return found


def _short(value: Value) -> Value:
    return f"{value[:_MAX_TEXT]}…" if isinstance(value, str) and len(value) > _MAX_TEXT else value


def _compact(answer: Any) -> str:
    return json.dumps(answer, separators=(",", ":"))


def _holds(state: TwinState, condition: StateCondition, field: str) -> bool:
    if condition.facet is ConditionFacet.CONNECTIVITY:
        name = state.replica.connectivity.name
        return _compared(condition, None if name == "UNSPECIFIED" else name, 0.0, field)
    if condition.facet is ConditionFacet.DELTA:
        if condition.channel:
            require_channel(state, condition.channel)
        is_open = any(condition.channel in ("", item.channel) for item in state.replica.delta)
        return _present(condition, is_open, field)
    if condition.facet is ConditionFacet.UNSPECIFIED:
        raise invalid_field(f"{field}.facet", "must be REPORTED, DESIRED, PREDICTED, DELTA or CONNECTIVITY")
    spec = require_channel(state, condition.channel)
    if condition.facet is ConditionFacet.PREDICTED:
        return _present(condition, any(spec.name == c for c, _ in state.replica.predicted.predictions), field)
    check_unit(spec, condition.unit, field)
    wanted = condition
    if condition.operator.compares:
        if condition.value is None:
            raise invalid_field(f"{field}.value", "is required for a comparison")
        value = as_kind(condition.value, spec.kind, f"{field}.value")
        wanted = StateCondition(facet=condition.facet, operator=condition.operator, channel=spec.name, value=value)
    if condition.facet is ConditionFacet.DESIRED:
        target = state.replica.desired.values.get(spec.name)
        return _compared(wanted, None if target is None else target.value, 0.0, field)
    fact = state.replica.reported.values.get(spec.name)
    if fact is not None and fact.quality is Quality.BAD and condition.operator.compares:
        return False
    return _compared(wanted, None if fact is None else fact.value, spec.tolerance, field)


def _present(condition: StateCondition, there: bool, field: str) -> bool:
    if condition.operator is ConditionOperator.PRESENT:
        return there
    if condition.operator is ConditionOperator.ABSENT:
        return not there
    raise invalid_field(f"{field}.operator", f"must be PRESENT or ABSENT for {condition.facet.name}")


def _compared(condition: StateCondition, found: Value | None, tolerance: float, field: str) -> bool:
    operator, wanted = condition.operator, condition.value
    if not operator.compares:
        return _present(condition, found is not None, field)
    if found is None or wanted is None:
        return False
    if operator is ConditionOperator.EQUAL:
        return values_agree(wanted, found, tolerance)
    if operator is ConditionOperator.NOT_EQUAL:
        return not values_agree(wanted, found, tolerance)
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (found, wanted))
    if not numeric or isinstance(found, str) or isinstance(wanted, str):
        raise invalid_field(f"{field}.operator", f"{operator.name} is for numbers; use EQUAL or NOT_EQUAL")
    return {
        ConditionOperator.LESS: found < wanted,
        ConditionOperator.LESS_OR_EQUAL: found <= wanted,
        ConditionOperator.GREATER: found > wanted,
        ConditionOperator.GREATER_OR_EQUAL: found >= wanted,
    }[operator]
