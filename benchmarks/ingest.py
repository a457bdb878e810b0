"""The whole ingest path against COPY: ``python -m benchmarks.ingest [--only PART ...] [--peer]``; see ``--help``.

Client -> ingestion (identity, unit, time, range, rate) -> storage, in sessions of batches of 10,000, acknowledged after
commit; beside it COPY of prebuilt binary rows into the narrow table with and without its unique index on the same
server, interleaved, medians of three. `benchmarks.storage_ingest` measures storage alone.

Parts: burst (with a replay of each round), sustained (compaction on), sdk, wide (10,000 series in one message a
second), single (one-point messages). All figures are one JSON object on the last line; ratios hold on a noisy
machine, absolute figures do not.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.ingest_mesh import (
    CHANNELS,
    ROWS,
    SERIES,
    SESSIONS,
    TWINS,
    WIDE_TWINS,
    Batches,
    Floors,
    Mesh,
    keys_of,
    mesh,
    message,
    middle,
    send,
    show,
    spent,
)
from benchmarks.ingest_peer import peers
from benchmarks.storage_bench import T0, S

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.aio.writer import Writer
from twinmesh_client.frames import frame_batches
from twinmesh_client.transport import call
from twinmesh_core import wire
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, double_section

ROUNDS = 3
Figures = dict[str, Any]


async def burst(m: Mesh, floors: Floors, points: int) -> Figures:
    """Prebuilt messages as fast as they are taken, then the same once more: a replay of every batch."""
    batches = Batches(keys_of(TWINS))
    each = points // ROWS // SESSIONS
    seconds, replays, cpu = [], [], []
    for number in range(ROUNDS + 1):  # the first one warms up
        sessions = [
            [
                message(number * each + i + 1, batches.body((number * SESSIONS + session) * each + i))
                for i in range(each)
            ]
            for session in range(SESSIONS)
        ]
        sent = SESSIONS * each * ROWS
        before, started = m.cpu_s(), time.perf_counter()
        accepted = await asyncio.gather(*(send(m.channel, f"burst{s}", each_) for s, each_ in enumerate(sessions)))
        seconds.append((time.perf_counter() - started) / sent)
        cpu.append(spent(before, m.cpu_s(), sent))
        assert sum(accepted) == sent, accepted
        await m.quiet()  # the fold of the first delivery is not the replay's work
        started = time.perf_counter()
        await asyncio.gather(*(send(m.channel, f"burst{s}", each_) for s, each_ in enumerate(sessions)))
        replays.append((time.perf_counter() - started) / sent)
        await m.quiet()
        if number:
            await floors.measure(m.url)
        show(round=number, points_per_s=round(1 / seconds[-1]), cpu_ns_per_point=cpu[-1])
    rate = 1 / statistics.median(seconds[1:])
    counted = await call(m.store.stub.GetStatistics, storage_pb2.GetStatisticsRequest(), timeout_s=60)
    assert counted.point_count == (ROUNDS + 1) * SESSIONS * each * ROWS, counted
    return {
        "ingest_vs_copy": round(rate / floors.unique, 2),
        "ingest_vs_copy_heap": round(rate / floors.heap, 2),
        "points_per_s": round(rate),
        "cpu_ns_per_point": middle(cpu[1:]),
        "replay_vs_first": round(statistics.median(seconds[1:]) / statistics.median(replays[1:]), 2),
    }


async def sustained(m: Mesh, floors: Floors, seconds: float) -> Figures:
    """As fast as it is taken for so long, with compaction beside it; what lags at the end is waited for and counted."""
    batches = Batches(keys_of(TWINS))
    end = time.monotonic() + seconds

    def messages(session: int) -> Iterator[bytes]:
        for i in itertools.count():
            if time.monotonic() >= end:
                return
            yield message(i + 1, batches.body(1_000_000 + i * SESSIONS + session))

    before, started = m.cpu_s(), time.perf_counter()
    accepted = sum(await asyncio.gather(*(send(m.channel, f"steady{s}", messages(s)) for s in range(SESSIONS))))
    acknowledged_s = time.perf_counter() - started
    cpu = spent(before, m.cpu_s(), accepted)
    lag = await m.unfolded()
    await m.quiet()
    folded_s = time.perf_counter() - started
    while len(floors.unique_s) < ROUNDS:
        await floors.measure(m.url)
    return {
        # Until the last point is in history, so that none of the work is left out.
        "ingest_sustained_vs_copy": round(accepted / folded_s / floors.unique, 2),
        "sustained_points_per_s": round(accepted / folded_s),
        "sustained_acked_points_per_s": round(accepted / acknowledged_s),
        "sustained_final_lag_points": lag,
        "sustained_catch_up_s": round(folded_s - acknowledged_s, 1),
        "sustained_cpu_ns_per_point": cpu,
    }


async def sdk(m: Mesh, _: Floors, points: int) -> Figures:
    """Through the SDK's writer, from numpy columns and from pandas frames, encoding included."""
    batches = Batches(keys_of(TWINS))
    rates: dict[str, list[float]] = {"numpy": [], "pandas": []}
    kinds = {f"c{c}": ChannelKind.GAUGE for c in range(CHANNELS)}
    rows = points // CHANNELS // 8
    for number in range(ROUNDS + 1):
        columns = [batches.batch(2_000_000 + number * 1_000 + i) for i in range(points // ROWS)]
        rates["numpy"].append(await _written(m, f"numpy{number}", iter(columns)) / points)
        index = pd.to_datetime(T0 + (number * rows + np.arange(rows)) * S, unit="us", utc=True)
        wave = np.round(20 + np.sin(np.arange(rows)[:, None] / 500 + np.arange(CHANNELS)) * 5, 2)
        frames = [pd.DataFrame(wave, index=index, columns=list(kinds)) for _ in range(8)]
        shaped = (
            part
            for twin, frame in enumerate(frames)
            for part in frame_batches(frame, twin_id=f"w{twin}", kinds=kinds, max_rows=ROWS)
        )
        rates["pandas"].append(await _written(m, f"pandas{number}", shaped) / (rows * CHANNELS * 8))
        await m.quiet()
    return {f"sdk_{name}_points_per_s": round(1 / statistics.median(values[1:])) for name, values in rates.items()}


async def _written(m: Mesh, producer: str, batches: Iterator[ObservationBatch]) -> float:
    started = time.perf_counter()
    async with Writer(m.channel, producer) as writer:
        for each in batches:
            await writer.write(each)
        await writer.flush()
    return time.perf_counter() - started


async def wide(m: Mesh, _: Floors, seconds: int) -> Figures:
    """One message of 10,000 series a second, as a plant of 1,250 twins sends: how long it takes, and what it costs."""
    batches = Batches(keys_of(WIDE_TWINS, "w"), ticks=1)
    acked: asyncio.Queue[float] = asyncio.Queue()
    taken = []
    async with Writer(m.channel, "wide", on_ack=lambda _: acked.put_nowait(time.perf_counter())) as writer:
        for i in range(2):  # names are resolved, the memory is filled
            await writer.write(batches.batch(3_000_000 + i))
            await acked.get()
        before, began = m.cpu_s(), time.perf_counter()
        for i in range(seconds):
            await asyncio.sleep(max(0.0, began + i - time.perf_counter()))
            started = time.perf_counter()
            await writer.write(batches.batch(3_000_010 + i))
            taken.append(await acked.get() - started)
        cpu = spent(before, m.cpu_s(), seconds * 1_000)
    return {
        "wide_latency_ms": round(statistics.median(taken) * 1e3, 1),
        "wide_latency_max_ms": round(max(taken) * 1e3, 1),
        # With what the mesh does all the time: folds, leases, health.
        "wide_cpu_ms_per_message": {name: round(us / 1e3, 1) for name, us in cpu.items()},
    }


async def single(m: Mesh, _: Floors, count: int) -> Figures:
    """How many one-point messages a second there can be: in sessions, and as unary writes of 32 callers."""
    key = keys_of(1)[:1]

    def body(number: int) -> bytes:
        return wire.encode(
            ObservationBatch(series=key, doubles=double_section([0], [T0 + 4_000_000 * S + number * S], [20.0]))
        )

    streamed, unary = [], []
    for number in range(ROUNDS):
        each = count // SESSIONS
        sessions = [
            [message(number * each + i + 1, body((number * SESSIONS + s) * each + i)) for i in range(each)]
            for s in range(SESSIONS)
        ]
        started = time.perf_counter()
        await asyncio.gather(*(send(m.channel, f"single{s}", each_) for s, each_ in enumerate(sessions)))
        streamed.append((time.perf_counter() - started) / (each * SESSIONS))
        numbers = iter(range(count // 2))

        async def caller(round_: int, numbers: Iterator[int] = numbers) -> None:
            for i in numbers:
                request = ingestion_pb2.WriteRequest(request_id=f"u{round_}-{i}")
                request.batch.MergeFromString(body(1_000_000 + round_ * count + i))
                await call(m.stub.Write, request, timeout_s=30)

        started = time.perf_counter()
        await asyncio.gather(*(caller(number) for _ in range(32)))
        unary.append((time.perf_counter() - started) / (count // 2))
    return {
        "single_point_messages_per_s": round(1 / statistics.median(streamed)),
        "single_point_unary_writes_per_s": round(1 / statistics.median(unary)),
    }


Part = Callable[[Mesh, Floors, Any], Awaitable[Figures]]
PARTS: dict[str, tuple[Part, str]] = {
    "burst": (burst, "points"),
    "sdk": (sdk, "sdk_points"),
    "wide": (wide, "wide_seconds"),
    "single": (single, "singles"),
    "sustained": (sustained, "seconds"),
}


async def main(options: argparse.Namespace) -> None:
    """Run the parts chosen on one mesh, then the peers."""
    figures: Figures = {}
    floors = Floors.of(min(options.points, 1_000_000))
    async with mesh() as m:
        for name in options.only or PARTS:
            part, argument = PARTS[name]
            figures |= await part(m, floors, getattr(options, argument))
            show(part=name, peak_mib=m.peak_mib())
        figures["peak_mib"] = m.peak_mib()
    if floors.unique_s:
        figures |= {"copy_points_per_s": round(floors.unique), "copy_heap_points_per_s": round(floors.heap)}
    if options.peer:
        figures["peers_points_per_s"] = peers(200_000)
    figures["series"] = SERIES
    print(json.dumps(figures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="only these parts")
    parser.add_argument("--points", type=int, default=2_000_000, help="points of a burst")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the sustained run")
    parser.add_argument("--sdk-points", type=int, default=1_000_000, help="points of a round through the SDK")
    parser.add_argument("--wide-seconds", type=int, default=10, help="messages of 10,000 series, one a second")
    parser.add_argument("--singles", type=int, default=4_000, help="one-point messages of a round")
    parser.add_argument("--peer", action="store_true", help="also measure InfluxDB and VictoriaMetrics if installed")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(_options()))
