"""Unary writes, repeated safely under one request id while servers restart."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import grpc.aio

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh_client.acks import WriteAck, total, write_ack
from twinmesh_client.aio.connection import Connection, new_request_id
from twinmesh_client.durations import Moment, moment_us, proto_moment
from twinmesh_client.frames import frame_batches
from twinmesh_client.transport import call
from twinmesh_client.values import to_proto
from twinmesh_core.errors import DeadlineExceeded, ResourceExhausted, TwinmeshError, Unavailable, invalid_field
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch
from twinmesh_core.wire import encode, encode_varint

if TYPE_CHECKING:
    import pandas as pd

METHOD: Final = "/twinmesh.ingestion.v1.IngestionService/Write"
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0


async def write_batch(connection: Connection, batch: ObservationBatch, *, backfill: bool) -> WriteAck:
    """Write one columnar batch exactly once; raises when it cannot be done within the connection's time-out."""
    request_id = new_request_id().encode()
    columns = encode(batch)
    message = b"".join(
        (
            b"\x0a",
            encode_varint(len(request_id)),
            request_id,
            b"\x12",
            encode_varint(len(columns)),
            columns,
            b"\x20\x01" if backfill else b"",
        )
    )
    return await _repeated(connection, message)


async def write_values(
    connection: Connection,
    twin_id: str,
    values: Mapping[str, Any],
    *,
    time: Moment | None,
    units: Mapping[str, str] | None,
) -> WriteAck:
    """Write one value each of several channels of a twin, exactly once."""
    request = ingestion_pb2.WriteRequest(request_id=new_request_id())
    for channel, value in values.items():
        row = request.observations.add(
            twin_id=twin_id, channel=channel, value=to_proto(value, channel), unit=(units or {}).get(channel, "")
        )
        if time is not None:
            row.event_time.CopyFrom(proto_moment(moment_us(time, "time")))
    return await _repeated(connection, request.SerializeToString())


async def _repeated(connection: Connection, message: bytes) -> WriteAck:
    write: grpc.aio.UnaryUnaryMultiCallable[bytes, ingestion_pb2.WriteResponse] = connection.channels[
        "ingestion"
    ].unary_unary(METHOD, response_deserializer=ingestion_pb2.WriteResponse.FromString)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + connection.timeout_s
    pause_s = FIRST_PAUSE_S
    while True:
        left_s = deadline - loop.time()
        try:
            answer = await call(write, message, timeout_s=max(left_s, 0.001))
            return write_ack(answer.ack)
        except (Unavailable, ResourceExhausted) as error:
            pause = _pause(error, pause_s)
            if pause is None or loop.time() + pause >= deadline:
                raise
            await asyncio.sleep(pause)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"No answer within {connection.timeout_s:g} s. Whether the rows are stored is not known; "
                "write them again with the same event times: what is stored twice counts once.",
                metadata=error.metadata,
            ) from None


def _pause(error: TwinmeshError, pause_s: float) -> float | None:
    if not error.retryable:
        return None
    return max(pause_s, error.retry_after_s or 0.0)


async def write_frame(
    connection: Connection,
    twin_id: str,
    frame: pd.DataFrame | pd.Series[Any],
    *,
    kinds: Mapping[str, ChannelKind],
    time_zone: str | None,
    units: Mapping[str, str] | None,
    columns: Mapping[str, str] | None,
    backfill: bool,
) -> WriteAck:
    """Write a pandas frame; see `Twin.write`."""
    acks = [
        await write_batch(connection, batch, backfill=backfill)
        for batch in frame_batches(
            frame, twin_id=twin_id, kinds=kinds, time_zone=time_zone, units=units, columns=columns
        )
        if batch.point_count()
    ]
    if not acks:
        raise invalid_field("frame", "holds no value; give at least one cell that is not empty")
    return total(acks)
