"""Alarm rules of a twin type between protobuf and `twinmesh_core.rules`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from twinmesh.type.v1 import alarm_pb2
from twinmesh_core.rules import Absence, AlarmRule, NotConverging, PredictedCrossing, RateOfChange, Threshold
from twinmesh_core.time import US_PER_S

if TYPE_CHECKING:
    from google.protobuf.message import Message

_MEDIAN = 0.5


def rule_from_message(message: alarm_pb2.AlarmRule) -> AlarmRule:
    """Return a rule as a value; nothing is checked."""
    kind = message.WhichOneof("condition")
    return AlarmRule(
        name=message.name,
        severity=message.severity,
        description=message.description,
        message=message.message,
        on_delay_us=_us(message.on_delay),
        off_delay_us=_us(message.off_delay),
        threshold=_threshold(message.threshold) if kind == "threshold" else None,
        absence=Absence(channel=message.absence.channel, after_us=_us(message.absence.after))
        if kind == "absence"
        else None,
        rate=_rate(message.rate) if kind == "rate" else None,
        not_converging=NotConverging(channel=message.not_converging.channel, after_us=_us(message.not_converging.after))
        if kind == "not_converging"
        else None,
        prediction=_prediction(message.prediction) if kind == "prediction" else None,
        expression=message.expression,
    )


def rule_to_message(rule: AlarmRule) -> alarm_pb2.AlarmRule:
    """Return a rule as its message."""
    message = alarm_pb2.AlarmRule(
        name=rule.name, severity=rule.severity, description=rule.description, message=rule.message
    )
    _put(message.on_delay, rule.on_delay_us)
    _put(message.off_delay, rule.off_delay_us)
    if rule.threshold is not None:
        message.threshold.CopyFrom(_threshold_message(rule.threshold))
    elif rule.absence is not None:
        message.absence.channel = rule.absence.channel
        message.absence.after.CopyFrom(_duration(rule.absence.after_us))
    elif rule.rate is not None:
        message.rate.CopyFrom(_rate_message(rule.rate))
    elif rule.not_converging is not None:
        message.not_converging.channel = rule.not_converging.channel
        message.not_converging.after.CopyFrom(_duration(rule.not_converging.after_us))
    elif rule.prediction is not None:
        message.prediction.CopyFrom(_prediction_message(rule.prediction))
    elif rule.expression:
        message.expression = rule.expression
    return message


def _threshold(m: alarm_pb2.ThresholdCondition) -> Threshold:
    return Threshold(
        channel=m.channel,
        low_low=_optional(m, "low_low"),
        low=_optional(m, "low"),
        high=_optional(m, "high"),
        high_high=_optional(m, "high_high"),
        hysteresis=m.hysteresis,
        outer_severity=m.outer_severity,
        unit=m.unit,
    )


def _threshold_message(t: Threshold) -> alarm_pb2.ThresholdCondition:
    return alarm_pb2.ThresholdCondition(
        channel=t.channel,
        low_low=t.low_low,
        low=t.low,
        high=t.high,
        high_high=t.high_high,
        hysteresis=t.hysteresis,
        outer_severity=t.outer_severity,
        unit=t.unit,
    )


def _rate(m: alarm_pb2.RateCondition) -> RateOfChange:
    return RateOfChange(
        channel=m.channel,
        max_rise_per_s=_optional(m, "max_rise_per_s"),
        max_fall_per_s=_optional(m, "max_fall_per_s"),
        window_us=_us(m.window),
        hysteresis_per_s=m.hysteresis_per_s,
        unit=m.unit,
    )


def _rate_message(r: RateOfChange) -> alarm_pb2.RateCondition:
    message = alarm_pb2.RateCondition(
        channel=r.channel,
        max_rise_per_s=r.max_rise_per_s,
        max_fall_per_s=r.max_fall_per_s,
        hysteresis_per_s=r.hysteresis_per_s,
        unit=r.unit,
    )
    _put(message.window, r.window_us)
    return message


def _prediction(m: alarm_pb2.PredictionCondition) -> PredictedCrossing:
    return PredictedCrossing(
        channel=m.channel,
        low=_optional(m, "low"),
        high=_optional(m, "high"),
        quantile=m.quantile or _MEDIAN,
        within_us=_us(m.within),
        model_id=m.model_id,
        hysteresis=m.hysteresis,
        unit=m.unit,
    )


def _prediction_message(p: PredictedCrossing) -> alarm_pb2.PredictionCondition:
    message = alarm_pb2.PredictionCondition(
        channel=p.channel,
        low=p.low,
        high=p.high,
        quantile=p.quantile,
        model_id=p.model_id,
        hysteresis=p.hysteresis,
        unit=p.unit,
    )
    _put(message.within, p.within_us)
    return message


def _optional(message: Message, name: str) -> float | None:
    return getattr(message, name) if message.HasField(name) else None


def _us(message: Duration) -> int:
    return message.seconds * US_PER_S + message.nanos // 1_000


def _duration(duration_us: int) -> Duration:
    seconds, rest = divmod(abs(duration_us), US_PER_S)
    sign = -1 if duration_us < 0 else 1  # of both parts, as the message demands
    return Duration(seconds=sign * seconds, nanos=sign * rest * 1_000)


def _put(target: Duration, duration_us: int) -> None:
    if duration_us:
        target.CopyFrom(_duration(duration_us))
