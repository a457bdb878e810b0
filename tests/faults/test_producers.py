"""Producers that misbehave: they repeat, reorder, replay, and come back from the dead beside their own copy."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.faults.history import History
from tests.faults.points import Plan, producers
from tests.faults.producers import DisorderlyProducer, resolve
from tests.faults.readback import read_back
from tests.faults.report import Outcome
from tests.faults.run import judged, load
from tests.faults.world import ROOT, World, storage_client, world

from twinmesh_local.processes import Guardian, ProcessSpec

Report = Callable[[Outcome, Path], None]
pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
FENCED = 3
BATCHES = 250


@pytest.mark.slow
async def test_repeated_reordered_and_replayed_batches(
    guardian: Guardian, database_url: str, run_dir: Path, report: Report
) -> None:
    """Each answer is the one that the protocol promises, answers lost or not."""
    plan = Plan(name="disorder", seed=601, rows=50)
    with History(run_dir / "history.jsonl", plan) as ledger:
        async with (
            world(guardian, run_dir, database_url, seed=plan.seed, lose={"append": 0.05, "commit": 0.05}) as w,
            storage_client(w.storage_hop.port) as proxied,
        ):
            every = [
                DisorderlyProducer(
                    proxied,
                    w.store,
                    name,
                    ledger,
                    await resolve(w.store, name),
                    random.Random(f"{plan.seed}{name}"),  # noqa: S311
                )
                for name in producers(3)
            ]

            def disorder() -> Counter[str]:
                return sum((producer.disorder for producer in every), Counter[str]())

            def enough() -> bool:
                return len(disorder()) == 6 and min(disorder().values()) >= 6

            found = await load(w, every, ledger, until=enough)
            outcome = judged(w, found, faults=disorder().total(), note=f"{disorder().total()} acts of disorder")
    report(outcome, run_dir)
    assert outcome.violations == 0, outcome.note


class Copy:
    """A producer in a process of its own."""

    def __init__(self, guardian: Guardian, directory: Path, name: str, port: int, plan: Plan) -> None:
        self.ledger = directory / f"history-{name}.jsonl"
        self._guardian = guardian
        self._name = f"copy-{name}-{port}"
        program = [sys.executable, "-m", "tests.faults.producers", str(port), str(self.ledger), "p0", str(BATCHES)]
        self._pid = guardian.spawn(
            ProcessSpec(
                name=self._name, argv=[*program, json.dumps(plan.to_json())], log=directory / f"{name}.log", cwd=ROOT
            )
        )

    def signal(self, number: int) -> None:
        assert self._guardian.signal(self._name, number)

    async def acked(self, count: int) -> None:
        """Wait until it was acknowledged so many batches."""
        while not self.ledger.exists() or self.ledger.read_text().count('"ok"') < count:  # noqa: ASYNC110 -- a file
            await asyncio.sleep(0.02)

    async def ended(self) -> int:
        """Wait until it has ended; returns its exit code."""
        while (ended := self._guardian.exit_of(self._pid)) is None:  # noqa: ASYNC110 -- a child of the guardian
            await asyncio.sleep(0.02)
        return ended.code

    def end(self) -> None:
        """End it, stopped or not."""
        if self._guardian.exit_of(self._pid) is None:
            self._guardian.signal(self._name, signal.SIGCONT)
            self._guardian.stop(self._name)


async def stand_beside(w: World, directory: Path, plan: Plan) -> int:
    """Stop a producer, let a second copy go on, wake the first; returns the first one's exit code."""
    first = Copy(w.guardian, directory, "first", w.storage.port, plan)
    second = None
    try:
        await first.acked(20)
        first.signal(signal.SIGSTOP)
        second = Copy(w.guardian, directory, "second", w.storage.port, plan)
        await second.acked(20)
        first.signal(signal.SIGCONT)
        assert await second.ended() == 0, (directory / "second.log").read_text()
        return await first.ended()
    finally:
        first.end()
        if second is not None:
            second.end()


@pytest.mark.parametrize(
    "build",
    [
        pytest.param("", id="real", marks=pytest.mark.slow),
        pytest.param("no_fence", id="canary", marks=pytest.mark.slow),
    ],
)
async def test_a_zombie_beside_its_copy(
    guardian: Guardian, database_url: str, run_dir: Path, report: Report, build: str
) -> None:
    """The copy that was stopped is fenced when it wakes up; without the fence, this test would see it."""
    plan = Plan(name=f"zombie {build}".strip(), seed=602, rows=50)
    program = ("-m", "tests.faults.broken", build) if build else ()
    async with world(guardian, run_dir, database_url, seed=plan.seed, program=program) as w:
        code = await stand_beside(w, run_dir, plan)
        await w.folded()
        outcome = judged(w, await read_back(w.store, ["p0"]), faults=1, note=f"the zombie ended with {code}")
    if build:
        caught = code != FENCED
        report(
            replace(
                outcome,
                violations=0,
                points=0,
                ambiguous=0,
                faults=0,
                caught=int(caught),
                canaries=1,
                note=f"ended with {code}",
            ),
            run_dir,
        )
        assert caught, "the canary survived: a zombie was fenced by a build without fences"
        return
    report(outcome, run_dir)
    assert code == FENCED, (run_dir / "first.log").read_text()
    assert outcome.violations == 0, outcome.note
    assert outcome.points == BATCHES * plan.rows
