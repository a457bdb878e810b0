"""Forecast, decide, act, and play what then happened."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from twinmesh_client import TwinmeshError
from twinmesh_client.aio.mesh import Mesh
from twinmesh_client.aio.twin import Twin
from twinmesh_client.commands import Command
from twinmesh_client.forecasts import Decision, Forecast
from twinmesh_client.replicas import NotConverged
from twinmesh_demo.learn import DYNAMICS_MODEL
from twinmesh_demo.plant import MINUTE
from twinmesh_demo.progress import Bar, Story, local, show_delta
from twinmesh_demo.thermal import FAN_KW, LIMIT_C, STAGES, ageing_rate

SPEED = 720.0
PLAY_MINUTES = 720
REPLAN = timedelta(hours=1)
"""Simulated time between two looks at the plan."""
CONTROL = "cooling_stage"
OPTIONS = {float(stage): FAN_KW[stage] for stage in STAGES}
SWITCH_COST_KWH = 0.3
MARGIN_K = 1.0
"""Plans keep this much below the limit: models are not perfect, and windings do not heal."""


@dataclass(slots=True, kw_only=True)
class Action:
    """One desired value on its way: what was asked, what the device said, when the delta was empty again."""

    at: datetime
    stage: int
    states: list[tuple[str, float]] = field(default_factory=list)
    delta_opened: str = ""
    delta_closed: str = ""
    seconds: float = 0.0
    decision: Decision | None = None


async def decide(twin: Twin, *, at: datetime | None, as_of_offset: int = 0) -> Decision:
    """Ask for the cheapest cooling that keeps the hot-spot below the limit."""
    return await twin.optimize(
        CONTROL,
        options=OPTIONS,
        limit=LIMIT_C - MARGIN_K,
        model=DYNAMICS_MODEL,
        limit_quantile=0.9,
        switch_cost=SWITCH_COST_KWH,
        max_switches=2,
        min_dwell="1h",
        at=at,
        as_of_offset=as_of_offset,
    )


async def act(twin: Twin, stage: int, *, at: datetime) -> Action:
    """Set the desired stage and follow it: command QUEUED, DELIVERED, SUCCEEDED; delta open, closed.

    Raises:
        NotConverged: the plant refused, or 20 s passed.
    """
    action = Action(at=at, stage=stage)
    replica = await twin.get()
    began = time.monotonic()
    want = await twin.set_desired({CONTROL: stage}, if_revision=replica.desired.revision, deadline="20s")
    action.delta_opened = show_delta(want.delta)
    seen: set[str] = set()
    converged = False

    def note(commands: tuple[Command, ...]) -> None:
        for order in commands:
            if order.state not in seen and order.command_id in {c.command_id for c in want.commands}:
                seen.add(order.state)
                action.states.append((order.state, time.monotonic() - began))

    note(want.commands)
    async with asyncio.timeout(25), aclosing(twin.watch(resume_after=want.before)) as events:
        async for event in events:
            note(event.commands)
            converged = converged or event.converged(want)
            # The facts may meet the target a moment before the device says that it is done.
            if converged and (not want.commands or seen & {"SUCCEEDED", "FAILED", "EXPIRED", "CANCELLED"}):
                break
    action.delta_closed = "{}"
    action.seconds = time.monotonic() - began
    return action


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What the catch-up brought.

    Attributes:
        actions: every set-point that was sent.
        failures: plans that could not be made or carried out, in words.
    """

    actions: list[Action] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


async def play(
    mesh: Mesh,
    twin: Twin,
    *,
    state: Path,
    start: datetime,
    first: Decision,
    target: str,
    bar: Bar,
    story: Story,
    zone: str,
) -> Outcome:
    """Start the plant's process, carry out the first plan, look again every simulated hour, and wait for the end."""
    outcome = Outcome()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "twinmesh_demo.plant_process", "--state", str(state), "--target", target,
        "--leave-with-parent", stdin=asyncio.subprocess.PIPE,
    )  # fmt: skip
    controller = asyncio.create_task(_control(twin, start, first, outcome, bar, story, zone))
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        controller.cancel()
        await asyncio.gather(controller, return_exceptions=True)
    if process.returncode:
        outcome.failures.append(f"the plant's process ended with code {process.returncode}")
    return outcome


