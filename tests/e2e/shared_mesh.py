"""One mesh for a whole module of tests: it lives in a thread with a loop of its own, each test in its own loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from twinmesh_client.aio.mesh import connect_async
from twinmesh_client.modelling import channel, command, twin_type
from twinmesh_core.observations import ObservationBatch, SeriesKey, double_section, int64_section
from twinmesh_core.time import US_PER_MINUTE, floor_to
from twinmesh_local.mesh import LocalMesh

STEP_US = 15 * US_PER_MINUTE
STEPS = 20 * 96

PUMP = twin_type(
    "pump@1",
    [
        channel("temp", "Cel", every="1min", minimum=-40.0, maximum=140.0, tolerance=0.5, upper_limit=90.0),
        channel("load", "kW", every="1min"),
        channel("stage", kind="state", minimum=0.0, maximum=3.0, controllable=True, set_command="set_stage"),
        channel("running", kind="bool"),
        channel("label", kind="text"),
        channel("doc", kind="json", controllable=True),
        channel("setpoint", "Cel", minimum=0.0, maximum=100.0, controllable=True, tolerance=0.5),
    ],
    commands=[command("set_stage", "value"), command("restart", "reason")],
    display_name="Pump",
)


@contextmanager
def running_mesh(
    data_dir: Path, *, with_triton: bool = True, environment: dict[str, str] | None = None
) -> Iterator[LocalMesh]:
    """Run a mesh in a thread until the block is left."""
    mesh = LocalMesh(data_dir=data_dir, context=None, with_triton=with_triton, environment=environment)
    ready, failures = threading.Event(), list[BaseException]()
    stops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def live() -> None:
        async with mesh:
            stop = asyncio.Event()
            stops.append((asyncio.get_running_loop(), stop))
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(live())
        except BaseException as failure:  # noqa: BLE001  told to the test's thread
            failures.append(failure)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="mesh")
    thread.start()
    try:
        ready.wait()
        if failures:
            raise failures[0]
        yield mesh
    finally:
        for loop, stop in stops:
            loop.call_soon_threadsafe(stop.set)
        thread.join()


async def make_world(mesh: LocalMesh, *, models: bool = True) -> None:
    """Create pump P1 with 20 days of history, and a forecast and a dynamics model that serve it."""
    async with connect_async(mesh.endpoints["statesync"]) as client:
        await client.types.create(PUMP)
        twin = await client.twins.create("P1", type="pump@1", time_zone="Europe/Berlin")
        assert (await twin.write_batch(_history())).accepted == 3 * STEPS
        if not models:
            return
        for task in ("forecast", "dynamics"):
            run = await client.models.train(
                f"m-{task}", task=task, twins=["P1"], target="temp", inputs=["load", "stage"],
                controls=["stage"] if task == "dynamics" else (), step="15min", context_steps=24, horizon_steps=8,
                holdout="4d", time_budget="3s", origins=50, families=["ridge"], seed=1,
            )  # fmt: skip
            await client.models.wait(run.run_id)
        async with asyncio.timeout(30):
            while sum(d.serving for d in await client.models.deployments()) < 2:  # noqa: ASYNC110  it is asked over the wire
                await asyncio.sleep(0.1)


def _history() -> ObservationBatch:
    chance = np.random.default_rng(1)
    times = floor_to(int(time.time() * 1e6), STEP_US) - np.arange(STEPS, 0, -1, dtype=np.int64) * STEP_US
    stage = (np.arange(STEPS) // 37) % 4
    load = 50 + 20 * np.sin(np.arange(STEPS) * 2 * np.pi / 96) + chance.normal(0, 1, STEPS)
    temp = 40 + 0.5 * load - 4 * stage + chance.normal(0, 0.3, STEPS)
    return ObservationBatch(
        series=tuple(SeriesKey(twin_id="P1", channel=name) for name in ("temp", "load", "stage")),
        doubles=double_section(np.repeat([0, 1], STEPS), np.tile(times, 2), np.concatenate([temp, load])),
        int64s=int64_section(np.full(STEPS, 2), times, stage),
    )
