"""Every stage of the pipeline and every bad row: the flag or the quarantine entry, its reason and its remedy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.ingestion.plant import NOW, S, gauges, intake, landed, registry

from twinmesh_core.errors import InvalidArgument, ResourceExhausted
from twinmesh_core.observations import (
    ObservationBatch,
    SeriesKey,
    bool_section,
    double_section,
    int64_section,
    text_section,
)
from twinmesh_core.quality import FlagReason, Quality
from twinmesh_ingestion.adapters.memory import MemoryLog

GOOD, UNCERTAIN, BAD = Quality.GOOD, Quality.UNCERTAIN, Quality.BAD


def key(channel, *, twin="P1", unit=""):
    return SeriesKey(twin_id=twin, channel=channel, unit=unit)


def reasons(ack):
    return {(o.reason, o.quality): o.count for o in ack.outcomes}


async def only_quarantine(log, write, batch, **options):
    ack = await write(batch, **options)
    assert (ack.accepted_count, ack.quarantined_count) == (batch.point_count() - 1, 1)
    (row,) = log.quarantined()
    assert ack.outcomes[0].example == row.message
    return row


async def test_good_rows_land_in_the_canonical_unit_with_series_id_and_type(log, write):
    ack = await write(gauges("temperature", [68.0, 212.0], unit="°F"))
    assert (ack.accepted_count, ack.flagged_count, ack.quarantined_count, ack.offset) == (2, 0, 0, 1)
    batch = landed(log)
    assert batch.doubles.values.tolist() == pytest.approx([20.0, 100.0])
    assert batch.doubles.quality.tolist() == [GOOD, GOOD]
    (landed_key,) = batch.series
    assert (landed_key.unit, landed_key.twin_type_id, landed_key.twin_type_version) == ("Cel", "pump", 1)
    assert landed_key.series_id > 0


async def test_unknown_twin_is_quarantined_with_the_command_that_creates_it(log, write):
    batch = ObservationBatch(
        series=(key("temperature"), key("temperature", twin="pump-7")),
        doubles=double_section([0, 1], [NOW, NOW], [20.0, 21.0]),
    )
    row = await only_quarantine(log, write, batch)
    assert row.reason == FlagReason.UNKNOWN_TWIN
    assert "batch.series[1].twin_id" in row.message
    assert "`twinmesh twins create pump-7 --type pump@1`" in row.message
    assert (row.twin_id, row.value, row.time_unix_us) == ("pump-7", 21.0, NOW)


async def test_unknown_channel_is_quarantined_with_the_channels_there_are(log, write):
    batch = ObservationBatch(
        series=(key("temperature"), key("temprature")), doubles=double_section([0, 1], [NOW, NOW], [20.0, 21.0])
    )
    row = await only_quarantine(log, write, batch)
    assert row.reason == FlagReason.UNKNOWN_CHANNEL
    assert "has no channel 'temprature'; it has: temperature, pressure," in row.message


@pytest.mark.parametrize(("unit", "words"), [("bar", "cannot be converted"), ("florins", "is not known")])
async def test_wrong_unit_is_quarantined_with_units_that_fit(log, write, unit, words):
    batch = ObservationBatch(
        series=(key("temperature"), key("temperature", unit=unit)),
        doubles=double_section([0, 1], [NOW, NOW + 1], [20.0, 21.0]),
    )
    row = await only_quarantine(log, write, batch)
    assert row.reason == FlagReason.INCOMPATIBLE_UNIT
    assert words in row.message
    assert "the unit of channel 'temperature' is '°C'" in row.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_not_finite_quarantines_its_row_only(log, write, value):
    row = await only_quarantine(log, write, gauges("temperature", [20.0, value, 21.0]))
    assert row.reason == FlagReason.NOT_FINITE
    assert row.value == pytest.approx(value, nan_ok=True)
    assert landed(log).doubles.values.tolist() == [20.0, 21.0]


@pytest.mark.parametrize(
    ("time", "backfill", "reason", "words"),
    [
        (NOW + 6 * 60 * S, False, FlagReason.TIME_IN_FUTURE, "6 min ahead of the server's clock"),
        (NOW + 6 * 60 * S, True, FlagReason.TIME_IN_FUTURE, "6 min ahead of the server's clock"),
        (NOW + 93_785 * S, False, FlagReason.TIME_IN_FUTURE, "1 d 2 h ahead of the server's clock"),
        (NOW - 11 * 365 * 86_400 * S, False, FlagReason.TIME_IN_PAST, "set backfill"),
        (-1, True, FlagReason.TIME_IN_PAST, "times before 1970 are not kept"),
        (-(2**63), True, FlagReason.TIME_IN_PAST, "times before 1970 are not kept"),
        (2**63 - 1, False, FlagReason.TIME_IN_FUTURE, "send microseconds since 1970, UTC"),
    ],
)
async def test_times_that_cannot_be_are_quarantined(log, write, time, backfill, reason, words):
    batch = ObservationBatch(series=(key("temperature"),), doubles=double_section([0, 0], [NOW, time], [20.0, 21.0]))
    row = await only_quarantine(log, write, batch, backfill=backfill)
    assert row.reason == reason
    assert row.time_unix_us == time
    assert "event time is" in row.message
    assert words in row.message


@pytest.mark.parametrize(
    ("time", "backfill"), [(NOW + 4 * 60 * S, False), (0, True), (NOW - 9 * 365 * 86_400 * S, False)]
)
async def test_times_within_bounds_land(write, time, backfill):
    batch = ObservationBatch(series=(key("temperature"),), doubles=double_section([0], [time], [20.0]))
    assert (await write(batch, backfill=backfill)).accepted_count == 1


async def test_handle_beyond_the_dictionary_is_quarantined(log, write):
    batch = ObservationBatch(series=(key("temperature"),), doubles=double_section([0, 7], [NOW, NOW], [20.0, 21.0]))
    row = await only_quarantine(log, write, batch)
    assert row.reason == FlagReason.UNKNOWN_HANDLE
    assert "handle 7" in row.message


async def test_rows_without_any_dictionary_are_quarantined(log, write):
    ack = await write(ObservationBatch(doubles=double_section([0], [NOW], [1.0])))
    assert reasons(ack) == {(FlagReason.UNKNOWN_HANDLE, Quality.UNSPECIFIED): 1}
    assert landed(log).point_count() == 0


async def test_quality_byte_beyond_bad_is_quarantined(log, write):
    batch = ObservationBatch(
        series=(key("temperature"),), doubles=double_section([0, 0], [NOW, NOW + 1], [20.0, 21.0], [1, 9])
    )
    row = await only_quarantine(log, write, batch)
    assert (row.reason, row.quality) == (FlagReason.INVALID_QUALITY, 9)


async def test_section_that_does_not_fit_the_kind_is_quarantined(log, write):
    batch = ObservationBatch(
        series=(key("temperature"), key("note")),
        doubles=double_section([0, 1], [NOW, NOW], [20.0, 21.0]),
    )
    row = await only_quarantine(log, write, batch)
    assert row.reason == FlagReason.WRONG_KIND
    assert "'note' is a TEXT, whose values belong into texts" in row.message


async def test_numbers_land_in_the_section_of_their_channels_kind(log, write):
    batch = ObservationBatch(
        series=(key("temperature"), key("stage"), key("energy"), key("temperature", twin="P2", unit="°F")),
        doubles=double_section([1, 0, 1], [NOW, NOW, NOW + 1], [2.0, 20.5, -0.0], [2, 0, 0]),
        int64s=int64_section([2, 1, 0, 3], [NOW, NOW + 2, NOW + 1, NOW], [7, 3, 21, 212], [0, 0, 3, 0]),
    )
    ack = await write(batch)
    assert (ack.accepted_count, ack.quarantined_count) == (7, 0)
    stored = landed(log)
    at = [(int(h), int(t - NOW)) for h, t in zip(stored.doubles.series, stored.doubles.time_unix_us, strict=True)]
    assert dict(zip(at, stored.doubles.values, strict=True)) == pytest.approx(
        {(0, 0): 20.5, (0, 1): 21, (2, 0): 7, (3, 0): 100}
    )
    assert stored.doubles.quality[at.index((0, 1))] == BAD
    assert stored.int64s.values.dtype == np.int64
    moments = (stored.int64s.time_unix_us - NOW).tolist()
    assert dict(zip(moments, stored.int64s.values.tolist(), strict=True)) == {0: 2, 1: 0, 2: 3}
    assert stored.int64s.quality[moments.index(0)] == UNCERTAIN


async def test_numbers_that_would_change_on_their_way_are_kept_aside(log, write):
    most = 2.0**53
    no_states = [1.5, np.nan, np.inf, -np.inf, 1e300, most + 2]
    states = ObservationBatch(
        series=(key("stage"),),
        doubles=double_section([0] * 8, NOW - np.arange(8), [*no_states, most, -most]),
    )
    ack = await write(states)
    assert (ack.accepted_count, reasons(ack)[FlagReason.WRONG_KIND, Quality.UNSPECIFIED]) == (2, len(no_states))
    assert landed(log).int64s.values.tolist() == [2**53, -(2**53)]
    rows = log.quarantined()
    np.testing.assert_array_equal([row.value for row in rows], no_states)
    assert "'stage' is a STATE, which takes doubles that are whole" in rows[0].message
    wide = ObservationBatch(
        series=(key("energy"),),
        int64s=int64_section([0] * 4, NOW + np.arange(4), [2**53 + 1, -(2**63), 2**63 - 1, 2**53]),
    )
    ack = await write(wide)
    assert (ack.accepted_count, ack.quarantined_count) == (1, 3)
    assert [row.value for row in log.quarantined()[len(rows) :]] == [2**53 + 1, -(2**63), 2**63 - 1]
    assert "'energy' is a COUNTER, which takes int64s within 2^53" in ack.outcomes[0].example


async def test_a_repetition_is_one_in_whichever_section_it_comes(log, write):
    batch = ObservationBatch(
        series=(key("stage"),),
        doubles=double_section([0, 0], [NOW, NOW + 1], [1.0, 2.0]),
        int64s=int64_section([0], [NOW], [1]),
    )
    ack = await write(batch)
    assert (ack.accepted_count, ack.duplicate_count) == (2, 1)


async def test_rows_without_a_series_are_not_moved(log, write):
    batch = ObservationBatch(series=(key("stage"),), doubles=double_section([5, 0], [NOW, NOW], [1.0, 2.0]))
    row = await only_quarantine(log, write, batch)
    assert row.reason == FlagReason.UNKNOWN_HANDLE
    assert landed(log).int64s.values.tolist() == [2]


async def test_text_must_be_utf8_and_json_must_parse(log, write):
    batch = ObservationBatch(
        series=(key("note"), key("config")),
        texts=text_section([0, 0], [NOW, NOW + 1], [b"fine", b"\xff\xfe"]),
        jsons=text_section([1] * 4, NOW + np.arange(4), ['{"a": [1, null]}', "{a: 1}", "NaN", "[" * 100_000]),
    )
    ack = await write(batch)
    assert reasons(ack) == {(FlagReason.MALFORMED_VALUE, Quality.UNSPECIFIED): 4}
    rows = log.quarantined()
    assert rows[0].value == "\\xff\\xfe"
    assert {len(str(row.value)) for row in rows} == {8, 6, 3, 100_000}
    assert list(landed(log).texts.texts()) == [b"fine"]
    assert list(landed(log).jsons.texts()) == [b'{"a": [1, null]}']


async def test_bool_must_be_zero_or_one(log, write):
    section = bool_section([0, 0, 0], [NOW, NOW + 1, NOW + 2], [True, False, True])
    broken = bool_section([0, 0, 0], [NOW, NOW + 1, NOW + 2], [True, False, True])
    object.__setattr__(broken, "values", np.array([1, 0, 7], np.uint8))
    assert (await write(ObservationBatch(series=(key("running"),), bools=section))).accepted_count == 3
    row = await only_quarantine(log, write, ObservationBatch(series=(key("running"),), bools=broken))
    assert (row.reason, row.value) == (FlagReason.MALFORMED_VALUE, 7)


async def test_range_flags_bad_and_keeps_the_value(log, write):
    ack = await write(gauges("temperature", [20.0, 151.0, -41.0, 150.0]))
    assert reasons(ack) == {(FlagReason.OUT_OF_RANGE, BAD): 2}
    assert ack.flagged_count == 2
    assert landed(log).doubles.quality.tolist() == [GOOD, BAD, BAD, GOOD]
    assert "outside the channel's min_value to max_value" in ack.outcomes[0].example


async def test_states_are_checked_against_their_range(log, write):
    batch = ObservationBatch(series=(key("stage"),), int64s=int64_section([0] * 3, [1, 2, 3], [0, 3, 4]))
    ack = await write(batch, backfill=True)
    assert reasons(ack) == {(FlagReason.OUT_OF_RANGE, BAD): 1}
    assert landed(log).int64s.values.tolist() == [0, 3, 4]


async def test_rate_of_change_flags_uncertain_within_and_across_batches(log, write):
    ack = await write(gauges("pressure", [1.0, 1.5, 4.0, 4.2]))
    assert reasons(ack) == {(FlagReason.RATE_OF_CHANGE, UNCERTAIN): 1}
    assert landed(log).doubles.quality.tolist() == [GOOD, GOOD, UNCERTAIN, GOOD]
    late = await write(gauges("pressure", [9.0], start=NOW - 996 * S))
    assert reasons(late) == {(FlagReason.RATE_OF_CHANGE, UNCERTAIN): 1}
    slow = await write(gauges("pressure", [20.0], start=NOW - 900 * S))
    assert reasons(slow) == {}


async def test_rate_is_judged_in_event_time_whatever_the_order_sent(log, write):
    batch = ObservationBatch(
        series=(key("pressure"),),
        doubles=double_section([0] * 4, NOW - S * np.array([1, 3, 2, 4]), [4.2, 1.5, 4.0, 1.0]),
    )
    await write(batch)
    assert landed(log).doubles.quality.tolist() == [GOOD, GOOD, UNCERTAIN, GOOD]


async def test_a_counter_may_reset_but_not_run_away(log, write):
    ack = await write(gauges("energy", [100.0, 104.0, 0.0, 3.0, 90.0]))
    assert reasons(ack) == {(FlagReason.RATE_OF_CHANGE, UNCERTAIN): 1}
    assert landed(log).doubles.quality.tolist() == [GOOD, GOOD, GOOD, GOOD, UNCERTAIN]


def wobble(n, seed=0):
    return (5.0 + 0.1 * np.random.default_rng(seed).standard_normal(n)).tolist()


async def test_spikes_in_recorded_history_are_flagged_and_level_shifts_are_not(log, write):
    values = wobble(60)
    values[20] = 9.0
    values[40:] = [v + 3.0 for v in values[40:]]
    await write(gauges("vibration", values), backfill=True)
    flagged = np.flatnonzero(landed(log).doubles.quality == UNCERTAIN).tolist()
    assert 20 in flagged
    assert not set(range(36, 46)) - {39, 40} & set(flagged)
    assert len(flagged) <= 4


async def test_a_spike_in_live_single_values_is_judged_by_those_before(log, write):
    values = [*wobble(20), 9.0]
    outcomes = [await write(gauges("vibration", [v], start=NOW - (500 - i) * S)) for i, v in enumerate(values)]
    assert reasons(outcomes[-1]) == {(FlagReason.SPIKE, UNCERTAIN): 1}
    assert sum(len(ack.outcomes) for ack in outcomes[:-1]) <= 1


async def test_a_stuck_sensor_is_flagged_within_and_across_batches(log, write):
    await write(gauges("level", [50.0] * 8))
    assert landed(log).doubles.quality.tolist() == [GOOD] * 8
    ack = await write(gauges("level", [50.0] * 4 + [51.0], start=NOW - 992 * S))
    # Unchanged since second 0; seconds 11 on are more than 10 s.
    assert reasons(ack) == {(FlagReason.STUCK, UNCERTAIN): 1}
    assert landed(log).doubles.quality.tolist() == [GOOD, GOOD, GOOD, UNCERTAIN, GOOD]


async def test_a_wild_value_does_not_condemn_its_neighbours(log, write):
    batch = gauges("pressure", [1.0, 1000.0, 1.1])
    object.__setattr__(batch.doubles, "quality", np.array([0, BAD, 0], np.uint8))
    ack = await write(batch)
    assert reasons(ack) == {(FlagReason.BY_SENDER, BAD): 1}
    assert ack.flagged_count == 0
    assert landed(log).doubles.quality.tolist() == [GOOD, BAD, GOOD]


async def test_the_sender_s_quality_is_never_raised(log, write):
    batch = gauges("temperature", [20.0, 200.0, 200.0, 20.0])
    object.__setattr__(batch.doubles, "quality", np.array([2, 2, 3, 0], np.uint8))
    ack = await write(batch)
    assert landed(log).doubles.quality.tolist() == [UNCERTAIN, BAD, BAD, GOOD]
    assert reasons(ack) == {
        (FlagReason.OUT_OF_RANGE, BAD): 1,
        (FlagReason.BY_SENDER, UNCERTAIN): 1,
        (FlagReason.BY_SENDER, BAD): 1,
    }
    assert ack.flagged_count == 1


async def test_repetitions_are_dropped_and_counted_corrections_are_kept(log, write):
    batch = ObservationBatch(
        series=(key("temperature"), key("temperature", unit="K"), key("note")),
        doubles=double_section([0, 0, 0, 1, 0], NOW - S * np.array([5, 5, 5, 5, 4]), [20, 20, 21, 294.15, 20]),
        texts=text_section([2, 2, 2], [NOW, NOW, NOW], ["a", "a", "b"]),
    )
    ack = await write(batch)
    assert (ack.accepted_count, ack.duplicate_count, ack.quarantined_count) == (5, 3, 0)
    assert landed(log).doubles.values.tolist() == [20.0, 21.0, 20.0]
    assert list(landed(log).texts.texts()) == [b"a", b"b"]
    assert len(landed(log).series) == 2  # two spellings of one series land as one


async def test_an_empty_and_an_oversized_batch_are_refused_whole(log):
    taking = intake(log)
    for batch, words in (
        (ObservationBatch(series=(key("temperature"),)), "holds no row"),
        (gauges("temperature", np.zeros(1_000_001)), "send at most 1000000"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            await taking.prepare("default", batch, content_hash=b"", backfill=False)
    assert not log.entries


async def test_more_quarantine_than_one_entry_can_carry_is_refused_with_an_example(log):
    batch = gauges("temperature", np.zeros(50_001), twin="nobody")
    with pytest.raises(ResourceExhausted, match="twins create nobody"):
        await intake(log).prepare("default", batch, content_hash=b"", backfill=False)


async def test_a_twin_created_a_moment_ago_is_found_by_catching_up_once(log):
    known = registry(visible=False)
    taking = intake(log, known)
    prepared = await taking.prepare("default", gauges("temperature", [1.0]), content_hash=b"", backfill=False)
    assert prepared.ack.accepted_count == 1
    assert known.catch_ups == 1


async def test_no_verdict_on_a_twin_while_the_registry_cannot_catch_up(log):
    known = registry(visible=False)
    known.away = True
    with pytest.raises(Exception, match="Storage is away"):
        await intake(log, known, patience_s=0.05).prepare(
            "default", gauges("temperature", [1.0]), content_hash=b"", backfill=False
        )


async def test_tenants_do_not_see_each_other_s_twins(log):
    prepared = await intake(log).prepare("other", gauges("temperature", [1.0]), content_hash=b"", backfill=False)
    assert prepared.ack.quarantined_count == 1


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.integers(-20, 20),
            st.sampled_from([1.0, 2.0, 500.0, np.nan, np.inf]),
            st.integers(0, 5),
        ),
        min_size=1,
        max_size=40,
    )
)
@settings(max_examples=100, deadline=None)
async def test_every_row_is_accounted_for(rows):
    log = MemoryLog()
    handles, seconds, values, qualities = zip(*rows, strict=True)
    times, whole = NOW + S * np.array(seconds) * 30, np.isfinite(values) & (np.array(seconds) > 0)
    batch = ObservationBatch(
        series=(key("temperature"), key("pressure"), key("temperature", twin="nobody"), key("stage")),
        doubles=double_section(handles, times, values, qualities),
    )
    batch = ObservationBatch(
        series=batch.series,
        doubles=batch.doubles.select(~whole),
        int64s=int64_section(
            np.array(handles)[whole], times[whole], np.array(values)[whole].astype(np.int64), np.array(qualities)[whole]
        ),
    )
    prepared = await intake(log).prepare("default", batch, content_hash=b"", backfill=False)
    ack = await intake(log).append("default", prepared, request_id="")
    assert ack.accepted_count + ack.quarantined_count + ack.duplicate_count == len(rows)
    assert landed(log).point_count() == ack.accepted_count
    assert len(log.quarantined()) == ack.quarantined_count
    quarantined = sum(o.count for o in ack.outcomes if o.quality == Quality.UNSPECIFIED)
    assert quarantined == ack.quarantined_count
    kept = landed(log)
    if len(kept.doubles):
        assert kept.doubles.quality.min() >= GOOD
        assert np.isfinite(kept.doubles.values).all()
