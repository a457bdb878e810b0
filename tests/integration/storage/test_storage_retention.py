"""Observations leave the log once they are folded and covered; counts, reads and replays do not notice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import psycopg
import pytest
from tests.integration.storage.mesh import T0, S, Storage, doubles, storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import entry_pb2, observation_pb2, position_pb2
from twinmesh_client.transport import call
from twinmesh_core.errors import FailedPrecondition, InvalidArgument, OutOfRange, PermissionDenied
from twinmesh_core.kinds import ChannelKind

TRIMS = {"fold_after_s": 0.05, "log_keep_s": 0.001, "log_trim_every_s": 0.05}


def everyone(store: Storage) -> Storage:
    return Storage(store.target, store.channel, store.stub, tenant="*")


async def fill(store: Storage, batches: int) -> tuple[int, str]:
    """Append batches of one producer and a control entry after each; return the epoch and the incarnation."""
    keys = await store.series("t1", ["oil"])
    session = await store.ask("OpenProducer", storage_pb2.OpenProducerRequest(producer_id="p"))
    for sequence in range(1, batches + 1):
        stamp = storage_pb2.ProducerStamp(producer_id="p", epoch=session.epoch, sequence=sequence)
        await store.append(doubles(keys, [T0 + S * sequence], [float(sequence)]), producer=stamp)
        control = entry_pb2.ControlEntry(
            request_id=f"c{sequence}", delete_twin=entry_pb2.DeleteTwinEntry(twin_id="none")
        )
        await store.ask("Append", storage_pb2.AppendRequest(control=control))
    return session.epoch, session.incarnation


async def register(store: Storage, incarnation: str, offset: int, consumer: str = "test", seconds: int = 60) -> int:
    request = storage_pb2.RegisterCheckpointRequest(
        consumer=consumer, covered=position_pb2.LogPosition(incarnation=incarnation, offset=offset)
    )
    request.expire_after.FromSeconds(seconds)
    return (await everyone(store).ask("RegisterCheckpoint", request)).trimmed.offset


async def statistics(store: Storage) -> storage_pb2.GetStatisticsResponse:
    return await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await true():  # noqa: ASYNC110 -- the server tells by being asked
            await asyncio.sleep(0.05)


async def first_frame(store: Storage, after: int, **fields: object) -> storage_pb2.FollowResponse:
    request = storage_pb2.FollowRequest(after=position_pb2.LogPosition(offset=after), **fields)  # type: ignore[arg-type]
    async with aclosing(store.stream("Follow", request)) as frames:
        return await anext(frames)


def kinds_in_log(url: str) -> list[tuple[int, int]]:
    with psycopg.connect(url) as conn:
        return conn.execute("select log_offset, kind from storage.log order by log_offset").fetchall()


async def test_the_log_is_trimmed_as_far_as_it_is_covered_and_nobody_but_a_late_follower_notices(database_url):
    async with storage(database_url, **TRIMS) as store:
        epoch, incarnation = await fill(store, 5)
        before = await statistics(store)
        await register(store, incarnation, 6)
        await register(store, incarnation, 10, consumer="another")

        async def trimmed() -> bool:
            return (await statistics(store)).trim_offset == 6

        await until(trimmed)
        assert await register(store, incarnation, 6) == 6
    async with storage(database_url, **TRIMS) as store:
        # Observations were appended at odd offsets, control entries at even ones.
        assert kinds_in_log(database_url) == [(2, 2), (4, 2), (6, 2), (7, 1), (8, 2), (9, 1), (10, 2)]
        after = await statistics(store)
        assert (after.entry_count, after.landed_point_count, after.point_count) == (10, 5, 5)
        assert (before.entry_count, before.landed_point_count, before.point_count) == (10, 5, 5)
        assert after.trim_offset == 6
        rows = await store.read([("t1", "oil")])
        assert rows["t1/oil"] == [(T0 + S * i, float(i), 1) for i in range(1, 6)]
        for offset in (0, 5):
            with pytest.raises(OutOfRange) as refused:
                await first_frame(store, offset)
            assert (refused.value.reason, refused.value.metadata["trim_offset"]) == ("COMPACTED", "6")
        assert [e.offset for e in (await first_frame(store, 6)).entries] == [7, 8, 9, 10]
        control = await first_frame(store, 0, kinds=[storage_pb2.ENTRY_KIND_CONTROL])
        assert [e.offset for e in control.entries] == [2, 4, 6, 8, 10]
        keys = await store.series("t1", ["oil"])
        stamp = storage_pb2.ProducerStamp(producer_id="p", epoch=epoch, sequence=1)
        again = await store.append(doubles(keys, [T0 + S], [1.0]), producer=stamp)
        assert again.replayed
        assert (await statistics(store)).landed_point_count == 5


async def test_nothing_is_trimmed_without_a_valid_checkpoint_or_before_its_age(database_url):
    async with storage(database_url, **TRIMS) as store:
        _, incarnation = await fill(store, 2)
        await register(store, incarnation, 2, consumer="gone", seconds=1)

        async def trimmed(to: int) -> bool:
            return (await statistics(store)).trim_offset == to

        await until(lambda: trimmed(2))
        await asyncio.sleep(1.2)  # the statement expires; there is nothing to wait on
        assert (await statistics(store)).trim_offset == 2
        await register(store, incarnation, 4)
        await until(lambda: trimmed(4))
    async with storage(database_url, **{**TRIMS, "log_keep_s": 3600.0}) as store:
        await store.append(doubles(await store.series("t1", ["oil"]), [T0], [9.0]), request_id="young")
        await register(store, incarnation, 5)

        async def folded() -> bool:
            return (await statistics(store)).fold_offset == 5

        await until(folded)
        await asyncio.sleep(0.3)
        assert (await statistics(store)).trim_offset == 4


async def test_only_services_register_and_only_positions_of_this_log(database_url):
    async with storage(database_url, **TRIMS) as store:
        _, incarnation = await fill(store, 1)
        request = storage_pb2.RegisterCheckpointRequest(
            consumer="x", covered=position_pb2.LogPosition(incarnation=incarnation, offset=1)
        )
        assert (await store.ask("RegisterCheckpoint", request)).trimmed.incarnation == incarnation
        with pytest.raises(PermissionDenied):
            await call(store.stub.RegisterCheckpoint, request, timeout_s=5.0)
        with pytest.raises(OutOfRange, match="head"):
            await register(store, incarnation, 99)
        with pytest.raises(FailedPrecondition) as refused:
            await register(store, "0b1c5a3c-0000-4000-8000-000000000001", 1)
        assert refused.value.reason == "LOG_REWOUND"


async def test_a_restored_log_is_another_one_to_everybody(database_url):
    async with storage(database_url, **TRIMS) as store:
        _, incarnation = await fill(store, 3)
        follower = store.stream("Follow", storage_pb2.FollowRequest())
        await anext(follower)
        with psycopg.connect(database_url) as conn:
            renewed = conn.execute("select storage.renew_incarnation()").fetchone()
        assert renewed is not None
        with pytest.raises(FailedPrecondition) as rewound:
            async for _frame in follower:
                pass
        assert rewound.value.reason == "LOG_REWOUND"

        async def known() -> bool:
            head = await store.ask("GetHead", storage_pb2.GetHeadRequest())
            return head.position.incarnation == str(renewed[0]) and head.position.offset == 6

        await until(known)
        await store.append(doubles(await store.series("t1", ["oil"]), [T0], [9.0]), request_id="after")
        old = position_pb2.LogPosition(incarnation=incarnation, offset=2)
        with pytest.raises(FailedPrecondition) as refused:
            async with aclosing(store.stream("Follow", storage_pb2.FollowRequest(after=old))) as frames:
                await anext(frames)
        assert refused.value.reason == "LOG_REWOUND"
        with pytest.raises(FailedPrecondition):
            await register(store, incarnation, 2)
        assert len((await store.read([("t1", "oil")]))["t1/oil"]) == 4


async def history_start(store: Storage) -> int:
    """Return from which event time on the one series of t1 that a rule concerns is complete."""
    stated = await store.ask("ListRetention", storage_pb2.ListRetentionRequest(twin_id="t1"))
    (start,) = stated.starts
    assert start.channel == "raw"
    return int(start.history_start.ToMicroseconds())


async def test_history_is_dropped_by_rule_and_only_there(database_url):
    """Ten minutes of values; a rule keeps the newest of one channel for a short while."""
    now = int(time.time() * 1e6)
    settings = {"fold_after_s": 0.05, "retention_every_s": 0.1}
    async with storage(database_url, **settings) as store:
        keys = await store.series("t1", ["raw", "kept"])
        times = [now - 600 * S + i * S for i in range(600) for _ in (0, 1)]
        await store.append(doubles(keys, times, [1.0] * 1200, [0, 1] * 600), request_id="r")
        rule = storage_pb2.RetentionRule(channel="raw")
        rule.keep.FromSeconds(60)
        await store.ask("SetRetention", storage_pb2.SetRetentionRequest(rule=rule))
        listed = await store.ask("ListRetention", storage_pb2.ListRetentionRequest())
        assert list(listed.rules) == [rule]

        rows, start = {}, 0

        async def dropped() -> bool:
            nonlocal rows, start
            rows = await store.read([("t1", "raw"), ("t1", "kept")])
            present = [at for at, _, _ in rows["t1/raw"]]
            if len(present) == 600:
                return False
            # It moves on in steps of 1.2 s, and is noted before the rows are gone: what it promises is there.
            start = await history_start(store)
            promised = [at for at in times[::2] if at >= start]
            assert present[len(present) - len(promised) :] == promised
            # Exactly what lies before the cutoff is gone in the end.
            return present == promised and (await statistics(store)).fold_offset >= 2

        await until(dropped)
        assert len(rows["t1/kept"]) == 600
        # The cutoff is no later than the rule says.
        assert now - 600 * S < start <= int(time.time() * 1e6) - 60 * S
        with psycopg.connect(database_url) as conn:
            starts = conn.execute("select channel, history_start from storage.series order by channel").fetchall()
            aside = conn.execute("select count(*) from storage.superseded").fetchone()
        assert starts[0] == ("kept", None)
        assert aside == (0,)
        removed = storage_pb2.SetRetentionRequest(rule=storage_pb2.RetentionRule(channel="raw"))
        await store.ask("SetRetention", removed)
        assert not (await store.ask("ListRetention", storage_pb2.ListRetentionRequest())).rules
    async with storage(database_url, **settings) as store:
        again = (await store.read([("t1", "raw")]))["t1/raw"]
        assert len(again) <= len(rows["t1/raw"])
        assert again[-1] == rows["t1/raw"][-1]


async def test_a_class_is_kept_by_its_rule_and_a_series_that_changes_its_class_follows(database_url):
    """Of two channels one is of a class with a rule; then ingestion tells that the other is too."""
    now = int(time.time() * 1e6)

    async def tell(store: Storage, classes: dict[str, str], offset: int) -> None:
        keys = [
            observation_pb2.SeriesKey(twin_id="t1", channel=c, kind=int(ChannelKind.GAUGE), unit="Cel")  # type: ignore[arg-type]
            for c in classes
        ]
        request = storage_pb2.ResolveSeriesRequest(
            series=keys, retention_class=classes.values(), registry_offset=offset
        )
        await store.ask("ResolveSeries", request)

    async def gone(store: Storage, channel: str) -> bool:
        return len((await store.read([("t1", channel)]))[f"t1/{channel}"]) == 1

    async with storage(database_url, fold_after_s=0.05, retention_every_s=0.1) as store:
        keys = await store.series("t1", ["raw", "calm"])
        await tell(store, {"raw": "fast", "calm": ""}, 5)
        times = [now - 600 * S, now - 600 * S, now, now]
        await store.append(doubles(keys, times, [1.0] * 4, [0, 1] * 2), request_id="r")
        rule = storage_pb2.RetentionRule(retention_class="fast")
        rule.keep.FromSeconds(300)
        await store.ask("SetRetention", storage_pb2.SetRetentionRequest(rule=rule))
        assert list((await store.ask("ListRetention", storage_pb2.ListRetentionRequest())).rules) == [rule]
        await until(lambda: gone(store, "raw"))
        assert not await gone(store, "calm")
        await tell(store, {"raw": "", "calm": "fast"}, 6)
        await until(lambda: gone(store, "calm"))
        both = storage_pb2.RetentionRule(retention_class="fast", channel="raw")
        with pytest.raises(InvalidArgument, match="retention_class"):
            await store.ask("SetRetention", storage_pb2.SetRetentionRequest(rule=both))
        removed = storage_pb2.RetentionRule(retention_class="fast")
        await store.ask("SetRetention", storage_pb2.SetRetentionRequest(rule=removed))
        assert not (await store.ask("ListRetention", storage_pb2.ListRetentionRequest())).rules


async def test_superseded_rows_go_when_the_horizon_has_passed(database_url):
    async with storage(database_url, fold_after_s=0.05, as_of_keep_s=0.0, retention_every_s=0.1) as store:
        keys = await store.series("t1", ["oil"])
        for value in (1.0, 2.0):
            await store.append(doubles(keys, [T0], [value]), request_id=f"r{value}")

        def kept() -> tuple[int, int]:
            with psycopg.connect(database_url) as conn:
                row = conn.execute(
                    "select (select count(*) from storage.superseded), superseded_floor from storage.fold_state"
                ).fetchone()
            assert row is not None
            return row

        async def pruned() -> bool:
            return kept() == (0, 2)

        await until(pruned)
        assert (await store.read([("t1", "oil")]))["t1/oil"] == [(T0, 2.0, 1)]
