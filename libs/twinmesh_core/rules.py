"""Alarm rules of a twin type: what they may say, and the errors that name the rule and the remedy.

A rule is part of a version of its type and never changes. Limits are kept in the unit of the rule's channel; whoever
takes them from a caller in another unit converts them first, see `in_channel_units`. The words of an expression are
checked where it can be compiled (state-sync); every fold comes to the same verdict without.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite
from typing import TYPE_CHECKING, Final, TypeVar

from twinmesh_core.errors import FieldViolation
from twinmesh_core.ids import name_violation, quoted
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.time import US_PER_DAY
from twinmesh_core.units import Conversion, Units

if TYPE_CHECKING:
    from twinmesh_core.registry import ChannelSpec

LimitedT = TypeVar("LimitedT", "Threshold", "PredictedCrossing")

MAX_RULES: Final = 100
MAX_DELAY_US: Final = 30 * US_PER_DAY
MAX_MESSAGE_BYTES: Final = 1_024
MAX_EXPRESSION_CHARACTERS: Final = 1_000
PLACEHOLDERS: Final = (
    "twin", "name", "rule", "channel", "value", "limit", "level", "unit", "severity", "attributes.NAME",
)  # fmt: skip
"""What a message may name in braces."""
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
BANDS: Final = (("CRITICAL", 900), ("HIGH", 667), ("MEDIUM", 334), ("LOW", 1))
"""Names of severities and where each begins; the name alone stands for `NAMED_SEVERITIES`."""
NAMED_SEVERITIES: Final[Mapping[str, int]] = {"CRITICAL": 950, "HIGH": 800, "MEDIUM": 500, "LOW": 200}


def severity_name(severity: int) -> str:
    """Return CRITICAL, HIGH, MEDIUM or LOW."""
    return next((name for name, least in BANDS if severity >= least), "LOW")


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A fact beyond a limit; the outer limits are for the same alarm at `outer_severity`.

    Attributes:
        channel: numbers only.
        low_low: below it, level LOW_LOW; None = no such limit. Likewise `low`, `high` and `high_high`.
        hysteresis: a level ends once the value is back behind its limit by more than this.
        outer_severity: severity at LOW_LOW and HIGH_HIGH; 0 = that of the rule.
        unit: of limits and hysteresis; "" = the channel's.
    """

    channel: str
    low_low: float | None = None
    low: float | None = None
    high: float | None = None
    high_high: float | None = None
    hysteresis: float = 0.0
    outer_severity: int = 0
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """No newer value of a channel for longer than `after_us` of arrival time."""

    channel: str
    after_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RateOfChange:
    """A change per second beyond a limit, over a window of event time.

    Attributes:
        channel: numbers only.
        max_rise_per_s: rising faster is level RISING; None = no bound.
        max_fall_per_s: falling faster (a positive number) is level FALLING; None = no bound.
        window_us: over which the change is measured; 0 = between successive values.
        hysteresis_per_s: the level ends once the rate is below the bound by more than this.
        unit: of the change; "" = the channel's.
    """

    channel: str
    max_rise_per_s: float | None = None
    max_fall_per_s: float | None = None
    window_us: int = 0
    hysteresis_per_s: float = 0.0
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotConverging:
    """A desired value that reported does not meet for longer than `after_us`; `channel` "" = any."""

    after_us: int
    channel: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedCrossing:
    """A prediction that crosses a limit within a horizon.

    Attributes:
        channel: what is predicted.
        low: below it, level LOW; None = no such limit. Likewise `high`.
        quantile: which one must cross, within (0, 1): with 0.9 and `high`, one in ten chances is enough.
        within_us: only steps that begin sooner than this after the prediction's `at`; 0 = all.
        model_id: only predictions of this model; "" = any.
        hysteresis: a level ends once the prediction is back behind its limit by more than this.
        unit: of limits and hysteresis; "" = the channel's.
    """

    channel: str
    low: float | None = None
    high: float | None = None
    quantile: float = 0.5
    within_us: int = 0
    model_id: str = ""
    hysteresis: float = 0.0
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmRule:
    """One rule: a condition (exactly one of the six is set), and how its alarm behaves.

    Attributes:
        name: unique in the type; also names the alarm of each twin.
        severity: 1 to 1,000.
        description: for people.
        message: template with the placeholders of `PLACEHOLDERS` in braces; "" = a sentence of the server's.
        on_delay_us: how long the condition must hold before the alarm is raised.
        off_delay_us: how long it must be over before the alarm returns to normal.
        expression: a CEL condition over the replica; "" = none.
    """

    name: str
    severity: int
    description: str = ""
    message: str = ""
    on_delay_us: int = 0
    off_delay_us: int = 0
    threshold: Threshold | None = None
    absence: Absence | None = None
    rate: RateOfChange | None = None
    not_converging: NotConverging | None = None
    prediction: PredictedCrossing | None = None
    expression: str = ""

    @property
    def channel(self) -> str:
        """The channel it is about; "" = none in particular."""
        about = self.threshold or self.absence or self.rate or self.not_converging or self.prediction
        return about.channel if about is not None else ""


