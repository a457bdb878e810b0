"""State-sync beside etcd and NATS JetStream KV on the same machine: a write, and who watches.

Each gets the same work: 1,000 updates a second to one and to 100 watchers of everything (in writes of ten updates: one
message of ours, one transaction of etcd's, ten puts of NATS, which has no such thing), and 32 callers that write one
value each and wait, as fast as they can. Watchers and writer run in processes of their own.

Durability: we and etcd answer after the write is on disk. Debian's nats-server 2.9 cannot be told to sync before it
answers, so its figures are those of a weaker promise. Clients: etcd by grpc.aio, NATS by ``nats-py`` (pip install it).
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import multiprocessing
import queue
import shutil
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc.aio
import numpy as np
from benchmarks import etcd_api
from benchmarks.statesync_mesh import PER_TICK, TICK_S, TWINS, Mesh, Watchers, delays_ms, mesh, request, writing
from benchmarks.storage_bench import free_port

from twinmesh.ingestion.v1 import ingestion_pb2, ingestion_pb2_grpc
from twinmesh.type.v1 import observation_pb2
from twinmesh_client.transport import call, open_channel

LENGTH_S: Final = 6.0
WARM_S: Final = 1.0
CALLERS: Final = 32
CLOSED_S: Final = 4.0
Client = Any
"""``put(key, values)`` writes some updates at once; ``watch()`` yields the stamps of updates as they are told."""


async def compare() -> dict[str, Any]:
    """Measure ourselves and each peer that is installed; says which one is not."""
    result = {f"{name}_{key}": value for name, measure in _all() for key, value in (await measure()).items()}
    for name in ("etcd", "nats"):
        if f"{name}_write_to_watch_p99_ms" in result:
            for key in ("write_to_watch_p99_ms", "write_to_100_watchers_p99_ms"):
                result[f"{key}_vs_{name}"] = round(result[f"twinmesh_{key}"] / result[f"{name}_{key}"], 2)
            result[f"puts_vs_{name}"] = round(result["twinmesh_puts_per_s"] / result[f"{name}_puts_per_s"], 2)
    return result


def _all() -> Iterator[tuple[str, Callable[[], Awaitable[dict[str, Any]]]]]:
    yield "twinmesh", _ours
    for name, program, needs in (("etcd", "etcd", "grpc"), ("nats", "nats-server", "nats")):
        if shutil.which(program) is None:
            print(f"{name}: skipped, {program} is not installed (Debian has {name}-server)")
        elif importlib.util.find_spec(needs) is None:
            print(f"{name}: skipped, its Python client is not installed (pip install {needs}-py)")
        else:
            yield name, lambda name=name: _peer(name)  # type: ignore[misc]


# --- ourselves ---


async def _ours() -> dict[str, Any]:
    async with mesh() as made:
        result: dict[str, Any] = {}
        for key, count in (("write_to_watch", 1), ("write_to_100_watchers", 100)):
            async with Watchers(made.statesync, [request()] * count) as watchers:
                with writing(made.ingestion, f"peer-{count}", LENGTH_S + WARM_S) as results:
                    sent = await asyncio.to_thread(results.get, True, 60)
                await asyncio.sleep(1.0)
            kept = sent.sent_us - sent.sent_us[0] >= WARM_S * 1e6
            late = delays_ms(watchers.received, sent.offset[kept], sent.sent_us[kept])
            result |= _figures(key, late)
        result["puts_per_s"] = await _our_puts(made)
    print("twinmesh", json.dumps(result), flush=True)
    return result


async def _our_puts(made: Mesh) -> int:
    async def caller(stub: Any, number: int, until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            value = ingestion_pb2.Observation(
                twin_id=f"t{number}", channel="c0", value=observation_pb2.Value(double_value=float(done))
            )
            value.event_time.GetCurrentTime()
            await call(stub.Write, ingestion_pb2.WriteRequest(observations=[value]), timeout_s=30)
            done += 1
        return done

    async with open_channel(made.ingestion) as channel, Watchers(made.statesync, [request()]):
        stub = ingestion_pb2_grpc.IngestionServiceStub(channel)
        return await _closed(lambda number, until: caller(stub, number, until))


async def _closed(caller: Callable[[int, float], Awaitable[int]]) -> int:
    rates = []
    for _ in range(3):
        until = time.perf_counter() + CLOSED_S
        rates.append(sum(await asyncio.gather(*(caller(number, until) for number in range(CALLERS)))) / CLOSED_S)
    return round(statistics.median(rates))


def _figures(key: str, late: list[float]) -> dict[str, float]:
    return {
        f"{key}_p50_ms": round(float(np.percentile(late, 50)), 1),
        f"{key}_p99_ms": round(float(np.percentile(late, 99)), 1),
    }


# --- peers: one way to drive both ---


async def _peer(name: str) -> dict[str, Any]:
    spawn = multiprocessing.get_context("spawn")
    result: dict[str, Any] = {}
    with _SERVERS[name]() as port:
        for key, count in (("write_to_watch", 1), ("write_to_100_watchers", 100)):
            ready, stop, results = spawn.Semaphore(0), spawn.Event(), spawn.Queue()
            parts = [count // 2, count - count // 2]
            watchers = [spawn.Process(target=_watch, args=(name, port, n, ready, stop, results)) for n in parts if n]
            writer = spawn.Process(target=_write, args=(name, port))
            for process in watchers:
                process.start()
            for _ in range(count):
                if not await asyncio.to_thread(ready.acquire, True, 60):
                    raise SystemExit(f"{name}: a watcher did not begin")
            writer.start()
            await asyncio.to_thread(writer.join, LENGTH_S + 60)
            await asyncio.sleep(1.0)
            stop.set()
            late: list[float] = []
            for _ in watchers:
                try:
                    late += await asyncio.to_thread(results.get, True, 30)
                except queue.Empty:
                    raise SystemExit(f"{name}: a watcher ended early") from None
            for process in (*watchers, writer):
                process.join(timeout=10)
                process.kill()
            result |= _figures(key, late)
            expected = round(LENGTH_S / TICK_S) * PER_TICK * count
            result[f"{key}_told_ratio"] = round(len(late) / expected, 3)
        async with _CLIENTS[name](port) as client:

            async def caller(number: int, until: float) -> int:
                done = 0
                while time.perf_counter() < until:
                    await client.put([(f"t{number}", b"1")])
                    done += 1
                return done

            result["puts_per_s"] = await _closed(caller)
    print(name, json.dumps(result), flush=True)
    return result


def _write(name: str, port: int) -> None:
    asyncio.run(_writing(name, port))


async def _writing(name: str, port: int) -> None:
    async with _CLIENTS[name](port) as client, asyncio.TaskGroup() as group:
        started = time.monotonic()
        for number in range(round((LENGTH_S + WARM_S) / TICK_S)):
            await asyncio.sleep(max(0.0, started + number * TICK_S - time.monotonic()))
            stamp = struct.pack("<q?", time.time_ns(), number * TICK_S >= WARM_S)
            first = number * PER_TICK % TWINS
            group.create_task(client.put([(f"t{first + i}", stamp) for i in range(PER_TICK)]))


def _watch(name: str, port: int, count: int, ready: Any, stop: Any, results: Any) -> None:
    results.put(asyncio.run(_watching(name, port, count, ready, stop)))


async def _watching(name: str, port: int, count: int, ready: Any, stop: Any) -> list[float]:
    late: list[float] = []

    async def watcher(client: Client) -> None:
        async for value in client.watch(ready.release):
            if len(value) == 9:
                stamp, counted = struct.unpack("<q?", value)
                if counted:
                    late.append((time.time_ns() - stamp) / 1e6)

    async with _CLIENTS[name](port) as client:
        tasks = [asyncio.create_task(watcher(client)) for _ in range(count)]
        while not stop.is_set() and not any(task.done() for task in tasks):  # noqa: ASYNC110 -- between processes
            await asyncio.sleep(0.1)
        broken = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*(task for task in tasks if task not in broken), return_exceptions=True)
        await asyncio.gather(*broken)
    return late


# --- etcd ---


class _Etcd:
    def __init__(self, channel: Any) -> None:
        message = etcd_api.messages
        self._channel = channel
        self._txn = channel.unary_unary(
            etcd_api.TXN,
            request_serializer=message["TxnRequest"].SerializeToString,
            response_deserializer=message["TxnResponse"].FromString,
        )

    async def put(self, values: list[tuple[str, bytes]]) -> None:
        message = etcd_api.messages
        puts = [message["RequestOp"](request_put=message["PutRequest"](key=k.encode(), value=v)) for k, v in values]
        answer = await self._txn(message["TxnRequest"](success=puts), timeout=30)
        if not answer.succeeded:
            raise SystemExit("etcd refused a put")

    async def watch(self, begun: Callable[[], Any]) -> AsyncIterator[bytes]:
        message = etcd_api.messages
        stream = self._channel.stream_stream(
            etcd_api.WATCH,
            request_serializer=message["WatchRequest"].SerializeToString,
            response_deserializer=message["WatchResponse"].FromString,
        )()
        create = message["WatchCreateRequest"](key=b"t", range_end=b"u")
        await stream.write(message["WatchRequest"](create_request=create))
        try:
            while True:
                answer = await stream.read()
                if answer.created:
                    begun()
                for event in answer.events:
                    yield event.kv.value
        finally:
            stream.cancel()


@asynccontextmanager
async def _etcd_client(port: int) -> AsyncIterator[_Etcd]:
    # Not our own kind of channel: that one believes the health that our services tell.
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield _Etcd(channel)


@contextmanager
def _etcd() -> Iterator[int]:
    port, peer = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="twinmesh-etcd-") as directory:
        urls = [
            f"--listen-client-urls=http://127.0.0.1:{port}",
            f"--advertise-client-urls=http://127.0.0.1:{port}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            "--log-level=error",
        ]
        with _running(["etcd", f"--data-dir={directory}/data", *urls], port):
            yield port


# --- NATS ---


class _Nats:
    def __init__(self, bucket: Any) -> None:
        self._bucket = bucket

    async def put(self, values: list[tuple[str, bytes]]) -> None:
        await asyncio.gather(*(self._bucket.put(key, value) for key, value in values))

    async def watch(self, begun: Callable[[], Any]) -> AsyncIterator[bytes]:
        watcher = await self._bucket.watchall(ignore_deletes=True)
        told = False
        async for entry in watcher:
            if not told:
                # None ends the initial values; where there are none, it comes alone.
                told = entry is None
                if told:
                    begun()
            elif entry is not None:
                yield entry.value


@asynccontextmanager
async def _nats_client(port: int) -> AsyncIterator[_Nats]:
    nats: Any = importlib.import_module("nats")
    missing: Any = importlib.import_module("nats.js.errors").NotFoundError
    connection = await nats.connect(f"nats://127.0.0.1:{port}", pending_size=64 * 1024 * 1024)
    stream = connection.jetstream(timeout=30, publish_async_max_pending=4_000)
    try:
        bucket = await stream.key_value("twins")
    except missing:
        bucket = await stream.create_key_value(bucket="twins", history=1)
    yield _Nats(bucket)
    await connection.close()


@contextmanager
def _nats() -> Iterator[int]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="twinmesh-nats-") as directory:
        command = ["nats-server", "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", directory]
        with _running(command, port):
            yield port


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    log = Path(tempfile.mkstemp(prefix="twinmesh-peer-")[1])
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink)
    try:
        for _ in range(100):
            if _listens(port):
                break
            time.sleep(0.1)
        else:
            raise SystemExit(f"{command[0]} did not start: {log.read_text(errors='replace')[-500:]}")
        time.sleep(1.0)
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)
        log.unlink()


def _listens(port: int) -> bool:

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


_SERVERS: Final = {"etcd": _etcd, "nats": _nats}
_CLIENTS: Final[dict[str, Callable[[int], Any]]] = {"etcd": _etcd_client, "nats": _nats_client}
