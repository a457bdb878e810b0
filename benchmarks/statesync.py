"""What replicas cost and how soon a watcher knows: ``python -m benchmarks.statesync [--only PART ...] [--peer]``.

PostgreSQL, storage, ingestion and state-sync run as processes of their own; writers and watchers in others, on the same
cores. Each part prints its figures with a floor beside them, measured in the same run:

* ``updates``: replica updates folded and told to a watcher per second, by one process; floor: a bare follower of the
  log that decodes the same entries and keeps nothing;
* ``one``: from the write at a client of ingestion to its receipt by one watcher, at 1,000 updates/s; floor: from the
  write to its acknowledgement, which is the commit;
* ``hundred``: from the commit to receipt by each of 100 watchers, with none and with one of them frozen, in turns. They
  are read by one thread (`benchmarks.light_watchers`), since in use they are not on the two cores of the mesh;
  ``watch_clients_...`` are the same with 100 gRPC clients in Python, which take half a core; floor: a bare gRPC server
  that sends a frame of the same size to as many clients every 10 ms;
* ``replay``: 10,000 missed events told to a watcher that resumes; floor: the same entries by storage's Follow, unread;
* ``behind``: the same where memory does not reach back: from the log, by a fold of the past;
* ``conditional``: conditional writes per second, by 32 callers each on its own twin, and by 16 racers for one twin;
* ``idle``: 10,000 watchers of one twin each: memory per watcher, and what they cost while 1,000 updates/s go past;
* ``--peer``: etcd and NATS where they are installed; see `benchmarks.statesync_peers`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import numpy as np
from benchmarks.bare_frames import bare_frames
from benchmarks.statesync_mesh import TWINS, Mesh, Sent, Watchers, delays_ms, mesh, request, through_of, writing

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh.type.v1 import observation_pb2, position_pb2
from twinmesh_client.transport import call, open_channel
from twinmesh_core import wire
from twinmesh_core.errors import Conflict
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section
from twinmesh_core.time import US_PER_S
from twinmesh_runtime.observation_codec import decode_batch

ROUNDS: Final = 3
LENGTH_S: Final = 6.0
WARM_S: Final = 1.0
UPDATES: Final = 200_000
REPLAYED: Final = 10_000
IDLE: Final = 10_000
SMALL: Final[dict[str, dict[str, str]]] = {"behind": {"RING_CHANGES": "1000", "RING_BYTES": str(1024 * 1024)}}
"""Settings of state-sync for parts of which memory is to hold little."""
FOLLOW: Final = "/twinmesh.storage.v1.StorageService/Follow"
WATCH: Final = "/twinmesh.statesync.v1.ReplicaService/Watch"


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50 and p99 of milliseconds."""
    return {"p50_ms": round(float(np.percentile(values, 50)), 1), "p99_ms": round(float(np.percentile(values, 99)), 1)}


