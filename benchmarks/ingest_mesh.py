"""What the parts of the ingest benchmark share: PostgreSQL, storage and ingestion, a client, and who used what CPU."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc.aio
import numpy as np
import psutil
import psycopg
from benchmarks.storage_bench import (
    T0,
    S,
    Storage,
    batch,
    copy_floor,
    free_port,
    narrow_copy,
    server,
    start_service,
    storage,
)

from twinmesh.ingestion.v1 import ingestion_pb2, ingestion_pb2_grpc
from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import entry_pb2, observation_pb2, twin_pb2
from twinmesh_client.transport import call, open_channel
from twinmesh_core import wire
from twinmesh_core.errors import TwinmeshError
from twinmesh_core.observations import ObservationBatch, SeriesKey

TWINS: Final = 125
CHANNELS: Final = 8
SERIES: Final = TWINS * CHANNELS
ROWS: Final = 10_000
SESSIONS: Final = 4
WIDE_TWINS: Final = 1_250
"""Twins whose channels are 10,000 series: one message of all of them a second."""
STREAM: Final = "/twinmesh.ingestion.v1.IngestionService/WriteStream"


@dataclass(frozen=True, slots=True)
class Mesh:
    """The processes under measurement, and a client's channel to ingestion."""

    url: str
    postmaster: int
    store: Storage
    ingestion: subprocess.Popen[bytes]
    target: str
    channel: grpc.aio.Channel
    stub: ingestion_pb2_grpc.IngestionServiceAsyncStub

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds that each process has used; PostgreSQL with all its children, ended ones too."""
        times = {name: _used(psutil.Process(pid)) for name, pid in self._pids().items()}
        postmaster = psutil.Process(self.postmaster)
        ended = postmaster.cpu_times()
        times["postgres"] += ended.children_user + ended.children_system
        times["postgres"] += sum(_used(child) for child in postmaster.children(recursive=True))
        times["client"] = time.process_time()
        return times

    def peak_mib(self) -> dict[str, int]:
        """Return the most memory that each process has had; of PostgreSQL, what its processes share counts once."""
        peaks = {name: _status_kib(pid, "VmHWM") // 1024 for name, pid in self._pids().items() if name != "postgres"}
        children = psutil.Process(self.postmaster).children(recursive=True)
        own = sum(_status_kib(p.pid, "RssAnon") for p in children if p.is_running())
        shared = max((_status_kib(p.pid, "RssShmem") for p in children if p.is_running()), default=0)
        return {**peaks, "postgres": (own + shared) // 1024}

    def _pids(self) -> dict[str, int]:
        return {"ingestion": self.ingestion.pid, "storage": self.store.process.pid, "postgres": self.postmaster}

    async def unfolded(self) -> int:
        """Return how many points of the log are not in history yet."""
        statement = """
            select coalesce(sum(point_count), 0) from storage.log
            where log_offset > (select fold_offset from storage.fold_state)
        """
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as conn:
            row = await (await conn.execute(statement)).fetchone()
        return int(row[0]) if row else 0

    async def quiet(self) -> None:
        """Wait until everything is in history: the fold's work is not the floor's."""
        while await self.unfolded():  # noqa: ASYNC110 -- another process, which has to be asked
            await asyncio.sleep(0.2)


def _used(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _status_kib(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


@asynccontextmanager
async def mesh() -> AsyncIterator[Mesh]:
    """Run PostgreSQL, storage and ingestion as they run in production, with the twins of the benchmark."""
    with server() as postgres:
        url = postgres.url()
        async with storage(url) as store:
            await create_twins(store)
            port = free_port()
            ingestion = start_service("ingestion", port, mesh=store.target)
            try:
                async with open_channel(f"127.0.0.1:{port}") as channel:
                    stub = ingestion_pb2_grpc.IngestionServiceStub(channel)
                    await _ready(stub)
                    assert postgres.pid is not None
                    yield Mesh(url, postgres.pid, store, ingestion, f"127.0.0.1:{port}", channel, stub)
            finally:
                ingestion.terminate()
                ingestion.wait(timeout=20)


async def create_twins(store: Storage) -> None:
    """Append the twin type and the twins."""
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
    made = entry_pb2.CreateTwinTypeEntry(twin_type=twin_type)
    await _control(store, entry_pb2.ControlEntry(request_id="type", create_twin_type=made))
    names = [f"t{i}" for i in range(TWINS)] + [f"w{i}" for i in range(WIDE_TWINS)]
    entries = [
        entry_pb2.ControlEntry(
            request_id=name,
            create_twin=entry_pb2.CreateTwinEntry(twin=twin_pb2.Twin(twin_id=name, twin_type_id="bench")),
        )
        for name in names
    ]
    for start in range(0, len(entries), 64):
        await asyncio.gather(*(_control(store, entry) for entry in entries[start : start + 64]))


async def _control(store: Storage, entry: entry_pb2.ControlEntry) -> None:
    await call(store.stub.Append, storage_pb2.AppendRequest(control=entry), timeout_s=30)


async def _ready(stub: ingestion_pb2_grpc.IngestionServiceAsyncStub) -> None:
    for _ in range(200):
        try:
            await call(stub.Write, ingestion_pb2.WriteRequest(), timeout_s=1)
        except TwinmeshError as error:
            if error.code == "INVALID_ARGUMENT":
                return
        await asyncio.sleep(0.1)
    raise SystemExit("ingestion did not start")


def keys_of(twins: int, prefix: str = "t") -> tuple[SeriesKey, ...]:
    """Return a client's dictionary of all channels of so many twins."""
    return tuple(SeriesKey(twin_id=f"{prefix}{i}", channel=f"c{c}") for i in range(twins) for c in range(CHANNELS))


