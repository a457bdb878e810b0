"""kill -9 of everything at random moments under load: what was acknowledged is there, once, bit by bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.history import History
from tests.faults.nemesis import KILLS, OTHERS, Nemesis
from tests.faults.points import Plan, producers
from tests.faults.producers import Producer, SessionProducer, UnaryProducer
from tests.faults.report import Outcome
from tests.faults.run import judged, load
from tests.faults.world import ingestion_client, world

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
