"""Frames of a watch: what an audience is told, joined from bytes that are encoded once for all of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import error_pb2
from twinmesh_runtime.registry_mapping import time_to_message
from twinmesh_statesync.domain.changes import Change, merge, without_facets
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.interest import Interest
from twinmesh_statesync.domain.mask import Mask
from twinmesh_statesync.domain.ring import Ring, RingItem
from twinmesh_statesync.domain.version import TwinVersion
from twinmesh_statesync.rpc.audience import Audience, Told
from twinmesh_statesync.rpc.mapping.replicas import encode_event, snapshot_change, with_previous
from twinmesh_statesync.rpc.mapping.values import position_to_message

FRAME_CHANGES: Final = 1_000
"""Changes looked at for one frame; the rest follows in the next."""
FRAME_BYTES: Final = 1024 * 1024
"""A frame is closed at the first offset that begins beyond so many bytes."""
LATEST_CHANGES: Final = 10_000
"""The same for LATEST, which may merge that many into few events."""
_Key = tuple[str, int, int, int, int, bool]
_MAX_CACHED: Final = 512
_MAX_CACHED_BYTES: Final = 32 * 1024 * 1024
_SNAPSHOT_BYTES: Final = 1_000
"""Rough cost of a snapshot's event beside its bytes: its key, and the version of the twin that it holds on to."""


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
    """Makes frames; watchers of one audience at the same place share one."""

    def __init__(self) -> None:
        self._cache: dict[_Key, Frame] = {}
        self._bytes = 0

    def frame(
        self, audience: Audience, index: int, position: Position, *, latest: bool, replayed: Ring | None = None
    ) -> Frame:
        """Return the next frame after `index`, which must not be lost, and before the ring's end.

        Args:
            audience: whose.
            index: where the watcher is.
            replayed: the changes it reads, if not those that the audience hears.
            position: what the fold reflects now.
            latest: merge changes of one twin.
        """
        ring = audience.ring if replayed is None else replayed
        key = (position.incarnation, ring.number, audience.number, index, ring.end, latest)
        known = self._cache.get(key)
        if known is not None:
            return known
        made = None if latest or not audience.plain else _whole(ring, index, position)
        made = made or self._made(audience, ring, index, position, latest=latest, replayed=replayed is not None)
        if audience.size > 1:
            self._keep(key, made)
        return made

    def _made(
        self, audience: Audience, ring: Ring, index: int, position: Position, *, latest: bool, replayed: bool
    ) -> Frame:
        limit = LATEST_CHANGES if latest else FRAME_CHANGES
        if replayed or audience.plain:
            made = _scanned(audience, ring, index, ring.end, limit, position)
        elif index < audience.since:
            made = _scanned(audience, ring, index, audience.since, limit, position)
        else:
            made = _heard(audience, index, limit, position)
        return made.merged(audience.interest) if latest else made.fitting()

    def clear(self) -> None:
        """Forget every frame: something told in one was erased."""
        self._cache.clear()
        self._bytes = 0

    def _keep(self, key: _Key, made: Frame) -> None:
        if len(self._cache) >= _MAX_CACHED or self._bytes > _MAX_CACHED_BYTES:
            self.clear()
        self._cache[key] = made
        self._bytes += len(made.body)


class Snapshots:
    """Makes the events that tell twins as they are; all watchers that begin at the same version share one."""

    def __init__(self) -> None:
        self._events: dict[tuple[str, str, Mask], tuple[TwinVersion, bytes]] = {}
        self._bytes = 0

    def event(self, tenant: str, version: TwinVersion, mask: Mask, *, current: bool) -> bytes:
        """Return what a snapshot tells of a twin, as one `events` field of a WatchResponse.

        Args:
            tenant: whose.
            version: the twin as it is told.
            mask: the parts told.
            current: it still is so; what has changed meanwhile, or was erased, is not kept.
        """
        key = (tenant, version.twin.twin_id, mask)
        known = self._events.get(key)
        if known is not None and known[0] is version:
            return known[1]
        change = snapshot_change(tenant, mask.cut_twin(version.twin), mask.cut_replica(version.replica))
        made = encode_event(change)
        if current:
            self._bytes += _weight(made) - (0 if known is None else _weight(known[1]))
            if self._bytes > _MAX_CACHED_BYTES:
                self.clear()
                self._bytes = _weight(made)
            self._events[key] = (version, made)
        return made

    def clear(self) -> None:
        """Forget every event: something told in one was erased."""
        self._events.clear()
        self._bytes = 0


def _weight(event: bytes) -> int:
    return _SNAPSHOT_BYTES + len(event)


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


