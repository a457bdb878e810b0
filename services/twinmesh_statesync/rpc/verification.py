"""VerifyReplicas: the replicas of this process against the log folded anew."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_core.errors import invalid_field
from twinmesh_statesync.domain.verification import Progress, Verified, Verifier
from twinmesh_statesync.domain.writer import time_left_s
from twinmesh_statesync.rpc.mapping.values import position_to_message
from twinmesh_statesync.rpc.reading import Reading

DEFAULT_DIFFERENCES: Final = 100
MAX_DIFFERENCES: Final = 1_000
_REACH_S: Final = 30.0
"""Longest wait for the log to reach the offset asked for."""


async def verify(
    verifier: Verifier, reading: Reading, tenant: str, request: statesync_pb2.VerifyReplicasRequest
) -> AsyncGenerator[statesync_pb2.VerifyReplicasResponse, None]:
    """Yield progress and the result; raises what `Verifier.verify` raises."""
    if request.at_offset < 0:
        raise invalid_field("at_offset", "must be the offset of an entry, or 0 for the present")
    if not 0 <= request.max_differences <= MAX_DIFFERENCES:
        raise invalid_field("max_differences", f"must be 1 to {MAX_DIFFERENCES:,}, or 0 for {DEFAULT_DIFFERENCES}")
    await reading.live.check()
    steps = verifier.verify(
        tenant,
        at_offset=request.at_offset,
        from_checkpoint=request.from_checkpoint,
        max_differences=request.max_differences or DEFAULT_DIFFERENCES,
        timeout_s=min(_REACH_S, time_left_s()),
    )
    async with aclosing(steps):
        async for step in steps:
            yield _message(tenant, step)


def _message(tenant: str, step: Progress) -> statesync_pb2.VerifyReplicasResponse:
    message = statesync_pb2.VerifyReplicasResponse(
        at=position_to_message(step.at), start_offset=step.start_offset, folded_through=step.folded_through
    )
    if isinstance(step, Verified):
        message.done = True
        message.digest = step.digests.whole()
        message.twin_count = len(step.digests.by_twin)
        message.difference_count = step.difference_count
        message.registry_equal = step.registry_equal
        for difference in step.differences:
            message.differences.add(
                twin_id=difference.twin_id,
                revision=difference.revision,
                expected_revision=difference.expected_revision,
                parts=difference.parts,
            )
        for shard, (count, digest) in step.digests.shards(tenant).items():
            message.shards.add(shard=shard, twin_count=count, digest=digest)
    return message
