"""What the parts of the state-sync benchmark share: the mesh, a writer, and watchers in processes of their own."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import queue
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc.aio
import numpy as np
import numpy.typing as npt
import psycopg
from benchmarks.ingest_mesh import message
from benchmarks.light_watchers import read_all
from benchmarks.storage_bench import Storage, free_port, server, start_service, storage

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh.statesync.v1 import statesync_pb2, statesync_pb2_grpc
from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import entry_pb2, observation_pb2, twin_pb2
from twinmesh_client.transport import call, open_channel
from twinmesh_core import wire
from twinmesh_core.errors import TwinmeshError
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section
from twinmesh_core.wire_fields import decode_varint

TWINS: Final = 1_000
TICK_S: Final = 0.01
PER_TICK: Final = 10
"""Updates a message: 1,000 a second, in messages as a gateway of ten devices sends them."""
WRITE: Final = "/twinmesh.ingestion.v1.IngestionService/WriteStream"
WATCH: Final = "/twinmesh.statesync.v1.ReplicaService/Watch"


@dataclass(frozen=True, slots=True)
class Mesh:
    """PostgreSQL, storage, ingestion and state-sync as they run in production, and a client's stubs."""

    url: str
    store: Storage
    ingestion: str
    statesync: str
    process: subprocess.Popen[bytes]
    twins: statesync_pb2_grpc.TwinServiceAsyncStub
    replicas: statesync_pb2_grpc.ReplicaServiceAsyncStub

    def status_kib(self, field: str) -> int:
        """Return a line of the state-sync process's memory status (VmRSS, VmHWM)."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    def cpu_s(self) -> float:
        """Return the CPU seconds that state-sync has used."""
        return Storage(self.store.stub, self.process, self.statesync).cpu_s()

    async def commit_times_us(self) -> dict[int, int]:
        """Return the commit time of each entry of the log."""
        statement = "select log_offset, (extract(epoch from commit_time) * 1e6)::bigint from storage.log"
        async with await psycopg.AsyncConnection.connect(self.url) as conn:
            return dict(await (await conn.execute(statement)).fetchall())

    async def head(self) -> int:
        """Return the newest offset of the log."""
        return int((await call(self.store.stub.GetHead, storage_pb2.GetHeadRequest(), timeout_s=10)).position.offset)


@asynccontextmanager
async def mesh(twins: int = TWINS, settings: Mapping[str, str] | None = None) -> AsyncIterator[Mesh]:
    """Run the processes on an empty database, with one type and so many twins (t0, t1, ...).

    Args:
        twins: how many.
        settings: of state-sync, by name.
    """
    with server() as postgres:
        async with storage(postgres.url()) as store, AsyncExitStack() as stack:
            await _create(store, twins)
            ports = {"ingestion": free_port(), "statesync": free_port()}
            processes = {
                "ingestion": start_service("ingestion", ports["ingestion"], mesh=store.target),
                "statesync": start_service(
                    "statesync", ports["statesync"], mesh=store.target, DATABASE_URL=postgres.url(), **(settings or {})
                ),
            }
            for process in processes.values():
                stack.callback(_stop, process)
            channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{ports['statesync']}"))
            replicas = statesync_pb2_grpc.ReplicaServiceStub(channel)
            made = Mesh(
                postgres.url(),
                store,
                f"127.0.0.1:{ports['ingestion']}",
                f"127.0.0.1:{ports['statesync']}",
                processes["statesync"],
                statesync_pb2_grpc.TwinServiceStub(channel),
                replicas,
            )
            await _until_known(made, f"t{twins - 1}")
            yield made


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=20)


async def _create(store: Storage, twins: int) -> None:
    channels = [
        twin_pb2.ChannelSpec(name="c0", kind=observation_pb2.CHANNEL_KIND_GAUGE),
        twin_pb2.ChannelSpec(name="set", kind=observation_pb2.CHANNEL_KIND_GAUGE, controllable=True),
    ]
    kind = twin_pb2.TwinType(twin_type_id="bench", version=1, channels=channels)
    entries = [
        entry_pb2.ControlEntry(request_id="type", create_twin_type=entry_pb2.CreateTwinTypeEntry(twin_type=kind))
    ]
    for number in range(twins):
        twin = twin_pb2.Twin(twin_id=f"t{number}", twin_type_id="bench")
        entries.append(
            entry_pb2.ControlEntry(request_id=twin.twin_id, create_twin=entry_pb2.CreateTwinEntry(twin=twin))
        )
    for start in range(0, len(entries), 256):
        requests = [storage_pb2.AppendRequest(control=entry) for entry in entries[start : start + 256]]
        await asyncio.gather(*(call(store.stub.Append, request, timeout_s=30) for request in requests))


async def _until_known(made: Mesh, twin_id: str) -> None:
    for _ in range(300):
        try:
            await call(made.twins.GetTwin, statesync_pb2.GetTwinRequest(twin_id=twin_id), timeout_s=1)
            return
        except TwinmeshError:
            await asyncio.sleep(0.1)
    raise SystemExit("state-sync did not start")


# --- a writer, as a gateway is one ---


@dataclass(frozen=True, slots=True)
class Sent:
    """When each message was sent and acknowledged, in microseconds, and its offset; by sequence."""

    sent_us: npt.NDArray[np.int64]
    acked_us: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]


def run_writer(target: str, producer: str, length_s: float, results: Any) -> None:
    """Write 1,000 updates a second for a while; runs in a process of its own."""
    results.put(asyncio.run(write(target, producer, length_s)))


async def write(target: str, producer: str, length_s: float) -> Sent:
    """Send ten updates every 10 ms through ingestion, each of another twin, whatever becomes of those before."""
    count = round(length_s / TICK_S)
    keys = tuple(SeriesKey(twin_id=f"t{i}", channel="c0") for i in range(TWINS))
    sent, acked, offset = (np.zeros(count + 1, np.int64) for _ in range(3))
    async with open_channel(target) as channel:
        call_: Any = channel.stream_stream(WRITE, response_deserializer=ingestion_pb2.WriteStreamResponse.FromString)
        session = call_(timeout=length_s + 60)
        hello = ingestion_pb2.WriteStreamRequest(hello=ingestion_pb2.ProducerHello(producer_id=producer))
        await session.write(hello.SerializeToString())
        await session.read()

        async def send() -> None:
            started = time.monotonic()
            for number in range(1, count + 1):
                await asyncio.sleep(max(0.0, started + number * TICK_S - time.monotonic()))
                first = number * PER_TICK % TWINS
                now_us = time.time_ns() // 1000
                batch = ObservationBatch(
                    series=keys[first : first + PER_TICK],
                    doubles=double_section(
                        np.arange(PER_TICK), np.full(PER_TICK, now_us), np.full(PER_TICK, number), np.ones(PER_TICK)
                    ),
                )
                sent[number] = now_us
                await session.write(message(number, wire.encode(batch)))
            await session.done_writing()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            while (answer := await session.read()) is not grpc.aio.EOF:
                sequence = answer.ack.sequence
                acked[sequence] = time.time_ns() // 1000
                offset[sequence] = answer.ack.ack.offset
    return Sent(sent[1:], acked[1:], offset[1:])


# --- watchers ---


@dataclass(frozen=True, slots=True)
class Received:
    """Of each watcher: when each frame came, in microseconds, and the offset it led to."""

    time_us: list[npt.NDArray[np.int64]]
    through: list[npt.NDArray[np.int64]]


def through_of(frame: bytes) -> int:
    """Return the offset a WatchResponse leads to, its events unread; 0 when it says none."""
    at, stop = 0, len(frame)
    while at < stop:
        start = at
        tag, at = decode_varint(frame, at, stop)
        length, at = decode_varint(frame, at, stop)
        if tag >> 3 == 2:
            return int(statesync_pb2.WatchResponse.FromString(frame[start : at + length]).through.offset)
        # Field 3, synced, is a number: it is what was read as a length.
        at += length if tag & 7 == 2 else 0
    return 0


def run_watchers(target: str, requests: Sequence[bytes], frozen: int, ready: Any, stop: Any, results: Any) -> None:
    """Hold one watch for each request, the first `frozen` of them unread; runs in a process of its own."""
    results.put(asyncio.run(_watch(target, requests, frozen, ready, stop)))


def run_light_watchers(target: str, requests: Sequence[bytes], ready: Any, stop: Any, results: Any) -> None:
    """Hold one watch for each request, read by one thread; runs in a process of its own."""
    times: list[list[int]] = [[] for _ in requests]
    through: list[list[int]] = [[] for _ in requests]

    def told(number: int, now_us: int, frame: bytes) -> None:
        reached = through_of(frame)
        if reached:
            if not through[number]:
                ready.release()
            times[number].append(now_us)
            through[number].append(reached)

    # What is kept is numbers: a look of the collector at all of them is a pause that the mesh has not made.
    gc.disable()
    read_all(target, WATCH, requests, told, stop)
    results.put(Received([np.array(each) for each in times], [np.array(each) for each in through]))


async def _watch(target: str, requests: Sequence[bytes], frozen: int, ready: Any, stop: Any) -> Received:
    received = Received([], [])

    async def live(channel: grpc.aio.Channel, request: bytes) -> None:
        times: list[int] = []
        through: list[int] = []
        watch: Any = channel.unary_stream(WATCH)
        stream = watch(request)
        told = False
        try:
            while not stop.is_set():
                frame = await stream.read()
                reached = through_of(frame)
                if reached:
                    times.append(time.time_ns() // 1000)
                    through.append(reached)
                    if not told:
                        told = True
                        ready.release()
        finally:
            stream.cancel()
        received.time_us.append(np.array(times))
        received.through.append(np.array(through))

    async def unread(channel: grpc.aio.Channel, request: bytes) -> None:
        watch: Any = channel.unary_stream(WATCH)
        stream = watch(request)
        await stream.read()
        ready.release()
        while not stop.is_set():  # noqa: ASYNC110 -- an event between processes
            await asyncio.sleep(0.1)
        stream.cancel()

    # A channel for every 100, as processes of so many watchers have; a frozen one has its own, like a frozen client.
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        channel = None
        for number, request in enumerate(requests):
            if channel is None or number < frozen or number % 100 == 0:
                options = [("grpc.use_local_subchannel_pool", 1)]
                channel = await stack.enter_async_context(open_channel(target, options=options))
            group.create_task((unread if number < frozen else live)(channel, request))
            if number % 100 == 99:
                await asyncio.sleep(0.02)
    return received


class Watchers:
    """Watchers in client processes of their own; a context manager, `received` is filled when it ends.

    Args:
        target: state-sync.
        requests: one for each.
        frozen: so many of them never read.
        light: the others are read by one thread (`light_watchers`) instead of being gRPC clients in two processes.
    """

    def __init__(self, target: str, requests: Sequence[bytes], frozen: int = 0, *, light: bool = False) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._stop = spawn.Event()
        self._ready = spawn.Semaphore(0)
        self._results: Any = spawn.Queue()
        self._count = len(requests)
        common = (self._ready, self._stop, self._results)
        if light:
            self._processes = [spawn.Process(target=run_light_watchers, args=(target, requests[frozen:], *common))]
            if frozen:
                cold = (target, requests[:frozen], frozen, *common)
                self._processes.append(spawn.Process(target=run_watchers, args=cold))
        else:
            half = len(requests) // 2
            # All that are frozen are in the first part.
            parts = [(requests[:half], frozen), (requests[half:], 0)] if half else [(requests, frozen)]
            self._processes = [
                spawn.Process(target=run_watchers, args=(target, part, cold, *common)) for part, cold in parts
            ]
        self.received = Received([], [])

    async def __aenter__(self) -> Watchers:
        for each in self._processes:
            each.start()
        for _ in range(self._count):
            if not await asyncio.to_thread(self._ready.acquire, True, 120):
                raise SystemExit("a watcher did not get its snapshot")
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._stop.set()
        for _process in self._processes:
            try:
                part = await asyncio.to_thread(self._results.get, True, 60)
            except queue.Empty:
                continue
            self.received.time_us.extend(part.time_us)
            self.received.through.extend(part.through)
        for each in self._processes:
            each.join(timeout=10)
            each.kill()


@contextmanager
def writing(target: str, producer: str, length_s: float) -> Iterator[Any]:
    """Run the writer in a process of its own; yields a queue that gets its `Sent`."""
    spawn = multiprocessing.get_context("spawn")
    results: Any = spawn.Queue()
    process = spawn.Process(target=run_writer, args=(target, producer, length_s, results))
    process.start()
    try:
        yield results
    finally:
        process.join(timeout=10)
        process.kill()


def delays_ms(received: Received, offsets: npt.NDArray[np.int64], since_us: npt.NDArray[np.int64]) -> list[float]:
    """Return, for each watcher and entry, the milliseconds from `since_us` to the frame that told it.

    Args:
        received: what the watchers got.
        offsets: of the entries; ascending, int64.
        since_us: when each was written or committed, int64.
    """
    late: list[float] = []
    for times, through in zip(received.time_us, received.through, strict=True):
        at = np.searchsorted(through, offsets)
        known = at < len(through)
        late.extend(((times[at[known]] - since_us[known]) / 1000).tolist())
        if not known.all():
            raise SystemExit(f"a watcher was never told {int((~known).sum())} entries")
    return late


def request(**fields: Any) -> bytes:
    """Return a WatchRequest as bytes."""
    return statesync_pb2.WatchRequest(**fields).SerializeToString()
