"""Conditions of writes between protobuf and the domain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from twinmesh.type.v1 import condition_pb2
from twinmesh_statesync.domain.conditions import ConditionFacet, ConditionOperator, StateCondition
from twinmesh_statesync.rpc.mapping.values import value_from_message, value_to_message

_FACETS: Final = {int(facet): facet for facet in ConditionFacet}
_OPERATORS: Final = {int(operator): operator for operator in ConditionOperator}


def conditions_to_messages(conditions: Iterable[StateCondition]) -> list[condition_pb2.StateCondition]:
    """Return conditions as their messages."""
    return [
        condition_pb2.StateCondition(
            facet=condition_pb2.ConditionFacet.ValueType(condition.facet),
            channel=condition.channel,
            operator=condition_pb2.ConditionOperator.ValueType(condition.operator),
            value=None if condition.value is None else value_to_message(condition.value),
            unit=condition.unit,
        )
        for condition in conditions
    ]


def conditions_from_messages(
    messages: Iterable[condition_pb2.StateCondition], field: str = "conditions"
) -> tuple[StateCondition, ...]:
    """Return conditions as values; raises `InvalidArgument` for a value that holds none. Nothing else is checked."""
    return tuple(
        StateCondition(
            facet=_FACETS.get(message.facet, ConditionFacet.UNSPECIFIED),
            channel=message.channel,
            operator=_OPERATORS.get(message.operator, ConditionOperator.UNSPECIFIED),
            value=value_from_message(message.value, f"{field}[{i}].value") if message.HasField("value") else None,
            unit=message.unit,
        )
        for i, message in enumerate(messages)
    )
