"""Buckets of time: of one length, or as the calendar of a place divides time."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.calendar import local_time_us
from twinmesh_core.errors import InvalidArgument, invalid_field
from twinmesh_core.time import US_PER_DAY, US_PER_MINUTE, ceil_to, floor_to

Int64s = npt.NDArray[np.int64]
_PROBE_US: Final = 15 * US_PER_MINUTE  # clocks change on quarters of an hour
_MONDAY_US: Final = 4 * US_PER_DAY  # the first Monday of the epoch


class CalendarUnit(IntEnum):
    """What the calendar divides time into; numbers equal ``twinmesh.storage.v1.CalendarUnit``."""

    NONE = 0
    DAY = 1
    WEEK = 2
    MONTH = 3
    QUARTER = 4
    YEAR = 5


_SHORTEST_US: Final = {
    CalendarUnit.DAY: US_PER_DAY,
    CalendarUnit.WEEK: 7 * US_PER_DAY,
    CalendarUnit.MONTH: 28 * US_PER_DAY,
    CalendarUnit.QUARTER: 90 * US_PER_DAY,
    CalendarUnit.YEAR: 365 * US_PER_DAY,
}
_MONTHS: Final = {CalendarUnit.MONTH: 1, CalendarUnit.QUARTER: 3, CalendarUnit.YEAR: 12}


def bucket_edges(start: int, end: int, bucket_us: int, time_zone: str, most: int) -> Int64s:
    """Return the edges of the buckets of one length that cover [start, end): int64 [buckets + 1].

    Without a zone they are aligned to the epoch. With one, those of whole days begin at its midnights, so that a day
    has 23 to 25 hours, and shorter ones where its clocks show a multiple of their length.

    Raises:
        InvalidArgument: more than `most` buckets, no such zone, or an end that is not after the start.
    """
    _check(start, end, bucket_us, most, "bucket")
    if not time_zone:
        return np.arange(floor_to(start, bucket_us), ceil_to(end, bucket_us) + 1, bucket_us, dtype=np.int64)
    if bucket_us % US_PER_DAY:
        return _clock_edges(start, end, bucket_us, time_zone)
    bounds = local_time_us(np.array([start, end - 1], np.int64), time_zone)
    first = floor_to(int(bounds[0]), bucket_us)
    last = floor_to(int(bounds[1]), bucket_us) + bucket_us
    return _from_local(np.arange(first, last + 1, bucket_us, dtype=np.int64), time_zone)


def calendar_edges(start: int, end: int, unit: CalendarUnit, time_zone: str, most: int) -> Int64s:
    """Return the edges of the days, weeks, months, quarters or years of a place that cover [start, end).

    Raises:
        InvalidArgument: more than `most` buckets, no such zone, or an end that is not after the start.
    """
    _check(start, end, _SHORTEST_US[unit], most, "calendar_unit")
    bounds = local_time_us(np.array([start, end - 1], np.int64), time_zone)
    if unit in _MONTHS:
        size = _MONTHS[unit]
        months = bounds.view("M8[us]").astype("M8[M]").astype(np.int64) // size
        starts = np.arange(int(months[0]) * size, (int(months[1]) + 1) * size + 1, size, dtype=np.int64)
        return _from_local(starts.view("M8[M]").astype("M8[us]").astype(np.int64), time_zone)
    size, origin = _SHORTEST_US[unit], _MONDAY_US if unit is CalendarUnit.WEEK else 0
    first = floor_to(int(bounds[0]) - origin, size) + origin
    last = floor_to(int(bounds[1]) - origin, size) + origin + size
    return _from_local(np.arange(first, last + 1, size, dtype=np.int64), time_zone)


def _check(start: int, end: int, shortest_us: int, most: int, field: str) -> None:
    if end <= start:
        raise invalid_field("end_time", "must be after start_time")
    if (end - start) // shortest_us > most:
        raise too_many(most, field)


def too_many(most: int, field: str) -> InvalidArgument:
    """Return the refusal of an answer with more buckets than `most`, the most that it has room for."""
    return invalid_field(
        field,
        f"gives more than {most} buckets, for which one answer has room; take longer ones, a shorter range, or fewer "
        "series and functions",
    )


def _from_local(local: Int64s, time_zone: str) -> Int64s:
    """Return the first moments at which clocks at the place show at least these times."""
    low, high = local - 2 * US_PER_DAY, local + 2 * US_PER_DAY
    while (high - low > 1).any():
        middle: Int64s = (low + high) // 2
        reached = local_time_us(middle, time_zone) >= local
        high = np.where(reached, middle, high)
        low = np.where(reached, low, middle)
    return high


def _clock_edges(start: int, end: int, bucket_us: int, time_zone: str) -> Int64s:
    """Return all moments at which clocks at the place show a multiple of the bucket, from start's bucket to end's.

    Where clocks go back, an hour that is shown twice gives two buckets; where they go forward, one that is never shown
    gives none.
    """
    first, last = start - bucket_us - US_PER_DAY, end + bucket_us + US_PER_DAY
    changes = _clock_changes(first, last, time_zone)
    bounds = np.concatenate(([first], changes, [last]))
    offsets = local_time_us(bounds[:-1], time_zone) - bounds[:-1]
    edges = np.concatenate(
        [
            np.arange(ceil_to(low + offset, bucket_us) - offset, high, bucket_us, dtype=np.int64)
            for low, high, offset in zip(bounds[:-1].tolist(), bounds[1:].tolist(), offsets.tolist(), strict=True)
        ]
    )
    return edges[int(edges.searchsorted(start, "right")) - 1 : int(edges.searchsorted(end)) + 1]


def _clock_changes(start: int, end: int, time_zone: str) -> Int64s:
    """Return the moments between start and end at which the place's offset from UTC changes."""

    def offset(quarters: Int64s) -> Int64s:
        return local_time_us(quarters * _PROBE_US, time_zone) - quarters * _PROBE_US

    per_day = US_PER_DAY // _PROBE_US
    days = np.arange(start // US_PER_DAY, end // US_PER_DAY + 2, dtype=np.int64) * per_day
    at_days = offset(days)
    changed = np.flatnonzero(at_days[1:] != at_days[:-1])
    low, high, before = days[changed], days[changed + 1], at_days[changed]
    while len(changed) and (high - low > 1).any():
        middle = (low + high) // 2
        same = offset(middle) == before
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    changes = high * _PROBE_US
    return changes[(changes > start) & (changes < end)]
