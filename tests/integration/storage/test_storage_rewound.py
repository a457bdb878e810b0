"""Offsets and page tokens of a log that was restored since are told apart from those of the present one."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import psycopg
import pytest
from tests.integration.storage.mesh import T0, S, Storage, doubles, storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.errors import FailedPrecondition, InvalidArgument, OutOfRange


async def ask(store: Storage, method: str, request: Any) -> Any:
    """Return the answer, or the first part of it."""
    if method not in ("ReadRange", "Downsample"):
        return await store.ask(method, request)
    async with aclosing(store.stream(method, request)) as parts:
        return await anext(parts)


async def rewound(store: Storage, method: str, request: Any) -> None:
    with pytest.raises(FailedPrecondition) as error:
        await ask(store, method, request)
    assert error.value.reason == "LOG_REWOUND"


def reads(**fields: Any) -> dict[str, Any]:
    """Return one request of every read, each with these fields."""
    series = [storage_pb2.SeriesSelector(twin_id="t1", channel="oil")]
    window = storage_pb2.ReadWindowRequest(twin_ids=["t1"], channels=["oil"], steps=2, **fields)
    window.step.FromSeconds(1)
    buckets = storage_pb2.AggregateRequest(series=series, functions=[storage_pb2.AGGREGATE_FUNCTION_COUNT], **fields)
    buckets.start_time.FromMicroseconds(T0)
    buckets.end_time.FromMicroseconds(T0 + S)
    buckets.bucket.FromSeconds(1)
    return {
        "ReadRange": storage_pb2.ReadRangeRequest(series=series, **fields),
        "ReadLatest": storage_pb2.ReadLatestRequest(series=series, **fields),
        "ReadWindow": window,
        "Aggregate": buckets,
        "Downsample": storage_pb2.DownsampleRequest(
            series=series, method=storage_pb2.DOWNSAMPLE_METHOD_LTTB, max_points=10, **fields
        ),
        "ListSeries": storage_pb2.ListSeriesRequest(**fields),
        "ListQuarantine": storage_pb2.ListQuarantineRequest(**fields),
        "GetStatistics": storage_pb2.GetStatisticsRequest(**fields),
    }


async def test_an_offset_of_a_log_before_a_restore_is_refused_by_every_read(database_url: str) -> None:
    async with storage(database_url, fold_after_s=0.05) as store:
        for number in range(3):
            keys = await store.series("t1", [f"c{number}"]) + await store.series("t1", ["oil"])
            told = await store.append(doubles(keys, [T0, T0], [1.0, 2.0], [0, 1]), request_id=f"r{number}")
        mine = {"min_offset": told.position.offset, "incarnation": told.position.incarnation}
        for method, request in reads(**mine).items():
            assert await ask(store, method, request) is not None
        first = await store.ask("ListSeries", storage_pb2.ListSeriesRequest(page_size=2))
        assert first.next_page_token
    with psycopg.connect(database_url) as conn:
        conn.execute("select storage.renew_incarnation()")
    async with storage(database_url, fold_after_s=0.05) as store:
        for method, request in reads(**mine).items():
            await rewound(store, method, request)
        await rewound(store, "ListSeries", storage_pb2.ListSeriesRequest(page_size=2, page_token=first.next_page_token))
        # Without an incarnation it is as it was: a number, of whichever log.
        assert await store.read([("t1", "oil")], min_offset=mine["min_offset"])
        head = (await store.ask("GetHead", storage_pb2.GetHeadRequest())).position
        with pytest.raises(OutOfRange):
            await store.read([("t1", "oil")], min_offset=head.offset + 1, incarnation=head.incarnation)
        with pytest.raises(InvalidArgument):
            await store.ask("ListSeries", storage_pb2.ListSeriesRequest(page_token="bogus"))
