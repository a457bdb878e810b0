"""How one rule of one twin stands between two entries: what the fold must remember to judge it again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from twinmesh_statesync.domain.alarms.alarm import NORMAL, Judgement


class Pending(IntEnum):
    """Which delay is running."""

    NONE = 0
    RAISE = 1
    RETURN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of one rule of one twin.

    Attributes:
        rule: its name.
        said: the last judgement that was one.
        pending: which delay is running.
        since_unix_us: commit time at which it began; for an absence: of the last arrival.
        about: of a rule about desired values, the newest target that is not met: another one begins another delay.
        samples: (event time, value) of a rule about rates, oldest first: those of the window and one before it.
    """

    rule: str
    said: Judgement = NORMAL
    pending: Pending = Pending.NONE
    since_unix_us: int = 0
    about: int = 0
    samples: tuple[tuple[int, float], ...] = ()
