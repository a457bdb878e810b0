"""What following costs: ``python -m benchmarks.follow [seconds]``.

One storage process takes 1,000 entries/s (ten observations each), appended by a process of their own, with no follower
as the floor, then 1, 100 and 1,000 followers of everything, then 100 that want one twin each. Printed: the storage
process's CPU (cores), what a follower adds, frames per follower and second, and the time from an entry's commit to its
receipt by one follower.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from benchmarks.storage_bench import T0, S, Storage, database, storage

from twinmesh.storage.v1 import storage_pb2, storage_pb2_grpc
from twinmesh_client.transport import call, open_channel
from twinmesh_core import wire
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section

RATE = 1_000
WRITERS = 50
TWINS = 100
METHOD = "/twinmesh.storage.v1.StorageService/Follow"


def write(target: str, keys: Sequence[SeriesKey], stop: Any, written: Any) -> None:
    """Append at the rate until told to stop; runs in a process of its own."""
    asyncio.run(_write(target, keys, stop, written))


async def _write(target: str, keys: Sequence[SeriesKey], stop: Any, written: Any) -> None:
    started = time.monotonic()

    async def writer(number: int, stub: Any) -> None:
        sent = 0
        while not stop.is_set():
            due = started + (sent * WRITERS + number) / RATE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            times = T0 + S * (sent * WRITERS + number) + np.arange(10)
            batch = ObservationBatch(
                series=(keys[number % TWINS],),
                doubles=double_section(np.zeros(10), times, np.arange(10.0), np.ones(10)),
            )
            await call(stub.Append, storage_pb2.AppendRequest(observations=wire.encode(batch)), timeout_s=30)
            sent += 1
            with written.get_lock():
                written.value += 1

    async with open_channel(target) as channel, asyncio.TaskGroup() as group:
        stub = storage_pb2_grpc.StorageServiceStub(channel)
        for number in range(WRITERS):
            group.create_task(writer(number, stub))


def follow(target: str, requests: Sequence[bytes], stop: Any, frames: Any, delays: Any) -> None:
    """Follow as often as there are requests, bytes unread but for the first follower's; a process of its own."""
    asyncio.run(_follow(target, requests, stop, frames, delays))


async def _follow(target: str, requests: Sequence[bytes], stop: Any, frames: Any, delays: Any) -> None:
    seen: list[float] = []
    counted = 0

    async def follower(first: bool, request: bytes, channel: Any) -> None:
        nonlocal counted
        stream = channel.unary_stream(METHOD)(request)
        try:
            while not stop.is_set():
                data = await stream.read()
                counted += 1
                if first:
                    now_us = time.time_ns() // 1000
                    entries = storage_pb2.FollowResponse.FromString(data).entries
                    seen.extend((now_us - e.commit_time.ToMicroseconds()) / 1000 for e in entries)
        finally:
            stream.cancel()

    async with open_channel(target) as channel, asyncio.TaskGroup() as group:
        for number, request in enumerate(requests):
            group.create_task(follower(number == 0, request, channel))
    frames.value = counted
    delays.put(seen)


@contextmanager
def process(run: Callable[..., None], *args: Any) -> Any:
    """Run a function in a process of its own while the block lasts."""
    started = multiprocessing.get_context("spawn").Process(target=run, args=args)
    started.start()
    try:
        yield
    finally:
        started.join(timeout=30)
        started.kill()


async def measure(
    store: Storage, keys: Sequence[SeriesKey], followers: int, by_twin: bool, length_s: float
) -> dict[str, Any]:
    """Return what following costs with this many followers."""
    spawn = multiprocessing.get_context("spawn")
    stop, written, frames, delays = spawn.Event(), spawn.Value("q", 0), spawn.Value("q", 0), spawn.Queue()
    head = (await call(store.stub.GetHead, storage_pb2.GetHeadRequest(), timeout_s=10)).position
    requests = []
    for number in range(followers):
        twins = [keys[number % TWINS].twin_id] if by_twin else []
        requests.append(storage_pb2.FollowRequest(after=head, twin_ids=twins).SerializeToString())
    with process(write, store.target, keys, stop, written):
        halves = [requests[0::2], requests[1::2]] if followers > 1 else [requests]
        with process(follow, store.target, halves[0], stop, frames, delays):
            second = spawn.Value("q", 0), spawn.Queue()
            with process(follow, store.target, halves[-1] if len(halves) > 1 else [], stop, *second):
                await asyncio.sleep(4.0)
                cpu, entries, started = store.cpu_s(), written.value, time.monotonic()
                await asyncio.sleep(length_s)
                cpu, entries, took = store.cpu_s() - cpu, written.value - entries, time.monotonic() - started
                stop.set()
                received = delays.get(timeout=30)
                second[1].get(timeout=30)
    late = received[len(received) // 3 :] or [float("nan")]
    return {
        "entries_per_s": round(entries / took),
        "cores": round(cpu / took, 3),
        "frames_per_follower_s": round((frames.value + second[0].value) / max(1, followers) / (took + 4), 1),
        "delay_p50_ms": round(float(np.median(late)), 1),
        "delay_p99_ms": round(float(np.percentile(late, 99)), 1),
        "peak_mib": round(store.peak_mib()),
    }


async def main(length_s: float) -> None:
    """Measure each case on one storage process."""
    result: dict[str, Any] = {}
    with database() as url:
        async with storage(url) as store:
            keys = [(await store.series(f"t{i}", 1))[0] for i in range(TWINS)]
            for name, followers, by_twin in (
                ("none", 0, False),
                ("1", 1, False),
                ("100", 100, False),
                ("100 by twin", 100, True),
                ("1000", 1_000, False),
            ):
                result[name] = await measure(store, keys, followers, by_twin, length_s)
                print(name, json.dumps(result[name]), flush=True)
    floor = result["none"]["cores"]
    result["cores_added_by_100"] = round(result["100"]["cores"] - floor, 3)
    result["follow_100_vs_none"] = round(result["100"]["cores"] / floor, 2)
    print(json.dumps(result))


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 8.0))
