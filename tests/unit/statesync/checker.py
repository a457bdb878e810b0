"""Checks one watcher's whole history: ordered, unique, gap-free, atomic, and equal to the replica at its end."""

from __future__ import annotations

from typing import Any

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import replica_pb2

_MAY_JUMP = (statesync_pb2.WATCH_EVENT_KIND_ERASED, statesync_pb2.WATCH_EVENT_KIND_DELETED)


class WatchChecker:
    """Takes frames in the order received; raises AssertionError at the first one that breaks a promise."""

    def __init__(self) -> None:
        self.model: dict[str, replica_pb2.Replica] = {}
        self.revisions: dict[str, int] = {}
        self.through = -1
        self.synced = False

    def copy(self) -> WatchChecker:
        other = WatchChecker()
        for twin_id, replica in self.model.items():
            other.model[twin_id] = replica_pb2.Replica()
            other.model[twin_id].CopyFrom(replica)
        other.revisions = dict(self.revisions)
        other.through = self.through
        other.synced = self.synced
        return other

    def take(self, frame: statesync_pb2.WatchResponse) -> None:
        last = self.through
        for event in frame.events:
            if event.kind == statesync_pb2.WATCH_EVENT_KIND_SNAPSHOT:
                assert not self.synced, "a snapshot after SYNCED"
                assert event.twin_id not in self.model, "a twin twice in one snapshot"
            else:
                assert self.synced, "a change before SYNCED"
                assert event.offset > self.through, "an offset that was told already, or cut in two frames"
                assert event.offset >= last, "out of order"
                last = event.offset
                self._check_revision(event)
            self._apply(event)
        if frame.HasField("through"):
            assert last <= frame.through.offset, "an event beyond the position of its frame"
            assert frame.through.offset >= self.through, "the position went back"
            self.through = frame.through.offset
        self.synced = self.synced or frame.synced

    def _check_revision(self, event: statesync_pb2.WatchEvent) -> None:
        known = self.revisions.get(event.twin_id)
        if known is None:
            # LATEST may merge a creation and a deletion into the deletion alone.
            swallowed = event.kind == statesync_pb2.WATCH_EVENT_KIND_DELETED and event.merged_count
            assert event.kind == statesync_pb2.WATCH_EVENT_KIND_CREATED or swallowed, "a change of a twin never told"
        else:
            assert event.previous_revision == known, f"{event.twin_id}: {known} then {event.previous_revision}"
        steps = event.revision - event.previous_revision
        # After an erasure revisions go on from its offset; a deleted twin that is erased is told deleted again.
        jumped = event.revision == event.offset and event.kind in _MAY_JUMP
        assert steps == event.merged_count + 1 or (jumped and steps > 0), "merged changes are not counted"

    def _apply(self, event: statesync_pb2.WatchEvent) -> None:
        self.revisions[event.twin_id] = event.revision
        if event.kind == statesync_pb2.WATCH_EVENT_KIND_DELETED:
            self.model.pop(event.twin_id, None)
            return
        if event.HasField("replica"):
            self.model[event.twin_id] = replica_pb2.Replica()
            self.model[event.twin_id].CopyFrom(event.replica)
        model = self.model[event.twin_id]
        model.revision, model.offset = event.revision, event.offset
        _merge(model.reported, event, "reported", lambda v: v.channel, "values", [])
        _merge(model.desired, event, "desired", lambda v: v.channel, "values", list(event.desired.removed))
        _merge(model.predicted, event, "predicted", lambda p: (p.channel, p.model_id), "predictions", [])
        if event.HasField("delta"):
            model.delta.CopyFrom(event.delta)
        if event.connectivity:
            model.connectivity = event.connectivity


def _merge(facet: Any, event: Any, field: str, key: Any, items: str, removed: list[str]) -> None:
    if not event.HasField(field):
        return
    change = getattr(event, field)
    kept = {key(item): item for item in getattr(facet, items) if key(item) not in removed}
    kept.update((key(item), item) for item in getattr(change, items))
    merged = [kept[name] for name in sorted(kept)]
    facet_copy = type(facet)(revision=change.revision)
    getattr(facet_copy, items).extend(merged)
    facet.CopyFrom(facet_copy)


def normal(replica: replica_pb2.Replica) -> Any:
    """Return a replica in a form that does not depend on the order of its parts."""
    return (
        replica.twin.twin_id,
        replica.revision,
        replica.offset,
        replica.reported.revision,
        sorted(v.SerializeToString(deterministic=True) for v in replica.reported.values),
        replica.desired.revision,
        sorted(v.SerializeToString(deterministic=True) for v in replica.desired.values),
        replica.predicted.revision,
        sorted(p.SerializeToString(deterministic=True) for p in replica.predicted.predictions),
        replica.delta.SerializeToString(deterministic=True),
        replica.connectivity,
    )