async def updates(made: Mesh) -> dict[str, Any]:
    """Fill the log faster than it is folded, and see when a watcher has been told all of it."""
    keys = [observation_pb2.SeriesKey(twin_id=f"t{i}", channel="c0", kind=observation_pb2.CHANNEL_KIND_GAUGE)
            for i in range(TWINS)]  # fmt: skip
    resolved = await call(made.store.stub.ResolveSeries, storage_pb2.ResolveSeriesRequest(series=keys), timeout_s=30)
    dictionary = tuple(
        SeriesKey(twin_id=key.twin_id, channel="c0", series_id=number, kind=ChannelKind.GAUGE)
        for key, number in zip(keys, resolved.series_id, strict=True)
    )
    rates, floors, cores = [], [], []
    for number in range(ROUNDS):
        start = await made.head()
        after = (await call(made.store.stub.GetHead, storage_pb2.GetHeadRequest(), timeout_s=10)).position
        now_us = time.time_ns() // 1000 + number * US_PER_S
        bodies = [
            wire.encode(
                ObservationBatch(
                    series=dictionary,
                    doubles=double_section(
                        np.arange(TWINS), np.full(TWINS, now_us + i), np.full(TWINS, float(i)), np.ones(TWINS)
                    ),
                )
            )
            for i in range(UPDATES // TWINS)
        ]
        cpu, started = made.cpu_s(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            told = group.create_task(_until_told(made.statesync, after, start + len(bodies)))
            for at in range(0, len(bodies), 16):
                requests = [storage_pb2.AppendRequest(observations=body) for body in bodies[at : at + 16]]
                await asyncio.gather(*(call(made.store.stub.Append, each, timeout_s=60) for each in requests))
        rates.append(UPDATES / (await told - started))
        cores.append((made.cpu_s() - cpu) / (time.perf_counter() - started))
        floors.append(UPDATES / await _bare_follow(made.store.target, after, start + len(bodies)))
    return {
        "state_updates_per_s": round(statistics.median(rates)),
        "bare_follow_per_s": round(statistics.median(floors)),
        "state_updates_vs_bare_follow": round(statistics.median(rates) / statistics.median(floors), 3),
        "state_updates_cores": round(statistics.median(cores), 2),
    }


async def _until_told(target: str, after: position_pb2.LogPosition, offset: int) -> float:
    async with open_channel(target) as channel:
        watch: Any = channel.unary_stream(WATCH)
        stream = watch(request(resume_after=after))
        while through_of(await stream.read()) < offset:
            pass
        stream.cancel()
    return time.perf_counter()


async def _bare_follow(target: str, after: position_pb2.LogPosition, offset: int) -> float:
    started = time.perf_counter()
    async with open_channel(target) as channel:
        follow: Any = channel.unary_stream(FOLLOW)
        stream = follow(storage_pb2.FollowRequest(after=after).SerializeToString())
        reached = 0
        while reached < offset:
            frame = storage_pb2.FollowResponse.FromString(await stream.read())
            for entry in frame.entries:
                decode_batch(entry.observations)
            reached = frame.through.offset
        stream.cancel()
    return time.perf_counter() - started


async def one(made: Mesh) -> dict[str, Any]:
    """Measure from the client's write to one watcher's receipt."""
    late, acks = [], []
    for number in range(ROUNDS):
        async with Watchers(made.statesync, [request()]) as watchers:
            sent = await _written(made, f"one-{number}")
        sent, kept = _warm(sent)
        late.append(percentiles(delays_ms(watchers.received, sent.offset[kept], sent.sent_us[kept])))
        acks.append(percentiles(((sent.acked_us - sent.sent_us)[kept] / 1000).tolist()))
    return {
        "write_to_watch_p50_ms": _middle(late, "p50_ms"),
        "write_to_watch_p99_ms": _middle(late, "p99_ms"),
        "write_to_ack_p50_ms": _middle(acks, "p50_ms"),
        "write_to_ack_p99_ms": _middle(acks, "p99_ms"),
    }


async def crowd(made: Mesh, *, frozen: int = 0, light: bool = True) -> dict[str, float]:
    """Return p50 and p99 in ms from the commit of each of 1,000 updates/s to its receipt by each of 100 watchers.

    Args:
        made: the mesh.
        frozen: so many of the watchers do not read.
        light: the others are read by one thread, instead of being gRPC clients.

    Also `cores`, what state-sync used, and `ack_p50_ms`, from a write to its acknowledgement.
    """
    async with Watchers(made.statesync, [request()] * 100, frozen=frozen, light=light) as watchers:
        cpu, started = made.cpu_s(), time.perf_counter()
        sent = await _written(made, "crowd")
        cores = (made.cpu_s() - cpu) / (time.perf_counter() - started)
    sent, kept = _warm(sent)
    committed = await made.commit_times_us()
    since = np.array([committed[int(offset)] for offset in sent.offset[kept]])
    ack = float(np.median((sent.acked_us - sent.sent_us)[kept]) / 1000)
    late = percentiles(delays_ms(watchers.received, sent.offset[kept], since))
    return {**late, "cores": cores, "ack_p50_ms": ack}


async def hundred(made: Mesh) -> dict[str, Any]:
    """Measure from the commit to each of 100 watchers, none or one of them frozen, and the transport alone."""
    live: list[dict[str, float]] = []
    frozen: list[dict[str, float]] = []
    clients: list[dict[str, float]] = []
    floor = []
    # So that no round is the first to write each series, which has to be given a number.
    await _written(made, "hundred-first", 3.0)
    for _ in range(ROUNDS):
        live.append(await crowd(made))
        frozen.append(await crowd(made, frozen=1))
        clients.append(await crowd(made, light=False))
        floor.append(percentiles(await asyncio.to_thread(bare_frames, watchers=100, length_s=LENGTH_S)))
    ratio = [cold["p99_ms"] / warm["p99_ms"] for warm, cold in zip(live, frozen, strict=True)]
    return {
        "watch_p50_ms": _middle(live, "p50_ms"),
        "watch_p99_ms": _middle(live, "p99_ms"),
        "watch_p99_ms_rounds": [each["p99_ms"] for each in live],
        "watch_frozen_p99_ms": _middle(frozen, "p99_ms"),
        "watch_frozen_ratio": round(statistics.median(ratio), 2),
        "watch_clients_p50_ms": _middle(clients, "p50_ms"),
        "watch_clients_p99_ms": _middle(clients, "p99_ms"),
        "bare_frames_p50_ms": _middle(floor, "p50_ms"),
        "bare_frames_p99_ms": _middle(floor, "p99_ms"),
        "watch_cores": round(statistics.median(each["cores"] for each in live), 2),
    }


async def replay(made: Mesh) -> dict[str, Any]:
    """Measure the time in which a watcher that missed 10,000 events has them all."""
    sent = await _written(made, "replay", REPLAYED / 1000 + 2)
    head = (await call(made.store.stub.GetHead, storage_pb2.GetHeadRequest(), timeout_s=10)).position
    await _until_told(made.statesync, position_pb2.LogPosition(incarnation=head.incarnation), head.offset)
    after = position_pb2.LogPosition(
        incarnation=head.incarnation, offset=int(sent.offset[-REPLAYED // 10 - 1])
    )  # ten events an entry
    took, floors = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        took.append(await _until_told(made.statesync, after, head.offset) - started)
        floors.append(await _bare_follow(made.store.target, after, head.offset))
    return {
        "replay_10000_events_s": round(statistics.median(took), 3),
        "bare_follow_10000_s": round(statistics.median(floors), 3),
    }


async def behind(made: Mesh) -> dict[str, Any]:
    """Measure a watcher that resumes where memory does not reach back to."""
    sent = await _written(made, "behind", REPLAYED / 1000 + 12)
    head = (await call(made.store.stub.GetHead, storage_pb2.GetHeadRequest(), timeout_s=10)).position
    after = position_pb2.LogPosition(incarnation=head.incarnation, offset=int(sent.offset[-REPLAYED // 10 - 1]))
    took, floors = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        took.append(await _until_told(made.statesync, after, head.offset) - started)
        floors.append(await _bare_follow(made.store.target, after, head.offset))
    return {
        "replay_10000_from_log_s": round(statistics.median(took), 3),
        "bare_follow_10000_s": round(statistics.median(floors), 3),
    }


async def conditional(made: Mesh) -> dict[str, Any]:
    """Measure conditional writes: alone on a twin, and racing for one."""

    async def alone(number: int, until: float) -> int:
        revision, done = (await _desired(made, f"t{number}")), 0
        while time.perf_counter() < until:
            answer = await call(made.replicas.SetDesired, _target(f"t{number}", done, revision), timeout_s=30)
            revision, done = answer.desired.revision, done + 1
        return done

    async def racer(until: float) -> tuple[int, int]:
        won = lost = 0
        while time.perf_counter() < until:
            revision = await _desired(made, "t999")
            try:
                await call(made.replicas.SetDesired, _target("t999", won, revision), timeout_s=30)
                won += 1
            except Conflict:
                lost += 1
        return won, lost

    rates, wins, losses = [], [], []
    for _ in range(ROUNDS):
        until = time.perf_counter() + 3
        done = await asyncio.gather(*(alone(n, until) for n in range(32)))
        rates.append(sum(done) / 3)
        before = await _desired(made, "t999")
        until = time.perf_counter() + 3
        raced = await asyncio.gather(*(racer(until) for _ in range(16)))
        wins.append(sum(won for won, _ in raced) / 3)
        losses.append(sum(lost for _, lost in raced) / 3)
        if await _desired(made, "t999") - before != sum(won for won, _ in raced):
            raise SystemExit("conditional writes: more or fewer wins than revisions")
    return {
        "conditional_writes_per_s": round(statistics.median(rates)),
        "racing_wins_per_s": round(statistics.median(wins)),
        "racing_losses_per_s": round(statistics.median(losses)),
    }


async def _desired(made: Mesh, twin_id: str) -> int:
    answer = await call(made.replicas.GetReplica, statesync_pb2.GetReplicaRequest(twin_id=twin_id), timeout_s=10)
    return int(answer.replica.desired.revision)


def _target(twin_id: str, number: int, revision: int) -> statesync_pb2.SetDesiredRequest:
    value = observation_pb2.Value(double_value=float(number))
    return statesync_pb2.SetDesiredRequest(twin_id=twin_id, values={"set": value}, if_revision=revision)


async def idle(made: Mesh) -> dict[str, Any]:
    """Measure the memory of 10,000 watchers of one twin each, and what they cost while updates go past."""
    alone = await _cores(made, "idle-alone")
    before = made.status_kib("VmRSS")
    requests = [request(twin_ids=[f"t{number % TWINS}"], bookmark_interval={"seconds": 5}) for number in range(IDLE)]
    started = time.perf_counter()
    async with Watchers(made.statesync, requests):
        opened_s = time.perf_counter() - started
        grown = made.status_kib("VmRSS") - before
        cpu, started = made.cpu_s(), time.perf_counter()
        await asyncio.sleep(LENGTH_S)
        resting = (made.cpu_s() - cpu) / (time.perf_counter() - started)
        crowded = await _cores(made, "idle-crowd")
    return {
        "idle_watchers": IDLE,
        "idle_opened_s": round(opened_s, 1),
        "idle_bytes_per_watcher": round(grown * 1024 / IDLE),
        "idle_resting_cores": round(resting, 3),
        "idle_cores_at_1000_updates": round(crowded, 3),
        "none_cores_at_1000_updates": round(alone, 3),
    }


async def _cores(made: Mesh, producer: str) -> float:
    cpu, started = made.cpu_s(), time.perf_counter()
    await _written(made, producer)
    return (made.cpu_s() - cpu) / (time.perf_counter() - started)


async def _written(made: Mesh, producer: str, length_s: float = LENGTH_S + WARM_S) -> Sent:
    with writing(made.ingestion, f"{producer}-{time.time_ns()}", length_s) as results:
        sent: Sent = await asyncio.to_thread(results.get, True, length_s + 60)
    # A watcher gets its last frame a moment after the last acknowledgement.
    await asyncio.sleep(1.0)
    return sent


def _warm(sent: Sent) -> tuple[Sent, Any]:
    return sent, sent.sent_us - sent.sent_us[0] >= WARM_S * US_PER_S


def _middle(rounds: list[dict[str, float]], key: str) -> float:
    return round(statistics.median(each[key] for each in rounds), 1)


PARTS: Final[dict[str, Callable[[Mesh], Awaitable[dict[str, Any]]]]] = {
    "updates": updates,
    "one": one,
    "hundred": hundred,
    "replay": replay,
    "behind": behind,
    "conditional": conditional,
    "idle": idle,
}


async def main() -> None:
    """Run the parts asked for, each on a mesh of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), metavar="PART")
    parser.add_argument("--peer", action="store_true", help="etcd and NATS too, where they are installed")
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    for name in arguments.only:
        async with mesh(settings=SMALL.get(name)) as made:
            figures = await PARTS[name](made)
            figures[f"{name}_peak_mib"] = made.status_kib("VmHWM") // 1024
        print(name, json.dumps(figures), flush=True)
        result |= figures
    if arguments.peer:
        from benchmarks.statesync_peers import compare

        result |= await compare()
    print(json.dumps(result))


if __name__ == "__main__":
    asyncio.run(main())
