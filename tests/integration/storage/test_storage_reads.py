"""Reads through gRPC over real PostgreSQL: what is answered is the same from the tail, from blocks, and from both."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tests.integration.storage.mesh import T0, S, Storage, collect, doubles, storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2
from twinmesh_core.errors import InvalidArgument, NotFound, OutOfRange
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import (
    ObservationBatch,
    bool_section,
    double_section,
    int64_section,
    text_section,
)
from twinmesh_runtime.registry_mapping import duration_to_message, time_from_message, time_to_message


@pytest.fixture(params=["tail", "blocks", "both", pytest.param("hypertable", marks=pytest.mark.slow)])
async def store(request, request_url):
    fold_after_s = {"tail": 60.0, "blocks": 0.05, "both": 0.3, "hypertable": 0.05}[request.param]
    form = "hypertable" if request.param == "hypertable" else "auto"
    async with storage(request_url, fold_after_s=fold_after_s, history_form=form) as store:
        yield store


@pytest.fixture
def request_url(request):
    """The database of the form that is asked for."""
    return request.getfixturevalue("timescale_url" if "hypertable" in request.node.name else "database_url")


async def settle(store: Storage) -> None:
    """Give folds the time to happen, or not."""
    await asyncio.sleep(0.5)


async def test_a_correction_replaces_the_value_and_its_quality(store):
    keys = await store.series("t1", ["oil"])
    await store.append(doubles(keys, [T0, T0 + S, T0 + 2 * S], [1.0, 2.0, 3.0]), request_id="a")
    await settle(store)
    await store.append(doubles(keys, [T0 + S, T0 - S], [20.0, 0.5], quality=np.array([3, 1], np.uint8)), request_id="b")
    rows = await store.read([("t1", "oil")])
    assert rows["t1/oil"] == [(T0 - S, 0.5, 1), (T0, 1.0, 1), (T0 + S, 20.0, 3), (T0 + 2 * S, 3.0, 1)]
    good = await store.read([("t1", "oil")], min_quality=1, start_time=time_to_message(T0))
    assert good["t1/oil"] == [(T0, 1.0, 1), (T0 + 2 * S, 3.0, 1)]
    statistics = await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())
    assert statistics.entry_count == 2
    assert statistics.landed_point_count == 5
    assert statistics.point_count == 4
    assert list(statistics.point_count_by_quality) == [3, 0, 1]
    listed = await store.ask("ListSeries", storage_pb2.ListSeriesRequest())
    assert [(i.key.channel, i.point_count, i.first_time.seconds) for i in listed.series] == [("oil", 4, (T0 - S) // S)]


async def test_every_kind_of_value_comes_back_as_it_was(store):
    state = await store.series("t1", ["stage"], ChannelKind.STATE, "")
    flag = await store.series("t1", ["on"], ChannelKind.BOOL, "")
    text = await store.series("t1", ["note"], ChannelKind.TEXT, "")
    json = await store.series("t1", ["doc"], ChannelKind.JSON, "")
    times = [T0, T0 + S]
    batch = ObservationBatch(
        series=(*state, *flag, *text, *json),
        int64s=int64_section([0, 0], times, [-(2**63), 2**62 + 1], [1, 1]),
        bools=bool_section([1, 1], times, [True, False], [1, 1]),
        texts=text_section([2, 2], times, ["", "Öl läuft"], [1, 2]),
        jsons=text_section([3, 3], times, ['{"a": 1}', "[]"], [1, 1]),
    )
    await store.append(batch, request_id="k")
    await settle(store)
    names = [("t1", "stage"), ("t1", "on"), ("t1", "note"), ("t1", "doc")]
    rows = await store.read(names)
    assert rows["t1/stage"] == [(T0, -(2**63), 1), (T0 + S, 2**62 + 1, 1)]
    assert rows["t1/on"] == [(T0, 1, 1), (T0 + S, 0, 1)]
    assert rows["t1/note"] == [(T0, b"", 1), (T0 + S, "Öl läuft".encode(), 2)]
    assert rows["t1/doc"] == [(T0, b'{"a": 1}', 1), (T0 + S, b"[]", 1)]
    latest = await store.ask("ReadLatest", storage_pb2.ReadLatestRequest(twin_ids=["t1"]))
    found: dict = {}
    collect(latest.batch, found)
    assert found == {name: values[-1:] for name, values in rows.items()}


async def test_windows_are_aligned_filled_and_as_of(store):
    keys = await store.series("t1", ["oil", "load"])
    times = np.concatenate([T0 + S * np.arange(60), T0 + S * np.arange(0, 60, 20)])
    handles = np.repeat(np.array([0, 1], np.uint32), [60, 3])
    values = np.concatenate([np.arange(60.0), [1.0, 2.0, 3.0]])
    first = await store.append(doubles(keys, times, values, handles), request_id="w")
    await settle(store)
    request = storage_pb2.ReadWindowRequest(
        twin_ids=["t1"],
        channels=["oil", "load"],
        step=duration_to_message(10 * S),
        steps=7,
        gap_policy=storage_pb2.GAP_POLICY_HOLD,
        min_offset=first.position.offset,
    )
    answer = await store.ask("ReadWindow", request)
    window = np.frombuffer(answer.values).reshape(7, 2)
    base = T0 - T0 % (10 * S)
    newest_end = (T0 + 59 * S) // (10 * S) * 10 * S + 10 * S
    assert list(answer.at_unix_us) == [newest_end]
    step_of = (times[:60] - (newest_end - 70 * S)) // (10 * S)
    expected = [values[:60][step_of == i].mean() if (step_of == i).any() else np.nan for i in range(7)]
    np.testing.assert_allclose(window[:, 0], expected)
    assert base <= T0
    assert not np.isnan(window[-1, 1])
    # Newer entries are not seen as of the first one, even where they moved the newest event time on.
    await store.append(doubles(keys, [T0 + 59 * S + 1, T0 + 900 * S], [1e6, 1e6]), request_id="later")
    await settle(store)
    request.as_of_offset = first.position.offset
    again = await store.ask("ReadWindow", request)
    np.testing.assert_array_equal(np.frombuffer(again.values), np.frombuffer(answer.values))
    assert again.as_of.offset == first.position.offset
    request.as_of_offset = 0
    request.at.CopyFrom(time_to_message(newest_end))
    now = np.frombuffer((await store.ask("ReadWindow", request)).values).reshape(7, 2)
    assert now[-1, 0] > 1e4


async def test_aggregates_and_their_buckets(store):
    keys = await store.series("t1", ["oil"])
    day = 86_400 * S
    midnight = T0 - T0 % day
    times = midnight + 3_600 * S * np.arange(72)
    await store.append(doubles(keys, times, np.arange(72.0)), request_id="agg")
    await settle(store)
    f = storage_pb2
    request = storage_pb2.AggregateRequest(
        series=[storage_pb2.SeriesSelector(twin_id="t1", channel="oil")],
        start_time=time_to_message(midnight),
        end_time=time_to_message(midnight + 3 * day),
        bucket=duration_to_message(day),
        functions=[
            f.AGGREGATE_FUNCTION_COUNT,
            f.AGGREGATE_FUNCTION_MEAN,
            f.AGGREGATE_FUNCTION_MIN,
            f.AGGREGATE_FUNCTION_LAST,
            f.AGGREGATE_FUNCTION_STDDEV,
        ],
    )
    answer = await store.ask("Aggregate", request)
    table = np.frombuffer(answer.values).reshape(3, 5)
    days = np.arange(72.0).reshape(3, 24)
    np.testing.assert_allclose(
        table, np.stack([np.full(3, 24), days.mean(1), days.min(1), days[:, -1], days.std(1, ddof=1)], axis=1)
    )
    request.time_zone = "Europe/Berlin"
    berlin = await store.ask("Aggregate", request)
    assert berlin.bucket_unix_us[0] == midnight - 3_600 * S
    assert len(berlin.bucket_unix_us) == 4


async def test_quantiles_counters_states_and_calendar_months(store):
    counter = await store.series("t1", ["energy"], ChannelKind.COUNTER, "kW.h")
    stage = await store.series("t1", ["stage"], ChannelKind.STATE, "")
    hours = T0 - T0 % (3_600 * S) + 3_600 * S * np.arange(4)
    batch = ObservationBatch(
        series=(*counter, *stage),
        doubles=double_section([0] * 4, hours, [10.0, 14.0, 1.0, 3.0], [1] * 4),
        int64s=int64_section([1] * 2, hours[[0, 2]], [1, 2], [1, 1]),
    )
    await store.append(batch, request_id="c")
    await settle(store)
    f = storage_pb2
    request = storage_pb2.AggregateRequest(
        series=[storage_pb2.SeriesSelector(twin_id="t1", channel="energy")],
        bucket=duration_to_message(2 * 3_600 * S),
        last=duration_to_message(4 * 3_600 * S),
        functions=[f.AGGREGATE_FUNCTION_INCREASE, f.AGGREGATE_FUNCTION_TIME_WEIGHTED_MEAN],
        quantiles=[0.25],
        time_zone="Asia/Kolkata",
    )
    answer = await store.ask("Aggregate", request)
    table = np.frombuffer(answer.values).reshape(-1, 3)
    assert time_from_message(answer.at) == hours[-1]
    assert np.nansum(table[:, 0]) == 4 + 1 + 2
    assert answer.end_unix_us > hours[-1] >= answer.bucket_unix_us[-1]
    assert (answer.bucket_unix_us[0] + 5.5 * 3_600 * S) % (2 * 3_600 * S) == 0
    request.ClearField("bucket")
    request.calendar_unit = f.CALENDAR_UNIT_MONTH
    monthly = await store.ask("Aggregate", request)
    np.testing.assert_allclose(np.frombuffer(monthly.values)[[0, 2]], [7, np.quantile([10, 14, 1, 3], 0.25)])
    request.series[0].channel = "stage"
    with pytest.raises(InvalidArgument, match="counters"):
        await store.ask("Aggregate", request)
    request.ClearField("functions")
    request.ClearField("quantiles")
    request.state_values.extend([1.0, 2.0])
    request.ClearField("last")
    request.start_time.CopyFrom(time_to_message(int(hours[0])))
    request.end_time.CopyFrom(time_to_message(int(hours[3])))
    held = np.frombuffer((await store.ask("Aggregate", request)).values)
    assert held[0] == 2 * 3_600


async def test_downsampling_keeps_the_ends_and_the_peak(store):
    keys = await store.series("t1", ["oil", "load"])
    values = np.sin(np.arange(2_000) / 50)
    values[777] = 9.0
    times = T0 + S * np.arange(2_000)
    await store.append(doubles(keys, times, values), request_id="d")
    await settle(store)
    for method in (storage_pb2.DOWNSAMPLE_METHOD_LTTB, storage_pb2.DOWNSAMPLE_METHOD_MIN_MAX):
        rows: dict = {}
        request = storage_pb2.DownsampleRequest(
            series=[storage_pb2.SeriesSelector(twin_id="t1", channel=c) for c in ("oil", "load")],
            method=method,
            max_points=50,
        )
        async for part in store.stream("Downsample", request):
            collect(part.batch, rows)
        chosen = rows["t1/oil"]
        assert 40 <= len(chosen) <= 50
        assert {(t, v) for t, v, _ in chosen} <= set(zip(times.tolist(), values.tolist(), strict=True))
        assert int(times[777]) in [t for t, _, _ in chosen]
        assert (chosen[0][0], chosen[-1][0]) == (times[0], times[-1]) or method == 2


async def test_relative_reads_end_at_the_newest_event_time_and_say_so(store):
    keys = await store.series("t1", ["oil", "load"])
    times = np.concatenate([T0 + S * np.arange(60), T0 + S * np.arange(50)])
    await store.append(
        doubles(keys, times, np.arange(110.0), np.repeat(np.array([0, 1], np.uint32), [60, 50])), request_id="r"
    )
    await settle(store)
    rows = await store.read([("t1", "oil"), ("t1", "load")], last=duration_to_message(12 * S))
    assert [len(rows["t1/oil"]), len(rows["t1/load"])] == [12, 2]
    rows = await store.read([("t1", "oil"), ("t1", "load")], last_count=3)
    assert [[t for t, _, _ in rows[f"t1/{c}"]] for c in ("oil", "load")] == [
        [T0 + S * t for t in (57, 58, 59)],
        [T0 + S * t for t in (47, 48, 49)],
    ]
    request = storage_pb2.ReadRangeRequest(
        series=[storage_pb2.SeriesSelector(twin_id="t1", channel="oil")], last_count=2, at=time_to_message(T0 + 20 * S)
    )
    (part,) = [part async for part in store.stream("ReadRange", request)]
    assert list(part.batch.doubles.time_unix_us) == [T0 + 19 * S, T0 + 20 * S]
    assert time_from_message(part.at) == T0 + 20 * S
    latest = await store.ask(
        "ReadLatest", storage_pb2.ReadLatestRequest(twin_ids=["t1"], at=time_to_message(T0 + 49 * S))
    )
    assert list(latest.batch.doubles.time_unix_us) == [T0 + 49 * S] * 2


async def test_reads_as_of_an_offset_do_not_see_what_came_later(store):
    keys = await store.series("t1", ["oil"])
    text = await store.series("t1", ["note"], ChannelKind.TEXT, "")
    first = ObservationBatch(
        series=(*keys, *text),
        doubles=double_section([0] * 3, T0 + S * np.arange(3), [1.0, 2.0, 3.0], [1, 1, 2]),
        texts=text_section([1], [T0], ["old"], [1]),
    )
    then = (await store.append(first, request_id="1")).position.offset
    await settle(store)
    later = ObservationBatch(
        series=(*keys, *text),
        doubles=double_section([0] * 3, T0 + S * np.array([3, 4, 1]), [50.0, 60.0, 99.0], [1, 1, 3]),
        texts=text_section([1, 1], [T0 + S, T0], ["new", "corrected"], [1, 1]),
    )
    await store.append(later, request_id="2")
    await settle(store)
    names = [("t1", "oil"), ("t1", "note")]
    rows = await store.read(names, as_of_offset=then)
    assert [v for _, v, _ in rows["t1/oil"]] == [1.0, 2.0, 3.0]
    assert [v for _, v, _ in rows["t1/note"]] == [b"old"]
    assert await store.read(names, as_of_offset=then, last_count=5) == rows
    good = await store.read(names, as_of_offset=then, min_quality=1)
    assert len(good["t1/oil"]) == 2
    for quality, expected in ((observation_pb2.QUALITY_BAD, 3.0), (observation_pb2.QUALITY_GOOD, 2.0)):
        newest = storage_pb2.ReadLatestRequest(twin_ids=["t1"], as_of_offset=then, min_quality=quality)
        latest = await store.ask("ReadLatest", newest)
        assert list(latest.batch.doubles.value) == [expected]
        assert latest.batch.texts.heap == b"old"
        assert latest.as_of.offset == then
    request = storage_pb2.AggregateRequest(
        series=[storage_pb2.SeriesSelector(twin_id="t1", channel="oil")],
        start_time=time_to_message(T0),
        end_time=time_to_message(T0 + 10 * S),
        bucket=duration_to_message(20 * S),
        functions=[storage_pb2.AGGREGATE_FUNCTION_COUNT, storage_pb2.AGGREGATE_FUNCTION_LAST],
        as_of_offset=then,
    )
    table = np.frombuffer((await store.ask("Aggregate", request)).values).reshape(-1, 2)
    assert table[table[:, 0] > 0].tolist() == [[3.0, 3.0]]
    listed = await store.ask("ListSeries", storage_pb2.ListSeriesRequest(as_of_offset=then))
    assert {s.key.channel: s.point_count for s in listed.series} == {"oil": 3, "note": 1}
    assert listed.as_of.offset == then


async def test_offsets_that_nobody_was_told_are_refused_by_every_read(database_url):
    oil = storage_pb2.SeriesSelector(twin_id="t1", channel="oil")
    requests = {
        "ReadLatest": storage_pb2.ReadLatestRequest(twin_ids=["t1"], as_of_offset=99),
        "Aggregate": storage_pb2.AggregateRequest(
            series=[oil],
            functions=[storage_pb2.AGGREGATE_FUNCTION_COUNT],
            calendar_unit=storage_pb2.CALENDAR_UNIT_DAY,
            last=duration_to_message(S),
            as_of_offset=99,
        ),
        "ListSeries": storage_pb2.ListSeriesRequest(as_of_offset=99),
        "ListQuarantine": storage_pb2.ListQuarantineRequest(min_offset=99),
        "GetStatistics": storage_pb2.GetStatisticsRequest(min_offset=99),
    }
    async with storage(database_url) as store:

        async def refused(method, request):
            with pytest.raises(OutOfRange, match="beyond the log's head"):
                await store.ask(method, request)

        async def refused_stream(method, request):
            with pytest.raises(OutOfRange, match="beyond the log's head"):
                async for _ in store.stream(method, request):
                    pass

        await asyncio.gather(
            *(refused(method, request) for method, request in requests.items()),
            refused_stream("ReadRange", storage_pb2.ReadRangeRequest(series=[oil], as_of_offset=99)),
            refused_stream("Downsample", storage_pb2.DownsampleRequest(series=[oil], max_points=9, min_offset=99)),
        )


async def test_the_catalogue_is_paged_by_tokens_that_hold_to_the_first_page(store):
    keys = await store.series("t1", ["a", "b", "c"])
    await store.append(doubles(keys, [T0] * 3, [1.0, 2.0, 3.0], np.arange(3, dtype=np.uint32)), request_id="1")
    await settle(store)
    first = await store.ask("ListSeries", storage_pb2.ListSeriesRequest(page_size=2))
    assert [s.key.channel for s in first.series] == ["a", "b"]
    more = await store.series("t1", ["bb"])
    await store.append(doubles((*keys, *more), [T0 + S] * 2, [1.0, 2.0], np.array([2, 3], np.uint32)), request_id="2")
    rest = await store.ask("ListSeries", storage_pb2.ListSeriesRequest(page_size=2, page_token=first.next_page_token))
    assert [(s.key.channel, s.point_count) for s in rest.series] == [("c", 1)]
    assert not rest.next_page_token
    with pytest.raises(InvalidArgument, match="another filter"):
        await store.ask("ListSeries", storage_pb2.ListSeriesRequest(channel="a", page_token=first.next_page_token))
    states = storage_pb2.ListSeriesRequest(kinds=[observation_pb2.CHANNEL_KIND_STATE])
    assert not (await store.ask("ListSeries", states)).series


async def test_unknown_names_and_bad_requests_are_told(store):
    keys = await store.series("t1", ["oil"])
    with pytest.raises(NotFound, match="wrong"):
        await store.read([("t1", "wrong")])
    with pytest.raises(InvalidArgument, match="empty"):
        await store.read([])
    with pytest.raises(InvalidArgument, match="nothing to append"):
        await store.append(doubles(keys, [], []), request_id="e")
    with pytest.raises(InvalidArgument):
        await store.ask("Append", storage_pb2.AppendRequest(observations=b"\xff\xff\xff garbage"))
    with pytest.raises(InvalidArgument, match="page_token"):
        await store.ask("ListSeries", storage_pb2.ListSeriesRequest(page_token="bad"))
    latest = await store.ask(
        "ReadLatest",
        storage_pb2.ReadLatestRequest(series=[storage_pb2.SeriesSelector(twin_id="t1", channel="oil")]),
    )
    assert not latest.batch.series
