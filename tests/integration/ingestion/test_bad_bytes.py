"""Bytes that are no message, sent to methods that read bytes: refused as INVALID_ARGUMENT, and the service lives."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.integration.ingestion.mesh import mesh
from tests.integration.ingestion.test_write import batch, message

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.transport import open_channel, tenant_metadata
from twinmesh_core import wire

ROUNDS = 60
INGESTION = "/twinmesh.ingestion.v1.IngestionService"


async def test_bytes_that_are_no_message_are_refused_and_the_service_lives(database_url):
    rnd = Random(11)  # noqa: S311
    async with mesh(database_url) as m:
        await m.make_plant("P1")
        good = message(batch([1.0, 2.0]))
        write = ingestion_pb2.WriteRequest(request_id="r", batch=good).SerializeToString()
        stream = ingestion_pb2.WriteStreamRequest(
            batch=ingestion_pb2.ProducerBatch(sequence=1, batch=good)
        ).SerializeToString()
        hello = ingestion_pb2.WriteStreamRequest(hello=ingestion_pb2.ProducerHello(producer_id="p")).SerializeToString()
        async with asyncio.timeout(50), open_channel(m.storage_target) as storage:
            for _ in range(ROUNDS):
                assert await code(m.channel.unary_unary(f"{INGESTION}/Write"), spoilt(write, rnd)) == "INVALID_ARGUMENT"
                body = storage_pb2.AppendRequest(observations=spoilt(wire.encode(batch([1.0])), rnd), request_id="x")
                append: Any = storage.unary_unary("/twinmesh.storage.v1.StorageService/Append")
                assert await code(append, body.SerializeToString()) == "INVALID_ARGUMENT"
            for _ in range(ROUNDS // 6):
                call: Any = m.channel.stream_stream(f"{INGESTION}/WriteStream")(metadata=tenant_metadata("default"))
                await call.write(hello)
                await call.read()
                await call.write(spoilt(stream, rnd))
                assert (await call.code()).name == "INVALID_ARGUMENT"
        ack = await m.write(batch=good, request_id="after")
        assert ack.accepted_count == 2


def spoilt(data: bytes, rnd: Random) -> bytes:
    """Return bytes that no parser takes: cut within a record, or with a tag of no wire type in front."""
    if rnd.random() < 0.5:
        return data[: rnd.randint(len(data) // 2, len(data) - 1)]
    return bytes([rnd.choice((0x0E, 0x0F, 0x00))]) + rnd.randbytes(rnd.randint(0, 40))


async def code(call: Any, data: bytes) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(data, metadata=tenant_metadata("default"), timeout=10)
    return refused.value.code().name
