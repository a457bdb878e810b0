"""One value of a channel, as plain Python: what may be desired, and when two values count as equal."""

from __future__ import annotations

import json
import math
from typing import Final

from twinmesh_core.errors import invalid_field
from twinmesh_core.immutable import frozen_for_checkers
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.quality import Quality
from twinmesh_core.registry import KeptUnit
from twinmesh_core.values import Json, Value

__all__ = ["Json", "ReportedValue", "Value", "as_kind", "values_agree"]
_INT64: Final = 1 << 63
_WANTED: Final = {
    ChannelKind.GAUGE: "a number (double_value)",
    ChannelKind.COUNTER: "a number (double_value)",
    ChannelKind.STATE: "a whole number (int64_value)",
    ChannelKind.BOOL: "true or false (bool_value)",
    ChannelKind.TEXT: "a text (text_value)",
    ChannelKind.JSON: "a JSON document (json_value)",
}


def as_kind(value: Value, kind: ChannelKind, field: str) -> Value:
    """Return `value` as the Python type that channels of `kind` hold; a whole number fits either kind of number.

    Raises:
        InvalidArgument: the value is of another kind, or is not finite; names `field` and what is wanted.
    """
    found = _converted(value, kind)
    if found is None:
        raise invalid_field(field, f"must be {_WANTED.get(kind, 'a value')} for this channel")
    return found


def _converted(value: Value, kind: ChannelKind) -> Value | None:
    if kind is ChannelKind.BOOL:
        return value if isinstance(value, bool) else None
    if isinstance(value, bool):
        return None
    if kind in (ChannelKind.GAUGE, ChannelKind.COUNTER):
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    if kind is ChannelKind.STATE:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return int(value) if whole and -_INT64 <= int(value) < _INT64 else None
    if kind is ChannelKind.TEXT:
        return value if isinstance(value, str) and not isinstance(value, Json) else None
    if kind is ChannelKind.JSON and isinstance(value, str) and _parsed(value) is not None:
        return Json(value)
    return None


def values_agree(desired: Value, reported: Value, tolerance: float) -> bool:
    """Whether a target counts as met: numbers within `tolerance` (in the channel's unit), all else when equal.

    JSON documents are compared by content: spacing and the order of keys do not matter, arrays are whole values, and
    numbers agree within `tolerance`.
    """
    if isinstance(desired, Json) and isinstance(reported, Json):
        return desired == reported or _same_document(desired, reported, tolerance)
    if isinstance(desired, bool) or isinstance(reported, bool):
        return desired is reported
    if isinstance(desired, int | float) and isinstance(reported, int | float):
        return desired == reported or abs(desired - reported) <= tolerance
    return desired == reported


def _same_document(left: Json, right: Json, tolerance: float) -> bool:
    one, other = _parsed(left), _parsed(right)
    if one is None or other is None:
        return False
    pairs: list[tuple[object, object]] = [(one[0], other[0])]
    while pairs:
        a, b = pairs.pop()
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return False
            pairs += [(value, b[key]) for key, value in a.items()]
        elif isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return False
            pairs += zip(a, b, strict=True)
        elif isinstance(a, bool) or isinstance(b, bool) or a is None or b is None:
            # To Python true equals 1; to JSON it does not.
            if a is not b:
                return False
        elif isinstance(a, int | float) and isinstance(b, int | float):
            if a != b and abs(a - b) > tolerance:
                return False
        elif a != b:
            return False
    return True


def _parsed(text: str) -> tuple[object] | None:
    try:
        return (json.loads(text, parse_constant=_no_constant, parse_float=_finite),)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number beyond all bounds")
    return number


@frozen_for_checkers(frozen=True, slots=True)
class ReportedValue:
    """The newest fact of one channel.

    Positional on purpose: tens of thousands of these are built per second.

    Attributes:
        channel: the channel.
        value: in the channel's unit.
        quality: how far it can be trusted.
        event_time_unix_us: when it was true, by the device's clock.
        offset: the entry that brought it.
    """

    channel: str
    value: Value
    quality: Quality
    event_time_unix_us: int
    offset: int

    def rescaled(self, kept: KeptUnit) -> ReportedValue:
        """Return the fact, measured in the unit of its history, in the unit of the type."""
        value = float(self.value) * kept.scale + kept.offset if isinstance(self.value, float) else self.value
        return ReportedValue(self.channel, value, self.quality, self.event_time_unix_us, self.offset)

    def corrects(self, current: ReportedValue) -> bool:
        """Whether this is of the same event time and says something else: the higher offset wins."""
        return self.event_time_unix_us == current.event_time_unix_us and (
            self.value != current.value or self.quality is not current.quality
        )

    def meets(self, desired: Value, tolerance: float) -> bool:
        """Whether this fact meets the target; a BAD value proves nothing and therefore never does."""
        return self.quality is not Quality.BAD and values_agree(desired, self.value, tolerance)
