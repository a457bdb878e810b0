"""How long history is kept: rules by twin, channel and class of retention, carried out by entries of the log.

A drop is an entry like a deletion, so every process and every cache meets it at the same offset; its rows are then
removed by time, which takes whole partitions where it can, and not moved aside: reads as of an earlier offset miss
them too, which the `history_start` of a series states. Superseded rows go once the as-of horizon has passed them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from twinmesh_core.errors import TwinmeshError
from twinmesh_core.time import US_PER_S, Clock
from twinmesh_storage.domain.entries import Lease
from twinmesh_storage.domain.ports import HistoryStore, SeriesFilter, SeriesStore
from twinmesh_storage.domain.sequencer import Report
from twinmesh_storage.domain.series import Series

_PRUNE_PIECES: Final = 256
_PAGE_SERIES: Final = 1_000
_STEPS: Final = 50
"""A rule takes effect in so many steps of its span: each rewrites what it cuts in two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRule:
    """How long observations of some series are kept, by event time.

    Attributes:
        twin_id: "" = of all twins.
        channel: "" = all channels.
        keep_us: microseconds; 0 = for ever.
        retention_class: the class that twin types give their channels, "" = any or none; only where both others are "".
    """

    tenant: str
    twin_id: str
    channel: str
    keep_us: int
    retention_class: str = ""

    def concerns(self, series: Series) -> bool:
        """Whether the rule speaks of a series."""
        return (
            series.tenant == self.tenant
            and self.twin_id in ("", series.twin_id)
            and self.channel in ("", series.channel)
            and self.retention_class in ("", series.retention_class)
        )

    @property
    def weight(self) -> int:
        """The greatest counts where several concern a series: its twin's channel, twin, channel, class, all."""
        return 4 * bool(self.twin_id) + 2 * bool(self.channel) + bool(self.retention_class)


class RetentionRules(Protocol):
    """The rules, and what they have done."""

    async def put(self, rule: RetentionRule, principal: str) -> None:
        """Keep a rule in place of the one about the same twin and channel, or class."""
        ...

    async def remove(self, tenant: str, twin_id: str, channel: str, retention_class: str) -> None:
        """Forget a rule."""
        ...

    async def of(self, tenant: str | None) -> list[RetentionRule]:
        """Return the rules of a tenant, None = of all."""
        ...

    async def note_start(self, tenant: str, series: Sequence[Series], time_unix_us: int) -> None:
        """Note that observations of these series before an event time may be gone, before the first of them goes."""
        ...

    async def starts(self, tenant: str, series: Sequence[Series]) -> dict[int, int]:
        """Return what was noted of each of the series, by id."""
        ...


def rule_of(series: Series, rules: Sequence[RetentionRule]) -> RetentionRule | None:
    """Return the rule that counts for a series; None = it is kept for ever."""
    mine = [rule for rule in rules if rule.concerns(series)]
    return max(mine, key=lambda rule: rule.weight) if mine else None


def cutoff(keep_us: int, now_unix_us: int) -> int:
    """Return before which event time observations are not kept; it moves in steps of a part of the span."""
    step = max(keep_us // _STEPS, 1)
    return (now_unix_us - keep_us) // step * step


Drop = Callable[[str, Sequence[Series], int], Awaitable[None]]
"""Appends the entry that drops history of a tenant's series before an event time."""


class HistoryRetention:
    """Applies the rules and the as-of horizon while this process leads.

    Args:
        horizon_s: how long superseded rows are kept after they were superseded.
        every_s: seconds between looks.
        drop: appends the entry of a drop.
    """

    def __init__(
        self,
        *,
        history: HistoryStore,
        rules: RetentionRules,
        series: SeriesStore,
        drop: Drop,
        lease: Callable[[], Lease | None],
        horizon_s: float,
        every_s: float,
        clock: Clock,
        report: Report,
    ) -> None:
        self._history = history
        self._rules = rules
        self._series = series
        self._drop = drop
        self._lease = lease
        self._horizon_us = int(horizon_s * US_PER_S)
        self._every_s = every_s
        self._clock = clock
        self._report = report

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(self._every_s)
            if self._lease() is None:
                continue
            try:
                await self.prune()
                await self.apply()
            except TwinmeshError as error:
                self._report("retention_failed", reason=error.reason)

    async def prune(self) -> None:
        """Forget superseded rows that the horizon has passed."""
        before = self._clock.now_unix_us() - self._horizon_us
        while await self._history.prune_superseded(before, _PRUNE_PIECES):
            pass

    async def apply(self) -> None:
        """Append a drop for every rule that some series has observations beyond."""
        rules = await self._rules.of(None)
        now = self._clock.now_unix_us()
        for tenant in sorted({rule.tenant for rule in rules}):
            after = ("", "")
            while page := await self._series.page(tenant, SeriesFilter(), after, _PAGE_SERIES):
                after = (page[-1].twin_id, page[-1].channel)
                await self._apply_to(tenant, page, rules, now)

    async def _apply_to(self, tenant: str, page: Sequence[Series], rules: Sequence[RetentionRule], now: int) -> None:
        spans = await self._history.spans(tenant, page)
        by_cutoff: dict[int, list[Series]] = {}
        for series in page:
            rule = rule_of(series, rules)
            span = spans.get(series.series_id)
            if rule is None or not rule.keep_us or span is None:
                continue
            before = cutoff(rule.keep_us, now)
            if span.first_time_unix_us < before:
                by_cutoff.setdefault(before, []).append(series)
        for before, old in sorted(by_cutoff.items()):
            # Noted first: readers miss the rows from the moment that the entry is in the log, long before it is folded.
            await self._rules.note_start(tenant, old, before)
            await self._drop(tenant, old, before)
