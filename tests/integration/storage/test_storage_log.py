"""The log through gRPC over real PostgreSQL: exactly once, in order, followed without gap or duplicate."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing

import numpy as np
import pytest
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from tests.integration.storage.mesh import T0, S, Storage, doubles, storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import entry_pb2, observation_pb2, position_pb2, quarantine_pb2
from twinmesh_core import wire
from twinmesh_core.errors import FailedPrecondition, InvalidArgument, OutOfRange, Unavailable


@pytest.fixture
async def store(database_url):
    async with storage(database_url, fold_after_s=0.3) as store:
        yield store


def stamp(epoch: int, sequence: int, producer: str = "p1") -> storage_pb2.ProducerStamp:
    return storage_pb2.ProducerStamp(producer_id=producer, epoch=epoch, sequence=sequence)


async def open_producer(store: Storage, producer: str = "p1") -> storage_pb2.OpenProducerResponse:
    return await store.ask("OpenProducer", storage_pb2.OpenProducerRequest(producer_id=producer))


async def test_a_producer_is_replayed_gapped_fenced_and_refused_by_the_rules(store):
    keys = await store.series("t1", ["oil"])
    session = await open_producer(store)
    assert (session.epoch, session.last_sequence) == (1, 0)
    one, two = doubles(keys, [T0], [1.0]), doubles(keys, [T0 + S], [2.0])
    first = await store.append(one, producer=stamp(1, 1), receipt=b"ack-1")
    again = await store.append(one, producer=stamp(1, 1), receipt=b"other")
    assert (again.replayed, again.receipt, again.position) == (True, b"ack-1", first.position)
    assert again.commit_time == first.commit_time
    with pytest.raises(InvalidArgument, match="other bytes") as reused:
        await store.append(two, producer=stamp(1, 1))
    assert reused.value.reason == "SEQUENCE_REUSED"
    with pytest.raises(FailedPrecondition) as gap:
        await store.append(two, producer=stamp(1, 3))
    assert (gap.value.reason, gap.value.metadata["expected_sequence"]) == ("SEQUENCE_GAP", "2")
    session = await open_producer(store)
    assert (session.epoch, session.last_sequence) == (2, 1)
    with pytest.raises(FailedPrecondition) as fenced:
        await store.append(two, producer=stamp(1, 2))
    assert fenced.value.reason == "PRODUCER_FENCED"
    await store.append(two, producer=stamp(2, 2))
    older = await store.append(one, producer=stamp(2, 1))
    assert older.replayed
    with pytest.raises(InvalidArgument, match="OpenProducer"):
        await store.append(one, producer=stamp(1, 1, "nobody"))
    assert (await store.ask("GetHead", storage_pb2.GetHeadRequest())).position.offset == 2


async def test_a_request_id_with_other_content_is_refused(store):
    keys = await store.series("t1", ["oil"])
    await store.append(doubles(keys, [T0], [1.0]), request_id="r")
    with pytest.raises(InvalidArgument) as reused:
        await store.append(doubles(keys, [T0], [2.0]), request_id="r")
    assert reused.value.reason == "REQUEST_ID_REUSED"
    control = entry_pb2.ControlEntry(request_id="c", delete_twin=entry_pb2.DeleteTwinEntry(twin_id="x"))
    first = await store.ask("Append", storage_pb2.AppendRequest(control=control))
    again = await store.ask("Append", storage_pb2.AppendRequest(control=control))
    assert again.replayed
    assert again.position == first.position


async def test_quarantined_rows_commit_with_their_entry_and_are_paged(store):
    rows = [
        storage_pb2.QuarantinedRow(
            twin_id=f"ghost\0{i}",
            channel="oil",
            time_unix_us=T0 + i,
            value=observation_pb2.Value(double_value=float("nan")),
            quality=1,
            reason=observation_pb2.FLAG_REASON_UNKNOWN_TWIN,
            message="create it",
        )
        for i in range(5)
    ]
    await store.ask("Append", storage_pb2.AppendRequest(observations=b"", request_id="q", quarantine=rows))
    first = await store.ask("ListQuarantine", storage_pb2.ListQuarantineRequest(page_size=3))
    assert first.total_count == 5
    rest = await store.ask(
        "ListQuarantine", storage_pb2.ListQuarantineRequest(page_size=3, page_token=first.next_page_token)
    )
    seen = [*first.rows, *rest.rows]
    assert [r.time_unix_us for r in seen] == [T0 + i for i in reversed(range(5))]
    assert all(r.offset == 1 and np.isnan(r.value.double_value) for r in seen)
    assert not rest.next_page_token
    statistics = await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())
    assert statistics.quarantined_count == 5


async def test_quarantine_is_filtered_paged_either_way_and_tells_how_a_row_left(store):
    rows = [
        storage_pb2.QuarantinedRow(
            twin_id="a" if i % 2 else "b",
            channel=f"c{i % 3}",
            time_unix_us=T0 + i,
            value=observation_pb2.Value(text_value="x" * 3_000_000),
            raw_value=b"\xff" if i == 4 else b"",
            reason=observation_pb2.FLAG_REASON_UNKNOWN_TWIN,
        )
        for i in range(6)
    ]
    await store.ask("Append", storage_pb2.AppendRequest(request_id="q", observations=b"", quarantine=rows[:3]))
    await store.ask("Append", storage_pb2.AppendRequest(request_id="r", observations=b"", quarantine=rows[3:]))

    async def times(**fields):
        found, token = [], ""
        while True:
            page = await store.ask("ListQuarantine", storage_pb2.ListQuarantineRequest(page_token=token, **fields))
            found += page.rows
            token = page.next_page_token
            if not token:
                assert page.total_count == len(found) + fields.get("after_quarantine_id", 0)
                return [r.time_unix_us - T0 for r in found]

    where = quarantine_pb2.QuarantineFilter
    # 18 MB of values: more than one page of bytes, either way.
    assert await times() == [5, 4, 3, 2, 1, 0]
    assert await times(oldest_first=True) == [0, 1, 2, 3, 4, 5]
    assert await times(oldest_first=True, after_quarantine_id=2) == [2, 3, 4, 5]
    assert await times(filter=where(twin_id="a", channel="c0")) == [3]
    assert await times(filter=where(start_offset=2, end_offset=3)) == [5, 4, 3]
    assert await times(filter=where(quarantine_ids=[1, 6])) == [5, 0]
    assert await times(filter=where(reasons=[observation_pb2.FLAG_REASON_STUCK])) == []
    span = where(start_time=Timestamp(), end_time=Timestamp())
    span.start_time.FromMicroseconds(T0 + 1)
    span.end_time.FromMicroseconds(T0 + 3)
    assert await times(filter=span) == [2, 1]

    change = storage_pb2.QuarantineChange(
        replayed_ids=[1, 5],
        discarded_ids=[2],
        kept=[
            storage_pb2.QuarantineVerdict(quarantine_id=3, reason=observation_pb2.FLAG_REASON_NOT_FINITE, message="m")
        ],
        principal="ann",
        comment="sent again",
    )
    done = await store.ask(
        "Append", storage_pb2.AppendRequest(observations=b"", request_id="x", quarantine_change=change)
    )
    assert done.position.offset == 3
    assert await times() == [5, 3, 2]
    assert await times(reason=observation_pb2.FLAG_REASON_NOT_FINITE) == [2]
    gone = await store.ask(
        "ListQuarantine", storage_pb2.ListQuarantineRequest(state=quarantine_pb2.QUARANTINE_STATE_DISCARDED)
    )
    assert [(r.quarantine_id, r.resolve_offset, r.principal, r.comment) for r in gone.rows] == [
        (2, 3, "ann", "sent again")
    ]
    gone = await store.ask(
        "ListQuarantine", storage_pb2.ListQuarantineRequest(state=quarantine_pb2.QUARANTINE_STATE_REPLAYED)
    )
    assert [(r.quarantine_id, r.raw_value) for r in gone.rows] == [(5, b"\xff"), (1, b"")]
    assert (await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())).quarantined_count == 3
    with pytest.raises(FailedPrecondition) as changed:
        await store.ask("Append", storage_pb2.AppendRequest(observations=b"", request_id="y", quarantine_change=change))
    assert changed.value.reason == "QUARANTINE_CHANGED"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"quarantine_change": {"replayed_ids": [1, 1]}, "request_id": "d"}, "quarantine_change"),
        ({"quarantine_change": {"replayed_ids": [1]}}, "quarantine_change"),
        ({"quarantine_change": {"comment": "x" * 1_001}, "request_id": "d"}, "quarantine_change.comment"),
    ],
)
async def test_a_change_of_quarantine_that_cannot_be_is_refused(store, request_, field):
    with pytest.raises(InvalidArgument) as refused:
        await store.ask("Append", json_format.ParseDict({"observations": "", **request_}, storage_pb2.AppendRequest()))
    assert refused.value.field_violations[0].field == field


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"state": 9}, "state"),
        ({"filter": {"reasons": [99]}}, "filter.reasons"),
        ({"filter": {"start_offset": -1}}, "filter.start_offset"),
        ({"filter": {"end_offset": -1}}, "filter.end_offset"),
        ({"filter": {"start_time": "2026-01-02T00:00:00Z", "end_time": "2026-01-01T00:00:00Z"}}, "filter.end_time"),
        ({"filter": {"quarantine_ids": list(range(10_001))}}, "filter.quarantine_ids"),
        ({"twin_id": "a", "filter": {"twin_id": "b"}}, "filter.twin_id"),
        ({"after_quarantine_id": 5}, "after_quarantine_id"),
        ({"page_token": "nonsense"}, "page_token"),
    ],
)
async def test_a_list_of_quarantine_that_cannot_be_is_refused(store, request_, field):
    with pytest.raises(InvalidArgument) as refused:
        await store.ask("ListQuarantine", json_format.ParseDict(request_, storage_pb2.ListQuarantineRequest()))
    assert refused.value.field_violations[0].field == field


@pytest.mark.slow
async def test_followers_see_every_entry_once_in_order_while_many_write(database_url):
    async with storage(database_url, ring_bytes=1 << 20, fold_after_s=0.2) as store:
        keys = await store.series("t1", [f"c{i}" for i in range(8)])
        writers, each = 8, 30

        async def write(number: int) -> None:
            producer = f"p{number}"
            session = await open_producer(store, producer)
            times = T0 + S * (number + writers * np.arange(1000))
            for sequence in range(1, each + 1):
                handles = np.full(1000, number, np.uint32)
                batch = doubles(keys, times + sequence, np.full(1000, float(sequence)), handles)
                await store.append(batch, producer=stamp(session.epoch, sequence, producer))

        async def follow(pause_s: float) -> list[int]:
            seen: list[int] = []
            async with aclosing(store.stream("Follow", storage_pb2.FollowRequest())) as frames:
                async for frame in frames:
                    seen += [e.offset for e in frame.entries]
                    assert frame.through.offset >= (seen[-1] if seen else 0)
                    if len(seen) >= writers * each:
                        return seen
                    await asyncio.sleep(pause_s)
            return seen

        async with asyncio.timeout(40), asyncio.TaskGroup() as group:
            # The slow one falls out of the memory ring and goes on from the database.
            followers = [group.create_task(follow(pause_s)) for pause_s in (0.0, 0.0, 0.2)]
            for number in range(writers):
                group.create_task(write(number))
        for follower in followers:
            assert follower.result() == list(range(1, writers * each + 1))
        statistics = await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())
        assert statistics.point_count == statistics.landed_point_count == writers * each * 1000


async def test_follow_filters_bookmarks_and_refuses_positions_that_are_not(store):
    keys = await store.series("t1", ["oil"])
    await store.append(doubles(keys, [T0], [1.0]), request_id="o")
    control = entry_pb2.ControlEntry(request_id="c", delete_twin=entry_pb2.DeleteTwinEntry(twin_id="x"))
    await store.ask("Append", storage_pb2.AppendRequest(control=control))
    wanted = storage_pb2.FollowRequest(kinds=[storage_pb2.ENTRY_KIND_CONTROL])
    wanted.bookmark_interval.FromMilliseconds(200)
    async with aclosing(store.stream("Follow", wanted)) as frames:
        frame = await anext(frames)
        assert [(e.offset, e.control.request_id, e.tenant) for e in frame.entries] == [(2, "c", "default")]
        await store.append(doubles(keys, [T0 + S], [1.0]), request_id="o2")
        bookmark = await anext(frames)
        assert not bookmark.entries
        while bookmark.through.offset < 3:
            bookmark = await anext(frames)
        assert (bookmark.through.offset, bookmark.head_offset) == (3, 3)
    incarnation = frame.through.incarnation
    for after, kind, reason in (
        (position_pb2.LogPosition(offset=4), OutOfRange, "FUTURE_OFFSET"),
        (position_pb2.LogPosition(offset=1, incarnation="other"), FailedPrecondition, "LOG_REWOUND"),
    ):
        with pytest.raises(kind) as refused:
            async with aclosing(store.stream("Follow", storage_pb2.FollowRequest(after=after))) as frames:
                await anext(frames)
        assert refused.value.reason == reason
    resumed = storage_pb2.FollowRequest(after=position_pb2.LogPosition(offset=2, incarnation=incarnation))
    async with aclosing(store.stream("Follow", resumed)) as frames:
        frame = await anext(frames)
    landed = wire.walk(frame.entries[0].observations)
    assert landed is not None
    assert landed.doubles.time_unix_us.tolist() == [T0 + S]


async def test_tenants_do_not_see_each_other(database_url):
    async with storage(database_url) as store:
        other = Storage(store.target, store.channel, store.stub, tenant="other")
        everyone = Storage(store.target, store.channel, store.stub, tenant="*")
        keys = await store.series("t1", ["oil"])
        await store.append(doubles(keys, [T0], [1.0]), request_id="r")
        with pytest.raises(InvalidArgument, match="not a series of this tenant"):
            await other.append(doubles(keys, [T0], [1.0]), request_id="r")
        theirs = await other.series("t1", ["oil"])
        assert theirs[0].series_id != keys[0].series_id
        await other.append(doubles(theirs, [T0], [2.0]), request_id="r")
        assert (await other.read([("t1", "oil")]))["t1/oil"] == [(T0, 2.0, 1)]
        assert (await store.read([("t1", "oil")]))["t1/oil"] == [(T0, 1.0, 1)]
        async with aclosing(other.stream("Follow", storage_pb2.FollowRequest())) as frames:
            assert [e.offset for e in (await anext(frames)).entries] == [2]
        async with aclosing(everyone.stream("Follow", storage_pb2.FollowRequest())) as frames:
            assert [(e.offset, e.tenant) for e in (await anext(frames)).entries] == [(1, "default"), (2, "other")]


async def test_a_second_process_stands_by_serves_reads_and_takes_over(database_url):
    async with AsyncExitStack() as first_life:
        first = await first_life.enter_async_context(storage(database_url, fold_after_s=0.2))
        keys = await first.series("t1", ["oil"])
        await first.append(doubles(keys, [T0], [1.0]), request_id="a")
        async with storage(database_url, fold_after_s=0.2) as second:
            await asyncio.sleep(0.1)
            with pytest.raises(FailedPrecondition) as refused:
                await second.append(doubles(keys, [T0 + S], [2.0]), request_id="b")
            assert refused.value.reason == "NOT_SEQUENCER"
            await first.append(doubles(keys, [T0 + S], [2.0]), request_id="b")
            assert len((await second.read([("t1", "oil")], min_offset=2))["t1/oil"]) == 2
            await asyncio.sleep(0.5)
            await first.append(doubles(keys, [T0 + 2 * S], [3.0]), request_id="c")
            latest = storage_pb2.ReadLatestRequest(twin_ids=["t1"], min_offset=3)
            answer = await second.ask("ReadLatest", latest)
            assert list(answer.batch.doubles.value) == [3.0]
            statistics = await second.ask("GetStatistics", storage_pb2.GetStatisticsRequest())
            assert statistics.point_count == 3
            await first_life.aclose()
            async with asyncio.timeout(5):
                while True:
                    try:
                        taken = await second.append(doubles(keys, [T0 + 3 * S], [4.0]), request_id="d")
                        break
                    except (FailedPrecondition, Unavailable):
                        await asyncio.sleep(0.05)
            assert taken.position.offset == 4
            again = await second.append(doubles(keys, [T0], [1.0]), request_id="a")
            assert again.replayed


async def test_garbage_never_ends_the_service(store):
    rng = np.random.default_rng(7)
    keys = await store.series("t1", ["oil"])
    body = wire.encode(doubles(keys, [T0], [1.0]))
    for cut in range(0, len(body), 3):
        with pytest.raises(InvalidArgument):
            await store.ask("Append", storage_pb2.AppendRequest(observations=body[:cut] + rng.bytes(5)))
    assert (await store.ask("GetHead", storage_pb2.GetHeadRequest())).position.offset == 0
