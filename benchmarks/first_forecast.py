"""From the start of the local mesh to the first forecast of a live twin, on a warm install.

``python -m benchmarks.first_forecast [--runs 3] [--data-dir DIR]``

Warm means: packages and Triton are installed; the database is not, each run begins with an empty data directory. A run
starts the mesh, creates a twin, writes 14 days of its past at 5 min, goes on writing live values, trains a ridge model
by the public API, waits until Triton serves it and asks for a forecast as of the newest live value. The clock runs from
before the mesh is started until the forecast is in our hands. The last line is a JSON object; the target is 30 s.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import shutil
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from twinmesh_client.aio.mesh import Mesh, connect_async
from twinmesh_client.aio.twin import Twin
from twinmesh_client.modelling import channel, twin_type
from twinmesh_core.errors import DeadlineExceeded
from twinmesh_local import LocalMesh
from twinmesh_local.triton_install import ensure_installed

DAYS = 14
EVERY = timedelta(minutes=5)
PUMP = twin_type(
    "pump@1",
    [
        channel("temperature", "Cel", every="5min", minimum=-40.0, maximum=150.0),
        channel("load", "kW", every="5min", minimum=0.0, maximum=100.0),
    ],
)
SERVE_TIMEOUT_S = 60.0


def history(end: datetime, *, seed: int) -> pd.DataFrame:
    """The past of a pump: its load wanders for hours and follows the day, its temperature the load with a lag."""
    rows = int(timedelta(days=DAYS) / EVERY)
    index = pd.date_range(end=end, periods=rows, freq="5min", tz="UTC")
    noise = np.random.default_rng(seed)
    hours = np.arange(len(index)) / 12
    load = 40 + 5 * np.sin(hours / 24 * 2 * math.pi) + noise.normal(0, 1, len(index))
    wander = 0.0
    for row, push in enumerate(noise.normal(0, 1.5, len(index))):
        wander = 0.99 * wander + push
        load[row] = np.clip(load[row] + wander, 0, 100)
    temperature = np.empty(len(index))
    level = 45.0
    for row, value in enumerate(load):
        level += (20 + 0.6 * value - level) / 12
        temperature[row] = level
    return pd.DataFrame({"temperature": temperature + noise.normal(0, 0.2, len(index)), "load": load}, index=index)


async def live(twin: Twin, began: asyncio.Event) -> None:
    """Write the present, once a second, for ever."""
    while True:
        await twin.write_values({"temperature": 45.0 + math.sin(time.time()), "load": 40.0})
        began.set()
        await asyncio.sleep(1.0)


async def until_served(mesh: Mesh, model_id: str, version: int) -> None:
    """Wait until Triton serves the version."""
    deadline = time.monotonic() + SERVE_TIMEOUT_S
    while not any(d.version == version and d.serving for d in await mesh.models.deployments(model_id)):
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"{model_id}@{version} was not served within {SERVE_TIMEOUT_S:g} s")
        await asyncio.sleep(0.05)


async def measure(data_dir: Path, *, seed: int) -> dict[str, float]:
    """One run; seconds since its beginning at which each step was done."""
    marks: dict[str, float] = {}
    began = time.monotonic()

    def mark(name: str) -> None:
        marks[name] = round(time.monotonic() - began, 2)

    async with LocalMesh(data_dir=data_dir, context=None) as local:
        mark("mesh_ready_s")
        async with connect_async(local.endpoints["ingestion"]) as mesh:
            await mesh.types.create(PUMP)
            twin = await mesh.twins.create("P1", type="pump@1", time_zone="UTC", if_absent=True)
            frame = history(datetime.now(UTC).replace(second=0, microsecond=0), seed=seed)
            ack = await twin.write(frame, backfill=True)
            assert ack.accepted == frame.size, ack
            mark("history_written_s")
            alive = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(live(twin, alive))
                run = await mesh.models.train(
                    "pump-temperature",
                    twins=["P1"],
                    target="temperature",
                    inputs=["load"],
                    step=timedelta(minutes=15),
                    context_steps=48,
                    horizon_steps=24,
                    holdout=timedelta(days=3),
                    families=["ridge"],
                    seed=seed,
                )
                done = await mesh.models.wait(run.run_id)
                assert done.promoted_version, done.candidates
                mark("trained_s")
                await until_served(mesh, "pump-temperature", done.promoted_version)
                mark("served_s")
                await alive.wait()
                forecast = await twin.forecast("temperature")
                mark("first_forecast_s")
                writer.cancel()
            assert np.isfinite(forecast.values).all()
    mark("stopped_s")
    return marks


def main() -> None:
    """Run it several times and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="how often; the median is reported")
    parser.add_argument(
        "--data-dir", type=Path, default=None, help="parent of the data directories; default: temporary"
    )
    options = parser.parse_args()
    ensure_installed(print)
    base = Path(tempfile.mkdtemp(prefix="twinmesh-bench-", dir=options.data_dir))
    # As root, PostgreSQL runs as another user and must be able to pass through.
    base.chmod(0o711)
    runs = []
    try:
        for number in range(options.runs):
            marks = asyncio.run(measure(base / str(number), seed=number))
            print(f"run {number + 1}: {json.dumps(marks)}", flush=True)
            runs.append(marks)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    print(json.dumps({**medians, "runs": len(runs), "target_s": 30.0}))


if __name__ == "__main__":
    main()
