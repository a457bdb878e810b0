"""What a device misses while it is away, and how it catches up: prints a transcript with offsets, revisions and states.

twinmesh up                          # in another terminal; or set TWINMESH_TARGET=host:7400
python examples/device_offline.py
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from uuid import uuid4

import twinmesh_client as tm
from twinmesh_client.aio.device import Device
from twinmesh_client.aio.mesh import Mesh
from twinmesh_client.aio.twin import Twin
from twinmesh_client.replicas import WatchEvent

VALVE = tm.twin_type(
    "valve@1",
    [
        tm.channel("position", "%", minimum=0, maximum=100, tolerance=0.5, controllable=True, every="1s"),
        tm.channel("pressure", "bar", every="1s"),
    ],
    commands=[tm.command("flush"), tm.command("close")],
)


def valve(mesh: Mesh, twin_id: str) -> Device:
    """Return the device side of a valve: every start is a new connection of the same device."""
    device = mesh.device(twin_id)

    @device.on_desired("position")
    async def move(want: tm.Target) -> float:
        print(f"  device    obeys  position = {want.value:g} %   (set at offset {want.offset})")
        await asyncio.sleep(0.2)
        return float(want.value)

    @device.on_command("flush")
    async def flush(order: tm.Order) -> dict[str, float]:
        print(f"  device    does   {order.name}             (queued at offset {order.command.create_offset})")
        order.progress(50, "valve open")
        await asyncio.sleep(0.7)
        return {"litres": 4.2}

    @device.on_command("close")
    async def close(order: tm.Order) -> str:
        print(f"  device    does   {order.name}             (queued at offset {order.command.create_offset})")
        return "closed"

    return device


def tell(event: WatchEvent) -> None:
    """Print what a watcher is told."""
    said = []
    if event.connectivity:
        said.append(event.connectivity)
    said += [f"reported {c} = {v.value:g}" for c, v in event.reported.items() if c == "position"]
    said += [f"desired {c} = {v.value:g} {v.state}" for c, v in event.desired.items()]
    for command in event.commands:
        progress = f" {command.progress_percent:g} %" if command.progress_percent is not None else ""
        result = f" {dict(command.result)}" if command.result else ""
        said.append(f"command {command.name} {command.state}{progress}{result}")
    if event.delta is not None:
        said.append(f"delta {dict(event.delta)}" if event.delta else "delta empty: in sync")
    if said:
        print(f"  offset {event.offset:>5}  revision {event.revision:>3}  {'; '.join(said)}")


async def follow(twin: Twin, until: asyncio.Event) -> None:
    """Print the twin's changes, and notice when the last command has ended and all is in sync."""
    open_commands: set[str] = set()
    in_sync = True
    async with aclosing(twin.watch()) as events:
        async for event in events:
            tell(event)
            for command in event.commands:
                (open_commands.discard if command.ended else open_commands.add)(command.command_id)
            in_sync = in_sync if event.delta is None else not event.delta
            if in_sync and not open_commands:
                until.set()
            else:
                until.clear()


async def reporting(device: Device) -> None:
    """Report the pressure, as any device does."""
    while True:
        await device.report({"pressure": 3.0})
        await asyncio.sleep(0.5)


async def main() -> None:
    """Play the story against the mesh of the saved context."""
    async with tm.connect_async() as mesh:
        await mesh.types.create(VALVE)
        twin = await mesh.twins.create(f"valve-{uuid4().hex[:6]}", type="valve@1")
        calm = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(follow(twin, calm))

            print("\n1. The device is connected, and obeys.")
            async with valve(mesh, twin.twin_id) as device:
                beat = group.create_task(reporting(device))
                await asyncio.sleep(1.2)
                await twin.set_desired({"position": 20.0})
                await asyncio.sleep(0.3)
                await asyncio.wait_for(calm.wait(), 20)
                beat.cancel()

            print("\n2. It goes away: the server notices that nothing arrives.")
            async with aclosing(twin.watch()) as events:
                async for event in events:
                    if event.connectivity == "STALE":
                        break

            print("\n3. Meanwhile two commands and a new target.")
            await twin.send_command("flush", time_to_live="10min")
            await twin.set_desired({"position": 65.0}, deadline="10min")
            await twin.send_command("close", time_to_live="10min")
            await asyncio.sleep(0.5)

            print("\n4. It comes back, and takes what it missed in the order in which it was decided.")
            async with valve(mesh, twin.twin_id) as device:
                beat = group.create_task(reporting(device))
                await asyncio.wait_for(calm.wait(), 30)
                beat.cancel()
            await asyncio.sleep(0.3)
            watching.cancel()

        replica = await twin.get()
        position = replica.desired["position"]
        print(f"\nIn the end: position {position.state}, first met {position.first_met:%H:%M:%S}, ", end="")
        print(f"{replica.connectivity}, delta {dict(replica.delta)}")


if __name__ == "__main__":
    asyncio.run(main())
