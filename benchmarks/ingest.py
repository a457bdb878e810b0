"""The whole ingest path against COPY: ``python -m benchmarks.ingest [points]``.

Client -> ingestion (identity, unit, time, range, rate) -> storage, in sessions of batches of 10,000, acknowledged after
commit; beside it COPY of prebuilt binary rows into the narrow table with and without its unique index on the same
server. Interleaved, medians of three. `benchmarks.storage_ingest` measures storage alone.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator

import numpy as np
from benchmarks.storage_bench import (
    T0,
    S,
    Storage,
    batch,
    copy_floor,
    database,
    free_port,
    narrow_copy,
    start_service,
    storage,
)

from twinmesh.ingestion.v1 import ingestion_pb2, ingestion_pb2_grpc
from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import entry_pb2, observation_pb2, twin_pb2
from twinmesh_client.transport import call, open_channel
from twinmesh_core import wire
from twinmesh_core.errors import TwinmeshError
from twinmesh_core.observations import SeriesKey

TWINS = 125
CHANNELS = 8
SERIES = TWINS * CHANNELS
ROWS = 10_000
SESSIONS = 4
ROUNDS = 3


async def create_twins(store: Storage) -> tuple[SeriesKey, ...]:
    """Append the twin type and the twins; returns the dictionary of a client's batch."""
    channels = [
        twin_pb2.ChannelSpec(
            name=f"c{i}",
            kind=observation_pb2.CHANNEL_KIND_GAUGE,
            unit="Cel",
            min_value=-50,
            max_value=150,
            max_rate_per_s=50,
        )
        for i in range(CHANNELS)
    ]
    twin_type = twin_pb2.TwinType(twin_type_id="bench", version=1, channels=channels)
    entries = [
        entry_pb2.ControlEntry(request_id="type", create_twin_type=entry_pb2.CreateTwinTypeEntry(twin_type=twin_type))
    ]
    for i in range(TWINS):
        twin = twin_pb2.Twin(twin_id=f"t{i}", twin_type_id="bench")
        entries.append(entry_pb2.ControlEntry(request_id=f"twin{i}", create_twin=entry_pb2.CreateTwinEntry(twin=twin)))
    for entry in entries:
        await call(store.stub.Append, storage_pb2.AppendRequest(control=entry), timeout_s=10)
    return tuple(SeriesKey(twin_id=f"t{i}", channel=f"c{c}") for i in range(TWINS) for c in range(CHANNELS))


def requests_of(keys: tuple[SeriesKey, ...], points: int, round_: int, session: int) -> list[bytes]:
    """Return the messages of one session, prebuilt: each session has seconds of its own."""
    ticks = ROWS // SERIES
    per_session = points // ROWS // SESSIONS
    first = (round_ * SESSIONS + session) * per_session * ticks
    out = []
    for i in range(per_session):
        message = ingestion_pb2.ProducerBatch(
            sequence=round_ * per_session + i + 1,
            batch=observation_pb2.ObservationBatch.FromString(wire.encode(batch(keys, first + i * ticks, ticks))),
        )
        out.append(ingestion_pb2.WriteStreamRequest(batch=message).SerializeToString())
    return out


async def write(stub: ingestion_pb2_grpc.IngestionServiceAsyncStub, producer: str, messages: list[bytes]) -> int:
    """Send one session; returns the rows accepted once the last batch is acknowledged."""

    async def sending() -> AsyncIterator[ingestion_pb2.WriteStreamRequest]:
        yield ingestion_pb2.WriteStreamRequest(hello=ingestion_pb2.ProducerHello(producer_id=producer))
        for message in messages:
            yield ingestion_pb2.WriteStreamRequest.FromString(message)

    accepted = acked = 0
    async for answer in stub.WriteStream(sending(), timeout=120):
        if answer.HasField("ack"):
            accepted += answer.ack.ack.accepted_count
            acked += 1
            if acked == len(messages):
                break
    return accepted


async def ready(stub: ingestion_pb2_grpc.IngestionServiceAsyncStub) -> None:
    """Wait until ingestion answers."""
    for _ in range(100):
        try:
            await call(stub.Write, ingestion_pb2.WriteRequest(), timeout_s=1)
        except TwinmeshError as error:
            if error.code == "INVALID_ARGUMENT":
                return
        await asyncio.sleep(0.1)
    raise SystemExit("ingestion did not start")


async def main(points: int) -> None:
    figures: dict[str, list[float]] = {"ours": [], "unique": [], "heap": []}
    copy = narrow_copy(
        np.tile(np.arange(SERIES), points // SERIES),
        T0 + np.repeat(np.arange(points // SERIES), SERIES) * S,
        np.random.default_rng(1).normal(size=points),
    )
    with database() as url:
        async with storage(url) as store:
            keys = await create_twins(store)
            port = free_port()
            ingestion = start_service("ingestion", port, mesh=store.target)
            try:
                async with open_channel(f"127.0.0.1:{port}") as channel:
                    stub = ingestion_pb2_grpc.IngestionServiceStub(channel)
                    await ready(stub)
                    for round_ in range(ROUNDS):
                        sessions = [requests_of(keys, points, round_, s) for s in range(SESSIONS)]
                        started = time.perf_counter()
                        accepted = await asyncio.gather(
                            *(write(stub, f"p{s}", messages) for s, messages in enumerate(sessions))
                        )
                        figures["ours"].append(time.perf_counter() - started)
                        assert sum(accepted) == sum(map(len, sessions)) * ROWS, accepted
                        await asyncio.sleep(6)  # the fold's work is not the floor's
                        figures["heap"].append(await asyncio.to_thread(copy_floor, url, "narrow_heap", False, copy))
                        figures["unique"].append(await asyncio.to_thread(copy_floor, url, "narrow_unique", True, copy))
                    counted = await call(store.stub.GetStatistics, storage_pb2.GetStatisticsRequest(), timeout_s=60)
            finally:
                ingestion.terminate()
                ingestion.wait(timeout=20)
    sent = points // ROWS // SESSIONS * SESSIONS * ROWS
    assert counted.point_count == ROUNDS * sent, counted
    rate = {name: (sent if name == "ours" else points) / statistics.median(s) for name, s in figures.items()}
    print(f"client -> ingestion -> storage  {rate['ours']:>12,.0f} points/s")
    print(f"COPY, unique key                {rate['unique']:>12,.0f} points/s")
    print(f"COPY, no index                  {rate['heap']:>12,.0f} points/s")
    print(
        json.dumps(
            {
                "ingest_vs_copy": round(rate["ours"] / rate["unique"], 2),
                "ingest_vs_copy_heap": round(rate["ours"] / rate["heap"], 2),
                "points_per_s": round(rate["ours"]),
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
