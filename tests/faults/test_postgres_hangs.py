"""PostgreSQL hangs: its processes are there and nothing answers. Every call ends in time all the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults.history import History
from tests.faults.nemesis import Nemesis, backends, family, stopped
from tests.faults.points import CHANNEL, Plan, producers
from tests.faults.producers import StampedProducer, resolve
from tests.faults.report import Outcome
from tests.faults.run import judged, load
from tests.faults.world import World, world
from tests.integration.storage.mesh import Storage

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core import wire
from twinmesh_core.errors import DeadlineExceeded, FailedPrecondition, TwinmeshError, Unavailable
from twinmesh_local.postgres import PostgresServer
from twinmesh_local.processes import Guardian

Report = Callable[[Outcome, Path], None]
pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]
DEADLINE_S = 1.0
SLACK_S = 1.0
"""For a loaded machine; an unbounded call would last until PostgreSQL goes on, which is later than both."""
HANGS_S = 4.0
OUTAGE_S = 8.5


class Calls:
    """Calls with a deadline, over and over, and by how much each overran it."""

    def __init__(self, store: Storage, body: bytes) -> None:
        selector = storage_pb2.SeriesSelector(twin_id="p0", channel=CHANNEL)
        self.overrun_s: list[float] = []
        self.codes: set[str] = set()
        self._store = store
        # A batch out of turn goes all the way to the database, and is refused.
        ahead = storage_pb2.ProducerStamp(producer_id="somebody", epoch=1, sequence=99)
        self._requests: dict[str, Any] = {
            "Append": storage_pb2.AppendRequest(observations=body, producer=ahead, content_hash=bytes(16)),
            "OpenProducer": storage_pb2.OpenProducerRequest(producer_id="somebody"),
            "ResolveSeries": storage_pb2.ResolveSeriesRequest(),
            "GetStatistics": storage_pb2.GetStatisticsRequest(),
            "ListQuarantine": storage_pb2.ListQuarantineRequest(),
            "ReadLatest": storage_pb2.ReadLatestRequest(series=[selector]),
            "GetHead": storage_pb2.GetHeadRequest(),
        }

    async def run(self) -> None:
        """Call for ever."""
        async with asyncio.TaskGroup() as group:
            for method, request in self._requests.items():
                group.create_task(self._repeat(method, request))

    async def _repeat(self, method: str, request: Any) -> None:
        while True:
            began = time.monotonic()
            try:
                await self._store.ask(method, request, timeout_s=DEADLINE_S)
            except (Unavailable, DeadlineExceeded) as error:
                self.codes.add(f"{method} {error.code}")
            except FailedPrecondition:
                assert method == "Append"
            except TwinmeshError as error:
                raise AssertionError(f"{method} ended with {error.code} {error.reason}") from error
            self.overrun_s.append(time.monotonic() - began - DEADLINE_S)
            await asyncio.sleep(0.05)


async def a_commit_line(w: World, _: PostgresServer) -> list[int]:
    return await backends(w.database_url, "twinmesh-sequencer")


async def every_process(_: World, server: PostgresServer) -> list[int]:
    return family(server)


@pytest.mark.parametrize(
    "what",
    [pytest.param(each, marks=pytest.mark.slow) for each in (a_commit_line, every_process)],
    ids=["commit line", "everything"],
)
async def test_no_call_outlives_its_deadline(
    guardian: Guardian,
    mortal_postgres: PostgresServer,
    mortal_url: str,
    run_dir: Path,
    report: Report,
    what: Callable[[World, PostgresServer], Awaitable[list[int]]],
) -> None:
    """And as soon as PostgreSQL goes on, so do the producers; nothing is lost or doubled, no connection leaks."""
    plan = Plan(name=f"hung {what.__name__}".replace("_", " "), seed=701)
    with History(run_dir / "history.jsonl", plan) as ledger:
        async with world(guardian, run_dir, mortal_url, seed=plan.seed, database_timeout_s=1.0) as w:
            every = [StampedProducer(w.store, n, ledger, await resolve(w.store, n)) for n in producers(3)]
            calls = Calls(w.store, wire.encode(plan.batch("p0", 1, await resolve(w.store, "p0"))))
            resumed_s = 0.0

            async def hang() -> None:
                nonlocal resumed_s
                while ledger.acks < 5:  # noqa: ASYNC110 -- plain data
                    await asyncio.sleep(0.02)
                await w.store.ask("OpenProducer", storage_pb2.OpenProducerRequest(producer_id="somebody"))
                calling = asyncio.create_task(calls.run())
                try:
                    async with stopped(await what(w, mortal_postgres)):
                        await asyncio.sleep(HANGS_S)
                    before, began = ledger.acks, time.monotonic()
                    while ledger.acks == before:  # noqa: ASYNC110 -- plain data
                        await asyncio.sleep(0.01)
                    resumed_s = time.monotonic() - began
                finally:
                    calling.cancel()
                    done = await asyncio.gather(calling, return_exceptions=True)
                assert isinstance(done[0], asyncio.CancelledError), done[0]

            found = await load(w, every, ledger, until=lambda: True, nemesis=hang)
            connected = len(await backends(mortal_url, "twinmesh-storage"))
            outcome = judged(
                w,
                found,
                faults=1,
                note=f"longest overrun {max(calls.overrun_s) * 1000:.0f} ms of {len(calls.overrun_s)} calls, "
                f"first acknowledgement {resumed_s:.2f} s after",
            )
    report(outcome, run_dir)
    assert outcome.violations == 0, outcome.note
    assert max(calls.overrun_s) < SLACK_S
    assert any(code.startswith("Append") for code in calls.codes), "nothing hung"
    assert connected <= 8, "connections leak"


@pytest.mark.slow
async def test_restarts_of_postgresql(
    guardian: Guardian, mortal_postgres: PostgresServer, mortal_url: str, run_dir: Path, report: Report
) -> None:
    """Fast and immediate, one after the other; storage itself lives through them all."""
    plan = Plan(name="restarts", seed=702)
    with History(run_dir / "history.jsonl", plan) as ledger:
        async with world(guardian, run_dir, mortal_url, seed=plan.seed) as w:
            every = [StampedProducer(w.store, n, ledger, await resolve(w.store, n)) for n in producers(4)]
            nemesis = Nemesis(w, ledger, seed=plan.seed, postgres=mortal_postgres)
            schedule = nemesis.schedule(("fast restart", "immediate restart", "postmaster"), 9)
            pid = w.storage.pid

            async def restart() -> None:
                await nemesis.run(schedule)
                assert w.storage.pid == pid
                assert w.storage.runs, "storage fell over"

            found = await load(w, every, ledger, until=lambda: True, nemesis=restart)
            outcome = judged(w, found, faults=nemesis.done.total(), note=nemesis.told())
    report(outcome, run_dir)
    assert outcome.violations == 0, outcome.note


@pytest.mark.slow
async def test_a_long_outage_ends_when_it_ends(
    guardian: Guardian, mortal_postgres: PostgresServer, mortal_url: str, run_dir: Path, report: Report
) -> None:
    """However long PostgreSQL was away, what follows its return does not take longer for it."""
    plan = Plan(name="outage", seed=703)
    resumed_s = 0.0
    with History(run_dir / "history.jsonl", plan) as ledger:
        async with world(guardian, run_dir, mortal_url, seed=plan.seed) as w:
            every = [StampedProducer(w.store, n, ledger, await resolve(w.store, n)) for n in producers(3)]

            async def outage() -> None:
                nonlocal resumed_s
                await asyncio.sleep(0.5)
                port = mortal_postgres.port
                await asyncio.to_thread(mortal_postgres.stop)
                await asyncio.sleep(OUTAGE_S)
                await asyncio.to_thread(mortal_postgres.start, port=port)
                before, began = ledger.acks, time.monotonic()
                while ledger.acks == before:  # noqa: ASYNC110 -- plain data
                    await asyncio.sleep(0.01)
                resumed_s = time.monotonic() - began

            found = await load(w, every, ledger, until=lambda: True, nemesis=outage)
            note = f"away for {OUTAGE_S} s, first acknowledgement {resumed_s:.2f} s after its return"
            outcome = judged(w, found, faults=1, note=note)
    report(outcome, run_dir)
    assert outcome.violations == 0, outcome.note
    assert resumed_s < 4
