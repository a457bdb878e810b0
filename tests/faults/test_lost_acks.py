"""Answers lost on every hop: what committed is recognised, never doubled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.history import History
from tests.faults.points import Plan, producers
from tests.faults.producers import SessionProducer, StampedProducer, UnaryProducer, resolve
from tests.faults.report import Outcome
from tests.faults.run import judged, load
from tests.faults.world import ingestion_client, storage_client, world

from twinmesh_local.processes import Guardian

Report = Callable[[Outcome, Path], None]
pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]


@pytest.mark.slow
async def test_commits_whose_answer_never_came(
    guardian: Guardian, database_url: str, run_dir: Path, report: Report
) -> None:
    """Between storage and PostgreSQL, and between storage and the one who appends."""
    plan = Plan(name="lost commits", seed=301)
    lose = {"commit": 0.15, "early": 0.01, "fold": 0.2, "append": 0.1}
    with History(run_dir / "history.jsonl", plan) as ledger:
        async with (
            world(guardian, run_dir, database_url, seed=plan.seed, lose=lose) as w,
            storage_client(w.storage_hop.port) as proxied,
        ):
            names = list(producers(4))
            every = [StampedProducer(proxied, n, ledger, await resolve(w.store, n)) for n in names]

            def enough() -> bool:
                return min(w.postgres_hop.scissors.cuts["commit"], w.storage_hop.scissors.cuts["append"]) >= 150

            found = await load(w, every, ledger, until=enough)
            outcome = judged(w, found)
    report(outcome, run_dir)
    assert outcome.violations == 0, outcome.note
    assert outcome.ambiguous >= 300


async def test_acknowledgements_that_never_came(
    guardian: Guardian, database_url: str, run_dir: Path, report: Report
) -> None:
    """On all three hops at once, to sessions and to unary writes."""
    plan = Plan(name="lost acks", seed=302, poison=0.1)
    lose = {"commit": 0.1, "fold": 0.1, "append": 0.1, "ack": 0.1}
    with History(run_dir / "history.jsonl", plan) as ledger:
        async with world(guardian, run_dir, database_url, seed=plan.seed, lose=lose, with_ingestion=True) as w:
            assert w.ingestion_hop is not None
            cuts = w.ingestion_hop.scissors.cuts
            async with ingestion_client(w.ingestion_hop.port) as stub:
                names = list(producers(4))
                await w.make_twins(names)
                every = [
                    UnaryProducer(stub, n, ledger) if i == 0 else SessionProducer(stub, n, ledger)
                    for i, n in enumerate(names)
                ]
                found = await load(w, every, ledger, until=lambda: cuts["ack"] >= 20)
                outcome = judged(w, found)
    report(outcome, run_dir)
    assert outcome.violations == 0, outcome.note
    assert outcome.ambiguous >= 30
