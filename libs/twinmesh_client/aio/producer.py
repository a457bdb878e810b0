"""A producer session that needs no mesh to begin with: it finds the mesh when the mesh is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc.aio

from twinmesh_client.acks import WriteAck
from twinmesh_client.aio.connection import discover
from twinmesh_client.aio.writer import Writer
from twinmesh_client.limits import PATIENCE_S
from twinmesh_client.targets import resolve_target
from twinmesh_client.transport import open_channel


class Dialler:
    """Finds the mesh's ingestion service before each session, and keeps one channel to where it was found."""

    def __init__(self, target: str | None, context: str | None) -> None:
        self._target = target
        self._context = context
        self._held = AsyncExitStack()
        self._found = ""
        self._channel: grpc.aio.Channel | None = None

    async def __call__(self) -> grpc.aio.Channel:
        """Return a channel; raises `Unavailable` while no mesh answers."""
        found = (await discover(resolve_target(self._target, self._context))).endpoints["ingestion"]
        if self._channel is None or found != self._found:
            await self._held.aclose()
            self._channel = await self._held.enter_async_context(open_channel(found))
            self._found = found
        return self._channel

    async def aclose(self) -> None:
        """Close the channel."""
        await self._held.aclose()


@asynccontextmanager
async def open_writer(
    producer_id: str,
    *,
    target: str | None = None,
    context: str | None = None,
    backfill: bool = False,
    on_ack: Callable[[WriteAck], None] | None = None,
    patience_s: float = PATIENCE_S,
) -> AsyncIterator[Writer]:
    """Open a producer session without a connected mesh, which may be away now and come later.

    Args:
        producer_id: one per source of ordered batches; a newer session of the same producer fences this one.
        target: as `connect_async` takes it; looked up anew before each session.
        context: likewise.
        backfill: declares recorded history: times back to 1970 are accepted.
        on_ack: called after each acknowledgement.
        patience_s: how long the mesh may be away before it gives up.
    """
    dialler = Dialler(target, context)
    try:
        async with Writer(dialler, producer_id, backfill=backfill, on_ack=on_ack, patience_s=patience_s) as writer:
            yield writer
    finally:
        await dialler.aclose()
