"""Laws of the stages: cuts between batches change nothing, what is dropped is accounted for, and each can be off."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.ingestion.plant import NOW, S, gauges, intake, landed

from twinmesh_core.errors import TwinmeshError, Unavailable
from twinmesh_core.kinds import ChannelKind as K
from twinmesh_core.kinds import PipelineStage
from twinmesh_core.observations import ObservationBatch, SeriesKey, bool_section, double_section, int64_section
from twinmesh_core.quality import FlagReason, Quality
from twinmesh_core.registry import ChannelSpec, Twin, TwinType
from twinmesh_core.time import US_PER_MINUTE
from twinmesh_ingestion.adapters.memory import MemoryLog, MemoryRegistry

GOOD, UNCERTAIN, BAD = Quality.GOOD, Quality.UNCERTAIN, Quality.BAD
BAND = ChannelSpec(name="c", kind=K.GAUGE, deadband=1.0, max_silence_us=10 * S)


def world(*channels: ChannelSpec) -> MemoryRegistry:
    known = MemoryRegistry()
    known.create(TwinType(twin_type_id="thing", version=1, channels=channels))
    for twin in ("P1", "P2"):
        known.create(Twin(twin_id=twin, twin_type_id="thing"))
    return known


class Writer:
    """Writes batches through one intake on one log."""

    def __init__(self, *channels: ChannelSpec, log: MemoryLog | None = None) -> None:
        self.log = log or MemoryLog()
        self.taking = intake(self.log, world(*channels))

    async def __call__(self, batch, *, backfill=False):
        prepared = await self.taking.prepare("default", batch, content_hash=b"h" * 16, backfill=backfill)
        return await self.taking.append("default", prepared, request_id="")

    def rows(self, section="doubles"):
        """Return (twin, time, value, quality) of every row that landed, in order of twin and time."""
        found = []
        for i in range(len(self.log.entries)):
            batch = landed(self.log, i)
            s = getattr(batch, section)
            found += [
                (batch.series[h].twin_id, (int(t) - NOW) // S, float(v), int(q))
                for h, t, v, q in zip(s.series, s.time_unix_us, s.values, s.quality, strict=True)
            ]
        return sorted(found)


def series(values, *, start=-1_000, step=1, **options):
    return gauges("c", values, start=NOW + start * S, step=step * S, **options)


# --- deadband ---


async def test_a_deadband_stores_what_moved_and_accounts_for_the_rest():
    write = Writer(BAND)
    ack = await write(series([10.0, 10.5, 11.0, 11.1, 10.2, 12.5]))
    assert [r[2] for r in write.rows()] == [10.0, 11.1, 12.5]
    assert (ack.accepted_count, ack.deadbanded_count, ack.duplicate_count, ack.quarantined_count) == (3, 3, 0, 0)


async def test_a_steady_value_is_stored_after_the_longest_silence_across_batches_too():
    write = Writer(BAND)
    for i in range(25):
        await write(series([10.0], start=-900 + i))
    assert [r[1] for r in write.rows()] == [-900, -890, -880]


async def test_ten_minutes_is_the_longest_silence_unless_told_otherwise():
    write = Writer(replace(BAND, max_silence_us=0))
    await write(series([10.0] * 1_300, start=-2_000))
    assert [r[1] for r in write.rows()] == [-2_000, -1_400, -800]


async def test_a_deadband_in_percent_is_a_part_of_the_range():
    write = Writer(ChannelSpec(name="c", kind=K.GAUGE, min_value=0, max_value=200, deadband_percent=1.0))
    await write(series([10.0, 12.0, 12.1, 14.2]))
    assert [r[2] for r in write.rows()] == [10.0, 12.1, 14.2]


async def test_flagged_rows_and_the_first_good_one_after_them_are_stored():
    write = Writer(replace(BAND, max_value=15.0, max_rate_per_s=3.0))
    batch = series([10.0, 10.1, 20.0, 10.2, 10.3, 10.2, 10.4, 14.9, 14.8, 14.7])
    quality = np.array([0, 0, 0, 0, 0, UNCERTAIN, 0, 0, 0, 0], np.uint8)
    ack = await write(replace(batch, doubles=replace(batch.doubles, quality=quality)))
    assert [(r[2], r[3]) for r in write.rows()] == [
        (10.0, GOOD), (20.0, BAD), (10.2, GOOD), (10.2, UNCERTAIN), (10.4, GOOD), (14.9, UNCERTAIN), (14.8, GOOD),
    ]  # fmt: skip
    assert ack.deadbanded_count == 3
    assert ack.accepted_count == 7


async def test_a_counter_s_reset_is_stored_however_small():
    write = Writer(ChannelSpec(name="c", kind=K.COUNTER, deadband=5.0))
    await write(series([1.0, 3.0, 0.5, 2.0]))
    assert [r[2] for r in write.rows()] == [1.0, 0.5]


async def test_states_and_bools_can_be_stored_on_change():
    write = Writer(ChannelSpec(name="s", kind=K.STATE, deadband=0.0), ChannelSpec(name="b", kind=K.BOOL, deadband=0.0))
    far = 2**60
    at = NOW - S * np.arange(8, 0, -1)
    await write(
        ObservationBatch(
            series=(SeriesKey(twin_id="P1", channel="s"), SeriesKey(twin_id="P1", channel="b")),
            # Beyond 2**53 two different numbers can look alike, so nothing is dropped there.
            int64s=int64_section([0] * 8, at, [1, 1, 2, 2, far, far, far + 1, 1]),
            bools=bool_section([1] * 8, at, [1, 1, 1, 0, 0, 1, 1, 1]),
        )
    )
    assert [r[2] for r in write.rows("int64s")] == [1, 2, far, far, float(far + 1), 1]
    assert [r[2] for r in write.rows("bools")] == [1, 0, 1]


async def test_late_rows_are_stored_and_do_not_move_the_measure():
    write = Writer(BAND)
    await write(series([10.0], start=-100))
    await write(series([10.1], start=-200))
    await write(series([10.2], start=-99))
    assert [r[1] for r in write.rows()] == [-200, -100]


async def test_what_was_never_stored_is_no_measure():
    write = Writer(BAND)
    write.log.faults.refuse_appends = [TwinmeshError("no")]
    with pytest.raises(TwinmeshError):
        await write(series([10.0], start=-100))
    ack = await write(series([10.1], start=-99))
    assert (ack.accepted_count, ack.deadbanded_count) == (1, 0)


def reference(rows, band, silence):
    """Return which of (time, value, quality) rows a deadband stores, one after the other."""
    last = None
    stored = []
    for time, value, quality in rows:
        close = (
            last is not None
            and last[2] == quality == GOOD
            and abs(value - last[1]) <= band
            and 0 < time - last[0] < silence
        )
        if not close:
            stored.append((time, value, quality))
            last = (time, value, quality)
    return stored


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(-8, 8), st.sampled_from([1, 1, 1, 2])), min_size=1, max_size=60),
    st.sampled_from([1, 2, 7, 300]),
)
@settings(max_examples=60, deadline=None)
async def test_many_series_side_by_side_store_what_each_would_alone(steps, copies):
    time = np.cumsum([s[0] for s in steps])
    value = np.array([s[1] for s in steps], float)
    quality = np.array([s[2] for s in steps], np.uint8)
    write = Writer(replace(BAND, deadband=3.0))
    write.taking = intake(write.log, _many(write, copies), remembered_series=1_000)
    n = len(steps)
    shift = np.repeat(np.arange(copies), n)  # each series is a little different from the one before
    ack = await write(
        ObservationBatch(
            series=tuple(SeriesKey(twin_id=f"T{i}", channel="c") for i in range(copies)),
            doubles=double_section(
                shift, NOW - 1_000 * S + np.tile(time, copies) * S, np.tile(value, copies) + shift % 5 * value[n // 2],
                np.tile(quality, copies),
            ),
        )
    )  # fmt: skip
    stored: dict[str, list[tuple[int, float, int]]] = {}
    for twin, at, v, q in write.rows():
        stored.setdefault(twin, []).append((at + 1_000, v, q))
    for i in range(copies):
        rows = list(zip(time.tolist(), (value + i % 5 * value[n // 2]).tolist(), quality.tolist(), strict=True))
        assert stored[f"T{i}"] == reference(rows, 3.0, 10)
    assert ack.accepted_count + ack.deadbanded_count == n * copies


def _many(write, copies):
    known = world(replace(BAND, deadband=3.0))
    for i in range(copies):
        known.create(Twin(twin_id=f"T{i}", twin_type_id="thing"))
    return known


# --- cuts between batches ---

STAGES = {
    "range": ChannelSpec(name="c", kind=K.GAUGE, min_value=-5, max_value=5),
    "rate": ChannelSpec(name="c", kind=K.GAUGE, max_rate_per_s=2.0),
    "counter rate": ChannelSpec(name="c", kind=K.COUNTER, max_rate_per_s=2.0),
    "spike": ChannelSpec(name="c", kind=K.GAUGE, spike_threshold=3.0),
    "stuck": ChannelSpec(name="c", kind=K.GAUGE, stuck_after_us=4 * S),
    "deadband": ChannelSpec(name="c", kind=K.GAUGE, deadband=2.0, max_silence_us=6 * S),
    "all": ChannelSpec(
        name="c", kind=K.GAUGE, min_value=-7, max_value=7, max_rate_per_s=4.0, spike_threshold=3.0,
        stuck_after_us=4 * S, deadband=1.0, max_silence_us=8 * S,
    ),
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(-9, 9), st.sampled_from([0, 0, 0, 0, 2, 3])),
        min_size=1,
        max_size=50,
    ),
    cuts=st.sets(st.integers(1, 49), max_size=6),
)
@settings(max_examples=60, deadline=None)
async def test_cuts_between_batches_change_no_verdict(stage, rows, cuts):
    """Rows of two series, each in the order of its event times, in one batch and in several."""
    twins, steps, values, qualities = zip(*rows, strict=True)
    # No moment twice: a repetition is known across batches of the newest durable value only.
    at = NOW - 1_000 * S + np.cumsum(steps) * S + np.arange(len(rows))
    whole, parts = Writer(STAGES[stage]), Writer(STAGES[stage])
    keys = (SeriesKey(twin_id="P1", channel="c"), SeriesKey(twin_id="P2", channel="c"))

    async def write(to, first, last):
        section = double_section(twins[first:last], at[first:last], values[first:last], qualities[first:last])
        ack = await to(ObservationBatch(series=keys, doubles=section))
        sent = ack.accepted_count + ack.quarantined_count + ack.duplicate_count + ack.deadbanded_count
        assert sent == last - first
        return np.array([ack.accepted_count, ack.flagged_count, ack.deadbanded_count + ack.duplicate_count])

    once = await write(whole, 0, len(rows))
    edges = [0, *sorted(cut for cut in cuts if cut < len(rows)), len(rows)]
    counted = sum([await write(parts, first, last) for first, last in pairwise(edges)])
    assert parts.rows() == whole.rows()
    assert counted.tolist() == once.tolist()


@given(order=st.permutations(range(24)))
@settings(max_examples=40, deadline=None)
async def test_the_order_of_rows_within_a_batch_changes_no_verdict(order):
    rng = np.random.default_rng(5)
    values, at = rng.integers(-9, 9, 24).astype(float), NOW - 1_000 * S + np.arange(24) // 2 * S
    handle = np.arange(24) % 2
    keys = (SeriesKey(twin_id="P1", channel="c"), SeriesKey(twin_id="P2", channel="c"))
    found = []
    for rows in (np.arange(24), np.array(order)):
        write = Writer(STAGES["all"])
        await write(ObservationBatch(series=keys, doubles=double_section(handle[rows], at[rows], values[rows])))
        found.append(write.rows())
    assert found[0] == found[1]


# --- kinds ---


async def test_a_counter_counts_from_zero_after_a_reset():
    write = Writer(ChannelSpec(name="c", kind=K.COUNTER, max_rate_per_s=5.0))
    await write(series([100.0, 104.0, 3.0, 90.0]))
    await write(series([4.0], start=-996))
    await write(series([2_000.0, 500.0], start=-995))
    # 3 after a reset is 3 in a second; 500 after one is 500 in a second, and no meter does that.
    assert [r[3] for r in write.rows()] == [GOOD, GOOD, GOOD, UNCERTAIN, GOOD, UNCERTAIN, UNCERTAIN]


async def test_a_state_is_judged_by_its_rate_only_where_asked():
    states = int64_section([0, 0], [NOW - 2 * S, NOW - S], [0, 900])
    for channel, quality in (
        (ChannelSpec(name="c", kind=K.STATE), GOOD),
        (ChannelSpec(name="c", kind=K.STATE, max_rate_per_s=1.0), UNCERTAIN),
    ):
        write = Writer(channel)
        await write(ObservationBatch(series=(SeriesKey(twin_id="P1", channel="c"),), int64s=states))
        assert write.rows("int64s")[1][3] == quality


# --- switches ---


@pytest.mark.parametrize(
    ("stage", "channel", "values"),
    [
        (PipelineStage.RANGE, ChannelSpec(name="c", kind=K.GAUGE, max_value=5.0), [1.0, 9.0]),
        (PipelineStage.RATE, ChannelSpec(name="c", kind=K.GAUGE, max_rate_per_s=1.0), [1.0, 9.0]),
        (PipelineStage.STUCK, ChannelSpec(name="c", kind=K.GAUGE, stuck_after_us=S), [1.0] * 4),
        (PipelineStage.SPIKE, ChannelSpec(name="c", kind=K.GAUGE, spike_threshold=3.0), [1.0, 2.0] * 6 + [99.0]),
        (PipelineStage.DEADBAND, ChannelSpec(name="c", kind=K.GAUGE, deadband=5.0), [1.0, 2.0]),
    ],
)
async def test_a_channel_may_do_without_a_stage(stage, channel, values):
    on, off = Writer(channel), Writer(replace(channel, disabled_stages=(stage,)))
    await on(series(values))
    ack = await off(series(values))
    assert on.rows() != off.rows()
    assert (ack.accepted_count, ack.flagged_count) == (len(values), 0)
    assert [r[2:] for r in off.rows()] == [(v, GOOD) for v in values]


async def test_a_channel_of_forecasts_may_lie_ahead_but_not_for_ever():
    write = Writer(ChannelSpec(name="c", kind=K.GAUGE, disabled_stages=(PipelineStage.TIME,)))
    day, year = 86_400, 31_557_600
    for start, accepted in ((9 * day, 1), (-40 * year, 1), (11 * year, 0), (-60 * year, 0)):
        assert (await write(series([1.0], start=start))).accepted_count == accepted
    assert {row.reason for row in write.log.quarantined()} == {FlagReason.TIME_IN_FUTURE, FlagReason.TIME_IN_PAST}


async def test_repetitions_may_be_kept():
    again = gauges("c", [1.0, 1.0], step=0)
    assert (await Writer(ChannelSpec(name="c", kind=K.GAUGE))(again)).duplicate_count == 1
    keeps = Writer(ChannelSpec(name="c", kind=K.GAUGE, stuck_after_us=S, disabled_stages=(PipelineStage.REPETITION,)))
    assert (await keeps(again)).duplicate_count == 0
    assert (await keeps(again)).accepted_count == 2


# --- repetitions across batches ---


async def test_a_repetition_of_the_newest_durable_value_is_dropped():
    write = Writer(ChannelSpec(name="c", kind=K.GAUGE, max_rate_per_s=1e9))
    await write(series([1.0, 2.0], start=-10))
    ack = await write(series([2.0, 3.0], start=-9))
    assert (ack.accepted_count, ack.duplicate_count) == (1, 1)
    correction = await write(series([3.5], start=-8))
    assert (correction.accepted_count, correction.duplicate_count) == (1, 0)
    worse = series([3.5], start=-8)
    worse = replace(worse, doubles=replace(worse.doubles, quality=np.array([UNCERTAIN], np.uint8)))
    assert (await write(worse)).accepted_count == 1


async def test_a_value_whose_write_failed_is_no_repetition_when_it_comes_again():
    write = Writer(ChannelSpec(name="c", kind=K.GAUGE, max_rate_per_s=1e9))
    write.log.faults.refuse_appends = [TwinmeshError("no")]
    with pytest.raises(TwinmeshError):
        await write(series([1.0]))
    ack = await write(series([1.0]))
    assert (ack.accepted_count, ack.duplicate_count) == (1, 0)


# --- after a restart ---


async def test_a_new_process_begins_with_storage_s_newest_values():
    first = Writer(replace(BAND, max_rate_per_s=2.0))
    await first(series([10.0], start=-10))
    after = Writer(replace(BAND, max_rate_per_s=2.0), log=first.log)
    ack = await after(series([10.0, 10.4], start=-10))
    assert (ack.duplicate_count, ack.deadbanded_count) == (1, 1)
    fast = await Writer(replace(BAND, max_rate_per_s=2.0), log=first.log)(series([99.0], start=-9))
    assert fast.flagged_count == 1


async def test_storage_that_cannot_say_what_was_there_holds_up_no_write(monkeypatch):
    first = Writer(BAND)
    await first(series([10.0], start=-10))
    after = Writer(BAND, log=first.log)
    asked = []

    async def refuse(*_):
        asked.append(1)
        raise Unavailable("away")

    monkeypatch.setattr(first.log, "latest", refuse)
    assert (await after(series([10.1], start=-9))).accepted_count == 1
    assert (await after(series([10.2], start=-8))).deadbanded_count == 1
    assert len(asked) == 1


async def test_a_bad_newest_value_is_no_measure_for_the_checks():
    first = Writer(replace(BAND, max_value=20.0))
    await first(series([99.0], start=-10))
    after = Writer(replace(BAND, max_value=20.0, max_rate_per_s=1.0), log=first.log)
    ack = await after(series([10.0], start=-9))
    assert (ack.accepted_count, ack.flagged_count) == (1, 0)


# --- the sender's clock ---


async def heard(write, batch, *, sent_at=None, backfill=False):
    from twinmesh_ingestion.domain.intake import Heard

    told = Heard(producer_id="edge", sent_at_unix_us=sent_at)
    prepared = await write.taking.prepare("default", batch, content_hash=b"h" * 16, backfill=backfill, heard=told)
    return await write.taking.append("default", prepared, request_id="")


async def test_the_clock_skew_is_a_median_over_live_batches_and_changes_nothing():
    write = Writer(ChannelSpec(name="c", kind=K.GAUGE))
    for start in (-20, -21, 3_000_000, -19, -22):  # one wild value among them
        ack = await heard(write, series([1.0], start=start))
    assert abs(ack.clock_skew_us + 20 * S) < 2 * S
    before = ack.clock_skew_us
    ack = await heard(write, series([1.0], start=-90_000), backfill=True)
    assert ack.clock_skew_us == before  # recorded history says nothing of a clock
    assert [r[1] for r in write.rows()] == [-90_000, -22, -21, -20, -19]


async def test_a_sender_s_own_clock_counts_more_and_is_told_where_it_matters():
    write = Writer(ChannelSpec(name="c", kind=K.GAUGE))
    ahead = NOW + 192 * US_PER_MINUTE
    ack = await heard(write, series([1.0], start=192 * 60), sent_at=ahead)
    assert ack.clock_skew_us == pytest.approx(192 * US_PER_MINUTE, abs=S)
    (row,) = write.log.quarantined()
    assert "by its clock over 1 batch this producer is 3 h 12 min ahead; set the sender's clock" in row.message
