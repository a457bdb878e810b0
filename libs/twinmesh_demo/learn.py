"""Training through the API, and the table of honest results."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import timedelta

from twinmesh_client.aio.mesh import Mesh
from twinmesh_client.runs import Candidate, TrainingRun
from twinmesh_core.errors import DeadlineExceeded
from twinmesh_demo.progress import Bar, table_line
from twinmesh_demo.twins import FLEET

STEP = timedelta(minutes=10)
CONTEXT_STEPS = 144
HORIZON_STEPS = 36
HOLDOUT = timedelta(days=30)
FORECAST_MODEL = "hotspot"
DYNAMICS_MODEL = "hotspot-dynamics"
INPUTS = ("oil", "load", "ambient", "cooling_stage")
WIDTHS = (28, -10, -11, -11, -11, -10)
TITLES = {
    "SEASONAL_NAIVE": "seasonal naive",
    "RIDGE": "ridge (gate)",
    "MLP": "network",
}


async def train(mesh: Mesh, model_id: str, *, dynamics: bool, bar: Bar, bar_from: float, seed: int) -> TrainingRun:
    """Train one model from the fleet's history and wait for it; the last 30 days are held out."""
    run = await mesh.models.train(
        model_id,
        task="dynamics" if dynamics else "forecast",
        twins=FLEET,
        target="hot_spot",
        inputs=INPUTS,
        controls=["cooling_stage"] if dynamics else (),
        step=STEP,
        context_steps=CONTEXT_STEPS,
        horizon_steps=HORIZON_STEPS,
        holdout=HOLDOUT,
        origins=720,
        time_budget=timedelta(seconds=20),
        seed=seed,
    )
    async with aclosing(mesh.models.watch_run(run.run_id)) as states:
        async for state in states:
            bar.move(bar_from + state.progress, state.phase)
    return await mesh.models.wait(run.run_id)


async def until_serving(mesh: Mesh, model_id: str, version: int, *, timeout_s: float = 60.0) -> None:
    """Wait until Triton serves a version; raises `DeadlineExceeded`."""
    for _ in range(int(timeout_s / 0.2)):
        for deployment in await mesh.models.deployments(model_id):
            if deployment.version == version and deployment.serving:
                return
        await asyncio.sleep(0.2)
    raise DeadlineExceeded(f"{model_id}@{version} was not served within {timeout_s:g} s; see the inference log.")


def header() -> str:
    """Return the table's head."""
    names = ("", "MAE K", "vs naive", "80 % band", "worst day", "time")
    return table_line(list(zip(names, WIDTHS, strict=True)))


def rows(run: TrainingRun) -> list[str]:
    """Return one line per family: error, gain over naive, coverage of the 80 % band, worst day, training time."""
    mae = {c.family: c.metrics.get("mae") for c in run.candidates}
    return [_row(c, mae.get("SEASONAL_NAIVE"), mae.get("RIDGE"), run) for c in run.candidates]


def _row(candidate: Candidate, naive: float | None, gate: float | None, run: TrainingRun) -> str:
    m = candidate.metrics
    mae = m.get("mae", float("nan"))
    gain = f"{100 * (mae / naive - 1):+.0f} %" if naive and candidate.family != "SEASONAL_NAIVE" else ""
    coverage = f"{100 * m['coverage']:.1f} %" if "coverage" in m else "-"
    promoted = candidate.model_version and candidate.model_version == run.promoted_version
    cells = (
        TITLES.get(candidate.family, candidate.family.lower()),
        f"{mae:.2f}",
        gain,
        coverage,
        f"{m['worst_day_mae']:.1f}" if "worst_day_mae" in m else "-",
        f"{m.get('train_seconds', 0.0):.0f} s",
    )
    line = table_line(list(zip(cells, WIDTHS, strict=True)))
    if promoted:
        return f"{line}   PROMOTED"
    # Early stopping keeps the network's zero start when nothing validates better than the gate it builds on.
    return f"{line}   nothing beyond the gate" if candidate.family == "MLP" and mae == gate else line
