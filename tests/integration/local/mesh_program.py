"""A program that runs a local mesh: prints its facts when it is ready, then waits to be ended.

``python mesh_program.py DATA_DIR real|fake|fake-with-triton``
"""

import asyncio
import json
import sys
from pathlib import Path

from twinmesh_local import LocalMesh
from twinmesh_local.services import python_module

FAKE = str(Path(__file__).with_name("fake_service.py"))


async def main() -> None:
    kind = sys.argv[2]
    async with LocalMesh(
        data_dir=Path(sys.argv[1]),
        with_triton=kind != "fake",
        command=python_module if kind == "real" else lambda token: (sys.executable, FAKE, token),
    ) as mesh:
        facts = {
            "guardian": mesh._guardian.pid if mesh._guardian else 0,
            "pids": [s.pid for s in mesh.status()],
            "ports": [int(s.endpoint.rpartition(":")[2]) for s in mesh.status()],
        }
        print(json.dumps(facts), flush=True)
        await asyncio.sleep(600)


asyncio.run(main())
