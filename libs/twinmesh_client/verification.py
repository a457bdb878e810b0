"""What a verification of replicas says, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_client.replicas import Position, position


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaDifference:
    """A twin whose replica is not what the log says; revision 0 = it is not there."""

    twin_id: str
    revision: int
    expected_revision: int
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaVerification:
    """The replicas of one process beside the log folded anew.

    Attributes:
        endpoint: ``host:port`` of the process.
        at: where both were compared.
        start_offset: where the new fold began; 0 = at the beginning of the log, else at a checkpoint.
        digest: of everything compared, hex.
        twin_count: twins compared, tombstones included.
        difference_count: twins that differ.
        differences: the first of them.
        registry_equal: whether twin types and remembered verdicts are equal.
        shards: digest (hex) by shard.
    """

    endpoint: str
    at: Position
    start_offset: int
    digest: str
    twin_count: int
    difference_count: int
    differences: tuple[ReplicaDifference, ...]
    registry_equal: bool
    shards: Mapping[int, str]

    @property
    def equal(self) -> bool:
        """Whether this process' replicas are what the log says."""
        return not self.difference_count and self.registry_equal


def verification(endpoint: str, message: statesync_pb2.VerifyReplicasResponse) -> ReplicaVerification:
    """Return the result that a last message carries."""
    return ReplicaVerification(
        endpoint=endpoint,
        at=position(message.at),
        start_offset=message.start_offset,
        digest=message.digest.hex(),
        twin_count=message.twin_count,
        difference_count=message.difference_count,
        differences=tuple(
            ReplicaDifference(
                twin_id=d.twin_id, revision=d.revision, expected_revision=d.expected_revision, parts=tuple(d.parts)
            )
            for d in message.differences
        ),
        registry_equal=message.registry_equal,
        shards={shard.shard: shard.digest.hex() for shard in message.shards},
    )


def disagreeing_shards(found: Sequence[ReplicaVerification]) -> tuple[int, ...]:
    """Return the shards in which processes that were compared at one offset differ from one another."""
    comparable = [one for one in found if one.at == found[0].at]
    numbers = {shard for one in comparable for shard in one.shards}
    return tuple(sorted(n for n in numbers if len({one.shards.get(n) for one in comparable}) > 1))
