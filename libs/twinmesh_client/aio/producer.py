"""A producer session that needs no mesh to begin with: it finds the mesh when the mesh is there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Literal

import grpc.aio

from twinmesh_client.acks import WriteAck
from twinmesh_client.aio.connection import discover
from twinmesh_client.aio.mesh import Mesh, connect_async
from twinmesh_client.aio.spooling import spool_options
from twinmesh_client.aio.writer import Writer
from twinmesh_client.limits import GATHER_DELAY_S, GATHER_ROWS, SPOOL_MAX_BYTES
from twinmesh_client.refusals import OnRefused
from twinmesh_client.targets import resolve_target
from twinmesh_client.transport import open_channel

Prepare = Callable[[Mesh], Awaitable[None]]
"""What is to be done when the mesh is there for the first time, before anything is sent."""


class Dialler:
    """Finds the mesh's ingestion service before each session, and keeps one channel to where it was found."""

    def __init__(self, target: str | None, context: str | None, prepare: Prepare | None = None) -> None:
        self._prepare = prepare
        self._target = target
        self._context = context
        self._held = AsyncExitStack()
        self._found = ""
        self._channel: grpc.aio.Channel | None = None

    async def __call__(self) -> grpc.aio.Channel:
        """Return a channel; raises `Unavailable` while no mesh answers."""
        if self._prepare is not None:
            async with connect_async(self._target, context=self._context) as mesh:
                await self._prepare(mesh)
            self._prepare = None
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
async def open_writer_async(
    producer_id: str,
    *,
    target: str | None = None,
    context: str | None = None,
    prepare: Prepare | None = None,
    backfill: bool = False,
    on_ack: Callable[[WriteAck], None] | None = None,
    on_refused: OnRefused | None = None,
    patience_s: float | None = None,
    gather_rows: int = GATHER_ROWS,
    gather_delay_s: float = GATHER_DELAY_S,
    spool: str | Path | None = None,
    spool_max_bytes: int = SPOOL_MAX_BYTES,
    spool_full: Literal["wait", "error"] = "wait",
    spool_fsync: bool = True,
    spool_keep_bytes: int = 0,
    accept_gap: bool = False,
) -> AsyncIterator[Writer]:
    """Open a producer session without a connected mesh, which may be away now and come later.

    Args:
        producer_id: one per source of ordered batches; a newer session of the same producer fences this one.
        target: as `connect_async` takes it; looked up anew before each session.
        context: likewise.
        prepare: called once with the mesh when it is there, before anything is sent: creates twins, say. What it raises
            is tried again as a lost connection is, or ends the session, by its kind.
        backfill: declares recorded history: times back to 1970 are accepted.
        on_ack: called after each acknowledgement; one may be of several batches.
        on_refused: told of each batch that the mesh refuses for good, after which the session goes on without it;
            with a spool it does so anyhow, and keeps them. Without either such a batch ends the session.
        patience_s: how long the mesh may be away before it gives up; None = 120 s, with a spool for ever.
        gather_rows: `observe` closes a batch at so many rows.
        gather_delay_s: or when its first row is so old.
        spool: a directory of this producer alone: what is taken is on disk before anybody is told so, and is sent
            in order when the mesh is there, by this process or the next one that opens it.
        spool_max_bytes: bound of the spool on disk.
        spool_full: ``wait`` for the mesh to take something, or raise an ``error``; nothing is ever dropped.
        spool_fsync: False = in the system's cache is enough: batches survive this process, not the machine.
        spool_keep_bytes: acknowledged batches to keep at most, for a mesh that is restored from a backup.
        accept_gap: go on where a restored mesh lacks batches that the spool no longer has, rather than fail.

    Raises:
        InvalidArgument: a bound that makes no sense.
        FailedPrecondition: another process has the spool open, or it is another producer's.
    """
    dialler = Dialler(target, context, prepare)
    try:
        async with Writer(
            dialler,
            producer_id,
            backfill=backfill,
            on_ack=on_ack,
            on_refused=on_refused,
            patience_s=patience_s,
            gather_rows=gather_rows,
            gather_delay_s=gather_delay_s,
            spool=spool_options(
                spool,
                max_bytes=spool_max_bytes,
                full=spool_full,
                fsync=spool_fsync,
                keep_bytes=spool_keep_bytes,
                accept_gap=accept_gap,
            ),
        ) as writer:
            yield writer
    finally:
        await dialler.aclose()