@dataclass(slots=True, kw_only=True)
class _Piece:
    """What is told up to index `end`, which leads to offset `through`."""

    told: list[Told]
    end: int
    through: int
    incarnation: str

    def fitting(self) -> Frame:
        """Return as much of it as fits into one frame, whole offsets only."""
        parts: list[bytes] = []
        size = 0
        for count, told in enumerate(self.told):
            if size > FRAME_BYTES and told.change.offset != self.told[count - 1].change.offset:
                last = self.told[count - 1]
                return self._frame(parts, last.index + 1, last.change.offset)
            parts.append(_event(told))
            size += len(parts[-1])
        return self._frame(parts, self.end, self.through)

    def merged(self, interest: Interest) -> Frame:
        """Return it with one event per twin."""
        latest: dict[str, tuple[Told, Change]] = {}
        for told in self.told:
            twin_id = told.change.twin.twin_id
            earlier = latest.pop(twin_id, None)
            if earlier is None:
                latest[twin_id] = (told, told.change)
            else:
                latest[twin_id] = (earlier[0], _renewed(merge(earlier[1], told.change), interest))
        events = [(change.offset, _event(first, change)) for first, change in latest.values()]
        parts = [event for _, event in sorted(events, key=lambda pair: pair[0])]
        return self._frame(parts, self.end, self.through)

    def _frame(self, parts: list[bytes], end: int, through: int) -> Frame:
        return _joined(parts, end, Position(incarnation=self.incarnation, offset=through))


def _joined(events: list[bytes], end: int, through: Position) -> Frame:
    parts = [*events, bookmark(through)] if events else []
    return Frame(body=b"".join(parts), end=end, through=through.offset)


def _whole(ring: Ring, index: int, position: Position) -> Frame | None:
    """Return a frame of every change as it is; None if they are too large for one."""
    items = ring.read(index, FRAME_CHANGES)
    events = [item.event or _item_event(item) for item in items]
    if sum(map(len, events)) > FRAME_BYTES:
        return None
    end = index + len(items)
    through = position if end == ring.end else replace(position, offset=items[-1].change.offset)
    return _joined(events, end, through)


def _scanned(audience: Audience, ring: Ring, index: int, until: int, limit: int, position: Position) -> _Piece:
    """Judge changes as they lie in a ring: for those who want all, in a replay, and up to where the audience heard."""
    interest = audience.interest
    items = ring.read(index, min(limit, until - index))
    end = index + len(items)
    through = position.offset if end == ring.end else items[-1].change.offset
    if interest.plain:
        told = [Told(at, item, item.change, 0) for at, item in enumerate(items, index)]
        return _Piece(told=told, end=end, through=through, incarnation=position.incarnation)
    told = []
    # Who is here knows everything up to the change before: that is the earliest offset it can be asked to know.
    start = ring.offset_before(index)
    last: dict[str, int] = {}
    for at, item in enumerate(items, index):
        change = audience.judge.told(item.change)
        if change is not None:
            twin_id = change.twin.twin_id
            told.append(Told(at, item, change, last.get(twin_id, start) if interest.chosen else 0))
            last[twin_id] = change.offset
    return _Piece(told=told, end=end, through=through, incarnation=position.incarnation)


def _heard(audience: Audience, index: int, limit: int, position: Position) -> _Piece:
    """Take what the audience has heard."""
    told = audience.read(index, limit)
    if not told or not audience.behind(told[-1].index + 1):
        return _Piece(told=told, end=audience.ring.end, through=position.offset, incarnation=position.incarnation)
    last = told[-1]
    return _Piece(told=told, end=last.index + 1, through=last.change.offset, incarnation=position.incarnation)


def _renewed(change: Change, interest: Interest) -> Change:
    """Return a merged change that begins with a whole replica with the newest one, and nothing beside it."""
    if change.replica is None or change.after is None:
        return change
    return replace(without_facets(change), replica=interest.mask.cut_replica(change.after.replica))


def _event(told: Told, merged: Change | None = None) -> bytes:
    """Return an event's bytes, made when first asked for: per change, or per audience where it is told otherwise."""
    if merged is not None and merged is not told.change:
        return with_previous(encode_event(merged), told.previous_offset)
    if told.event is None:
        same = told.change is told.item.change
        event = (told.item.event or _item_event(told.item)) if same else encode_event(told.change)
        if same and not told.previous_offset:
            return event
        told.event = with_previous(event, told.previous_offset)
    return told.event


def _item_event(item: RingItem) -> bytes:
    item.event = event = encode_event(item.change)
    return event
