"""kill -9 of storage while it erases a twin: however often, the erasure ends, and nothing of the twin is left."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import numpy as np
import psycopg
import pytest
from tests.faults.world import ready, world
from tests.integration.storage.mesh import T0, S, Storage, doubles
from tests.integration.storage.test_storage_erasure import CANARIES, NUMBER, found

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.errors import TwinmeshError
from twinmesh_local.processes import Guardian
from twinmesh_storage.domain.erasure import ErasureState, Step

SEED = int(os.environ.get("TWINMESH_FAULTS_SEED", "503"))
ENTRIES, ROWS = 60, 4_000
"""Several MB of log, so that the erasure reads and rewrites more than one page of it."""


async def write(store: Storage) -> None:
    """Append entries of two twins side by side; every value of the patient is the canary."""
    keys = await store.series("patient", ["pulse"]) + await store.series("bed", ["weight"])
    handles = np.repeat(np.arange(2, dtype=np.uint32), ROWS // 2)
    for number in range(ENTRIES):
        times = T0 + S * (number * ROWS // 2 + np.tile(np.arange(ROWS // 2), 2))
        values = np.where(handles == 0, NUMBER, np.random.default_rng(number).normal(size=ROWS))
        await store.append(doubles(keys, times, values, handles), request_id=f"r{number}")


async def reached(conn: psycopg.AsyncConnection[tuple[int, int]], wanted: Step) -> tuple[ErasureState, Step]:
    """Wait until the erasure is at a step or beyond; returns how it stands."""
    async with asyncio.timeout(30):
        while True:
            row = await (await conn.execute("select state, step from storage.erasure")).fetchone()
            if row is not None and (row[1] >= wanted or row[0] != ErasureState.RUNNING):
                return ErasureState(row[0]), Step(row[1])
            await asyncio.sleep(0.001)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_an_erasure_ends_however_often_storage_is_killed(
    guardian: Guardian, database_url: str, redis_url: str, run_dir: Path
) -> None:
    """One kill at each step, the moment it is noted or a little later, until the job is through."""
    rng = random.Random(SEED)  # noqa: S311 -- chooses moments
    async with AsyncExitStack() as stack:
        w = await stack.enter_async_context(world(guardian, run_dir, database_url, seed=SEED, redis_url=redis_url))
        conn = await stack.enter_async_context(await psycopg.AsyncConnection.connect(database_url, autocommit=True))
        await write(w.store)
        await w.folded()
        assert found(database_url, redis_url)["number"] >= {"log"}
        kept = (await w.store.read([("bed", "weight")]))["bed/weight"]
        asked = storage_pb2.EraseTwinRequest(request_id="forget", twin_id="patient")
        killed_at: list[Step] = []
        for wanted in (Step.HIDE, Step.FOLD, Step.HISTORY, Step.LOG, Step.LOG, Step.ROWS, Step.CACHE, Step.VERIFY):
            asking = asyncio.ensure_future(w.store.ask("EraseTwin", asked))
            state, step = await reached(conn, wanted)
            if state is ErasureState.RUNNING:
                await asyncio.sleep(rng.choice((0.0, 0.0, 0.01)))
                await w.storage.kill()
                _, step = await reached(conn, wanted)
                killed_at.append(step)
            with suppress(TwinmeshError):  # killed before it answered: asked again with the same request
                await asking
            if not w.storage.runs:
                w.storage.start()
                await ready(w.store)
        await w.store.ask("EraseTwin", asked)
        state, _ = await reached(conn, Step.DONE)
        print(f"seed {SEED}: killed at {[step.name for step in killed_at]}")
        assert state is ErasureState.SUCCEEDED
        assert len({step for step in killed_at if step is not Step.DONE}) >= 3, killed_at
        rows = await w.store.read([("patient", "pulse"), ("bed", "weight")])
        assert rows == {"patient/pulse": [], "bed/weight": kept}
    assert found(database_url, redis_url) == {name: set() for name in CANARIES}
