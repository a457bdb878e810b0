"""A gateway that loses nothing: readings go to disk first, and to the mesh whenever it is there.

twinmesh up                  # in another terminal, now or later
python examples/gateway.py   # kill it, start it again, stop the mesh: every reading arrives once
"""

import math
import sys
import time
from pathlib import Path

import twinmesh_client as tm

SPOOL = Path(sys.argv[1] if len(sys.argv) > 1 else "gateway-spool")
READINGS = 200

with tm.open_writer("gateway-example", spool=SPOOL, spool_max_bytes=100_000_000) as writer:
    for i in range(READINGS):
        reading = 60 + 5 * math.sin(i / 20)
        taken = writer.observe("gateway-example", "temperature", reading, unit="Cel")
        time.sleep(0.005)
    print("on disk:", writer.sync(), "batches,", writer.spool_bytes, "bytes")
    print("in the mesh:", writer.durable, "batches;", "connected" if writer.connected else "the mesh is away")
