"""How far a producer's clock is from ours: a robust estimate, for people. It never changes data nor decides a row.

Two sources: the time at which the sender says it sent a batch, and the batch's newest event time, which lags behind the
sender's clock by as long as the sender waits. The median over the last live batches keeps one wild value out.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from statistics import median
from typing import Final

from twinmesh_core.time import US_PER_DAY, US_PER_HOUR, US_PER_MINUTE, US_PER_S

SAMPLES: Final = 32
"""Batches that the estimate looks back on."""
MAX_PRODUCERS: Final = 4_096
"""Producers remembered; the longest silent is forgotten first."""
_WORTH_TELLING_US: Final = 30 * US_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    """A producer's clock minus ours, microseconds; `batches` = how many it is estimated from.

    Attributes:
        ahead_us: the estimate; negative = the sender's clock is behind, or it waits that long before it sends.
        batches: how many batches it rests on.
        by_clock: from the sender's own clock; else from event times.
    """

    ahead_us: int
    batches: int
    by_clock: bool

    def words(self) -> str:
        """Return a clause for a message, or nothing where the clocks agree well enough."""
        if abs(self.ahead_us) < _WORTH_TELLING_US:
            return ""
        side = "ahead" if self.ahead_us > 0 else "behind"
        plural = "es" if self.batches > 1 else ""
        source = "its clock" if self.by_clock else "its event times"
        span = span_words(abs(self.ahead_us))
        return f", and by {source} over {self.batches} batch{plural} this producer is {span} {side}"


class SkewEstimates:
    """Estimates of the clocks of the producers that this process hears."""

    def __init__(self) -> None:
        self._heard: OrderedDict[tuple[str, str], tuple[deque[int], deque[int]]] = OrderedDict()

    def observe(
        self, tenant: str, producer_id: str, *, receive_time: int, sent_at: int | None, newest_event: int | None
    ) -> None:
        """Take in what one live batch tells; times in Unix microseconds, None = it tells nothing."""
        key = (tenant, producer_id)
        by_clock, by_event = self._heard.setdefault(key, (deque(maxlen=SAMPLES), deque(maxlen=SAMPLES)))
        self._heard.move_to_end(key)
        if sent_at is not None:
            by_clock.append(sent_at - receive_time)
        if newest_event is not None:
            by_event.append(newest_event - receive_time)
        if len(self._heard) > MAX_PRODUCERS:
            self._heard.popitem(last=False)

    def of(self, tenant: str, producer_id: str) -> Skew | None:
        """Return the estimate, by the sender's clock where it tells it; None = nothing was heard."""
        by_clock, by_event = self._heard.get((tenant, producer_id), ((), ()))
        samples = by_clock or by_event
        if not samples:
            return None
        return Skew(ahead_us=int(median(samples)), batches=len(samples), by_clock=bool(by_clock))

    def worst_s(self) -> float:
        """Return the greatest distance among all producers, seconds."""
        found = (self.of(*key) for key in list(self._heard))
        return max((abs(skew.ahead_us) for skew in found if skew is not None), default=0) / US_PER_S


def span_words(duration_us: int) -> str:
    """Return a duration in its two largest units, e.g. ``3 h 12 min``; to the nearest second."""
    days, rest = divmod(duration_us + US_PER_S // 2, US_PER_DAY)
    hours, rest = divmod(rest, US_PER_HOUR)
    minutes, rest = divmod(rest, US_PER_MINUTE)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (rest // US_PER_S, "s"))
    first = next((i for i, (number, _) in enumerate(parts) if number), len(parts) - 1)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number) or "0 s"