def rule_violations(
    rules: tuple[AlarmRule, ...], channels: Mapping[str, ChannelSpec], at: str
) -> Iterable[FieldViolation | None]:
    """Yield what is wrong with the rules of a type; each names the rule, and what would be right."""
    yield _bad(len(rules) > MAX_RULES, at, f"must hold at most {MAX_RULES} rules")
    names = [rule.name for rule in rules]
    for i, rule in enumerate(rules):
        where = f"{at}[{i}]"
        yield name_violation(f"{where}.name", rule.name)
        yield _bad(rule.name in names[:i], f"{where}.name", f"{quoted(rule.name)} is there twice")
        for found in _of_rule(rule, channels, where):
            if found is not None:
                yield FieldViolation(field=found.field, description=f"rule {quoted(rule.name)}: {found.description}")


def _of_rule(rule: AlarmRule, channels: Mapping[str, ChannelSpec], at: str) -> Iterable[FieldViolation | None]:
    yield _bad(
        not 1 <= rule.severity <= 1_000,
        f"{at}.severity",
        "must be 1 to 1,000 (LOW from 1, MEDIUM from 334, HIGH from 667, CRITICAL from 900)",
    )
    for name, delay_us in (("on_delay", rule.on_delay_us), ("off_delay", rule.off_delay_us)):
        yield _bad(not 0 <= delay_us <= MAX_DELAY_US, f"{at}.{name}", "must be 0 to 30 days")
    yield from _message_violations(rule, f"{at}.message")
    conditions = [rule.threshold, rule.absence, rule.rate, rule.not_converging, rule.prediction]
    count = sum(condition is not None for condition in conditions) + bool(rule.expression)
    yield _bad(
        count != 1,
        f"{at}.condition",
        "needs exactly one of threshold, absence, rate, not_converging, prediction and expression",
    )
    if rule.threshold is not None:
        yield from _threshold_violations(rule.threshold, channels, f"{at}.threshold")
    if rule.absence is not None:
        yield from _channel_violations(rule.absence.channel, channels, f"{at}.absence", numbers=False)
        yield from _after_violations(rule, rule.absence.after_us, f"{at}.absence")
    if rule.rate is not None:
        yield from _rate_violations(rule.rate, channels, f"{at}.rate")
    if rule.not_converging is not None:
        yield from _not_converging_violations(rule.not_converging, channels, f"{at}.not_converging")
        yield from _after_violations(rule, rule.not_converging.after_us, f"{at}.not_converging")
    if rule.prediction is not None:
        yield from _prediction_violations(rule.prediction, channels, f"{at}.prediction")
    yield _bad(
        len(rule.expression) > MAX_EXPRESSION_CHARACTERS,
        f"{at}.expression",
        f"must be at most {MAX_EXPRESSION_CHARACTERS:,} characters; split it into several rules",
    )


