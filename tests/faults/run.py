"""One run: producers and followers at work while faults happen, then everything read back and judged."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from tests.faults.history import History, Told
from tests.faults.judge import violations
from tests.faults.points import CHANNEL
from tests.faults.producers import Producer
from tests.faults.readback import Follow, Readback, read_back
from tests.faults.report import Outcome
from tests.faults.world import World
from tests.integration.storage.mesh import Storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.errors import TwinmeshError

_READ_PAUSE_S: Final = 0.1
_SHOWN: Final = 3


async def load(
    world: World,
    producers: Sequence[Producer],
    ledger: History,
    *,
    until: Callable[[], bool],
    followers: int = 2,
    restart: bool = True,
    trims: bool = False,
    nemesis: Callable[[], Awaitable[None]] | None = None,
    longest_s: float = 90.0,
) -> Readback:
    """Let the producers send until `until` says enough, with followers beside them, then read all back from disk.

    Args:
        nemesis: does its worst meanwhile; the producers go on until it has ended.
        restart: kill storage before the reading, so that what is read is what the disk holds and nobody remembers.
        trims: entries leave the log once the followers have seen them.
        longest_s: what is not enough by then fails the run.
    """
    watching = [
        Follow(
            world.stores[number % len(world.stores)],
            dallies_s=0.2 * (number % 2),
            consumer=f"f{number}" if trims else "",
        )
        for number in range(followers)
    ]
    done = asyncio.Event()
    async with asyncio.timeout(longest_s), asyncio.TaskGroup() as group:
        following = [group.create_task(follow.run()) for follow in watching]
        reading = group.create_task(read_latest(world.stores, ledger))
        sending = [group.create_task(p.run(lambda _: not done.is_set())) for p in producers]
        if nemesis is not None:
            await nemesis()
        while not until():  # noqa: ASYNC110 -- counters of a proxy
            await asyncio.sleep(0.02)
        done.set()
        for follow in watching:
            follow.dallies_s = 0.0
        for task in sending:
            await task
        for hop in world.hops:  # the reading is not under test
            hop.scissors.share.clear()
        head = await world.all_ready()
        await world.folded()
        for follow in watching:
            await follow.reached(head)
            if follow.rewound:
                ledger.note("wrong", "follower", 0, what="the log forgot what had been followed")
        for task in (*following, reading):
            task.cancel()
        if restart:
            for storage in world.storages:
                await storage.kill()
                storage.start()
            await world.all_ready()
        twins = [producer.name for producer in producers]
        found = await read_back(world.stores[-1], twins, watching[0] if trims else None)
    found.followers = {f"f{number}": follow.seen for number, follow in enumerate(watching)}
    return found


async def read_latest(stores: Sequence[Storage], ledger: History) -> None:
    """Ask for ever for what was acknowledged a moment ago: the latest value must be that one or a newer one."""
    plan = ledger.plan
    for store in itertools.cycle(stores):
        await asyncio.sleep(_READ_PAUSE_S)
        for producer, (sequence, offset) in list(ledger.newest.items()):
            selector = storage_pb2.SeriesSelector(twin_id=producer, channel=CHANNEL)
            request = storage_pb2.ReadLatestRequest(series=[selector], min_offset=offset)
            try:
                rows = (await store.ask("ReadLatest", request, timeout_s=2.0)).batch.doubles
            except TwinmeshError:
                continue
            if not offset:
                continue  # a welcome tells no offset to wait for
            if not rows.time_unix_us or rows.time_unix_us[0] < int(plan.times(sequence)[-1]):
                ledger.note("wrong", producer, sequence, what="the latest value is older than an acknowledged one")
            elif plan.values(producer, plan.sequence_at(rows.time_unix_us[0]))[-1] != rows.value[0]:
                ledger.note("wrong", producer, sequence, what="the latest value is not the one sent")


def judged(world: World, found: Readback, *, faults: int = 0, note: str = "") -> Outcome:
    """Keep what was read, judge it against the ledgers, and return the outcome.

    Args:
        faults: other than kills of services and lost answers, which are counted here.
        note: figures of the run.
    """
    directory = world.directory
    cuts = sum((hop.scissors.cuts for hop in world.hops), Counter[str]())
    found.save(directory)
    told = Told(sorted(directory.glob("history*.jsonl")))
    wrong = violations(told, found)
    (directory / "violations.txt").write_text("\n".join(wrong))
    return Outcome(
        name=told.plan.name,
        seed=told.plan.seed,
        faults=faults + world.kills + cuts.total(),
        ambiguous=told.ambiguous + cuts["commit"],
        ops=told.ops,
        points=found.points,
        violations=len(wrong),
        note="; ".join(part for part in (note, _told(cuts), *wrong[:_SHOWN]) if part),
    )


def _told(cuts: Counter[str]) -> str:
    return "lost answers " + ", ".join(f"{kind} {count}" for kind, count in sorted(cuts.items())) if cuts else ""
