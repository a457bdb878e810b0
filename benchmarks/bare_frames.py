"""The floor of a watch: a bare gRPC server sending frames of the same size at the same pace to as many streams.

No log, no database, no filter: one frame every 10 ms, shared by all streams, as large as ten changes, its first eight
bytes the time at which it was made. Server, and two processes of readers, as in the benchmark beside it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import struct
import time
from contextlib import AsyncExitStack
from typing import Any, Final

import grpc
import grpc.aio
from benchmarks.storage_bench import free_port

from twinmesh_client.transport import open_channel

METHOD: Final = "/bare.Frames/Watch"
TICK_S: Final = 0.01
FRAME_BYTES: Final = 1_200
WARM_S: Final = 1.0


def bare_frames(*, watchers: int, length_s: float) -> list[float]:
    """Return the milliseconds from each frame's making to its receipt, of all streams."""
    spawn = multiprocessing.get_context("spawn")
    port, stop, results = free_port(), spawn.Event(), spawn.Queue()
    server = spawn.Process(target=_run_server, args=(port, stop))
    readers = [
        spawn.Process(target=_run_readers, args=(port, watchers // 2, length_s + WARM_S, results)) for _ in range(2)
    ]
    server.start()
    try:
        for reader in readers:
            reader.start()
        late = [delay for _ in readers for delay in results.get(timeout=length_s + 60)]
    finally:
        stop.set()
        for process in (*readers, server):
            process.join(timeout=10)
            process.kill()
    return late


def _run_server(port: int, stop: Any) -> None:
    asyncio.run(_serve(port, stop))


async def _serve(port: int, stop: Any) -> None:
    news: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def watch(_: bytes, context: Any) -> None:
        while True:
            await context.write(await asyncio.shield(news))

    handler: Any = grpc.unary_stream_rpc_method_handler(watch)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare.Frames", {"Watch": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    due = time.monotonic()
    while not stop.is_set():
        due += TICK_S
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        told, news = news, asyncio.get_running_loop().create_future()
        told.set_result(struct.pack("<q", time.time_ns()) + bytes(FRAME_BYTES))
    await server.stop(None)


def _run_readers(port: int, count: int, length_s: float, results: Any) -> None:
    results.put(asyncio.run(_read(port, count, length_s)))


async def _read(port: int, count: int, length_s: float) -> list[float]:
    late: list[float] = []

    async def reader(channel: grpc.aio.Channel) -> None:
        watch: Any = channel.unary_stream(METHOD)
        stream = watch(b"", wait_for_ready=True)
        until = None
        while until is None or time.monotonic() < until:
            frame = await stream.read()
            now = time.monotonic()
            if until is None:
                until = now + length_s
            elif until - now < length_s - WARM_S:
                late.append((time.time_ns() - struct.unpack_from("<q", frame)[0]) / 1e6)
        stream.cancel()

    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{port}"))
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(reader(channel))
    return late
