"""Appends over a stream: what breaks it leaves no entry waiting, and each entry's owner may send it again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import position_pb2
from twinmesh_client.rpc_status import status_from_error
from twinmesh_client.transport import open_channel
from twinmesh_core.errors import DeadlineExceeded, FailedPrecondition, Reason, Unavailable
from twinmesh_ingestion.adapters.appends import MAX_STREAMS, Appends, entry_bytes

Serve = Callable[[AsyncIterator[bytes], Any], Awaitable[None]]


@asynccontextmanager
async def appends(serve: Serve | None, *, timeout_s: float = 5.0) -> AsyncIterator[Appends]:
    """Run a server whose AppendStream is this function (None = it has none), and appends to it."""
    server = grpc.aio.server()
    handlers: dict[str, Any] = {} if serve is None else {"AppendStream": grpc.stream_stream_rpc_method_handler(serve)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("twinmesh.storage.v1.StorageService", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        made = Appends(channel, timeout_s=timeout_s)
        try:
            yield made
        finally:
            await made.close()
            await server.stop(0)


def entry(name: str) -> bytes:
    return entry_bytes(storage_pb2.AppendRequest(request_id="r"), name.encode())


def names(data: bytes) -> list[str]:
    return [e.observations.decode() for e in storage_pb2.AppendStreamRequest.FromString(data).entries]


def appended(offset: int) -> storage_pb2.AppendOutcome:
    position = position_pb2.LogPosition(offset=offset)
    return storage_pb2.AppendOutcome(appended=storage_pb2.AppendResponse(position=position))


def refused() -> storage_pb2.AppendOutcome:
    error = FailedPrecondition("skips", reason=Reason.SEQUENCE_GAP)
    return storage_pb2.AppendOutcome(refusal=status_from_error(error).SerializeToString())


async def answers(context: Any, *outcomes: storage_pb2.AppendOutcome) -> None:
    await context.write(storage_pb2.AppendStreamResponse(outcomes=outcomes).SerializeToString())


async def test_each_entry_gets_its_own_answer() -> None:
    async def serve(requests: AsyncIterator[bytes], context: Any) -> None:
        async for data in requests:
            await answers(context, *(refused() if n == "no" else appended(int(n)) for n in names(data)))

    async with appends(serve) as made:
        wanted = ["7", "no", "9"]
        found = await asyncio.gather(
            *(made.append("default", entry(name), timeout_s=None) for name in wanted), return_exceptions=True
        )
        assert isinstance(found[1], FailedPrecondition)
        assert found[1].reason == Reason.SEQUENCE_GAP
        assert [f.position.offset for f in (found[0], found[2]) if not isinstance(f, BaseException)] == [7, 9]


async def test_a_stream_that_breaks_leaves_nobody_waiting_and_the_next_append_opens_another() -> None:
    streams = 0

    async def serve(requests: AsyncIterator[bytes], context: Any) -> None:
        nonlocal streams
        streams += 1
        async for data in requests:
            if streams > 1:
                await answers(context, *(appended(int(n)) for n in names(data)))
                continue
            await answers(context, appended(1))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    async with appends(serve) as made:
        first = [asyncio.create_task(made.append("default", entry(str(n)), timeout_s=None)) for n in (1, 2, 3)]
        found = await asyncio.gather(*first, return_exceptions=True)
        assert not isinstance(found[0], BaseException)
        assert [type(f) for f in found[1:]] == [Unavailable, Unavailable]
        assert (await made.append("default", entry("2"), timeout_s=None)).position.offset == 2
    assert streams == 2


async def test_an_attempt_without_answer_ends_with_unavailable_and_a_callers_own_deadline_with_its_name() -> None:
    async def silent(requests: AsyncIterator[bytes], _: Any) -> None:
        async for _data in requests:
            pass

    async with appends(silent, timeout_s=0.3) as made:
        beside = asyncio.create_task(made.append("default", entry("1"), timeout_s=None))
        with pytest.raises(DeadlineExceeded):
            await made.append("default", entry("2"), timeout_s=0.01)
        with pytest.raises(Unavailable):
            await beside


async def test_an_older_storage_without_such_streams_is_found_out() -> None:
    async with appends(None) as made:
        assert made.served
        with pytest.raises(Unavailable):
            await made.append("default", entry("1"), timeout_s=None)
        assert not made.served


async def test_tenants_have_streams_of_their_own_and_only_so_many_stay_open() -> None:
    tenants: list[str] = []

    async def serve(requests: AsyncIterator[bytes], context: Any) -> None:
        tenants.append(dict(context.invocation_metadata())["twinmesh-tenant"])
        async for data in requests:
            await answers(context, *(appended(1) for _ in names(data)))
        tenants.remove(dict(context.invocation_metadata())["twinmesh-tenant"])

    async with appends(serve) as made:
        wanted = [f"t{n}" for n in range(MAX_STREAMS + 3)]
        for tenant in wanted:
            await made.append(tenant, entry("1"), timeout_s=None)
        async with asyncio.timeout(5):
            while len(tenants) > MAX_STREAMS:  # noqa: ASYNC110 -- the server's side of streams that end
                await asyncio.sleep(0.01)
        assert tenants == wanted[3:]
