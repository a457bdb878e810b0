"""Time as Twinmesh keeps it: int64 microseconds since the Unix epoch, UTC; and the clocks that tell it.

Nothing in a domain reads the wall clock by itself: it is handed a `Clock`, so that tests can move time.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Final, Protocol

from twinmesh_core.errors import invalid_field
from twinmesh_core.ids import quoted

US_PER_MS: Final = 1_000
US_PER_S: Final = 1_000_000
US_PER_MINUTE: Final = 60 * US_PER_S
US_PER_HOUR: Final = 60 * US_PER_MINUTE
US_PER_DAY: Final = 24 * US_PER_HOUR

MAX_SPAN_US: Final = 36_525 * US_PER_DAY
"""Longest span of time that a caller may ask for: 100 years."""

MIN_TIME_UNIX_US: Final = -62_135_596_800 * US_PER_S
"""0001-01-01T00:00:00Z: the earliest time a protobuf Timestamp can carry."""
MAX_TIME_UNIX_US: Final = 253_402_300_800 * US_PER_S - 1
"""9999-12-31T23:59:59.999999Z: the latest time a protobuf Timestamp can carry."""

SHARD_COUNT: Final = 64
"""Fold work is divided into this many shards; a constant of the data format."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Clock(Protocol):
    """Tells the time; the only way a domain may learn it."""

    def now_unix_us(self) -> int:
        """Return the wall clock: microseconds since the Unix epoch, UTC. It may jump."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds of a clock that never runs backwards; for time-outs, not for dates."""
        ...


class SystemClock:
    """The clock of the machine."""

    def now_unix_us(self) -> int:
        """Return the wall clock in microseconds since the Unix epoch, UTC."""
        return time.time_ns() // 1_000

    def monotonic_s(self) -> float:
        """Return the monotonic clock in seconds."""
        return time.monotonic()


def from_datetime(moment: datetime) -> int:
    """Return an aware `datetime` as microseconds since the Unix epoch, exactly.

    Raises:
        InvalidArgument: the datetime has no zone, so it does not name a moment.
    """
    if moment.tzinfo is None:
        raise invalid_field("time", "has no time zone; give one, e.g. datetime(..., tzinfo=UTC)")
    return (moment - _EPOCH) // _MICROSECOND


def to_datetime(time_unix_us: int) -> datetime:
    """Return the moment as an aware `datetime` in UTC, exactly.

    Raises:
        InvalidArgument: outside the years 1 to 9999.
    """
    if not MIN_TIME_UNIX_US <= time_unix_us <= MAX_TIME_UNIX_US:
        raise invalid_field("time", f"{time_unix_us} µs is outside the years 1 to 9999")
    return _EPOCH + timedelta(microseconds=time_unix_us)


def format_time(time_unix_us: int) -> str:
    """Return the moment in RFC 3339 with the decimals it needs, e.g. ``2026-11-23T08:00:00Z``; for people and logs.

    Times outside the years 1 to 9999 are shown as a number of microseconds: a message about a bad time must not fail.
    """
    if not MIN_TIME_UNIX_US <= time_unix_us <= MAX_TIME_UNIX_US:
        return f"{time_unix_us} µs"
    moment = _EPOCH + timedelta(microseconds=time_unix_us)
    text = f"{moment:%Y-%m-%dT%H:%M:%S}".rjust(19, "0")
    fraction = f".{moment.microsecond:06d}".rstrip("0") if moment.microsecond else ""
    return f"{text}{fraction}Z"


def parse_time(text: str, field: str = "time") -> int:
    """Return the moment that an RFC 3339 text names, as microseconds; finer decimals are floored.

    Raises:
        InvalidArgument: not RFC 3339, or without a zone (``Z`` or ``+01:00``).
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise invalid_field(field, f"{quoted(text)} is not a time; write e.g. 2026-11-23T08:00:00Z") from None
    if moment.tzinfo is None:
        raise invalid_field(field, f"{quoted(text)} has no time zone; append Z for UTC, or an offset such as +01:00")
    return (moment - _EPOCH) // _MICROSECOND


def floor_to(time_unix_us: int, step_us: int) -> int:
    """Return the greatest multiple of `step_us` that is not after the time (also before 1970)."""
    return time_unix_us - time_unix_us % step_us


def ceil_to(time_unix_us: int, step_us: int) -> int:
    """Return the least multiple of `step_us` that is not before the time (also before 1970)."""
    return -(-time_unix_us // step_us) * step_us


def shard_of(tenant: str, twin_id: str) -> int:
    """Return the shard, 0 to 63, in which folds work on this twin: the same in every process and release."""
    digest = blake2b(f"{tenant}\0{twin_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % SHARD_COUNT