async def _control(
    twin: Twin, start: datetime, plan: Decision, outcome: Outcome, bar: Bar, story: Story, zone: str
) -> None:
    now, stage = start, await reported_stage(twin)
    replan_at = start + REPLAN
    if planned_stage(plan, now) == stage:
        story.say("act", f"{local(now, zone)}  T1 runs at stage {stage}, as planned: nothing to do yet")
    while True:
        wanted = planned_stage(plan, now)
        if wanted != stage:
            try:
                action = await act(twin, wanted, at=now)
                action.decision = plan
                outcome.actions.append(action)
                stage = wanted
                _tell(story, action, zone, first=len(outcome.actions) == 1)
            except (NotConverged, TwinmeshError, TimeoutError) as error:
                outcome.failures.append(f"{local(now, zone)}: {error}")
        await asyncio.sleep(0.2)
        now = await newest_time(twin) or now
        bar.move((now - start) / MINUTE, f"plant time {local(now, zone)}")
        if now >= replan_at:
            replan_at = now + REPLAN
            try:
                plan = await decide(twin, at=None)
            except TwinmeshError as error:
                outcome.failures.append(f"{local(now, zone)}: {error}")


def _tell(story: Story, action: Action, zone: str, *, first: bool) -> None:
    states = ", ".join(state for state, _ in action.states)
    story.say(
        "act" if first else "",
        f"{local(action.at, zone)}  T1 desired cooling_stage {action.stage} -> command {states} "
        f"{action.seconds:.1f} s; delta {action.delta_opened} -> {action.delta_closed}",
    )


def planned_stage(plan: Decision, moment: datetime) -> int:
    """Return what a plan says for a moment."""
    value = plan.best.steps[0][1]
    for start, stage in plan.best.steps:
        if start <= moment:
            value = stage
    return int(value)


async def reported_stage(twin: Twin) -> int:
    """Return the stage that the transformer reports."""
    value = (await twin.get()).reported[CONTROL].value
    return int(value) if isinstance(value, int | float) else 0


async def newest_time(twin: Twin) -> datetime | None:
    """Return the newest event time of the twin's replica."""
    replica = await twin.get()
    return max((v.event_time for v in replica.reported.items.values()), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Meters:
    """What the facts say of one transformer over the catch-up, from its own reported history."""

    peak_c: float
    peak_at: datetime
    fan_kwh: float
    life_used_h: float
    minutes_above_limit: int


async def meters(twin: Twin, start: datetime, end: datetime) -> Meters:
    """Return peak, fan energy and insulation life used, computed from the measurements that storage holds."""
    reading = await twin.read("hot_spot", "fan_power", start=start, end=end)
    hot, fan = reading["hot_spot"], reading["fan_power"]  # type: ignore[index]  # no `every`: rows, which are indexed by channel
    top = int(np.argmax(hot.values))
    return Meters(
        peak_c=float(hot.values[top]),
        peak_at=start + timedelta(microseconds=int(hot.time_unix_us[top] - hot.time_unix_us[0])),
        fan_kwh=float(fan.values.sum()) / 60,
        life_used_h=float(sum(ageing_rate(float(v)) for v in hot.values)) / 60,
        minutes_above_limit=int((hot.values > LIMIT_C).sum()),
    )


async def against_facts(twin: Twin, forecast: Forecast) -> tuple[float, float, int]:
    """Return a forecast's mean absolute error, the share of facts inside its outer quantiles, and the step count."""
    facts = await twin.read(
        forecast.channel,
        start=forecast.at,
        end=forecast.valid_until,
        every=forecast.step,
    )
    truth = facts.to_pandas()[forecast.channel].to_numpy()
    n = min(len(truth), len(forecast.values))
    truth = truth[:n]
    known = np.isfinite(truth)
    median = forecast.quantile(0.5)[:n]
    low, high = forecast.values[:n, 0], forecast.values[:n, -1]
    inside = (truth >= low) & (truth <= high)
    return (
        float(np.mean(np.abs(truth - median)[known])),
        float(np.mean(inside[known])),
        int(known.sum()),
    )
