"""Counts as of an offset are the counts that were told when the log was there; answers that outgrow a message are
refused before anything is read for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
import pytest
from tests.integration.storage.mesh import T0, S, Storage, doubles, storage
from tests.integration.storage.test_storage_erasure import folded

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2
from twinmesh_core.errors import InvalidArgument, OutOfRange


async def counts(store: Storage, twin: str = "", **fields: Any) -> dict[str, Any]:
    told = await store.ask("GetStatistics", storage_pb2.GetStatisticsRequest(twin_id=twin, **fields))
    return {
        "entries": told.entry_count,
        "landed": told.landed_point_count,
        "points": told.point_count,
        "quality": list(told.point_count_by_quality),
        "quarantined": told.quarantined_count,
        "as_of": told.as_of.offset,
    }


async def test_counts_as_of_every_offset_are_those_that_were_told_there(database_url: str) -> None:
    aside = storage_pb2.QuarantinedRow(
        twin_id="t1",
        channel="oil",
        time_unix_us=T0,
        value=observation_pb2.Value(double_value=1.0),
        reason=observation_pb2.FLAG_REASON_NOT_FINITE,
    )
    async with storage(database_url, fold_after_s=0.05) as store:
        keys = await store.series("t1", ["oil"]) + await store.series("t2", ["oil"])
        told: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        rng = np.random.default_rng(5)
        for number in range(6):
            # Corrections, some of another quality, new times, rows of two twins, and rows kept aside.
            times = T0 + S * rng.integers(0, 30, 20)
            batch = doubles(
                keys,
                times,
                rng.normal(size=20),
                rng.integers(0, 2, 20).astype(np.uint32),
                rng.integers(1, 4, 20).astype(np.uint8),
            )
            answer = await store.append(batch, request_id=f"r{number}", quarantine=[aside] * (number % 3))
            offset = answer.position.offset
            if number == 3:
                cut = storage_pb2.DeleteRangeRequest(request_id="cut", twin_ids=["t2"])
                cut.end_time.FromMicroseconds(T0 + 10 * S)
                offset = (await store.ask("DeleteRange", cut)).position.offset
            if number % 2:
                await folded(store, offset)
            told[offset] = await counts(store, min_offset=offset), await counts(store, "t1", min_offset=offset)
        assert len({seen["points"] for seen, _ in told.values()}) > 3
        for offset, (everything, one) in told.items():
            assert await counts(store, as_of_offset=offset) == everything
            assert await counts(store, "t1", as_of_offset=offset) == one
        with pytest.raises(OutOfRange) as future:
            await counts(store, as_of_offset=offset + 1)
        assert future.value.reason == "FUTURE_OFFSET"
        with psycopg.connect(database_url) as conn:  # as if observations up to 2 had left the log
            conn.execute("update storage.trim_state set trim_offset = 2")
        assert (await counts(store, as_of_offset=2))["entries"] == 2
        with pytest.raises(OutOfRange) as pruned:
            await counts(store, as_of_offset=1)
        assert (pruned.value.reason, pruned.value.metadata["floor_offset"]) == ("AS_OF_PRUNED", "2")


async def test_an_aggregate_that_outgrows_a_message_is_refused_unread(database_url: str) -> None:
    limit = 1 << 20
    async with storage(database_url, max_message_bytes=limit) as store:
        keys = await store.series("t1", ["oil"])
        await store.append(doubles(keys, [T0], [1.0]), request_id="r")

        def asked(buckets: int, functions: int) -> storage_pb2.AggregateRequest:
            request = storage_pb2.AggregateRequest(
                series=[storage_pb2.SeriesSelector(twin_id="t1", channel="oil")],
                functions=[storage_pb2.AGGREGATE_FUNCTION_COUNT, storage_pb2.AGGREGATE_FUNCTION_MEAN][:functions],
            )
            request.start_time.FromMicroseconds(T0)
            request.end_time.FromMicroseconds(T0 + buckets * S)
            request.bucket.FromSeconds(1)
            return request

        room = (limit - (64 << 10)) // 16
        answer = await store.ask("Aggregate", asked(room, 1))
        assert (len(answer.bucket_unix_us), len(answer.values)) == (room, 8 * room)
        for request in (asked(room + 1, 1), asked(room, 2)):
            with pytest.raises(InvalidArgument, match="bucket: gives more than"):
                await store.ask("Aggregate", request)