def message(sequence: int, body: bytes, *, backfill: bool = False) -> bytes:
    """Return a WriteStreamRequest around an encoded batch."""
    inner = b"\x08" + wire.encode_varint(sequence) + b"\x12" + wire.encode_varint(len(body)) + body
    inner += b"\x18\x01" if backfill else b""
    return b"\x12" + wire.encode_varint(len(inner)) + inner


class Batches:
    """Batches of 10 s of all series, each of its own time, in the order in which live telemetry arrives."""

    def __init__(self, keys: tuple[SeriesKey, ...], ticks: int = ROWS // SERIES) -> None:
        self._keys, self._ticks = keys, ticks
        self._dictionary = wire.encode_dictionary(keys)

    def batch(self, number: int) -> ObservationBatch:
        """Return the batch of these seconds."""
        return batch(self._keys, number * self._ticks, self._ticks)

    def body(self, number: int) -> bytes:
        """Return it encoded."""
        return wire.encode(self.batch(number), dictionary=self._dictionary)


async def send(channel: grpc.aio.Channel, producer: str, messages: Iterable[bytes]) -> int:
    """Send one session's messages as bytes; returns the rows acknowledged once the last one is."""
    stream: Any = channel.stream_stream(STREAM, response_deserializer=ingestion_pb2.WriteStreamResponse.FromString)
    session = stream(timeout=300)
    hello = ingestion_pb2.WriteStreamRequest(hello=ingestion_pb2.ProducerHello(producer_id=producer))
    await session.write(hello.SerializeToString())
    accepted = 0

    async def sending() -> None:
        for each in messages:
            await session.write(each)
        await session.done_writing()

    async with asyncio.TaskGroup() as group:
        group.create_task(sending())
        async for answer in session:
            if answer.HasField("ack"):
                accepted += answer.ack.ack.accepted_count
    return accepted


@dataclass(slots=True)
class Floors:
    """COPY of prebuilt binary rows into the narrow table on the same server: what ``\\copy`` does."""

    unique_s: list[float]
    heap_s: list[float]
    points: int

    @classmethod
    def of(cls, points: int) -> Floors:
        """Return floors with nothing measured yet."""
        return cls([], [], points)

    async def measure(self, url: str) -> None:
        """Measure both once."""
        ticks = self.points // SERIES
        copy = narrow_copy(
            np.tile(np.arange(SERIES), ticks),
            T0 + np.repeat(np.arange(ticks), SERIES) * S,
            np.random.default_rng(1).normal(size=self.points),
        )
        self.heap_s.append(await asyncio.to_thread(copy_floor, url, "narrow_heap", False, copy))
        self.unique_s.append(await asyncio.to_thread(copy_floor, url, "narrow_unique", True, copy))

    @property
    def unique(self) -> float:
        """Points per second with the unique key (series, time)."""
        return self.points / statistics.median(self.unique_s)

    @property
    def heap(self) -> float:
        """Points per second without an index."""
        return self.points / statistics.median(self.heap_s)


def spent(before: dict[str, float], after: dict[str, float], points: int) -> dict[str, int]:
    """Return the CPU nanoseconds per point of each process."""
    return {name: round((after[name] - before[name]) / points * 1e9) for name in after}


def middle(values: Sequence[dict[str, int]]) -> dict[str, int]:
    """Return the median of each figure."""
    return {name: round(statistics.median(v[name] for v in values)) for name in values[0]}


def show(**figures: object) -> None:
    """Print some figures while the benchmark goes on."""
    print(json.dumps(figures), flush=True)
