"""The thinnest whole path: append, follow, read back."""

from __future__ import annotations

from contextlib import aclosing

from tests.integration.storage.mesh import T0, S, doubles, storage

from twinmesh.storage.v1 import storage_pb2


async def test_an_appended_batch_is_followed_and_read_back(database_url):
    async with storage(database_url, fold_after_s=0.2) as store:
        keys = await store.series("t1", ["oil", "load"])
        appended = await store.append(doubles(keys, [T0, T0 + S], [1.5, 2.5]), request_id="r1")
        assert appended.position.offset == 1
        assert not appended.replayed
        again = await store.append(doubles(keys, [T0, T0 + S], [1.5, 2.5]), request_id="r1")
        assert again.replayed
        assert again.position == appended.position
        async with aclosing(store.stream("Follow", storage_pb2.FollowRequest())) as frames:
            frame = await anext(frames)
        assert [e.offset for e in frame.entries] == [1]
        rows = await store.read([("t1", "oil")], min_offset=1)
        assert rows == {"t1/oil": [(T0, 1.5, 1), (T0 + S, 2.5, 1)]}
