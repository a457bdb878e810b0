"""Poison among good batches: it ends in quarantine, all of it and once, and nobody else notices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import pytest
from tests.faults.history import History
from tests.faults.points import CHANNEL, T0, Plan, S, producers
from tests.faults.producers import SessionProducer
from tests.faults.report import Outcome
from tests.faults.run import judged, load
from tests.faults.world import ingestion_client, world

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh_core import wire
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section
from twinmesh_local.processes import Guardian

Report = Callable[[Outcome, Path], None]
pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
TURNS = 7
BATCHES = 200


@pytest.mark.slow
async def test_poison_moves_the_sequence_and_stalls_nobody(
    guardian: Guardian, database_url: str, run_dir: Path, report: Report
) -> None:
    """Half of the batches carry NaN, infinity, overflow, bad text, wrong units, unknown twins and channels."""
    plan = Plan(name="poison", seed=901, rows=50, poison=0.5)
    with History(run_dir / "history.jsonl", plan) as ledger:
        async with world(guardian, run_dir, database_url, seed=plan.seed, with_ingestion=True) as w:
            assert w.ingestion is not None
            async with ingestion_client(w.ingestion.port) as stub:
                await w.make_twins(list(producers(3)))
                every = [SessionProducer(stub, name, ledger) for name in producers(3)]
                found = await load(
                    w, every, ledger, until=lambda: ledger.acks >= 90, nemesis=lambda: malformed(stub, ledger)
                )
                outcome = judged(w, found, note=f"{len(found.quarantine)} rows in quarantine")
    report(outcome, run_dir)
    assert outcome.violations == 0, outcome.note
    assert len({reason for *_, reason, _ in found.quarantine}) == 6


async def malformed(stub: Any, ledger: History) -> None:
    """Batches that are no batches are refused as such, while the producers go on."""
    while not ledger.acks:  # noqa: ASYNC110 -- plain data
        await asyncio.sleep(0.02)
    keys = (SeriesKey(twin_id="p0", channel=CHANNEL),)
    good = wire.encode(ObservationBatch(series=keys, doubles=double_section([0], [T0 - S], [1.0])))
    empty = ingestion_pb2.WriteRequest(backfill=True)
    unequal = ingestion_pb2.WriteRequest(backfill=True)
    unequal.batch.MergeFromString(good)
    unequal.batch.doubles.value.append(2.0)
    for bad in (empty, unequal):
        with pytest.raises(grpc.RpcError) as refused:
            await stub.Write(bad, timeout=10)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.slow
async def test_the_rate_of_the_good_ones(guardian: Guardian, database_url: str, run_dir: Path, report: Report) -> None:
    """A hundredth of poison costs the others next to nothing; measured in turns, since the machine is shared."""
    rates: dict[float, list[float]] = {0.0: [], 0.01: []}
    async with world(guardian, run_dir, database_url, seed=902, with_ingestion=True) as w:
        assert w.ingestion is not None
        await w.make_twins([f"{kind}{turn}" for kind in ("clean", "poisoned") for turn in range(TURNS)])
        async with ingestion_client(w.ingestion.port) as stub:
            for turn in range(TURNS):
                for poison, rate in rates.items():
                    plan = Plan(name="rate", seed=902 + turn, rows=2_000, poison=poison)
                    with History(run_dir / f"{poison}-{turn}.jsonl", plan) as ledger:
                        sender = SessionProducer(
                            stub, f"{'poisoned' if poison else 'clean'}{turn}", ledger, in_flight=8
                        )
                        began = time.monotonic()
                        await sender.run(lambda sequence: sequence <= BATCHES)
                        rate.append(BATCHES * plan.rows / (time.monotonic() - began))
    share = median(poisoned / clean for clean, poisoned in zip(*rates.values(), strict=True))
    clean, poisoned = (median(rate) for rate in rates.values())
    note = f"good rows/s {clean:,.0f} clean, {poisoned:,.0f} with 1 % of poison: {share:.2f}"
    report(Outcome(name="poison rate", seed=902, ops=2 * TURNS * BATCHES, note=note), run_dir)
    assert share > 0.8, rates
