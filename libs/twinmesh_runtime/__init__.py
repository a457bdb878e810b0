"""How a Twinmesh service runs, so that each service's folder holds only what is particular to it.

A service composes a `service.Service` from its settings and hands it to `service.run`; from here it gets its settings
from the environment, the gRPC server with bounds and deadlines, the caller's identity, errors as ``google.rpc.Status``,
health, reflection, the mesh's endpoints, metrics, structured logs, and a drain that fails no call.
"""

import os

# gRPC's core writes notices of every connection to standard error; it reads this once, when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
