"""Verifying replicas: each process of state-sync by itself, and all of them against one another."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.statesync.v1.statesync_pb2_grpc import ReplicaServiceStub
from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.aio.connection import Connection
from twinmesh_client.transport import call, open_channel, stream
from twinmesh_client.verification import ReplicaVerification, verification
from twinmesh_core.errors import DataLoss, DeadlineExceeded, InvalidArgument

_RATE_S: Final = 0.5
_ATTEMPTS: Final = 5


async def verify_replicas(
    connection: Connection, *, from_checkpoint: bool, patience_s: float
) -> tuple[ReplicaVerification, ...]:
    """Verify every process at one offset: the head if the log rests, else one that it will reach in a moment."""
    endpoints = await servers_of(connection.endpoints["statesync"])
    for attempt in range(_ATTEMPTS):
        before = await _head(connection)
        await asyncio.sleep(_RATE_S)
        now = await _head(connection)
        # A second's worth of entries ahead, and more with each attempt: every process must get the question before.
        at_offset = now + (now - before) * 2 * (attempt + 1)
        request = statesync_pb2.VerifyReplicasRequest(at_offset=at_offset, from_checkpoint=from_checkpoint)
        answers = await asyncio.gather(
            *(_verify(endpoint, request, patience_s) for endpoint in endpoints), return_exceptions=True
        )
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        if not failures:
            return tuple(answer for answer in answers if not isinstance(answer, BaseException))
        # Passed before it was asked for, or not reached because the load ended: look at the head again.
        mended = all(isinstance(failure, InvalidArgument | DeadlineExceeded) for failure in failures)
        if not mended or attempt + 1 == _ATTEMPTS:
            raise failures[0]
    raise AssertionError("the last attempt raises")


async def servers_of(target: str) -> tuple[str, ...]:
    """Return ``host:port`` of every process behind a target: parts of a list, or addresses of a name."""
    parts = [part.strip() for part in target.rpartition(":///")[2].split(",")]
    if len(parts) > 1:
        return tuple(parts)
    host, _, port = parts[0].rpartition(":")
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    hosts = dict.fromkeys(str(address[0]) for *_, address in found)
    return tuple(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts)


async def _head(connection: Connection) -> int:
    answer = await call(connection.storage.GetHead, storage_pb2.GetHeadRequest(), timeout_s=connection.timeout_s)
    return int(answer.position.offset)


async def _verify(
    endpoint: str, request: statesync_pb2.VerifyReplicasRequest, patience_s: float
) -> ReplicaVerification:
    async with open_channel(endpoint) as channel:
        async for message in stream(ReplicaServiceStub(channel).VerifyReplicas, request, timeout_s=patience_s):
            if message.done:
                return verification(endpoint, message)
    raise DataLoss(f"The verification at {endpoint} ended without a result.")
