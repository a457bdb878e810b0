"""Canaries: broken on purpose, each must be caught. A judge that passes one of these would pass anything."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from tests.faults.history import History, Told
from tests.faults.judge import follower_violations, judge_directory, violations
from tests.faults.points import CHANNEL, Plan, producers
from tests.faults.producers import StampedProducer, resolve
from tests.faults.readback import Landed, Readback
from tests.faults.report import Outcome
from tests.faults.run import judged, load
from tests.faults.world import World, storage_client, world

from twinmesh_local.processes import Guardian

Report = Callable[[Outcome, Path], None]
pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
PLAN = Plan(name="judge", seed=1, rows=8, poison=0.5)
BATCHES = [(producer, sequence) for sequence in (1, 2, 3) for producer in producers(2)]


def a_run(directory: Path) -> tuple[Told, Readback]:
    """Return a run in which all went well: two producers, three batches each, one of them not acknowledged."""
    found = Readback()
    (directory / "history.jsonl").unlink(missing_ok=True)
    with History(directory / "history.jsonl", PLAN) as ledger:
        for offset, batch in enumerate(BATCHES, start=1):
            producer, sequence = batch
            ledger.note("invoke", producer, sequence)
            kept = PLAN.kept(producer, sequence)
            if offset != 5:
                ledger.note("ok", producer, sequence, via="ack", offset=offset, exact=True, replayed=False,
                            accepted=PLAN.rows, quarantined=len(kept))  # fmt: skip
            first = int(PLAN.times(sequence)[0])
            digest = PLAN.digest(producer, sequence)
            found.log.append(Landed(offset=offset, series=((producer, CHANNEL, first),), rows=PLAN.rows, digest=digest))
            found.followed.append((offset, digest))
            found.quarantine += [(*row, offset) for row in kept]
    for producer in producers(2):
        times = np.concatenate([PLAN.times(n) for n in (1, 2, 3)])
        found.reads[producer] = (times, np.concatenate([PLAN.values(producer, n) for n in (1, 2, 3)]))
    found.followers = {"f0": list(found.followed)}
    found.statistics = {
        "landed_point_count": len(BATCHES) * PLAN.rows,
        "point_count": len(BATCHES) * PLAN.rows,
        "quarantined_count": len(found.quarantine),
        "entry_count": len(BATCHES),
    }
    return Told([directory / "history.jsonl"]), found


def twice(found: Readback) -> None:
    found.log.append(replace(found.log[0], offset=7))
    found.followed.append((7, found.log[0].digest))


def lost(found: Readback) -> None:
    del found.log[5], found.followed[5]


def gap(found: Readback) -> None:
    found.log = [replace(e, offset=e.offset + (e.offset > 3)) for e in found.log]
    found.followed = [(o + (o > 3), d) for o, d in found.followed]


def phantom(found: Readback) -> None:
    found.log.append(replace(found.log[0], offset=7, series=(("p9", CHANNEL, 1),)))
    found.followed.append((7, ""))


def swapped(found: Readback) -> None:
    a, b = found.log[0], found.log[2]
    found.log[0], found.log[2] = replace(b, offset=a.offset), replace(a, offset=b.offset)


def cut_short(found: Readback) -> None:
    found.log[1] = replace(found.log[1], rows=7, digest="00")


def one_bit(found: Readback) -> None:
    found.reads["p0"][1].view(np.int64)[5] ^= 1


def unreadable(found: Readback) -> None:
    times, values = found.reads["p1"]
    found.reads["p1"] = times[:-1], values[:-1]


def quarantine_twice(found: Readback) -> None:
    found.quarantine.append(found.quarantine[0])


def quarantine_lost(found: Readback) -> None:
    del found.quarantine[0]


def miscounted(found: Readback) -> None:
    found.statistics["landed_point_count"] += 1


def skipping(found: Readback) -> None:
    del found.followers["f0"][2]


def repeating(found: Readback) -> None:
    found.followers["f0"].insert(3, found.followers["f0"][2])


def mistaken(found: Readback) -> None:
    found.followers["f0"][3] = (4, "00")


SPOILT: dict[Callable[[Readback], None], str] = {
    twice: "twice", lost: "lost", gap: "gaps", phantom: "never sent", swapped: "moved", cut_short: "altered",
    one_bit: "other value bits", unreadable: "missing", quarantine_twice: "without cause or twice",
    quarantine_lost: "not in quarantine", miscounted: "statistics", skipping: "missed", repeating: "twice or out",
    mistaken: "not the log's",
}  # fmt: skip


def test_the_judge_sees_every_way_a_run_can_be_wrong(run_dir: Path, report: Report) -> None:
    told, found = a_run(run_dir)
    assert violations(told, found) == []
    found.save(run_dir)
    assert judge_directory(run_dir) == [], "a saved run is not judged as it was"
    survived = []
    for spoil, word in SPOILT.items():
        told, found = a_run(run_dir)
        spoil(found)
        if not any(word in what for what in violations(told, found)):
            survived.append(spoil.__name__)
    report(Outcome(name="judge", seed=PLAN.seed, caught=len(SPOILT) - len(survived), canaries=len(SPOILT)), run_dir)
    assert not survived


async def test_a_follower_of_a_bare_sequence_is_caught(database_url: str, run_dir: Path, report: Report) -> None:
    """Ids become visible out of order, so "greater than the last one seen" skips what commits late."""
    rng = random.Random(5)  # noqa: S311 -- chooses pauses
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as setup:
        await setup.execute("create table outbox (id bigint generated always as identity primary key)")

        async def write() -> None:
            async with await psycopg.AsyncConnection.connect(database_url) as connection:
                for _ in range(60):
                    await connection.execute("insert into outbox default values")
                    await asyncio.sleep(rng.uniform(0, 0.01))
                    await connection.commit()

        seen: list[tuple[int, str]] = []

        async def poll() -> None:
            async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
                while True:
                    last = seen[-1][0] if seen else 0
                    cursor = await connection.execute("select id from outbox where id > %s order by id", (last,))
                    seen.extend((row[0], "") for row in await cursor.fetchall())
                    await asyncio.sleep(0.001)

        polling = asyncio.create_task(poll())
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(write())
        await asyncio.sleep(0.05)
        polling.cancel()
        rows = await (await setup.execute("select id from outbox order by id")).fetchall()
    wrong = follower_violations(seen, [(row[0], "") for row in rows])
    caught = any("missed" in what for what in wrong)
    report(
        Outcome(name="bare sequence", seed=5, ops=len(rows), caught=int(caught), canaries=1, note="; ".join(wrong)),
        run_dir,
    )
    assert caught


async def resends_without_stamps(w: World, ledger: History, **_: Any) -> Readback:
    """Answers are lost, and the producer sends again what it cannot tell from new."""
    async with storage_client(w.storage_hop.port) as proxied:
        sender = StampedProducer(proxied, "p0", ledger, await resolve(w.store, "p0"), stamps=False)
        return await load(w, [sender], ledger, until=lambda: ledger.resent >= 3, restart=False)


async def resends(w: World, ledger: History, **_: Any) -> Readback:
    """Answers are lost, and the producer sends again as the protocol says."""
    async with storage_client(w.storage_hop.port) as proxied:
        sender = StampedProducer(proxied, "p0", ledger, await resolve(w.store, "p0"))
        return await load(w, [sender], ledger, until=lambda: ledger.resent >= 3, restart=False)


async def killed(w: World, ledger: History, **_: Any) -> Readback:
    """Storage is killed while two producers send."""
    every = [StampedProducer(w.store, name, ledger, await resolve(w.store, name)) for name in producers(2)]

    async def kill() -> None:
        before = every[0].acked
        while every[0].acked < before + 10:  # noqa: ASYNC110 -- plain data
            await asyncio.sleep(0.01)
        await w.storage.kill()
        w.storage.start()

    return await load(w, every, ledger, until=lambda: True, nemesis=kill, restart=False)


async def left_alone(w: World, ledger: History, **_: Any) -> Readback:
    """Nothing happens but folds."""
    sender = StampedProducer(w.store, "p0", ledger, await resolve(w.store, "p0"))
    return await load(w, [sender], ledger, until=lambda: sender.acked >= 10)


@pytest.mark.parametrize(
    ("build", "fault", "word"),
    [
        pytest.param("", resends_without_stamps, "twice", marks=pytest.mark.slow),
        ("no_dedup", resends, "twice"),
        ("ack_before_commit", killed, "lost"),
        pytest.param("lossy_fold", left_alone, "points missing", marks=pytest.mark.slow),
    ],
    ids=["no stamps", "no dedup", "ack before commit", "lossy fold"],
)
async def test_a_broken_build_is_caught(
    guardian: Guardian, database_url: str, run_dir: Path, report: Report, build: str, fault: Any, word: str
) -> None:
    plan = Plan(name=f"canary {build or 'no_stamps'}", seed=401, rows=50)
    program = ("-m", "tests.faults.broken", build) if build else ()
    with History(run_dir / "history.jsonl", plan) as ledger:
        async with world(guardian, run_dir, database_url, seed=plan.seed, lose={"append": 0.3}, program=program) as w:
            outcome = judged(w, await fault(w, ledger))
    wrong = (run_dir / "violations.txt").read_text()
    caught = word in wrong
    # What a canary was caught at is no violation of the real thing.
    found = f"caught at: {word}" if caught else "survived"
    report(replace(outcome, violations=0, points=0, ambiguous=0, caught=int(caught), canaries=1, note=found), run_dir)
    assert caught, f"the canary survived: {wrong or 'nothing was found wrong'}"
