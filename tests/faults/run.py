"""One run: producers and followers at work while faults happen, then everything read back and judged."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from tests.faults.history import Told
from tests.faults.judge import violations
from tests.faults.producers import Producer
from tests.faults.readback import Follow, Readback, read_back
from tests.faults.report import Outcome
from tests.faults.world import World, ready

from twinmesh.storage.v1 import storage_pb2


async def load(
    world: World,
    producers: Sequence[Producer],
    twins: Sequence[str],
    *,
    until: Callable[[], bool],
    followers: int = 2,
    nemesis: Callable[[], Awaitable[None]] | None = None,
    longest_s: float = 90.0,
) -> Readback:
    """Let the producers send until `until` says enough, with followers beside them, then read all back from disk.

    Args:
        nemesis: does its worst meanwhile; the producers go on until it has ended.
        longest_s: what is not enough by then fails the run.
    """
    watching = [Follow(world.store, dallies_s=0.2 * (number % 2)) for number in range(followers)]
    done = asyncio.Event()
    async with asyncio.timeout(longest_s), asyncio.TaskGroup() as group:
        following = [group.create_task(follow.run()) for follow in watching]
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
        await ready(world.store)
        await world.folded()
        head = (await world.store.ask("GetHead", storage_pb2.GetHeadRequest())).position.offset
        for follow in watching:
            await follow.reached(head)
        for task in following:
            task.cancel()
        # What is read must be what the disk holds, and not what the process remembers.
        await world.storage.kill()
        world.storage.start()
        await ready(world.store)
        found = await read_back(world.store, twins)
    found.followers = {f"f{number}": follow.seen for number, follow in enumerate(watching)}
    return found


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
        note="; ".join(part for part in (note, _told(cuts), *wrong[:5]) if part),
    )


def _told(cuts: Counter[str]) -> str:
    return "lost answers " + ", ".join(f"{kind} {count}" for kind, count in sorted(cuts.items())) if cuts else ""
