"""Buckets follow the clocks and the calendar of a place, against the standard library's own arithmetic."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinmesh_core.errors import InvalidArgument
from twinmesh_core.time import US_PER_DAY, US_PER_HOUR, from_datetime, to_datetime
from twinmesh_storage.domain.buckets import CalendarUnit, bucket_edges, calendar_edges

ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"])
MOMENT = st.integers(788_918_400_000_000, 2_051_222_400_000_000)  # 1995 to 2035


def local(edge: int, zone: str) -> datetime:
    return to_datetime(edge).astimezone(ZoneInfo(zone)).replace(tzinfo=None)


@given(MOMENT, st.integers(1, 40 * US_PER_DAY), ZONES, st.sampled_from([15, 30, 60, 120, 180, 360, 720]))
def test_short_buckets_begin_where_clocks_show_a_multiple(start: int, length: int, zone: str, minutes: int) -> None:
    edges = bucket_edges(start, start + length, minutes * 60_000_000, zone, 1_000_000)
    assert edges[0] <= start < edges[1]
    assert edges[-2] < start + length <= edges[-1]
    assert (np.diff(edges) > 0).all()
    for edge in edges.tolist():
        shown = local(edge, zone)
        assert (shown.hour * 60 + shown.minute) % minutes == 0
        assert (shown.second, shown.microsecond) == (0, 0)
    # Nothing was left out: between two edges clocks show no further multiple.
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        probes = range(low + 15 * 60_000_000 - low % (15 * 60_000_000), high, 15 * 60_000_000)
        for probe in probes:
            shown = local(probe, zone)
            assert probe == low or (shown.hour * 60 + shown.minute) % minutes != 0


def next_start(day: datetime, unit: CalendarUnit) -> datetime:
    if unit is CalendarUnit.DAY:
        return day + timedelta(days=1)
    if unit is CalendarUnit.WEEK:
        return day + timedelta(days=7)
    months = {CalendarUnit.MONTH: 1, CalendarUnit.QUARTER: 3, CalendarUnit.YEAR: 12}[unit]
    month = day.month - 1 + months
    return day.replace(year=day.year + month // 12, month=month % 12 + 1)


@given(MOMENT, st.integers(1, 900 * US_PER_DAY), ZONES, st.sampled_from([u for u in CalendarUnit if u]))
def test_calendar_buckets_begin_at_midnights(start: int, length: int, zone: str, unit: CalendarUnit) -> None:
    edges = calendar_edges(start, start + length, unit, zone, 10_000)
    assert edges[0] <= start < edges[1]
    assert edges[-2] < start + length <= edges[-1]
    days = [local(edge, zone) for edge in edges.tolist()]
    assert all((d.hour, d.minute, d.second, d.microsecond) == (0, 0, 0, 0) for d in days)
    assert days[1:] == [next_start(d, unit) for d in days[:-1]]
    first = days[0]
    if unit is CalendarUnit.WEEK:
        assert first.weekday() == 0
    elif unit is not CalendarUnit.DAY:
        assert first.day == 1
        assert unit is not CalendarUnit.QUARTER or first.month in (1, 4, 7, 10)
        assert unit is not CalendarUnit.YEAR or first.month == 1


def test_the_hour_that_is_shown_twice_is_two_buckets_and_the_one_never_shown_none() -> None:
    back = from_datetime(datetime(2025, 10, 26, 0, tzinfo=ZoneInfo("Europe/Berlin")))
    assert len(bucket_edges(back, back + 25 * US_PER_HOUR, US_PER_HOUR, "Europe/Berlin", 99)) == 26
    six = bucket_edges(back, back + 25 * US_PER_HOUR, 6 * US_PER_HOUR, "Europe/Berlin", 99)
    assert (np.diff(six) // US_PER_HOUR).tolist() == [7, 6, 6, 6]
    forward = from_datetime(datetime(2025, 3, 30, 0, tzinfo=ZoneInfo("Europe/Berlin")))
    six = bucket_edges(forward, forward + 23 * US_PER_HOUR, 6 * US_PER_HOUR, "Europe/Berlin", 99)
    assert (np.diff(six) // US_PER_HOUR).tolist() == [5, 6, 6, 6]


def test_a_midnight_that_clocks_skip_is_where_they_jump_to() -> None:
    # Beirut, 26 March 2023 (as the zone data has it): clocks went from 24:00 to 01:00.
    start = from_datetime(datetime(2024, 3, 30, 12, tzinfo=ZoneInfo("Asia/Beirut")))
    edges = calendar_edges(start, start + 2 * US_PER_DAY, CalendarUnit.DAY, "Asia/Beirut", 9)
    assert [local(e, "Asia/Beirut").hour for e in edges.tolist()] == [0, 1, 0, 0]


def test_too_many_buckets_and_unknown_zones_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="more than 10 buckets"):
        bucket_edges(0, 11 * US_PER_DAY, US_PER_DAY, "UTC", 10)
    with pytest.raises(InvalidArgument, match="calendar_unit"):
        calendar_edges(0, 40 * US_PER_DAY, CalendarUnit.DAY, "", 10)
    with pytest.raises(InvalidArgument, match="IANA"):
        bucket_edges(0, US_PER_DAY, US_PER_HOUR, "Mars/Phobos", 100)
