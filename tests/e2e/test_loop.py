"""The whole loop on a seeded plant: measure, lose a server, remember, learn, predict, decide, act, measure again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from twinmesh_client import Order
from twinmesh_client.aio.mesh import Mesh, connect_async
from twinmesh_client.forecasts import Forecast
from twinmesh_client.readings import Reading
from twinmesh_core.time import from_datetime
from twinmesh_demo import learn, load_history, play
from twinmesh_demo.plant import MINUTE, World, build_world, floor_half_hour
from twinmesh_demo.progress import Story
from twinmesh_demo.recorded import CHANNELS, SKEWED_ROWS, Recording, play_past, soil, to_batch
from twinmesh_demo.twins import create_fleet
from twinmesh_local.mesh import LocalMesh

DAYS = 21
ZONE = "Europe/Berlin"
SEED = 5


@pytest.mark.timeout(300)
async def test_the_loop_closes(local_mesh: LocalMesh) -> None:
    start = floor_half_hour(datetime.now(UTC)) - timedelta(minutes=play.PLAY_MINUTES)
    recordings, world = _past(start)
    async with connect_async(local_mesh.endpoints["statesync"]) as mesh:
        twins = await create_fleet(mesh, time_zone=ZONE)

        # Measure, and lose storage in the middle: every point is there exactly once.
        story = Story()
        with story.bar("history", "", 1) as bar:
            ledger = await load_history.load(mesh, recordings, local_mesh.kill, bar)
        assert ledger.crash_recovery_s > 0, "storage was not killed"
        statistics = [await mesh.statistics(name) for name in recordings]
        assert ledger.sent == sum(r.point_count for r in recordings.values()) + SKEWED_ROWS
        assert sum(s.points for s in statistics) == ledger.sent - SKEWED_ROWS
        assert sum(s.quarantined for s in statistics) == SKEWED_ROWS
        await _reads_back(mesh, recordings["T2"])

        # Learn: the winner beats seasonal-naive on a tail it has not seen.
        run = await mesh.models.train(
            "hotspot", twins=list(recordings), target="hot_spot", inputs=learn.INPUTS, step=learn.STEP,
            context_steps=72, horizon_steps=24, holdout="5d", time_budget="10s", seed=SEED,
        )  # fmt: skip
        done = await mesh.models.wait(run.run_id)
        mae = {c.family: c.metrics["mae"] for c in done.candidates}
        promoted = next(c for c in done.candidates if c.model_version == done.promoted_version)
        assert promoted.metrics["mae"] < 0.8 * mae["SEASONAL_NAIVE"]
        await learn.until_serving(mesh, "hotspot", done.promoted_version)

        # Predict: as of the end of the past; the replica holds it, and a pinned version answers the same.
        forecast = await twins["T2"].forecast("hot_spot", at=start, record=True)
        assert forecast.values.shape == (24, 3)
        assert np.isfinite(forecast.values).all()
        assert (np.diff(forecast.values, axis=1) >= 0).all()
        assert forecast.at == start
        assert (await twins["T2"].get()).predicted["hot_spot"].model == forecast.model
        pinned = await twins["T2"].forecast("hot_spot", at=start, model=forecast.model)
        np.testing.assert_allclose(pinned.values, forecast.values, atol=1e-4)

        # Act: the device obeys, and the delta closes.
        action = await _act(mesh, start)
        assert [state for state, _ in action.states] == ["QUEUED", "DELIVERED", "SUCCEEDED"]
        assert action.delta_opened == "{cooling_stage: want 3, has 0}"
        assert (await twins["T1"].get()).delta == {}

        # Measure again: what then happened is nearer to the forecast than yesterday was.
        assert await _future_error(mesh, world, recordings["T2"], forecast, start) < 6.0


def _past(start: datetime) -> tuple[dict[str, Recording], World]:
    past_start = start - timedelta(days=DAYS)
    minutes = DAYS * 1_440
    world = build_world(
        past_start, minutes + play.PLAY_MINUTES, zone=ZONE, heat_from=start - timedelta(days=2), seed=SEED
    )
    recordings = {n: play_past(world, n, minutes, seed=SEED + i) for i, n in enumerate(("T1", "T2"))}
    soil(recordings, start=past_start, seed=SEED)
    return recordings, world


async def _reads_back(mesh: Mesh, recording: Recording) -> None:
    """Every minute of every channel is there, with the value that was sent."""
    reading = await mesh.twins[recording.twin_id].read(*CHANNELS)
    assert isinstance(reading, Reading)
    for column, channel in enumerate(CHANNELS):
        series = reading[channel]
        present = np.isfinite(recording.values[:, column])
        np.testing.assert_array_equal(series.time_unix_us, recording.time_unix_us[present])
        np.testing.assert_allclose(series.values.astype(float), recording.values[present, column], atol=1e-9)


async def _act(mesh: Mesh, start: datetime) -> play.Action:
    twin = mesh.twins["T1"]
    moment = from_datetime(start)
    row = np.full((1, len(CHANNELS)), np.nan)
    row[0, CHANNELS.index("cooling_stage")] = 0
    await twin.write_batch(to_batch("T1", np.array([moment]), row))

    async def obey(order: Order) -> str:
        row[0, CHANNELS.index("cooling_stage")] = order.args["value"]
        await twin.write_batch(to_batch("T1", np.array([moment + 60_000_000]), row))
        return "done"

    device = asyncio.create_task(mesh.device(["T1"], {"set_cooling_stage": obey}).run())
    try:
        return await play.act(twin, 3, at=start)
    finally:
        device.cancel()
        await asyncio.gather(device, return_exceptions=True)


async def _future_error(mesh: Mesh, world: World, recording: Recording, forecast: Forecast, start: datetime) -> float:
    """Play T2 on without a forecast's knowledge, store it, and return the forecast's mean absolute error, K."""
    first = world.index(start)
    rows = [
        [recording.end.minute(float(world.load[first + m]), float(world.ambient_c[first + m]))[c] for c in CHANNELS]
        for m in range(24 * 10)
    ]
    times = from_datetime(start) + np.arange(len(rows), dtype=np.int64) * 60_000_000
    await mesh.twins["T2"].write_batch(to_batch("T2", times, np.array(rows)))
    facts = await mesh.twins["T2"].read("hot_spot", start=start, end=start + len(rows) * MINUTE, every=learn.STEP)
    return float(np.mean(np.abs(facts.to_pandas()["hot_spot"].to_numpy() - forecast.quantile(0.5))))
