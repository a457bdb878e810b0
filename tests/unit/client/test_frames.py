"""pandas frames become columns as they are meant, or an error names the row and the remedy."""

import datetime as dt

import numpy as np
import pandas as pd
import pytest

from twinmesh_client import frames
from twinmesh_client.frames import event_times, frame_batches
from twinmesh_core.errors import InvalidArgument
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch
from twinmesh_core.time import parse_time

KINDS = {
    "oil": ChannelKind.GAUGE,
    "stage": ChannelKind.STATE,
    "on": ChannelKind.BOOL,
    "note": ChannelKind.TEXT,
    "raw": ChannelKind.JSON,
}
UTC_INDEX = pd.DatetimeIndex(["2026-11-23 08:00", "2026-11-23 08:01"], tz="UTC", name="time")


def batches(frame, **options) -> list[ObservationBatch]:
    return list(frame_batches(frame, twin_id="t", kinds=KINDS, **options))


def one(frame, **options) -> ObservationBatch:
    (batch,) = batches(frame, **options)
    return batch


def test_each_kind_goes_to_its_section():
    batch = one(
        pd.DataFrame(
            {"oil": [61.5, 62.0], "stage": [1, 2], "on": [True, False], "note": ["a", "b"], "raw": [{"x": 1}, "[2]"]},
            index=UTC_INDEX,
        )
    )
    assert batch.doubles.values.tolist() == [61.5, 62.0]
    assert batch.int64s.values.tolist() == [1, 2]
    assert batch.bools.values.tolist() == [1, 0]
    assert list(batch.texts.texts()) == [b"a", b"b"]
    assert list(batch.jsons.texts()) == [b'{"x": 1}', b"[2]"]
    assert batch.doubles.time_unix_us[0] == parse_time("2026-11-23T08:00:00Z", "t")


def test_empty_cells_are_absent_and_rows_are_put_in_order():
    frame = pd.DataFrame({"oil": [2.0, 1.0], "load": [np.nan, 5.0]}, index=UTC_INDEX[::-1])
    batch = one(frame)
    assert [k.channel for k in batch.series] == ["oil", "load"]
    assert batch.doubles.values.tolist() == [1.0, 2.0, 5.0]


def test_a_time_column_serves_as_index_and_a_series_as_a_frame():
    frame = pd.DataFrame({"time": ["2026-11-23T08:00:00Z"], "oil": [1.0]})
    assert one(frame).point_count() == 1
    assert one(pd.Series([1.0, 2.0], index=UTC_INDEX, name="oil")).series[0].channel == "oil"


def test_units_and_columns_by_name():
    frame = pd.DataFrame({"Oil temp": [140.0, 141.0]}, index=UTC_INDEX)
    (key,) = one(frame, columns={"Oil temp": "oil"}, units={"Oil temp": "degF"}).series
    assert (key.channel, key.unit) == ("oil", "degF")
    (key,) = one(frame, columns={"Oil temp": "oil"}, units={"oil": "degF"}).series
    assert key.unit == "degF"


@pytest.mark.parametrize("field", ["units", "columns"])
def test_names_that_are_no_column_are_refused(field):
    with pytest.raises(InvalidArgument, match="no column; there are oil"):
        batches(pd.DataFrame({"oil": [1.0, 2.0]}, index=UTC_INDEX), **{field: {"oli": "x"}})


def test_one_channel_from_two_columns_is_refused():
    frame = pd.DataFrame({"a": [1.0, 2.0], "oil": [1.0, 2.0]}, index=UTC_INDEX)
    with pytest.raises(InvalidArgument, match="two columns"):
        batches(frame, columns={"a": "oil"})


def test_titles_need_not_be_texts():
    assert one(pd.DataFrame({0: [1.0, 2.0]}, index=UTC_INDEX), columns={"0": "oil"}).point_count() == 2


@pytest.mark.parametrize(
    ("channel", "cells", "said"),
    [
        ("oil", ["61.5", "hot"], "'hot' at 2026-11-23 08:01:00.*no number"),
        ("stage", [1.0, 1.5], "'1.5' at .*whole numbers"),
        ("stage", [1.0, 1e17], "too large"),
        ("on", ["true", "maybe"], "'maybe' at .*neither true nor false"),
    ],
)
def test_a_cell_that_cannot_be_meant_is_named(channel, cells, said):
    with pytest.raises(InvalidArgument, match=said) as caught:
        batches(pd.DataFrame({channel: cells}, index=UTC_INDEX))
    assert caught.value.field_violations[0].field == channel


