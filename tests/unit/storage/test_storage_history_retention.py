"""Which retention rule counts for a series, and when it takes effect."""

from __future__ import annotations

from twinmesh_core.kinds import ChannelKind
from twinmesh_storage.domain.history_retention import RetentionRule, cutoff, rule_of
from twinmesh_storage.domain.series import Series


def series(twin: str, channel: str, tenant: str = "t", retention_class: str = "") -> Series:
    return Series(
        tenant=tenant,
        series_id=1,
        twin_id=twin,
        channel=channel,
        kind=ChannelKind.GAUGE,
        unit="",
        expected_interval_us=0,
        retention_class=retention_class,
    )


def rule(twin: str, channel: str, keep: int, retention_class: str = "") -> RetentionRule:
    return RetentionRule(tenant="t", twin_id=twin, channel=channel, keep_us=keep, retention_class=retention_class)


def test_the_most_specific_rule_counts() -> None:
    rules = [rule("", "", 1), rule("", "raw", 2), rule("a", "", 3), rule("a", "raw", 4)]

    def kept(twin: str, channel: str) -> int:
        found = rule_of(series(twin, channel), rules)
        assert found is not None
        return found.keep_us

    assert [kept("b", "oil"), kept("b", "raw"), kept("a", "oil"), kept("a", "raw")] == [1, 2, 3, 4]
    assert rule_of(series("a", "raw", tenant="other"), rules) is None
    assert rule_of(series("a", "raw"), []) is None


def test_a_rule_of_a_class_counts_before_one_of_all_and_after_those_that_name_a_channel_or_a_twin() -> None:
    rules = [rule("", "", 1), rule("", "", 2, "fast"), rule("", "raw", 3), rule("a", "", 4), rule("a", "raw", 5)]

    def kept(twin: str, channel: str, retention_class: str) -> int:
        found = rule_of(series(twin, channel, retention_class=retention_class), rules)
        assert found is not None
        return found.keep_us

    assert [kept("b", "oil", c) for c in ("", "slow", "fast")] == [1, 1, 2]
    assert [kept("b", "raw", "fast"), kept("a", "oil", "fast"), kept("a", "raw", "fast")] == [3, 4, 5]
    assert rule_of(series("b", "oil"), rules[1:2]) is None


def test_the_cutoff_moves_in_steps_and_never_keeps_less_than_promised() -> None:
    keep = 50_000
    seen = [cutoff(keep, now) for now in range(1_000_000, 1_010_000, 100)]
    assert all(c <= now - keep for c, now in zip(seen, range(1_000_000, 1_010_000, 100), strict=True))
    assert len(set(seen)) <= 11
    assert seen == sorted(seen)
