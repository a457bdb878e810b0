"""The small values of core: ids, times, calendar, kinds and qualities, observation batches."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinmesh.type.v1 import observation_pb2, twin_pb2
from twinmesh_core import ids, observations
from twinmesh_core import time as times
from twinmesh_core.calendar import calendar_features, local_time_us, require_time_zone
from twinmesh_core.errors import InvalidArgument
from twinmesh_core.kinds import ChannelKind, PipelineStage
from twinmesh_core.observations import ObservationBatch, SeriesKey, bool_section, double_section, text_section
from twinmesh_core.quality import FlagReason, Quality

DAY = times.US_PER_DAY
HOUR = times.US_PER_HOUR
INSTANTS = st.integers(-(2**55), 2**55)
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns"]


@pytest.mark.parametrize(
    ("ours", "theirs", "prefix"),
    [
        (ChannelKind, observation_pb2.ChannelKind, "CHANNEL_KIND_"),
        (Quality, observation_pb2.Quality, "QUALITY_"),
        (FlagReason, observation_pb2.FlagReason, "FLAG_REASON_"),
        (PipelineStage, twin_pb2.PipelineStage, "PIPELINE_STAGE_"),
    ],
)
def test_numbers_equal_those_of_the_contract(ours, theirs, prefix):
    assert {f"{prefix}{m.name}": m.value for m in ours} == dict(theirs.items())


def test_reasons_quarantine_or_flag_as_the_contract_says():
    flags = {r.name for r in FlagReason if not r.quarantines}
    assert flags == {"UNSPECIFIED", "OUT_OF_RANGE", "RATE_OF_CHANGE", "SPIKE", "STUCK", "BY_SENDER"}
    assert ChannelKind.of(99) is ChannelKind.UNSPECIFIED


@pytest.mark.parametrize("text", ["P1", "a", "T-1.b_C", "x" * 128, "0"])
def test_entity_ids(text):
    assert ids.require_twin_id(text) == text
    assert ids.require_producer_id(text) == text


@pytest.mark.parametrize("text", ["", "-a", "a b", "x" * 129, "ä", "a/b", "a\n", "\0"])
def test_what_is_no_id_is_refused_with_the_rule(text):
    with pytest.raises(InvalidArgument, match="1 to 128 letters") as refused:
        ids.require_twin_id(text)
    assert refused.value.field_violations[0].field == "twin_id"
    assert refused.value.message.isprintable()


def test_names_resources_and_request_ids():
    assert ids.require_name("oil_temp", "f") == "oil_temp"
    assert ids.require_resource_id("pump-1", "f") == "pump-1"
    assert ids.require_request_id("") == ""
    for check, text in ((ids.require_name, "Oil"), (ids.require_resource_id, "Pump")):
        with pytest.raises(InvalidArgument):
            check(text, "f")
    for text in ("x" * 129, "a\x07"):
        with pytest.raises(InvalidArgument, match="request_id"):
            ids.require_request_id(text)


@given(INSTANTS)
def test_times_are_exact_both_ways(instant):
    moment = times.to_datetime(instant)
    assert times.from_datetime(moment) == instant
    assert times.parse_time(times.format_time(instant)) == instant
    assert times.from_datetime(moment.astimezone(ZoneInfo("Asia/Kathmandu"))) == instant


@given(INSTANTS, st.integers(1, 10**12))
def test_floor_and_ceil_enclose(instant, step):
    low, high = times.floor_to(instant, step), times.ceil_to(instant, step)
    assert low <= instant <= high
    assert low % step == high % step == 0
    assert high - low in (0, step)


def test_times_without_a_zone_or_beyond_the_calendar_are_refused():
    for text in ("yesterday", "2026-11-23T08:00:00", ""):
        with pytest.raises(InvalidArgument, match="at"):
            times.parse_time(text, "at")
    with pytest.raises(InvalidArgument, match="time zone"):
        times.from_datetime(datetime(2026, 1, 1))  # noqa: DTZ001  the point of the test
    with pytest.raises(InvalidArgument):
        times.to_datetime(times.MAX_TIME_UNIX_US + 1)
    assert times.format_time(2**63 - 1) == "9223372036854775807 µs"
    assert times.parse_time("2026-11-23T09:00:00.123456+01:00") == times.parse_time("2026-11-23T08:00:00.123456Z")


def test_shards_are_a_constant_of_the_data_format():
    assert [times.shard_of("default", f"T{i}") for i in range(6)] == [54, 63, 6, 31, 52, 59]
    counts = np.bincount([times.shard_of("t", str(i)) for i in range(6_400)], minlength=times.SHARD_COUNT)
    assert counts.min() > 50
    assert len(counts) == 64


@given(st.lists(st.integers(0, 2**52), min_size=1, max_size=30), st.sampled_from(ZONES))
def test_local_time_is_what_the_zone_says(instants, zone):
    found = local_time_us(np.array(instants), zone)
    for instant, local in zip(instants, found.tolist(), strict=True):
        offset = times.to_datetime(instant).astimezone(ZoneInfo(zone)).utcoffset()
        assert offset is not None
        assert local - instant == offset // timedelta(microseconds=1)


def test_local_time_follows_daylight_saving_to_the_second():
    change = times.parse_time("2026-03-29T01:00:00Z")  # Berlin: 02:00 becomes 03:00
    found = local_time_us(np.array([change - 1, change]), "Europe/Berlin")
    assert (found - np.array([change - 1, change])).tolist() == [HOUR, 2 * HOUR]


def test_calendar_features_are_points_on_two_circles():
    monday = times.parse_time("2026-11-23T00:00:00+01:00")
    features = calendar_features(monday + np.array([0, 6 * HOUR, 12 * HOUR, DAY, 7 * DAY]), "Europe/Berlin")
    assert features.dtype == np.float32
    assert features.shape == (5, 4)
    np.testing.assert_allclose(features[:, :2], [[0, 1], [1, 0], [0, -1], [0, 1], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(features[[0, 1, 2, 4], 2:], [[0, 1]] * 4, atol=1e-6)
    np.testing.assert_allclose(features[3, 2:], [np.sin(2 * np.pi / 7), np.cos(2 * np.pi / 7)], atol=1e-6)
    assert calendar_features(np.empty(0, np.int64)).shape == (0, 4)
    with pytest.raises(InvalidArgument, match="time_zone"):
        require_time_zone("Europe/Nowhere")
    assert require_time_zone("").key == "UTC"


def key(channel):
    return SeriesKey(twin_id="t", channel=channel)


def test_unequal_columns_and_bad_offsets_are_refused():
    with pytest.raises(InvalidArgument) as refused:
        ObservationBatch(doubles=double_section([0, 0], [1], [1.0, 2.0]))
    assert refused.value.reason == "UNEQUAL_COLUMNS"
    good = text_section([0, 0], [1, 2], ["ab", "c"])
    for ends, heap in (([2, 1], b"abc"), ([2, 4], b"abc"), ([1, 2], b"abc")):
        broken = observations.TextSection(
            series=good.series,
            time_unix_us=good.time_unix_us,
            quality=good.quality,
            end_offset=np.array(ends, np.uint32),
            heap=heap,
        )
        with pytest.raises(InvalidArgument, match="end_offset"):
            ObservationBatch(texts=broken)


def test_selecting_and_joining_keep_rows_with_their_series():
    a = ObservationBatch(
        series=(key("x"), key("y")),
        doubles=double_section([0, 1, 0], [1, 2, 3], [1.0, 2.0, 3.0]),
        texts=text_section([1, 0], [1, 2], ["one", "två"]),
    )
    b = ObservationBatch(
        series=(key("y"), key("z")),
        doubles=double_section([0, 1], [4, 5], [4.0, 5.0]),
        bools=bool_section([1], [6], [True]),
    )
    both = observations.concat([a, b])
    assert both.series == (key("x"), key("y"), key("z"))
    assert both.doubles.series.tolist() == [0, 1, 0, 1, 2]
    assert both.point_count() == a.point_count() + b.point_count() == 8
    assert both.used_series().tolist() == [0, 1, 2]
    assert list(both.texts.texts()) == [b"one", "två".encode()]
    chosen = a.texts.select(np.array([False, True]))
    assert list(chosen.texts()) == ["två".encode()]
    assert a.doubles.select(np.array([2, 0])).values.tolist() == [3.0, 1.0]
    assert observations.concat([]).point_count() == 0
    with pytest.raises(InvalidArgument, match="handle 5"):
        observations.concat([ObservationBatch(doubles=double_section([5], [1], [1.0]))])
    assert times.SystemClock().now_unix_us() - times.from_datetime(datetime.now(UTC)) < times.US_PER_MINUTE
