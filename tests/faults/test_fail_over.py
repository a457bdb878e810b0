"""Several storage processes: whichever leads is killed, stopped or asked to end, and another one goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.faults.history import History
from tests.faults.nemesis import LEADERS, Nemesis
from tests.faults.points import Plan, producers
from tests.faults.producers import Producer, SessionProducer, StampedProducer, resolve
from tests.faults.report import Outcome
from tests.faults.run import judged, load
from tests.faults.world import ingestion_client, storage_client, world

from twinmesh_local.processes import Guardian

Report = Callable[[Outcome, Path], None]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_another_process_takes_over(guardian: Guardian, database_url: str, run_dir: Path, report: Report) -> None:
    """Three processes, answers lost between them too; followers and readers on each of them."""
    plan = Plan(name="fail-over", seed=1001, poison=0.02)
    lose = {"commit": 0.03, "fold": 0.05, "append": 0.03, "ack": 0.02}
    with History(run_dir / "history.jsonl", plan) as ledger:
        async with AsyncExitStack() as stack:
            w = await stack.enter_async_context(
                world(
                    guardian, run_dir, database_url, seed=plan.seed, lose=lose, with_ingestion=True, processes=3,
                    lease_s=2.0, forward_timeout_s=3.0,
                )
            )  # fmt: skip
            assert w.ingestion_hop is not None
            stub = await stack.enter_async_context(ingestion_client(w.ingestion_hop.port))
            await w.make_twins(list(producers(3)))
            every: list[Producer] = [SessionProducer(stub, name, ledger, pause_s=0.005) for name in producers(3)]
            for hop, name in zip(w.storage_hops, producers(3, "q"), strict=True):
                store = await stack.enter_async_context(storage_client(hop.port))
                every.append(StampedProducer(store, name, ledger, await resolve(w.store, name), pause_s=0.005))
            nemesis = Nemesis(w, ledger, seed=plan.seed)
            schedule = nemesis.schedule(LEADERS, 18)
            found = await load(
                w, every, ledger, until=lambda: True, nemesis=lambda: nemesis.run(schedule), followers=6, longest_s=280
            )
            outcome = judged(w, found, faults=nemesis.done.total() - w.kills, note=nemesis.told())
    report(outcome, run_dir)
    assert outcome.violations == 0, outcome.note
    assert nemesis.taken_over == nemesis.done["leader stopped"] == 6
    assert outcome.ambiguous > 0
