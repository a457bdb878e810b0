"""Naive local times to instants, where clocks change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.errors import InvalidArgument, invalid_field

if TYPE_CHECKING:
    import pandas as pd

OFFSET_PATTERN: Final = r"(?:[Zz]|:\d{2}(?:[.,]\d+)?\s*[+-]\d{2}(?::?\d{2})?)\s*$"
"""Matches a text that ends in a time of day with its offset from UTC."""
_NAMED: Final = 3


def to_instants(stamps: pd.DatetimeIndex, time_zone: str) -> pd.DatetimeIndex:
    """Return naive local times as instants of the zone.

    An hour that occurs twice is told apart by the order of the rows, where both are there.

    Raises:
        InvalidArgument: no such zone; or times that occur twice or never, which are named.
    """
    try:
        return stamps.tz_localize(time_zone, ambiguous="infer", nonexistent="raise")
    except (ValueError, KeyError) as error:
        ambiguous, missing = doubtful_rows(stamps, time_zone)
        parts = [
            f"{kind}: {', '.join(str(t) for t in times[:_NAMED])}{' ...' if len(times) > _NAMED else ''} ({len(times)})"
            for kind, times in (("occur twice", stamps[ambiguous]), ("do not exist", stamps[missing]))
            if len(times)
        ]
        raise InvalidArgument(
            f"Clocks change in {time_zone}: these local times {'; '.join(parts)}. Give times with an offset; or, if "
            "the recorder's clock never changed, its own zone: UTC, or Etc/GMT-1 for one hour ahead of UTC."
        ) from error


def to_known_instants(
    stamps: pd.DatetimeIndex, time_zone: str
) -> tuple[npt.NDArray[np.datetime64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return naive local times as instants, and which were left out as they occur twice or never.

    Args:
        stamps: NaT where there is no time.
        time_zone: IANA zone; as in `to_instants` the order of the rows tells repeated hours apart where it can.

    Returns:
        datetime64[us] [n] in UTC, NaT where there is none; bool [n] those that occur twice; bool [n] never.
    """
    known = np.flatnonzero(~np.asarray(stamps.isna()))
    full = np.full(len(stamps), np.datetime64("NaT", "us"))
    twice, never = np.zeros(len(stamps), np.bool_), np.zeros(len(stamps), np.bool_)
    try:
        found = to_instants(stamps[known], time_zone)
    except InvalidArgument:
        twice[known], never[known] = doubtful_rows(stamps[known], time_zone)
        known = known[~(twice | never)[known]]
        found = stamps[known].tz_localize(time_zone, ambiguous="raise", nonexistent="raise")
    full[known] = found.tz_convert("UTC").tz_localize(None).to_numpy().astype("M8[us]")
    return full, twice, never


def near_change(stamp: pd.Timestamp, time_zone: str) -> bool:
    """Return whether clocks change within three hours of a naive local time: the rows around it belong together."""
    import pandas as pd

    around = (stamp + pd.Timedelta(hours=h) for h in (-3, 3))
    before, after = (t.tz_localize(time_zone, ambiguous=True, nonexistent="shift_forward").utcoffset() for t in around)
    return before != after


def doubtful_rows(stamps: pd.DatetimeIndex, time_zone: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which naive times occur twice and which never in the zone, bool [n] each; raises for an unknown zone."""
    try:
        ambiguous = stamps.tz_localize(time_zone, ambiguous="NaT", nonexistent="shift_forward").isna()
        missing = stamps.tz_localize(time_zone, ambiguous=np.zeros(len(stamps), np.bool_), nonexistent="NaT").isna()
    except (ValueError, KeyError):
        raise invalid_field("time_zone", f"{time_zone!r} is no IANA time zone; write e.g. Europe/Berlin") from None
    return np.asarray(ambiguous, np.bool_), np.asarray(missing, np.bool_)
