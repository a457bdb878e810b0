"""The demo from start to end: measure, remember, replicate, learn, predict, decide, act, measure again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from twinmesh_client.aio.mesh import Mesh
from twinmesh_client.aio.twin import Twin
from twinmesh_client.forecasts import Decision, Forecast
from twinmesh_client.runs import TrainingRun
from twinmesh_connectors import host as host_connector
from twinmesh_connectors.runner import Runner
from twinmesh_connectors.status import Status
from twinmesh_core.quality import FlagReason, Quality
from twinmesh_demo import learn, load_history, play
from twinmesh_demo.plant import MINUTE, World, build_world, floor_half_hour, morning_site
from twinmesh_demo.plant_process import write_play
from twinmesh_demo.progress import Story, local, size, table_line
from twinmesh_demo.recorded import CHANNELS, Dirt, Recording, play_past, soil
from twinmesh_demo.thermal import LIMIT_C
from twinmesh_demo.twins import create_fleet, create_host

DAYS = 90
SEED = 13
HEAT_WAVE = timedelta(days=6)


@dataclass(slots=True, kw_only=True)
class Facts:
    """Everything the demo measured, for the report and for a test of it."""

    zone: str
    start: datetime
    world: World
    recordings: dict[str, Recording]
    dirt: Dirt
    ledger: load_history.Ledger
    stored: int = 0
    quarantined: int = 0
    disk_bytes: int = 0
    forecast_run: TrainingRun | None = None
    dynamics_run: TrainingRun | None = None
    forecasts: dict[str, Forecast] = field(default_factory=dict)
    decision: Decision | None = None
    outcome: play.Outcome | None = None
    meters: dict[str, play.Meters] = field(default_factory=dict)
    scores: dict[str, tuple[float, float, int]] = field(default_factory=dict)


async def tell(mesh: Mesh, *, target: str, kill: Callable[[str, int], None], work_dir: Path, story: Story) -> Facts:
    """Run the whole demo on a mesh that is up.

    Args:
        mesh: connected.
        target: where the plant's own process finds the mesh.
        kill: sends a signal to a service by token; the supervisor starts it again.
        work_dir: where the plant's state file goes.
        story: where the lines go.
    """
    start = floor_half_hour(datetime.now(UTC)) - timedelta(minutes=play.PLAY_MINUTES)
    zone = morning_site(start)
    host = await create_host(mesh, time_zone="UTC")
    telemetry = Runner(
        host_connector.HostConnector(), lambda on_ack: mesh.writer("demo-host", on_ack=on_ack), grace_s=1.0
    )
    live = asyncio.create_task(telemetry.run())
    try:
        facts = await _history(mesh, start=start, zone=zone, kill=kill, story=story)
        await _say_host(host, telemetry.status, story)
        twins = await create_fleet(mesh, time_zone=zone)
        await _account(mesh, facts, story)
        await _learn(mesh, facts, story)
        await _predict_and_decide(mesh, facts, twins, story)
        await _act_and_play(mesh, facts, twins, target, work_dir, story)
    finally:
        live.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await live
    return facts


async def _history(mesh: Mesh, *, start: datetime, zone: str, kill: Callable[[str, int], None], story: Story) -> Facts:
    past_start = start - timedelta(days=DAYS)
    minutes = DAYS * 1_440
    heat_from = start - HEAT_WAVE
    with story.bar("history", "simulating the plant's past", 2) as bar:
        world = await asyncio.to_thread(
            build_world, past_start, minutes + play.PLAY_MINUTES, zone=zone, heat_from=heat_from, seed=SEED
        )
        recordings: dict[str, Recording] = {}
        for i, name in enumerate(("T1", "T2"), start=1):
            recordings[name] = await asyncio.to_thread(play_past, world, name, minutes, seed=SEED + i)
            bar.move(i)
    dirt = soil(recordings, start=past_start, seed=SEED)
    await create_fleet(mesh, time_zone=zone)
    with story.bar("history", "sending", sum(r.point_count for r in recordings.values())) as bar:
        ledger = await load_history.load(mesh, recordings, kill, bar)
    return Facts(zone=zone, start=start, world=world, recordings=recordings, dirt=dirt, ledger=ledger)


async def _say_host(host: Twin, status: Status, story: Story) -> None:
    replica = await host.get()
    cpu = replica.reported["cpu"].value if "cpu" in replica.reported else None
    story.say(
        "host",
        f'twin "{host.twin_id}": {len(replica.reported)} channels at 1 Hz, live, {replica.connectivity}; '
        f"{status.rows_durable:,} values so far" + (f"; cpu {cpu:.0f} % right now" if isinstance(cpu, float) else ""),
    )


async def _account(mesh: Mesh, facts: Facts, story: Story) -> None:
    ledger, dirt, zone = facts.ledger, facts.dirt, facts.zone
    statistics = [await mesh.statistics(name) for name in ("T1", "T2")]
    facts.stored = sum(s.points for s in statistics)
    facts.quarantined = sum(s.quarantined for s in statistics)
    facts.disk_bytes = (await mesh.statistics()).disk_bytes
    points = facts.stored + facts.quarantined
    rate = ledger.sent / max(ledger.seconds, 1e-9)
    story.say(
        "history",
        f"T1, T2 ({zone}): {DAYS} days x {len(CHANNELS)} channels at 1 min, sent {ledger.sent:,} points in "
        f"{ledger.seconds:.1f} s ({rate / 1e3:,.0f} k/s, the crash below included), {size(facts.disk_bytes)} on disk",
    )
    flags = {o.reason: o.count for o in ledger.acks.outcomes if o.quality is not None}
    spikes = sum(flags.get(r, 0) for r in (FlagReason.SPIKE, FlagReason.OUT_OF_RANGE, FlagReason.RATE_OF_CHANGE))
    story.say(
        "dirt",
        f"{dirt.spikes} spikes put in -> flagged {spikes:,}; 1 stuck sensor (T2 ambient, "
        f"{(dirt.stuck[1] - dirt.stuck[0]) // MINUTE} min) -> flagged {flags.get(FlagReason.STUCK, 0):,} "
        "after its first hour",
    )
    story.say(
        "",
        f"{dirt.late_points:,} late points, merged; 1 gap of {(dirt.gap[1] - dirt.gap[0]) // MINUTE} min "
        f"({dirt.gap_points} points), kept as gap; T2's ambient came in degF, stored in Cel",
    )
    quarantine = await mesh.quarantine(twin_id="T2", limit=1)
    why = quarantine.rows[0].message if quarantine.rows else ""
    story.say("", f"quarantined {facts.quarantined}: {why} -> see: twinmesh quarantine list")
    lost = ledger.sent - points
    story.say(
        "crash",
        f"storage killed -9 at {ledger.crash_share:.0%} of the load, back after {ledger.crash_recovery_s:.1f} s: "
        f"{facts.stored:,} stored + {facts.quarantined} quarantined "
        f"{'=' if lost == 0 else '!='} {ledger.sent:,} sent; lost {max(lost, 0)}, twice {max(-lost, 0)}",
    )
    good, uncertain, bad = (sum(s.by_quality[i] for s in statistics) for i in range(3))
    story.say("", f"{good:,} {Quality.GOOD.name}, {uncertain:,} {Quality.UNCERTAIN.name}, {bad:,} {Quality.BAD.name}")


async def _learn(mesh: Mesh, facts: Facts, story: Story) -> None:
    began = time.monotonic()
    with story.bar("train", "forecast model", 2) as bar:
        facts.forecast_run = await learn.train(
            mesh, learn.FORECAST_MODEL, dynamics=False, bar=bar, bar_from=0, seed=SEED
        )
        facts.dynamics_run = await learn.train(
            mesh, learn.DYNAMICS_MODEL, dynamics=True, bar=bar, bar_from=1, seed=SEED
        )
    for tag, run, what in (
        ("train", facts.forecast_run, "hot_spot forecast"),
        ("", facts.dynamics_run, "hot_spot under planned cooling"),
    ):
        origins = max((c.origin_count for c in run.candidates), default=0)
        story.say(
            tag,
            f"{what}, {learn.HORIZON_STEPS * learn.STEP // timedelta(hours=1)} h ahead, "
            f"last {learn.HOLDOUT.days} days held out, {origins} origins",
        )
        story.say("", learn.header())
        for line in learn.rows(run):
            story.say("", line)
    for run in (facts.forecast_run, facts.dynamics_run):
        if run.promoted_version:
            await learn.until_serving(mesh, run.model_id, run.promoted_version)
    story.say("", f"both trained, promoted and served by Triton in {time.monotonic() - began:.0f} s")


async def _predict_and_decide(mesh: Mesh, facts: Facts, twins: dict[str, Twin], story: Story) -> None:
    zone, start = facts.zone, facts.start
    as_of = await mesh.head()
    for name, twin in twins.items():
        facts.forecasts[name] = await twin.forecast("hot_spot", at=start, as_of_offset=as_of, record=True)
    forecast = facts.forecasts["T2"]
    median = forecast.quantile(0.5)
    top = int(np.argmax(median))
    crossing = (
        f"limit {LIMIT_C:g} exceeded from {local(forecast.limit_crossing, zone)}"
        if forecast.limit_crossing
        else f"limit {LIMIT_C:g} kept"
    )
    story.say(
        "forecast",
        f"T2 at {local(forecast.at, zone)}: peak {median[top]:.1f} °C "
        f"[{forecast.values[top, 0]:.1f} .. {forecast.values[top, -1]:.1f}] at {local(forecast.times[top], zone)}, "
        f"{crossing}; model {forecast.model}, offset {forecast.input_offset:,}",
    )
    facts.decision = await play.decide(twins["T1"], at=start, as_of_offset=as_of)
    best = facts.decision.best
    steps = ", ".join(f"{local(at, zone)} stage {value:g}" for at, value in best.steps)
    constant = table_line([(f"stage {p.steps[0][1]:g}: {p.peak:.1f} °C", 18) for p in facts.decision.constant_plans])
    story.say(
        "decide",
        f"T1: {steps}: predicted peak {best.peak:.1f} °C (90 %: {best.peak_at_limit_quantile:.1f}), "
        f"{best.control_cost:.1f} kWh; {facts.decision.candidate_count} plans evaluated in Triton"
        + ("; binding: hot_spot" if facts.decision.limit_binding else ""),
    )
    story.say("", f"held constant instead -> {constant}")


async def _act_and_play(
    mesh: Mesh, facts: Facts, twins: dict[str, Twin], target: str, work_dir: Path, story: Story
) -> None:
    assert facts.decision is not None  # noqa: S101  the step before has set it
    state = work_dir / "plant.json"
    write_play(
        state,
        world=facts.world,
        zone=facts.zone,
        heat_from=facts.start - HEAT_WAVE,
        seed=SEED,
        start=facts.start,
        minutes=play.PLAY_MINUTES,
        speed=play.SPEED,
        transformers=[facts.recordings[n].end for n in ("T1", "T2")],
        obeying=["T1"],
    )
    with story.bar("then", "the plant catches up, x720", play.PLAY_MINUTES) as bar:
        facts.outcome = await play.play(
            mesh, twins["T1"], state=state, start=facts.start, first=facts.decision, target=target,
            bar=bar, story=story, zone=facts.zone,
        )  # fmt: skip
    for failure in facts.outcome.failures:
        story.say("", failure, style="bold red")
    end = facts.start + play.PLAY_MINUTES * MINUTE
    for name, twin in twins.items():
        facts.meters[name] = await play.meters(twin, facts.start, end)
        facts.scores[name] = await play.against_facts(twin, facts.forecasts[name])
    mae, inside, steps = facts.scores["T2"]
    story.say(
        "then",
        f"{local(facts.start, facts.zone)}-{local(end, facts.zone)} played in "
        f"{play.PLAY_MINUTES * 60 / play.SPEED:.0f} s; "
        f"T2's forecast against what happened: MAE {mae:.1f} K over {steps} steps, {inside:.0%} inside the 80 % band",
    )
    for name, who in (("T1", "with Twinmesh"), ("T2", "own thermostat")):
        m = facts.meters[name]
        story.say(
            "",
            f"{name} {who:<16} peak {m.peak_c:.1f} °C at {local(m.peak_at, facts.zone)}   "
            f"{m.minutes_above_limit:>3} min above {LIMIT_C:g} °C   fans {m.fan_kwh:.1f} kWh   "
            f"insulation life used {m.life_used_h:.1f} h",
        )
