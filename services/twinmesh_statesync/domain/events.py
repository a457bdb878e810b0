"""Dated facts of twins, predictions and connectivity: the smaller values that the fold keeps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class EventKind(IntEnum):
    """What a dated fact is; numbers equal ``twinmesh.type.v1.EventKind``."""

    UNSPECIFIED = 0
    FAILURE = 1
    MAINTENANCE = 2
    REPLACEMENT = 3
    OPERATING_MODE = 4
    NOTE = 5
    NOT_CONVERGED = 6
    DELIVERY_FAILED = 7


class Connectivity(IntEnum):
    """Whether the entity is heard from; numbers equal ``twinmesh.type.v1.Connectivity``."""

    UNSPECIFIED = 0
    """Nothing was ever received."""
    ONLINE = 1
    STALE = 2
    OFFLINE = 3
    REPLAY = 4
    """Values arrive, but their event times lie well behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A dated fact or interval of a twin.

    Attributes:
        event_id: unique within the tenant.
        twin_id: the twin.
        kind: what it is.
        start_time_unix_us: when it happened or began.
        end_time_unix_us: when it ended; None = a moment, or still going on.
        mode: failure mode or operating mode.
        message: words for people.
        offset: the entry that recorded it; 0 before it is folded.
        channel: the channel it is about; "" = none.
    """

    event_id: str
    twin_id: str
    kind: EventKind
    start_time_unix_us: int
    end_time_unix_us: int | None = None
    mode: str = ""
    message: str = ""
    offset: int = 0
    channel: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A forecast of one channel with its uncertainty.

    Attributes:
        channel: what is predicted.
        model_id: by which model.
        model_version: its version.
        at_unix_us: event time as of which it was made.
        input_offset: log offset that its inputs reflect.
        valid_until_unix_us: until when it should be used.
        step_us: distance of the steps.
        quantile_levels: increasing, within (0, 1).
        values: row-major [step][quantile], in `unit`.
        unit: UCUM.
    """

    channel: str
    model_id: str
    model_version: int
    at_unix_us: int
    input_offset: int
    valid_until_unix_us: int
    step_us: int
    quantile_levels: tuple[float, ...]
    values: tuple[float, ...]
    unit: str

    @property
    def step_count(self) -> int:
        """How many steps it has."""
        return len(self.values) // len(self.quantile_levels)

    @property
    def freshness(self) -> tuple[int, int]:
        """What decides between two: the offset of the inputs first, then the time as of which it was made."""
        return (self.input_offset, self.at_unix_us)
