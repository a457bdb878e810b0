"""Filters over the wire: lists, counts, masked replicas and watches, through the SDK's own error texts."""

from __future__ import annotations

import time
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from tests.integration.statesync.mesh import TIMEOUT_S, StateSync, statesync, storage

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import twin_pb2
from twinmesh_client.transport import call
from twinmesh_core.errors import InvalidArgument

NOW = time.time_ns() // 1_000


async def listed(sync: StateSync, **request: Any) -> Any:
    return await call(sync.twins.ListTwins, statesync_pb2.ListTwinsRequest(**request), timeout_s=TIMEOUT_S)


async def first_frame(sync: StateSync, **request: Any) -> Any:
    async with sync.watch(statesync_pb2.WatchRequest(**request)) as frames:
        return await anext(aiter(frames))


async def test_twins_are_found_counted_and_watched_by_filter(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        for twin_id, site in (("p1", "north"), ("p2", "north"), ("p3", "south")):
            twin = twin_pb2.Twin(
                twin_id=twin_id,
                twin_type_id="pump",
                attributes={"site": site},
                relationships=[twin_pb2.Relationship(name="feeds", target_twin_id="p3")],
            )
            await call(sync.twins.CreateTwin, statesync_pb2.CreateTwinRequest(twin=twin), timeout_s=TIMEOUT_S)
        for twin_id, value in (("p1", 95.0), ("p2", 20.0), ("p3", 99.0)):
            offset = await sync.observe(twin_id, "temperature", [NOW], [value])

        hot = "attributes.site = north AND reported.temperature > 194 [degF]"
        answer = await listed(
            sync, filter=hot, min_offset=offset, include_replica=True, read_mask=FieldMask(paths=["delta"])
        )
        assert [summary.twin.twin_id for summary in answer.twins] == ["p1"]
        assert (answer.as_of.offset >= offset, len(answer.twins[0].replica.reported.values)) == (True, 0)
        ordered = await listed(sync, order_by="reported.temperature desc", page_size=2)
        assert [summary.twin.twin_id for summary in ordered.twins] == ["p3", "p1"]
        fed = await listed(sync, filter="feeds.reported.temperature > 98")
        assert [summary.twin.twin_id for summary in fed.twins] == ["p1", "p2", "p3"]
        counted = statesync_pb2.CountTwinsRequest(filter="NOT attributes.site = north")
        assert (await call(sync.twins.CountTwins, counted, timeout_s=TIMEOUT_S)).count == 1

        kinds = []
        async with sync.watch(statesync_pb2.WatchRequest(filter=hot)) as frames:
            async for frame in frames:
                kinds += [(event.twin_id, event.kind) for event in frame.events]
                if frame.synced:
                    await sync.observe("p2", "temperature", [NOW + 1], [96.0])
                    await sync.observe("p3", "temperature", [NOW + 1], [96.0])
                    await sync.observe("p1", "temperature", [NOW + 1], [10.0])
                if len(kinds) == 3:
                    break
        kind = statesync_pb2.WatchEventKind
        assert kinds == [
            ("p1", kind.WATCH_EVENT_KIND_SNAPSHOT),
            ("p2", kind.WATCH_EVENT_KIND_ENTERED),
            ("p1", kind.WATCH_EVENT_KIND_LEFT),
        ]


async def test_a_filter_that_cannot_be_read_names_the_column(database_url: str) -> None:
    async with storage(database_url) as target, statesync(database_url, target) as sync:
        await sync.make_type()
        with pytest.raises(InvalidArgument) as caught:
            await listed(sync, filter="connectivity = ONLIN")
        assert (caught.value.metadata["column"], caught.value.field_violations[0].field) == ("16", "filter")
        with pytest.raises(InvalidArgument) as caught:
            await first_frame(sync, filter="feeds.delta:*")
        assert caught.value.field_violations[0].field == "filter"
