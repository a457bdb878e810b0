"""Ask a running service for its health from a shell: what a container's health check calls.

    python -m twinmesh_runtime.probe 127.0.0.1:7401 ready

Exit codes: 0 when the name is serving, 1 when it is not or nobody answers in time, 2 when called wrongly.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S: Final = 3.0
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING


def main(arguments: Sequence[str]) -> int:
    """Probe the target and the name given as arguments; the exit code."""
    if len(arguments) != 2:
        print("usage: python -m twinmesh_runtime.probe HOST:PORT live|ready", file=sys.stderr)  # noqa: T201
        return 2
    target, name = arguments
    with grpc.insecure_channel(target) as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its published types know no method
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            print(f"{target} {name}: {error.code().name}", file=sys.stderr)  # noqa: T201
            return 1
    return 0 if answer.status == _SERVING else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
