"""Frames of a watch: which changes pass a filter, joined from bytes that are encoded once for all watchers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import error_pb2
from twinmesh_core.registry import Twin
from twinmesh_runtime.registry_mapping import time_to_message
from twinmesh_statesync.domain.changes import Change, merge
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.ring import Ring, RingItem
from twinmesh_statesync.rpc.mapping.replicas import encode_event
from twinmesh_statesync.rpc.mapping.values import position_to_message

FRAME_CHANGES: Final = 1_000
"""Changes looked at for one frame; the rest follows in the next."""
FRAME_BYTES: Final = 1024 * 1024
"""A frame is closed at the first offset that begins beyond so many bytes."""
LATEST_CHANGES: Final = 10_000
"""The same for LATEST, which may merge that many into few events."""
_MAX_CACHED: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a watcher wants: these twins, or twins of this type, or all of the tenant."""

    twin_ids: frozenset[str] = frozenset()
    twin_type_id: str = ""

    def wants(self, twin: Twin) -> bool:
        """Whether a twin passes."""
        if self.twin_ids and twin.twin_id not in self.twin_ids:
            return False
        return self.twin_type_id in ("", twin.twin_type_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A piece of the changes as a watcher gets it.

    Attributes:
        body: the serialized WatchResponse; without events it is empty.
        end: index of the first change after it.
        through: the offset it leads to.
    """

    body: bytes
    end: int
    through: int


class Frames:
    """Makes frames; watchers with the same filter at the same place share one."""

    def __init__(self) -> None:
        self._cache: dict[tuple[str, int, Filter, int, int, bool], Frame] = {}

    def frame(self, ring: Ring, wanted: Filter, index: int, position: Position, *, latest: bool) -> Frame:
        """Return the next frame after `index`, which must be within the ring and before its end.

        Args:
            ring: the tenant's changes.
            wanted: which of them.
            index: where the watcher is.
            position: what the fold reflects now.
            latest: merge changes of one twin.
        """
        key = (position.incarnation, ring.number, wanted, index, ring.end, latest)
        known = self._cache.get(key)
        if known is not None:
            return known
        items = ring.read(index, LATEST_CHANGES if latest else FRAME_CHANGES)
        if latest:
            parts = _merged([item for item in items if wanted.wants(item.change.twin)])
        else:
            items, parts = _fitting(items, wanted)
        end = index + len(items)
        through = position.offset if end == ring.end else items[-1].change.offset
        if parts:
            parts.append(bookmark(Position(incarnation=position.incarnation, offset=through)))
        made = Frame(body=b"".join(parts), end=end, through=through)
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[key] = made
        return made


def bookmark(
    position: Position,
    *,
    synced: bool = False,
    compacted_to: int = 0,
    server_time_unix_us: int = 0,
    entries_behind: int = 0,
) -> bytes:
    """Return a WatchResponse without events; joined to events it completes their frame."""
    response = statesync_pb2.WatchResponse(
        through=position_to_message(position), synced=synced, compacted_to=compacted_to, entries_behind=entries_behind
    )
    if server_time_unix_us:
        response.server_time.CopyFrom(time_to_message(server_time_unix_us))
    return response.SerializeToString()


def reset(position: Position, reason: str) -> bytes:
    """Return the frame that tells a watcher to forget everything: it leads to no position, a snapshot follows."""
    event = statesync_pb2.WatchEvent(
        offset=position.offset,
        kind=statesync_pb2.WATCH_EVENT_KIND_RESET,
        reset_reason=error_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}"),
    )
    return statesync_pb2.WatchResponse(events=[event]).SerializeToString()


def encoded(item: RingItem) -> bytes:
    """Return the bytes of a change, made when first asked for."""
    if item.encoded is None:
        item.encoded = encode_event(item.change)
    return item.encoded


def _fitting(items: list[RingItem], wanted: Filter) -> tuple[list[RingItem], list[bytes]]:
    """Return as many changes as fit into one frame, whole offsets only, and the bytes of those that pass."""
    parts: list[bytes] = []
    size = 0
    for count, item in enumerate(items):
        if size > FRAME_BYTES and item.change.offset != items[count - 1].change.offset:
            return items[:count], parts
        if wanted.wants(item.change.twin):
            parts.append(encoded(item))
            size += len(parts[-1])
    return items, parts


def _merged(items: list[RingItem]) -> list[bytes]:
    single: dict[str, RingItem] = {}
    merged: dict[str, Change] = {}
    for item in items:
        twin_id = item.change.twin.twin_id
        earlier = merged.pop(twin_id, None)
        first = single.pop(twin_id, None)
        before = earlier if earlier is not None else first.change if first is not None else None
        if before is None:
            single[twin_id] = item
        else:
            merged[twin_id] = merge(before, item.change)
    events = [(item.change.offset, encoded(item)) for item in single.values()]
    events += [(change.offset, encode_event(change)) for change in merged.values()]
    return [event for _, event in sorted(events, key=lambda pair: pair[0])]
