"""The demo's twin types and twins."""

from __future__ import annotations

from typing import Final

from twinmesh_client.aio.mesh import Mesh
from twinmesh_client.aio.twin import Twin
from twinmesh_client.modelling import channel, command, twin_type
from twinmesh_connectors import host
from twinmesh_demo.thermal import LIMIT_C

TRANSFORMER: Final = twin_type(
    "transformer@1",
    [
        channel("load", "kW", every="1min", minimum=0.0, maximum=80_000.0, max_rate_per_s=400.0, tolerance=100.0),
        channel("ambient", "Cel", every="1min", minimum=-50.0, maximum=60.0, stuck_after="1h", tolerance=0.5),
        channel("oil", "Cel", every="1min", minimum=-40.0, maximum=140.0, spike_threshold=8.0, tolerance=0.5),
        channel(
            "hot_spot", "Cel", every="1min", minimum=-40.0, maximum=180.0, tolerance=0.5, upper_limit=LIMIT_C,
            description="Hot-spot temperature of the winding; normal ageing up to the limit",
        ),
        channel(
            "cooling_stage", kind="state", every="1min", minimum=0.0, maximum=3.0, controllable=True,
            set_command="set_cooling_stage", description="0 = natural circulation, 1 to 3 = banks of fans running",
        ),
        channel("fan_power", "kW", every="1min", minimum=0.0, maximum=20.0),
    ],
    commands=[command("set_cooling_stage", "value", description="Switches the fans; value = 0, 1, 2 or 3")],
    display_name="Power transformer",
)  # fmt: skip

FLEET: Final = ("T1", "T2")


async def create_host(mesh: Mesh, *, time_zone: str) -> Twin:
    """Create the twin of this machine."""
    await mesh.types.create(host.TYPE)
    return await mesh.twins.create(host.TWIN, type="host@1", time_zone=time_zone, if_absent=True)


async def create_fleet(mesh: Mesh, *, time_zone: str) -> dict[str, Twin]:
    """Create the two transformers."""
    await mesh.types.create(TRANSFORMER)
    return {
        name: await mesh.twins.create(
            name,
            type="transformer@1",
            time_zone=time_zone,
            attributes={"site": time_zone, "rated_kw": "40000"},
            if_absent=True,
        )
        for name in FLEET
    }
