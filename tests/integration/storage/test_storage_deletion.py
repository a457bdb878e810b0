"""DeleteRange: hidden everywhere at once, for what came before and nothing else, whatever is folded or restarted."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from tests.integration.storage.mesh import T0, S, Storage, collect, doubles, storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import entry_pb2
from twinmesh_core.errors import InvalidArgument, NotFound
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, text_section

NEVER = {"fold_after_s": 60.0}


async def delete(
    store: Storage, request_id: str, names: list[tuple[str, str]], start: int | None, end: int | None, **fields: Any
) -> storage_pb2.DeleteRangeResponse:
    request = storage_pb2.DeleteRangeRequest(
        request_id=request_id,
        series=[storage_pb2.SeriesSelector(twin_id=t, channel=c) for t, c in names],
        **fields,
    )
    if start is not None:
        request.start_time.FromMicroseconds(start)
    if end is not None:
        request.end_time.FromMicroseconds(end)
    return await store.ask("DeleteRange", request)


async def folded(store: Storage, offset: int) -> storage_pb2.GetStatisticsResponse:
    async with asyncio.timeout(20):
        while True:
            counts = await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())
            if counts.fold_offset >= offset:
                return counts
            await asyncio.sleep(0.05)


async def latest(store: Storage, twin: str, **fields: Any) -> dict[str, list[tuple[int, Any, int]]]:
    out: dict[str, list[tuple[int, Any, int]]] = {}
    collect((await store.ask("ReadLatest", storage_pb2.ReadLatestRequest(twin_ids=[twin], **fields))).batch, out)
    return out


async def window(store: Storage, steps: int, min_offset: int) -> list[float]:
    request = storage_pb2.ReadWindowRequest(
        twin_ids=["t1"], channels=["oil"], steps=steps, min_offset=min_offset, gap_policy=storage_pb2.GAP_POLICY_NONE
    )
    request.step.FromSeconds(1)
    request.at.FromMicroseconds(T0 + S * steps)
    answer = await store.ask("ReadWindow", request)
    return np.frombuffer(answer.values, "<f8").tolist()


async def total(store: Storage, min_offset: int) -> tuple[float, float]:
    request = storage_pb2.AggregateRequest(
        series=[storage_pb2.SeriesSelector(twin_id="t1", channel="oil")],
        functions=[storage_pb2.AGGREGATE_FUNCTION_COUNT, storage_pb2.AGGREGATE_FUNCTION_SUM],
        min_offset=min_offset,
    )
    request.start_time.FromMicroseconds(T0 - T0 % (10**9))
    request.end_time.FromMicroseconds(T0 - T0 % (10**9) + 10**9)
    request.bucket.FromMicroseconds(10**9)
    count, summed = np.frombuffer((await store.ask("Aggregate", request)).values, "<f8").tolist()
    return count, summed


@pytest.mark.parametrize("where", ["tail", "blocks", "both"])
async def test_what_is_hidden_is_seen_by_no_read_before_and_after_the_fold(database_url: str, where: str) -> None:
    """Ten rows, of which 3 to 7 are deleted; then one of them arrives anew."""
    first_life = {"fold_after_s": 0.05} if where != "tail" else NEVER
    async with storage(database_url, **first_life) as store:
        keys = await store.series("t1", ["oil", "gas"])
        rows = range(5) if where == "both" else range(10)
        both = [i for _ in rows for i in (0, 1)]
        times = [T0 + S * i for i in rows for _ in (0, 1)]
        await store.append(doubles(keys, times, [float(i) for i in rows for _ in (0, 1)], both), request_id="a")
        if where != "tail":
            await folded(store, 1)
        if where == "both":
            times = [T0 + S * i for i in range(5, 10)]
            await store.append(doubles(keys, times, [float(i) for i in range(5, 10)]), request_id="b")
        # Asked before, so that whatever keeps newest values and windows in memory holds what will be hidden.
        assert (await latest(store, "t1"))["t1/oil"] == [(T0 + 9 * S, 9.0, 1)]
        assert await window(store, 10, 0) == [float(i) for i in range(10)]
        answer = await delete(store, "d", [("t1", "oil")], T0 + 3 * S, T0 + 8 * S)
        at = answer.position.offset
        assert not answer.replayed

        async def check(kept: dict[int, float]) -> None:
            expected = [(T0 + S * i, v, 1) for i, v in sorted(kept.items())]
            assert (await store.read([("t1", "oil")], min_offset=at))["t1/oil"] == expected
            assert (await latest(store, "t1", min_offset=at))["t1/oil"] == expected[-1:]
            assert await total(store, at) == (len(kept), sum(kept.values()))
            shown = await window(store, 10, at)
            assert [(i, v) for i, v in enumerate(shown) if v == v] == sorted(kept.items())

        kept = {i: float(i) for i in (0, 1, 2, 8, 9)}
        await check(kept)
        assert len((await store.read([("t1", "gas")]))["t1/gas"]) == len(rows)
        again = await delete(store, "d", [("t1", "oil")], T0 + 3 * S, T0 + 8 * S)
        assert (again.replayed, again.position) == (True, answer.position)
        await store.append(doubles(keys, [T0 + 4 * S], [44.0]), request_id="anew")
        await check(kept | {4: 44.0})
        counts = await folded(store, at)
        await check(kept | {4: 44.0})
        assert counts.point_count == 6 + len(rows)
    async with storage(database_url, **NEVER) as store:
        await check(kept | {4: 44.0})
        assert (await store.append(doubles(keys, [T0 + 4 * S], [44.0]), request_id="anew")).replayed
        last = await delete(store, "all", [("t1", "oil")], None, None)
        at = last.position.offset
        assert (await store.read([("t1", "oil")], min_offset=at))["t1/oil"] == []
        assert "t1/oil" not in await latest(store, "t1", min_offset=at)
        assert "t1/gas" in await latest(store, "t1")
        await folded(store, at)
        assert (await store.read([("t1", "oil")], min_offset=at))["t1/oil"] == []


async def test_the_newest_value_is_found_behind_many_hidden_blocks(database_url: str) -> None:
    async with storage(database_url, fold_after_s=0.05) as store:
        keys = await store.series("t1", ["oil"])
        for number in range(4):
            times = T0 + S * np.arange(number * 10_000, (number + 1) * 10_000)
            await store.append(doubles(keys, times, np.arange(10_000.0)), request_id=f"r{number}")
        await folded(store, 4)
    async with storage(database_url, **NEVER) as store:
        answer = await delete(store, "d", [("t1", "oil")], T0 + 5 * S, None)
        assert (await latest(store, "t1", min_offset=answer.position.offset))["t1/oil"] == [(T0 + 4 * S, 4.0, 1)]
        await folded(store, answer.position.offset)
        assert (await latest(store, "t1"))["t1/oil"] == [(T0 + 4 * S, 4.0, 1)]
        counts = await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())
        assert (counts.point_count, counts.landed_point_count) == (5, 40_000)


async def test_all_series_of_a_twin_go_texts_too_and_producers_stay_deduplicated(database_url: str) -> None:
    async with storage(database_url, fold_after_s=0.05) as store:
        keys = await store.series("t1", ["oil"])
        notes = await store.series("t1", ["note"], ChannelKind.TEXT, unit="")
        other = await store.series("t2", ["oil"])
        session = await store.ask("OpenProducer", storage_pb2.OpenProducerRequest(producer_id="p"))
        stamp = storage_pb2.ProducerStamp(producer_id="p", epoch=session.epoch, sequence=1)
        await store.append(doubles(keys, [T0], [1.0]), producer=stamp)
        texts = ObservationBatch(series=notes, texts=text_section([0], [T0], [b"hello"]))
        await store.append(texts, request_id="n")
        await store.append(doubles(other, [T0], [2.0]), request_id="o")
        request = storage_pb2.DeleteRangeRequest(request_id="d", twin_ids=["t1"])
        answer = await store.ask("DeleteRange", request)
        at = answer.position.offset
        for _ in range(2):
            names = [("t1", "oil"), ("t1", "note"), ("t2", "oil")]
            rows = await store.read(names, min_offset=at)
            assert rows == {"t1/oil": [], "t1/note": [], "t2/oil": [(T0, 2.0, 1)]}
            assert await latest(store, "t1") == {}
            await folded(store, at)
        again = await store.append(doubles(keys, [T0], [1.0]), producer=stamp)
        assert again.replayed
        assert (await store.read([("t1", "oil")]))["t1/oil"] == []


async def test_a_deletion_names_what_is_wrong_with_it(database_url: str) -> None:
    async with storage(database_url) as store:
        keys = await store.series("t1", ["oil"])
        await store.append(doubles(keys, [T0], [1.0]), request_id="r")
        with pytest.raises(InvalidArgument, match="request_id"):
            await delete(store, "", [("t1", "oil")], None, None)
        with pytest.raises(InvalidArgument, match="end_time"):
            await delete(store, "x", [("t1", "oil")], T0, T0)
        with pytest.raises(InvalidArgument, match="twin_ids"):
            await delete(store, "x", [], None, None)
        with pytest.raises(NotFound, match="t9"):
            await delete(store, "x", [], None, None, twin_ids=["t9"])
        with pytest.raises(NotFound, match="gas"):
            await delete(store, "x", [("t1", "gas")], None, None)
        await delete(store, "d", [("t1", "oil")], None, T0)
        with pytest.raises(InvalidArgument) as reused:
            await delete(store, "d", [("t1", "oil")], None, None)
        assert reused.value.reason == "REQUEST_ID_REUSED"
        forged = entry_pb2.ControlEntry(request_id="f", delete_range=entry_pb2.DeleteRangeEntry())
        with pytest.raises(InvalidArgument, match="DeleteRange"):
            await store.ask("Append", storage_pb2.AppendRequest(control=forged))
        assert (await store.read([("t1", "oil")]))["t1/oil"] == [(T0, 1.0, 1)]
