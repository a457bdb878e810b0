"""Replicas kept current from the events of a watch: snapshot + events = replica, on the client's side."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Protocol, TypeVar

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import replica_pb2
from twinmesh_client.replicas import Position, Replica, replica

_GONE = frozenset({statesync_pb2.WATCH_EVENT_KIND_DELETED, statesync_pb2.WATCH_EVENT_KIND_LEFT})


class _OfChannel(Protocol):
    @property
    def channel(self) -> str: ...


ItemT = TypeVar("ItemT", bound=_OfChannel)


class ReplicaCache:
    """The replicas of the twins that a watch told of."""

    def __init__(self) -> None:
        self._replicas: dict[str, replica_pb2.Replica] = {}

    def clear(self) -> None:
        """Forget all."""
        self._replicas.clear()

    def drop(self, twin_id: str) -> None:
        """Forget one."""
        self._replicas.pop(twin_id, None)

    def take(self, event: statesync_pb2.WatchEvent) -> None:
        """Apply an event of a watch; one about a twin whose replica was never told changes nothing."""
        if event.kind in _GONE:
            self.drop(event.twin_id)
            return
        if event.HasField("replica"):
            kept = self._replicas[event.twin_id] = replica_pb2.Replica()
            kept.CopyFrom(event.replica)
        elif event.twin_id in self._replicas:
            kept = self._replicas[event.twin_id]
        else:
            return
        kept.revision, kept.offset = event.revision, event.offset
        if event.HasField("reported"):
            values = _merged(kept.reported.values, event.reported.values)
            kept.reported.CopyFrom(replica_pb2.ReportedFacet(revision=event.reported.revision, values=values))
        if event.HasField("desired"):
            targets = _merged(kept.desired.values, event.desired.values, event.desired.removed)
            # A revision of 0 says that only progress moved, which is no change of what is wanted.
            revision = event.desired.revision or kept.desired.revision
            kept.desired.CopyFrom(replica_pb2.DesiredFacet(revision=revision, values=targets))
        if event.HasField("predicted"):
            predictions = _merged(kept.predicted.predictions, event.predicted.predictions)
            kept.predicted.CopyFrom(
                replica_pb2.PredictedFacet(revision=event.predicted.revision, predictions=predictions)
            )
        if event.residuals:
            residuals = _merged(kept.residuals, event.residuals)
            del kept.residuals[:]
            kept.residuals.extend(residuals)
        if event.HasField("delta"):
            kept.delta.CopyFrom(event.delta)
        if event.connectivity:
            kept.connectivity = event.connectivity

    def replicas(self, as_of: Position) -> dict[str, Replica]:
        """Return what is known, by twin."""
        return {twin_id: replica(message, as_of) for twin_id, message in self._replicas.items()}


def _merged(kept: Iterable[ItemT], changed: Iterable[ItemT], removed: Iterable[str] = ()) -> list[ItemT]:
    gone = set(removed)
    items: dict[Hashable, ItemT] = {_key(item): item for item in kept if item.channel not in gone}
    items.update((_key(item), item) for item in changed)
    return list(items.values())


def _key(item: _OfChannel) -> Hashable:
    return (item.channel, getattr(item, "model_id", ""))
