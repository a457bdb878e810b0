"""Conditions of writes, as people say them: ``reported("valve") == "closed"``, ``desired("speed").absent``.

The server compares at the write's own place in the log. What is absent meets no comparison, not even `!=`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from twinmesh.type.v1 import condition_pb2
from twinmesh_client.values import to_proto
from twinmesh_core.errors import TwinmeshError


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison with a twin's state; made by `reported`, `desired`, `predicted`, `delta` or `connectivity`."""

    message: condition_pb2.StateCondition

    def __bool__(self) -> bool:
        raise TypeError("a condition is compared by the server; pass it as when=[...], and several as a list")


class Subject:
    """What a condition is about: compare it by ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``; or `present`, or `absent`.

    Args:
        facet: which part of the twin.
        channel: of which channel.
        unit: of the numbers it is compared with; "" = the channel's own.
    """

    __hash__ = None  # type: ignore[assignment]  # == makes a condition, so it is no key

    def __init__(self, facet: condition_pb2.ConditionFacet.ValueType, channel: str = "", unit: str = "") -> None:
        self._facet = facet
        self._channel = channel
        self._unit = unit

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]  # it is a condition, not a truth
        return self._compared(condition_pb2.CONDITION_OPERATOR_EQUAL, other)

    def __ne__(self, other: object) -> Condition:  # type: ignore[override]  # it is a condition, not a truth
        return self._compared(condition_pb2.CONDITION_OPERATOR_NOT_EQUAL, other)

    def __lt__(self, other: float) -> Condition:
        return self._compared(condition_pb2.CONDITION_OPERATOR_LESS, other)

    def __le__(self, other: float) -> Condition:
        return self._compared(condition_pb2.CONDITION_OPERATOR_LESS_OR_EQUAL, other)

    def __gt__(self, other: float) -> Condition:
        return self._compared(condition_pb2.CONDITION_OPERATOR_GREATER, other)

    def __ge__(self, other: float) -> Condition:
        return self._compared(condition_pb2.CONDITION_OPERATOR_GREATER_OR_EQUAL, other)

    @property
    def present(self) -> Condition:
        """That there is one."""
        return self._made(condition_pb2.CONDITION_OPERATOR_PRESENT)

    @property
    def absent(self) -> Condition:
        """That there is none."""
        return self._made(condition_pb2.CONDITION_OPERATOR_ABSENT)

    def _compared(self, operator: condition_pb2.ConditionOperator.ValueType, value: object) -> Condition:
        found = self._made(operator)
        found.message.value.CopyFrom(to_proto(value, "when"))
        found.message.unit = self._unit
        return found

    def _made(self, operator: condition_pb2.ConditionOperator.ValueType) -> Condition:
        return Condition(condition_pb2.StateCondition(facet=self._facet, channel=self._channel, operator=operator))


def reported(channel: str, unit: str = "") -> Subject:
    """Return the newest fact of a channel; one of quality BAD meets no comparison. Numbers agree within tolerance."""
    return Subject(condition_pb2.CONDITION_FACET_REPORTED, channel, unit)


def desired(channel: str, unit: str = "") -> Subject:
    """Return the target of a channel."""
    return Subject(condition_pb2.CONDITION_FACET_DESIRED, channel, unit)


def predicted(channel: str) -> Subject:
    """Return the predictions of a channel, by any model: present or absent."""
    return Subject(condition_pb2.CONDITION_FACET_PREDICTED, channel)


def delta(channel: str = "") -> Subject:
    """Return the open difference of a channel, or of any channel: present or absent."""
    return Subject(condition_pb2.CONDITION_FACET_DELTA, channel)


def connectivity() -> Subject:
    """Return the twin's connectivity: ``connectivity() == "ONLINE"``."""
    return Subject(condition_pb2.CONDITION_FACET_CONNECTIVITY)


def messages(conditions: Iterable[Condition]) -> list[condition_pb2.StateCondition]:
    """Return conditions as the wire carries them."""
    return [condition.message for condition in conditions]


def current_state(error: TwinmeshError) -> dict[str, Any]:
    """Return what a conditional write met instead, from its error: revisions, connectivity, the channels in question.

    Empty when the error tells none. Example: ``{"revisions": {"desired": 4, ...}, "connectivity": "ONLINE",
    "channels": {"speed": {"reported": 40.0, "desired": 55.0, "state": "PENDING", "offset": 117}}}``.
    """
    text = error.metadata.get("current", "")
    found: dict[str, Any] = json.loads(text) if text else {}
    return found
