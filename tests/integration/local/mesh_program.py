"""A program that runs a local mesh of fake services: says ``ready`` and the facts, then waits to be ended.

``python mesh_program.py DATA_DIR triton|no-triton``
"""

import asyncio
import json
import sys
from pathlib import Path

from twinmesh_local import LocalMesh

FAKE = str(Path(__file__).with_name("fake_service.py"))


async def main() -> None:
    async with LocalMesh(
        data_dir=Path(sys.argv[1]),
        with_triton=sys.argv[2] == "triton",
        command=lambda token: (sys.executable, FAKE, token),
    ) as mesh:
        facts = {
            "guardian": mesh._guardian.pid if mesh._guardian else 0,
            "pids": [s.pid for s in mesh.status()],
            "ports": [int(s.endpoint.rpartition(":")[2]) for s in mesh.status()],
        }
        print(json.dumps(facts), flush=True)
        await asyncio.sleep(600)


asyncio.run(main())
