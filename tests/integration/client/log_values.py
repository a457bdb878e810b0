"""What the log holds of a twin, in the order of its offsets, repetitions included: history would hide those."""

import asyncio
from collections import defaultdict
from contextlib import aclosing

from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.transport import stream
from twinmesh_core import wire
from twinmesh_core.errors import DeadlineExceeded, Unavailable


async def values_of(mesh, twin_id: str) -> dict[str, list[float]]:
    """Every number by channel, up to the newest durable offset."""
    found: dict[str, list[float]] = defaultdict(list)
    after = None
    head = await mesh.head()
    while after is None or after.offset < head:
        request = storage_pb2.FollowRequest(after=after)
        try:
            async with aclosing(stream(mesh._connection.storage.Follow, request, timeout_s=30)) as answers:
                async for answer in answers:
                    for entry in answer.entries:
                        _add(entry, twin_id, found)
                    after = answer.through
                    if after.offset >= head:
                        break
        except (Unavailable, DeadlineExceeded):
            await asyncio.sleep(0.2)
    return dict(found)


def _add(entry, twin_id: str, found: dict[str, list[float]]) -> None:
    if entry.WhichOneof("body") != "observations":
        return
    batch = wire.walk(entry.observations)
    assert batch is not None
    for handle, key in enumerate(batch.series):
        if key.twin_id == twin_id:
            found[key.channel] += batch.doubles.values[batch.doubles.series == handle].tolist()