def test_words_for_truth_are_taken_as_meant():
    frame = pd.DataFrame({"on": ["false", "Yes", "0"]}, index=UTC_INDEX.append(UTC_INDEX[-1:] + pd.Timedelta("1s")))
    assert one(frame).bools.values.tolist() == [0, 1, 0]


def test_large_whole_numbers_keep_every_digit():
    assert one(pd.DataFrame({"stage": [2**60 + 1, 3]}, index=UTC_INDEX)).int64s.values[0] == 2**60 + 1


def test_a_frame_without_a_value_makes_no_rows():
    assert sum(b.point_count() for b in batches(pd.DataFrame({"oil": [None, None]}, index=UTC_INDEX))) == 0


def test_batches_are_bounded_in_rows_and_in_texts(monkeypatch):
    index = pd.date_range("2026-01-01", periods=100, freq="1s", tz="UTC")
    assert [b.point_count() for b in batches(pd.DataFrame({"oil": range(100)}, index=index), max_rows=40)] == [
        40,
        40,
        20,
    ]
    monkeypatch.setattr(frames, "MAX_TEXT_BYTES_PER_BATCH", 300)
    texts = batches(pd.DataFrame({"note": ["x" * 10] * 100}, index=index))
    assert sum(b.point_count() for b in texts) == 100
    assert max(len(b.texts.heap) for b in texts) <= 300


# --- times ---


def times(values, zone=None) -> list[str]:
    return [str(t) for t in event_times(pd.Index(values), zone).astype("M8[us]").astype("M8[s]")]


def test_naive_times_need_a_zone():
    with pytest.raises(InvalidArgument, match="have no zone") as caught:
        times(["2026-11-23 08:00:00"])
    assert caught.value.field_violations[0].field == "time_zone"
    assert times(["2026-11-23 08:00:00"], "Europe/Berlin") == ["2026-11-23T07:00:00"]


def test_offsets_may_differ_from_row_to_row():
    assert times(["2026-07-01T00:00:00+02:00", "2026-12-01T00:00:00+01:00"]) == [
        "2026-06-30T22:00:00",
        "2026-11-30T23:00:00",
    ]


def test_some_times_with_an_offset_and_some_without_are_refused():
    with pytest.raises(InvalidArgument, match=r"row 1 .*has no offset"):
        times(["2026-07-01T00:00:00+02:00", "2026-07-01T00:00:00"])


def test_python_datetimes_are_times():
    assert times(pd.Index([dt.datetime(2026, 1, 1)], dtype=object), "UTC") == ["2026-01-01T00:00:00"]  # noqa: DTZ001


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (["2026-11-23", "yesterday"], "row 1 .*'yesterday'"),
        ([1, 2], "holds numbers"),
        (pd.DatetimeIndex(["2026-01-01", None]), "row 1 .*no time"),
    ],
)
def test_what_is_no_time_is_named(index, said):
    with pytest.raises(InvalidArgument, match=said):
        times(index, "UTC")


def test_an_unknown_zone_is_refused():
    with pytest.raises(InvalidArgument, match="'Mars/Base' is no IANA time zone"):
        times(["2026-01-01"], "Mars/Base")


def test_the_hour_that_occurs_twice_is_told_apart_by_order():
    found = times([f"2026-10-25 {t}" for t in ("01:30", "02:00", "02:30", "02:00", "02:30", "03:00")], "Europe/Berlin")
    assert found[1:5] == [f"2026-10-25T{t}:00" for t in ("00:00", "00:30", "01:00", "01:30")]


def test_an_ambiguous_hour_is_named_with_a_remedy():
    with pytest.raises(InvalidArgument, match=r"occur twice: 2026-10-25 02:00:00 \(1\).*Etc/GMT-1"):
        times([f"2026-10-25 {h:02}:00" for h in range(5)], "Europe/Berlin")


def test_an_hour_that_does_not_exist_is_named():
    with pytest.raises(InvalidArgument, match=r"do not exist: 2026-03-29 02:00:00 \(1\)"):
        times([f"2026-03-29 {h:02}:00" for h in range(5)], "Europe/Berlin")
