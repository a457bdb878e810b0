"""What the calendar says at a place: the features that models read beside the measurements.

One implementation feeds training and serving, so a model is never served other features than it learned from.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import numpy.typing as npt

from twinmesh_core.errors import invalid_field
from twinmesh_core.ids import quoted
from twinmesh_core.time import US_PER_DAY, US_PER_MINUTE, US_PER_S, to_datetime

CALENDAR_FEATURES: Final = ("time_of_day_sin", "time_of_day_cos", "day_of_week_sin", "day_of_week_cos")
"""Names of the columns of `calendar_features`, in order."""

_PROBE_US: Final = 15 * US_PER_MINUTE  # zones have changed their offset on quarters of an hour since 1973
_THURSDAY: Final = 3  # the epoch fell on one; Monday is 0


@lru_cache(maxsize=256)
def require_time_zone(name: str, field: str = "time_zone") -> ZoneInfo:
    """Return the IANA time zone of this name; empty = UTC.

    Raises:
        InvalidArgument: no such zone.
    """
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise invalid_field(
            field, f"{quoted(name)} is not an IANA time zone; write e.g. Europe/Berlin, America/New_York or UTC"
        ) from None


def local_time_us(time_unix_us: npt.NDArray[np.int64], time_zone: str = "UTC") -> npt.NDArray[np.int64]:
    """Return what clocks at the place show, as microseconds since 1970-01-01T00:00 local; daylight saving included.

    Args:
        time_unix_us: int64 [n], any order, within the years 1 to 9999.
        time_zone: IANA name; empty = UTC.

    Returns:
        int64 [n].

    Raises:
        InvalidArgument: no such zone, or a time outside the years 1 to 9999.
    """
    times = np.asarray(time_unix_us, np.int64)
    zone = require_time_zone(time_zone)
    if zone.key == "UTC" or not times.size:
        return times.copy()
    # Most days keep one offset: ask at their two ends, and look closer only into days that change it.
    days, day_of = np.unique(times // US_PER_DAY, return_inverse=True)
    at_start = _offsets_us(days * US_PER_DAY, zone)
    at_end = _offsets_us(days * US_PER_DAY + (US_PER_DAY - _PROBE_US), zone)
    offset = at_start[day_of]
    changing = (at_start != at_end)[day_of]
    if changing.any():
        quarters, quarter_of = np.unique(times[changing] // _PROBE_US, return_inverse=True)
        offset[changing] = _offsets_us(quarters * _PROBE_US, zone)[quarter_of]
    return times + offset


def calendar_features(time_unix_us: npt.NDArray[np.int64], time_zone: str = "UTC") -> npt.NDArray[np.float32]:
    """Return where in the local day and week each time lies, as points on two circles.

    The time of day turns steadily; the day of the week moves at local midnight (Monday = angle 0), so that a model can
    tell the hours before a weekend from the weekend.

    Args:
        time_unix_us: int64 [n].
        time_zone: IANA name; empty = UTC.

    Returns:
        float32 [n, 4], columns as in `CALENDAR_FEATURES`.

    Raises:
        InvalidArgument: no such zone, or a time outside the years 1 to 9999.
    """
    local = local_time_us(time_unix_us, time_zone)
    day, within = np.divmod(local, US_PER_DAY)
    time_of_day = within * (2 * np.pi / US_PER_DAY)
    day_of_week = ((day + _THURSDAY) % 7) * (2 * np.pi / 7)
    return np.stack(
        (np.sin(time_of_day), np.cos(time_of_day), np.sin(day_of_week), np.cos(day_of_week)), axis=-1
    ).astype(np.float32)


def _offsets_us(time_unix_us: npt.NDArray[np.int64], zone: ZoneInfo) -> npt.NDArray[np.int64]:
    def offset(moment_us: int) -> int:
        found = to_datetime(moment_us).astimezone(zone).utcoffset()
        return round(found.total_seconds() * US_PER_S) if found is not None else 0

    return np.fromiter((offset(int(t)) for t in time_unix_us), np.int64, len(time_unix_us))
