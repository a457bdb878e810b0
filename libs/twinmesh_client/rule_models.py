"""Alarm rules as people write them: in Python by keywords, in a file by the same names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

from twinmesh_client.durations import Span, span_us
from twinmesh_core.errors import invalid_field
from twinmesh_core.rules import (
    NAMED_SEVERITIES,
    Absence,
    AlarmRule,
    NotConverging,
    PredictedCrossing,
    RateOfChange,
    Threshold,
)

_KINDS: Final[Mapping[str, type[Any]]] = {
    "threshold": Threshold,
    "absence": Absence,
    "rate": RateOfChange,
    "not_converging": NotConverging,
    "prediction": PredictedCrossing,
}
_SPANS: Final = ("after", "window", "within")


def rule(
    name: str,
    severity: int | str,
    *,
    threshold: Mapping[str, Any] | None = None,
    absence: Mapping[str, Any] | None = None,
    rate: Mapping[str, Any] | None = None,
    not_converging: Mapping[str, Any] | None = None,
    prediction: Mapping[str, Any] | None = None,
    expression: str = "",
    on_delay: Span | None = None,
    off_delay: Span | None = None,
    message: str = "",
    description: str = "",
) -> AlarmRule:
    """Return one alarm rule of a twin type; exactly one of the six conditions.

    Args:
        name: ``[a-z][a-z0-9_]*``, unique in the type.
        severity: 1 to 1,000, or critical, high, medium, low.
        threshold: channel, and of low_low, low, high, high_high at least one; hysteresis, outer_severity, unit.
        absence: channel, after.
        rate: channel, max_rise_per_s and / or max_fall_per_s; window, hysteresis_per_s, unit.
        not_converging: after; channel.
        prediction: channel, low and / or high; quantile, within, model_id, hysteresis, unit.
        expression: a condition in CEL.
        on_delay: how long the condition must hold, e.g. ``10s``.
        off_delay: how long it must be over.
        message: with placeholders such as ``{value}``.
        description: for people.
    """
    given = {
        "threshold": threshold,
        "absence": absence,
        "rate": rate,
        "not_converging": not_converging,
        "prediction": prediction,
    }
    conditions = {kind: _condition(kind, body) for kind, body in given.items() if body is not None}
    return AlarmRule(
        name=name,
        severity=_severity(severity),
        expression=expression,
        on_delay_us=span_us(on_delay, "on_delay") if on_delay is not None else 0,
        off_delay_us=span_us(off_delay, "off_delay") if off_delay is not None else 0,
        message=message,
        description=description,
        **conditions,
    )


def rule_document(value: AlarmRule) -> dict[str, Any]:
    """Return a rule as `rule` takes it; what is not set is left out."""
    found: dict[str, Any] = {"name": value.name, "severity": value.severity}
    for kind in _KINDS:
        condition = getattr(value, kind)
        if condition is not None:
            found[kind] = _plain(condition)
    found |= {
        "expression": value.expression,
        "on_delay": f"{value.on_delay_us}us" if value.on_delay_us else "",
        "off_delay": f"{value.off_delay_us}us" if value.off_delay_us else "",
        "message": value.message,
        "description": value.description,
    }
    return {name: part for name, part in found.items() if part != ""}


def _condition(kind: str, body: Mapping[str, Any]) -> Any:
    names = [field.name for field in fields(_KINDS[kind])]
    shown = [name.removesuffix("_us") for name in names]
    unknown = sorted(body.keys() - set(shown))
    if unknown:
        raise invalid_field(f"{kind}.{unknown[0]}", f"is not known; there are {', '.join(shown)}")
    spans = {f"{name}_us": span_us(body[name], f"{kind}.{name}") for name in _SPANS if name in body}
    try:
        return _KINDS[kind](**spans, **{name: part for name, part in body.items() if name not in _SPANS})
    except TypeError:
        needed = "after" if kind == "not_converging" else "channel, after" if kind == "absence" else "channel"
        raise invalid_field(kind, f"needs {needed}") from None


def _plain(condition: Any) -> dict[str, Any]:
    found = {}
    for field in fields(condition):
        value = getattr(condition, field.name)
        if value == field.default:
            continue
        span = field.name.endswith("_us")
        found[field.name.removesuffix("_us")] = f"{value}us" if span else value
    return found


def _severity(severity: int | str) -> int:
    if isinstance(severity, int):
        return severity
    found = NAMED_SEVERITIES.get(severity.upper())
    if found is None:
        raise invalid_field("severity", f"{severity!r} is neither a number nor critical, high, medium or low")
    return found