def _message_violations(rule: AlarmRule, at: str) -> Iterable[FieldViolation | None]:
    yield _bad(len(rule.message.encode()) > MAX_MESSAGE_BYTES, at, f"must be at most {MAX_MESSAGE_BYTES:,} bytes")
    for name in _PLACEHOLDER.findall(rule.message):
        known = name in PLACEHOLDERS[:-1] or name.startswith("attributes.")
        yield _bad(not known, at, f"{quoted('{' + name + '}')} is not known; there are {', '.join(PLACEHOLDERS)}")


def _threshold_violations(
    t: Threshold, channels: Mapping[str, ChannelSpec], at: str
) -> Iterable[FieldViolation | None]:
    yield from _channel_violations(t.channel, channels, at, unit=t.unit)
    limits = [("low_low", t.low_low), ("low", t.low), ("high", t.high), ("high_high", t.high_high)]
    yield from _limit_violations(limits, t.hysteresis, at)
    given = [limit for _, limit in limits if limit is not None]
    ordered = all(a < b for a, b in pairwise(given))
    yield _bad(not ordered, at, "limits must rise: low_low < low < high < high_high")
    yield _bad(
        not 0 <= t.outer_severity <= 1_000, f"{at}.outer_severity", "must be 1 to 1,000, or 0 for the rule's severity"
    )


def _rate_violations(r: RateOfChange, channels: Mapping[str, ChannelSpec], at: str) -> Iterable[FieldViolation | None]:
    yield from _channel_violations(r.channel, channels, at, unit=r.unit)
    bounds = [("max_rise_per_s", r.max_rise_per_s), ("max_fall_per_s", r.max_fall_per_s)]
    yield from _limit_violations(bounds, r.hysteresis_per_s, at, hysteresis_name="hysteresis_per_s")
    for name, bound in bounds:
        yield _bad((bound or 0.0) < 0, f"{at}.{name}", "must not be negative: it is the size of the change")
    yield _bad(not 0 <= r.window_us <= MAX_DELAY_US, f"{at}.window", "must be 0 (successive values) to 30 days")


def _not_converging_violations(
    n: NotConverging, channels: Mapping[str, ChannelSpec], at: str
) -> Iterable[FieldViolation | None]:
    if n.channel:
        yield from _channel_violations(n.channel, channels, at, numbers=False)
    wanted = [channels[n.channel]] if n.channel in channels else channels.values() if not n.channel else ()
    controllable = any(spec.controllable for spec in wanted) or (bool(n.channel) and n.channel not in channels)
    yield _bad(not controllable, f"{at}.channel", "can never have a desired value; make the channel controllable")


def _prediction_violations(
    p: PredictedCrossing, channels: Mapping[str, ChannelSpec], at: str
) -> Iterable[FieldViolation | None]:
    yield from _channel_violations(p.channel, channels, at, unit=p.unit)
    yield from _limit_violations([("low", p.low), ("high", p.high)], p.hysteresis, at)
    both = p.low is not None and p.high is not None and p.low >= p.high
    yield _bad(both, f"{at}.low", "must be below high")
    yield _bad(not 0 < p.quantile < 1, f"{at}.quantile", "must be between 0 and 1, e.g. 0.9")
    yield _bad(p.within_us < 0, f"{at}.within", "must not be negative; 0 = the whole horizon")


def _channel_violations(
    channel: str, channels: Mapping[str, ChannelSpec], at: str, *, unit: str = "", numbers: bool = True
) -> Iterable[FieldViolation | None]:
    spec = channels.get(channel)
    if spec is None:
        names = ", ".join(list(channels)[:20])
        yield _bad(True, f"{at}.channel", f"{quoted(channel)} is not a channel of this type; it has: {names}")
        return
    kinds = (ChannelKind.GAUGE, ChannelKind.COUNTER, ChannelKind.STATE)
    yield _bad(
        numbers and spec.kind not in kinds,
        f"{at}.channel",
        f"{quoted(channel)} holds no numbers but {spec.kind.name}; use an expression, e.g. "
        f"reported.{channel} == {'true' if spec.kind is ChannelKind.BOOL else chr(39) + 'text' + chr(39)}",
    )
    yield _bad(
        unit not in ("", spec.unit),
        f"{at}.unit",
        f"limits are kept in the channel's unit {quoted(spec.unit)}; convert them first",
    )


