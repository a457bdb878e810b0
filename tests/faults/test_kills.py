"""kill -9 of everything at random moments under load: what was acknowledged is there, once, bit by bit."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from tests.faults.history import History
from tests.faults.nemesis import KILLS, OTHERS, Nemesis, end_and_start
from tests.faults.points import Plan, producers
from tests.faults.producers import Producer, SessionProducer, StampedProducer, UnaryProducer, resolve
from tests.faults.report import Outcome
from tests.faults.run import judged, load
from tests.faults.world import ingestion_client, ready, world

from twinmesh.storage.v1 import storage_pb2
from twinmesh_local.postgres import PostgresServer
from twinmesh_local.processes import Guardian
from twinmesh_local.valkey import ValkeyServer

Report = Callable[[Outcome, Path], None]
SEED = int(os.environ.get("TWINMESH_FAULTS_SEED", "501"))


@pytest.mark.faults
@pytest.mark.timeout(150)
async def test_each_process_killed_once(
    guardian: Guardian,
    mortal_postgres: PostgresServer,
    mortal_valkey: ValkeyServer,
    mortal_url: str,
    run_dir: Path,
    report: Report,
) -> None:
    """Ingestion, storage, storage within a fold, PostgreSQL and Valkey."""
    plan = Plan(name="kills", seed=SEED, poison=0.05)
    with History(run_dir / "history.jsonl", plan) as ledger:
        async with world(
            guardian, run_dir, mortal_url, seed=SEED, with_ingestion=True, redis_url=mortal_valkey.url()
        ) as w:
            assert w.ingestion is not None
            async with ingestion_client(w.ingestion.port) as stub:
                await w.make_twins(list(producers(3)))
                every = [SessionProducer(stub, name, ledger, pause_s=0.01) for name in producers(3)]
                nemesis = Nemesis(w, ledger, seed=SEED, postgres=mortal_postgres, valkey=mortal_valkey)
                schedule = nemesis.schedule(KILLS, len(KILLS))
                found = await load(w, every, ledger, until=lambda: True, nemesis=lambda: nemesis.run(schedule))
                servers = nemesis.done["postmaster"] + nemesis.done["valkey"]
                outcome = judged(w, found, faults=servers, note=nemesis.told())
    report(outcome, run_dir)
    assert outcome.violations == 0, outcome.note
    assert outcome.faults >= len(KILLS)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_long_night(
    guardian: Guardian,
    mortal_postgres: PostgresServer,
    mortal_valkey: ValkeyServer,
    mortal_url: str,
    run_dir: Path,
    report: Report,
) -> None:
    """Thirty kills, restarts and stops in random order, while answers are lost on every hop and poison is mixed in."""
    print(f"seed {SEED}; TWINMESH_FAULTS_SEED replays it")
    plan = Plan(name="long night", seed=SEED, rows=500, poison=0.05)
    lose = {"commit": 0.03, "early": 0.005, "fold": 0.05, "read": 0.002, "append": 0.03, "ack": 0.03}
    with History(run_dir / "history.jsonl", plan) as ledger:
        async with world(
            guardian, run_dir, mortal_url, seed=SEED, lose=lose, with_ingestion=True, redis_url=mortal_valkey.url()
        ) as w:
            hop = w.ingestion_hop
            assert hop is not None
            async with ingestion_client(hop.port) as stub:
                names = list(producers(8))
                await w.make_twins(names)
                every: list[Producer] = [SessionProducer(stub, n, ledger, pause_s=0.005) for n in names[2:]]
                every += [UnaryProducer(stub, n, ledger) for n in names[:2]]
                nemesis = Nemesis(w, ledger, seed=SEED, postgres=mortal_postgres, valkey=mortal_valkey)
                schedule = nemesis.schedule((*KILLS, *OTHERS, *KILLS), 45)
                found = await load(
                    w,
                    every,
                    ledger,
                    until=lambda: w.postgres_hop.scissors.cuts["commit"] >= 150 and hop.scissors.cuts["ack"] >= 100,
                    nemesis=lambda: nemesis.run(schedule),
                    followers=4,
                    longest_s=560,
                )
                others = nemesis.done.total() - w.kills
                outcome = judged(w, found, faults=others, note=nemesis.told())
    report(outcome, run_dir)
    assert outcome.violations == 0, outcome.note
    assert sum(nemesis.done[kind] for kind in KILLS) >= 20
    assert outcome.ambiguous >= 300


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_killed_while_the_log_is_trimmed(
    guardian: Guardian, mortal_postgres: PostgresServer, mortal_url: str, run_dir: Path, report: Report
) -> None:
    """Entries leave the log as soon as they are folded and followed: no follower misses one, and history has them."""
    plan = Plan(name="trimmed", seed=SEED)
    with History(run_dir / "history.jsonl", plan) as ledger:
        async with world(
            guardian, run_dir, mortal_url, seed=SEED, lose={"fold": 0.05, "read": 0.01},
            log_keep_s=0.3, log_trim_every_s=0.1,
        ) as w:  # fmt: skip
            every = [
                StampedProducer(w.store, n, ledger, await resolve(w.store, n), pause_s=0.005) for n in producers(4)
            ]
            nemesis = Nemesis(w, ledger, seed=SEED, postgres=mortal_postgres)
            schedule = nemesis.schedule(("storage", "folding", "postmaster"), 9)
            found = await load(w, every, ledger, until=lambda: True, nemesis=lambda: nemesis.run(schedule), trims=True)
            mark = (await w.store.ask("GetStatistics", storage_pb2.GetStatisticsRequest())).trim_offset
            left = len(found.log) - await durable(mortal_url)
            note = f"{left} of {len(found.log)} entries have left the log, up to {mark}; {nemesis.told()}"
            outcome = judged(w, found, faults=nemesis.done["postmaster"], note=note)
    report(outcome, run_dir)
    assert outcome.violations == 0, outcome.note
    assert left > len(found.log) / 2


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_acknowledging_what_is_not_on_disk_is_caught(
    guardian: Guardian, mortal_postgres: PostgresServer, mortal_url: str, run_dir: Path, report: Report
) -> None:
    """The canary for PostgreSQL's own promise: commits that do not wait for the disk are lost with the postmaster."""
    plan = Plan(name="canary lazy_disk", seed=SEED, rows=50)
    with History(run_dir / "history.jsonl", plan) as ledger:
        async with world(
            guardian, run_dir, mortal_url, seed=SEED, program=("-m", "tests.faults.broken", "lazy_disk"),
            fold_after_s=3.0, fold_rows=1_000_000,  # a fold waits for the disk, and all before it with it
        ) as w:  # fmt: skip
            every = [StampedProducer(w.store, n, ledger, await resolve(w.store, n)) for n in producers(4)]

            async def kill() -> None:
                """Until the log has forgotten something that was acknowledged; mostly the first time."""
                for _ in range(5):
                    due = ledger.acks + 100
                    while ledger.acks < due:  # noqa: ASYNC110 -- plain data
                        await asyncio.sleep(0.001)
                    await end_and_start(w, mortal_postgres, signal.SIGKILL)
                    told = {name: sequence for name, (sequence, _) in ledger.newest.items()}
                    await ready(w.store)
                    if await durable(mortal_url) < sum(told.values()):
                        return

            found = await load(w, every, ledger, until=lambda: True, nemesis=kill, restart=False)
            outcome = judged(w, found)
    wrong = (run_dir / "violations.txt").read_text()
    caught = "lost" in wrong or "forgot" in wrong
    report(
        replace(
            outcome, violations=0, points=0, ambiguous=0, caught=int(caught), canaries=1, note=wrong.partition("\n")[0]
        ),
        run_dir,
    )
    assert caught, "the canary survived"


async def durable(url: str) -> int:
    """Return how many observation entries the log holds."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        row = await (await connection.execute("select count(*) from storage.log where kind = 1")).fetchone()
    return int(row[0]) if row is not None else 0
