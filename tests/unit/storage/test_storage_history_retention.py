"""Which retention rule counts for a series, and when it takes effect."""

from __future__ import annotations

from twinmesh_core.kinds import ChannelKind
from twinmesh_storage.domain.history_retention import RetentionRule, cutoff, rule_of
from twinmesh_storage.domain.series import Series


def series(twin: str, channel: str, tenant: str = "t") -> Series:
    return Series(
        tenant=tenant,
        series_id=1,
        twin_id=twin,
        channel=channel,
        kind=ChannelKind.GAUGE,
        unit="",
        expected_interval_us=0,
    )


def rule(twin: str, channel: str, keep: int) -> RetentionRule:
    return RetentionRule(tenant="t", twin_id=twin, channel=channel, keep_us=keep)


def test_the_most_specific_rule_counts() -> None:
    rules = [rule("", "", 1), rule("", "raw", 2), rule("a", "", 3), rule("a", "raw", 4)]

    def kept(twin: str, channel: str) -> int:
        found = rule_of(series(twin, channel), rules)
        assert found is not None
        return found.keep_us

    assert [kept("b", "oil"), kept("b", "raw"), kept("a", "oil"), kept("a", "raw")] == [1, 2, 3, 4]
    assert rule_of(series("a", "raw", tenant="other"), rules) is None
    assert rule_of(series("a", "raw"), []) is None


def test_the_cutoff_moves_in_steps_and_never_keeps_less_than_promised() -> None:
    keep = 50_000
    seen = [cutoff(keep, now) for now in range(1_000_000, 1_010_000, 100)]
    assert all(c <= now - keep for c, now in zip(seen, range(1_000_000, 1_010_000, 100), strict=True))
    assert len(set(seen)) <= 11
    assert seen == sorted(seen)
