"""Single values: how foreign ones become ours, and what cannot."""

import numpy as np
import pytest

from twinmesh_connectors.readings import (
    Reading,
    Unreadable,
    batches,
    channel_name,
    entity_name,
    fitted,
    quality_of,
    time_of,
    to_batch,
)
from twinmesh_core.kinds import ChannelKind as K
from twinmesh_core.quality import Quality


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, K.GAUGE, 3.0),
        ("2.5", K.GAUGE, 2.5),
        (2.0, K.STATE, 2),
        ("7", K.STATE, 7),
        (-(1 << 63), K.STATE, -(1 << 63)),
        (1, K.BOOL, True),
        ("off", K.BOOL, False),
        (" TRUE ", K.BOOL, True),
        (12, K.TEXT, "12"),
        ({"a": [1]}, K.JSON, '{"a": [1]}'),
    ],
)
def test_values_fit_their_kind(value, kind, expected):
    result = fitted(value, kind)
    assert (result, type(result)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("warm", K.GAUGE),
        (None, K.GAUGE),
        ([1], K.GAUGE),
        (2.5, K.STATE),
        (float("nan"), K.STATE),
        (1 << 63, K.STATE),
        ("maybe", K.BOOL),
        (2, K.BOOL),
        ({"a": float("nan")}, K.JSON),
    ],
)
def test_what_does_not_fit_is_told_by_kind(value, kind):
    with pytest.raises(Unreadable, match=f"value is no {kind.name.lower()}"):
        fitted(value, kind)


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        ("2026-03-01T12:00:00.25+01:00", "iso", 1_772_362_800_250_000),
        ("1969-12-31T23:59:59.999999Z", "iso", -1),
        (1_772_362_800, "s", 1_772_362_800_000_000),
        (1_772_362_800.25, "s", 1_772_362_800_250_000),
        (1_772_362_800_250, "ms", 1_772_362_800_250_000),
        (5, "us", 5),
        (1_999, "ns", 1),
        (-1, "ns", -1),
    ],
)
def test_times_are_read_and_floored(value, form, expected):
    assert time_of(value, form) == expected


@pytest.mark.parametrize(
    ("value", "form", "reason"),
    [
        ("2026-03-01T12:00:00", "iso", "offset from UTC"),
        ("noon", "iso", "not understood"),
        (None, "s", "not understood"),
        (float("inf"), "s", "not understood"),
        (1e18, "s", "years 1 to 9999"),
        (12, "iso", "not understood"),
    ],
)
def test_times_that_are_none(value, form, reason):
    with pytest.raises(Unreadable, match=reason):
        time_of(value, form)


def test_qualities():
    assert [quality_of(v) for v in (192, "Good", True)] == [Quality.GOOD] * 3
    assert [quality_of(v) for v in (64, "uncertain", 500, "STALE")] == [Quality.UNCERTAIN] * 4
    assert [quality_of(v) for v in (0, "bad", False)] == [Quality.BAD] * 3
    with pytest.raises(Unreadable):
        quality_of("fine")


def test_foreign_names():
    assert channel_name("Motor/Temp °C") == "motor_temp_c"
    assert channel_name("4th stage") == "c_4th_stage"
    assert entity_name("Line 1/Pump#2") == "Line-1-Pump-2"


def test_readings_become_one_batch_with_each_series_once():
    readings = [
        Reading(twin_id="P1", channel="temperature", kind=K.GAUGE, value=1.5, time_unix_us=10, unit="Cel"),
        Reading(twin_id="P1", channel="running", kind=K.BOOL, value=True, time_unix_us=11),
        Reading(twin_id="P1", channel="temperature", kind=K.GAUGE, value=1.6, time_unix_us=12, unit="Cel"),
        Reading(twin_id="P2", channel="note", kind=K.TEXT, value="öl", time_unix_us=13, quality=Quality.BAD),
    ]
    batch = to_batch(readings)
    batch.check_handles()
    assert [(k.twin_id, k.channel, k.unit) for k in batch.series] == [
        ("P1", "temperature", "Cel"),
        ("P1", "running", ""),
        ("P2", "note", ""),
    ]
    np.testing.assert_array_equal(batch.doubles.values, [1.5, 1.6])
    np.testing.assert_array_equal(batch.doubles.time_unix_us, [10, 12])
    assert batch.bools.values.tolist() == [1]
    assert (list(batch.texts.texts()), batch.texts.quality.tolist()) == (["öl".encode()], [3])


def reading(value: object, kind: K, number: int) -> Reading:
    return Reading(twin_id="P1", channel="note", kind=kind, value=value, time_unix_us=number)


@pytest.mark.parametrize(
    ("readings", "sizes"),
    [
        ([], []),
        ([reading(float(i), K.GAUGE, i) for i in range(25_001)], [10_000, 10_000, 5_001]),
        ([reading("x" * 1_000_000, K.TEXT, i) for i in range(9)], [4, 4, 1]),
        ([reading("ö" * 1_000_000, K.TEXT, i) for i in range(5)], [2, 2, 1]),
    ],
)
def test_however_much_comes_at_once_each_batch_fits_a_message(readings, sizes):
    made = list(batches(readings))
    assert [batch.point_count() for batch in made] == sizes
    times = [t for batch in made for _, section in batch.sections() for t in section.time_unix_us.tolist()]
    assert times == [r.time_unix_us for r in readings]


def test_a_text_that_no_message_could_carry_is_told():
    assert fitted("x" * (1 << 20), K.TEXT)
    for value, kind in (("x" * ((1 << 20) + 1), K.TEXT), ("ö" * ((1 << 19) + 1), K.TEXT), (["x" * (1 << 20)], K.JSON)):
        with pytest.raises(Unreadable, match="longer than 1 MiB"):
            fitted(value, kind)
