"""What a rule may say, and what its author is told who says something else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from twinmesh_core.errors import InvalidArgument
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.registry import ChannelSpec, TwinType
from twinmesh_core.registry_rules import check_twin_type
from twinmesh_core.rules import (
    Absence,
    AlarmRule,
    NotConverging,
    PredictedCrossing,
    RateOfChange,
    Threshold,
    in_channel_units,
    severity_name,
)
from twinmesh_core.units import TABLE

CHANNELS = (
    ChannelSpec(name="oil", kind=ChannelKind.GAUGE, unit="Cel"),
    ChannelSpec(name="speed", kind=ChannelKind.GAUGE, controllable=True),
    ChannelSpec(name="on", kind=ChannelKind.BOOL),
)
HOT = AlarmRule(name="hot", severity=500, threshold=Threshold(channel="oil", high=90.0))


def check(*rules: AlarmRule) -> None:
    check_twin_type(TwinType(twin_type_id="boiler", version=1, channels=CHANNELS, rules=rules))


def test_every_kind_of_rule_passes() -> None:
    check(
        HOT,
        AlarmRule(name="silent", severity=1, absence=Absence(channel="on", after_us=1)),
        AlarmRule(name="surge", severity=1_000, rate=RateOfChange(channel="oil", max_fall_per_s=0.0)),
        AlarmRule(name="stuck", severity=1, not_converging=NotConverging(after_us=1)),
        AlarmRule(name="soon", severity=1, prediction=PredictedCrossing(channel="oil", low=1.0, high=2.0)),
        AlarmRule(name="odd", severity=1, expression="reported.on"),
    )


@pytest.mark.parametrize(
    ("rule", "field", "words"),
    [
        (replace(HOT, name="Hot"), "rules[0].name", "lower-case"),
        (replace(HOT, severity=0), "rules[0].severity", "CRITICAL from 900"),
        (replace(HOT, on_delay_us=-1), "rules[0].on_delay", "30 days"),
        (replace(HOT, message="{valu} too high"), "rules[0].message", "'{valu}' is not known; there are twin, name"),
        (replace(HOT, threshold=None), "rules[0].condition", "exactly one of threshold"),
        (replace(HOT, expression="reported.on"), "rules[0].condition", "exactly one of threshold"),
        (replace(HOT, threshold=Threshold(channel="oil")), "rules[0].threshold", "needs a limit: low_low, low, high"),
        (replace(HOT, threshold=Threshold(channel="oli", high=1.0)), "threshold.channel", "it has: oil, speed, on"),
        (replace(HOT, threshold=Threshold(channel="on", high=1.0)), "threshold.channel", "reported.on == true"),
        (replace(HOT, threshold=Threshold(channel="oil", high=2.0, low=3.0)), "threshold", "low < high"),
        (replace(HOT, threshold=Threshold(channel="oil", high=2.0, hysteresis=-1.0)), "hysteresis", "not negative"),
        (
            replace(HOT, threshold=Threshold(channel="oil", high=2.0, unit="K")),
            "threshold.unit",
            "channel's unit 'Cel'",
        ),
        (replace(HOT, threshold=Threshold(channel="oil", high=float("nan"))), "threshold.high", "finite"),
        (
            AlarmRule(name="silent", severity=1, absence=Absence(channel="oil", after_us=0)),
            "absence.after",
            "longer than 0",
        ),
        (
            AlarmRule(name="silent", severity=1, on_delay_us=1, absence=Absence(channel="oil", after_us=1)),
            "rules[0].absence",
            "leave on_delay out",
        ),
        (
            AlarmRule(name="stuck", severity=1, not_converging=NotConverging(channel="oil", after_us=1)),
            "not_converging.channel",
            "controllable",
        ),
        (
            AlarmRule(name="soon", severity=1, prediction=PredictedCrossing(channel="oil", high=1.0, quantile=1.0)),
            "prediction.quantile",
            "between 0 and 1",
        ),
        (AlarmRule(name="odd", severity=1, expression="x" * 1_001), "rules[0].expression", "split it"),
    ],
)
def test_what_is_wrong_is_named_with_the_rule_and_the_remedy(rule: AlarmRule, field: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check(rule)
    found = [v for v in caught.value.field_violations if field in v.field and words in v.description]
    assert found, str(caught.value)
    assert "rule '" in found[0].description or field.endswith("name")


def test_two_rules_of_one_name() -> None:
    with pytest.raises(InvalidArgument, match="is there twice"):
        check(HOT, HOT)


def test_limits_convert_as_values_and_hysteresis_and_rates_as_differences() -> None:
    rules = (
        replace(HOT, threshold=Threshold(channel="oil", high=212.0, high_high=230.0, hysteresis=9.0, unit="degF")),
        AlarmRule(name="surge", severity=1, rate=RateOfChange(channel="oil", max_rise_per_s=1.8, unit="degF")),
        AlarmRule(name="soon", severity=1, prediction=PredictedCrossing(channel="oil", high=373.15, unit="K")),
    )
    hot, surge, soon = in_channel_units(rules, {c.name: c for c in CHANNELS}, TABLE, "twin_type.rules")
    assert hot.threshold is not None
    assert hot.threshold.high == pytest.approx(100.0)
    assert hot.threshold.high_high == pytest.approx(110.0)
    assert hot.threshold.hysteresis == pytest.approx(5.0)
    assert hot.threshold.unit == ""
    assert surge.rate is not None
    assert surge.rate.max_rise_per_s == pytest.approx(1.0)
    assert soon.prediction is not None
    assert soon.prediction.high == pytest.approx(100.0)
    check(hot, surge, soon)


def test_a_limit_in_a_unit_of_something_else() -> None:
    wrong = replace(HOT, threshold=Threshold(channel="oil", high=1.0, unit="bar"))
    with pytest.raises(InvalidArgument) as caught:
        in_channel_units((HOT, wrong), {c.name: c for c in CHANNELS}, TABLE, "twin_type.rules")
    assert caught.value.field_violations[0].field == "twin_type.rules[1].threshold.unit"


def test_names_of_severities() -> None:
    assert [severity_name(n) for n in (1, 333, 334, 667, 899, 900, 1_000)] == [
        "LOW", "LOW", "MEDIUM", "HIGH", "HIGH", "CRITICAL", "CRITICAL",
    ]  # fmt: skip