def _limit_violations(
    limits: list[tuple[str, float | None]], hysteresis: float, at: str, *, hysteresis_name: str = "hysteresis"
) -> Iterable[FieldViolation | None]:
    for name, limit in limits:
        yield _bad(limit is not None and not isfinite(limit), f"{at}.{name}", "must be a finite number")
    none = all(limit is None for _, limit in limits)
    yield _bad(none, at, f"needs a limit: {', '.join(name for name, _ in limits)}")
    wrong = not isfinite(hysteresis) or hysteresis < 0
    yield _bad(wrong, f"{at}.{hysteresis_name}", "must be a finite number, and not negative")


def _after_violations(rule: AlarmRule, after_us: int, at: str) -> Iterable[FieldViolation | None]:
    yield _bad(not 0 < after_us <= MAX_DELAY_US, f"{at}.after", "must be longer than 0, and at most 30 days")
    yield _bad(rule.on_delay_us != 0, at, "its own `after` is the on_delay; leave on_delay out")


def _bad(wrong: bool, path: str, description: str) -> FieldViolation | None:
    return FieldViolation(field=path, description=description) if wrong else None


def in_channel_units(
    rules: tuple[AlarmRule, ...], channels: Mapping[str, ChannelSpec], units: Units, at: str
) -> tuple[AlarmRule, ...]:
    """Return the rules with limits in the units of their channels; hysteresis and rates convert as differences.

    Raises:
        InvalidArgument: INCOMPATIBLE_UNIT, naming the rule's field.
    """
    return tuple(_converted(rule, channels, units, f"{at}[{i}]") for i, rule in enumerate(rules))


def _converted(rule: AlarmRule, channels: Mapping[str, ChannelSpec], units: Units, at: str) -> AlarmRule:
    spec = channels.get(rule.channel)
    if spec is None:
        return rule  # an expression, or a channel that the check of the type refuses
    if rule.threshold is not None and rule.threshold.unit:
        where = f"{at}.threshold.unit"
        return replace(rule, threshold=_limits_in(rule.threshold, spec.unit, units, where))
    if rule.prediction is not None and rule.prediction.unit:
        where = f"{at}.prediction.unit"
        return replace(rule, prediction=_limits_in(rule.prediction, spec.unit, units, where))
    if rule.rate is not None and rule.rate.unit:
        r, size = rule.rate, units.conversion(rule.rate.unit, spec.unit, difference=True, field=f"{at}.rate.unit")
        return replace(
            rule,
            rate=replace(
                r,
                max_rise_per_s=_applied(size, r.max_rise_per_s),
                max_fall_per_s=_applied(size, r.max_fall_per_s),
                hysteresis_per_s=size.apply(r.hysteresis_per_s),
                unit="",
            ),
        )
    return rule


def _limits_in(condition: LimitedT, unit: str, units: Units, field: str) -> LimitedT:
    value = units.conversion(condition.unit, unit, field=field)
    size = units.conversion(condition.unit, unit, difference=True, field=field)
    moved = replace(
        condition,
        low=_applied(value, condition.low),
        high=_applied(value, condition.high),
        hysteresis=size.apply(condition.hysteresis),
        unit="",
    )
    if isinstance(moved, Threshold):
        return replace(moved, low_low=_applied(value, moved.low_low), high_high=_applied(value, moved.high_high))
    return moved


def _applied(conversion: Conversion, value: float | None) -> float | None:
    return None if value is None else conversion.apply(value)
