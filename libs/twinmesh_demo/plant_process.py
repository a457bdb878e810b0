"""The plant, outside the mesh: ``python -m twinmesh_demo.plant_process --state FILE``.

It knows the public API and nothing else: it reports what its sensors say, once per simulated minute, and T1 obeys the
commands that it is sent; T2 has its own thermostat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from twinmesh_client import Order, Refused
from twinmesh_client.aio.device import Device
from twinmesh_client.aio.mesh import Mesh, connect_async
from twinmesh_core.time import from_datetime
from twinmesh_demo.plant import MINUTE, Transformer, World, build_world, sense
from twinmesh_demo.recorded import CHANNELS, to_batch
from twinmesh_demo.thermal import STAGES

REPORT_EVERY = 2
"""Simulated minutes per message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """What the plant plays: from `start` on, `speed` times faster than the clock, for `minutes`."""

    start: datetime
    minutes: int
    speed: float
    seed: int
    world: World
    transformers: dict[str, Transformer]


def load_play(path: Path) -> Play:
    """Read the state file that the demo wrote at the end of the recorded past."""
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    transformers = {t["twin_id"]: Transformer.from_json(t) for t in state["transformers"]}
    for name in state["obeying"]:
        transformers[name].obeys = True
    world = build_world(
        datetime.fromisoformat(state["world_start"]),
        state["world_minutes"],
        zone=state["zone"],
        heat_from=datetime.fromisoformat(state["heat_from"]),
        seed=state["seed"],
    )
    return Play(
        start=datetime.fromisoformat(state["start"]),
        minutes=state["minutes"],
        speed=state["speed"],
        seed=state["seed"],
        world=world,
        transformers=transformers,
    )


async def run(play: Play, mesh: Mesh) -> None:
    """Play to the end; whoever wants to know what happened asks the mesh."""

    device = mesh.device(list(play.transformers), producer_id="demo-plant-live")

    @device.on_command("set_cooling_stage")
    async def set_stage(order: Order) -> str:
        stage = order.args.get("value")
        transformer = play.transformers[order.twin_id]
        if not transformer.obeys:
            raise Refused("its own thermostat decides")
        if stage not in STAGES:
            raise Refused(f"there is no cooling stage {stage}")
        transformer.stage = int(stage)
        return f"stage {stage}"

    async with device:
        await _play(play, device)
        # The last orders may still be under way; a device does not leave in the middle of one.
        await asyncio.sleep(0.2)


async def _play(play: Play, device: Device) -> None:
    rng = np.random.default_rng(play.seed + 1_000)
    first = play.world.index(play.start)
    loop = asyncio.get_running_loop()
    began = loop.time()
    pending: dict[str, list[list[float]]] = {name: [] for name in play.transformers}
    times: list[datetime] = []
    for minute in range(play.minutes):
        due = began + minute * 60 / play.speed
        await asyncio.sleep(max(0.0, due - loop.time()))
        load, ambient = float(play.world.load[first + minute]), float(play.world.ambient_c[first + minute])
        for name, transformer in play.transformers.items():
            reading = sense(rng, transformer.minute(load, ambient))
            pending[name].append([reading[c] for c in CHANNELS])
        times.append(play.start + minute * MINUTE)
        if len(times) == REPORT_EVERY or minute == play.minutes - 1:
            stamps = np.array([from_datetime(t) for t in times], np.int64)
            for name, rows in pending.items():
                await device.report_batch(to_batch(name, stamps, np.array(rows)))
                rows.clear()
            times.clear()
    await device.flush()


def write_play(
    path: Path,
    *,
    world: World,
    zone: str,
    heat_from: datetime,
    seed: int,
    start: datetime,
    minutes: int,
    speed: float,
    transformers: list[Transformer],
    obeying: list[str],
) -> None:
    """Write the state file from which the plant goes on."""
    state = {
        "world_start": world.start.isoformat(),
        "world_minutes": len(world),
        "zone": zone,
        "heat_from": heat_from.isoformat(),
        "seed": seed,
        "start": start.isoformat(),
        "minutes": minutes,
        "speed": speed,
        "transformers": [t.to_json() for t in transformers],
        "obeying": obeying,
    }
    path.write_text(json.dumps(state, indent=1), encoding="utf-8")


async def _main(path: Path, target: str | None, *, leave_with_parent: bool) -> None:
    play = asyncio.create_task(_connect_and_run(path, target))
    waits = {play}
    if leave_with_parent:
        waits.add(asyncio.create_task(_until_stdin_closes()))
    _, left = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    if play not in left:
        play.result()


async def _connect_and_run(path: Path, target: str | None) -> None:
    async with connect_async(target) as mesh:
        await run(load_play(path), mesh)


async def _until_stdin_closes() -> None:
    """Return when whoever started this process is gone, however it ended: its end of the pipe closes with it."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def main() -> int:
    """Run the plant; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m twinmesh_demo.plant_process", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="state file written by the demo")
    parser.add_argument("--target", help="any service of the mesh; default: the saved context")
    parser.add_argument("--leave-with-parent", action="store_true", help="end when standard input closes")
    arguments = parser.parse_args()
    asyncio.run(_main(arguments.state, arguments.target, leave_with_parent=arguments.leave_with_parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
