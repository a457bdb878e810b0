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
from twinmesh_statesync.domain.ring import Ring
from twinmesh_statesync.rpc.audience import Audience, Told
from twinmesh_statesync.rpc.mapping.replicas import encode_body, framed_event
from twinmesh_statesync.rpc.mapping.values import position_to_message

FRAME_CHANGES: Final = 1_000
"""Changes looked at for one frame; the rest follows in the next."""
FRAME_BYTES: Final = 1024 * 1024
"""A frame is closed at the first offset that begins beyond so many bytes."""
LATEST_CHANGES: Final = 10_000
"""The same for LATEST, which may merge that many into few events."""
_MAX_CACHED: Final = 512
_MAX_CACHED_BYTES: Final = 32 * 1024 * 1024


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
        self._cache: dict[tuple[str, int, Interest, int, int, bool], Frame] = {}
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
        key = (position.incarnation, ring.number, audience.interest, index, ring.end, latest)
        known = self._cache.get(key)
        if known is not None:
            return known
        limit = LATEST_CHANGES if latest else FRAME_CHANGES
        if replayed is not None or audience.interest.plain:
            made = _scanned(audience, ring, index, ring.end, limit, position)
        elif index < audience.since:
            made = _scanned(audience, ring, index, audience.since, limit, position)
        else:
            made = _heard(audience, index, limit, position)
        frame = made.merged(audience.interest) if latest else made.fitting()
        if audience.size > 1:
            self._keep(key, frame)
        return frame

    def clear(self) -> None:
        """Forget every frame: something told in one was erased."""
        self._cache.clear()
        self._bytes = 0

    def _keep(self, key: tuple[str, int, Interest, int, int, bool], made: Frame) -> None:
        if len(self._cache) >= _MAX_CACHED or self._bytes > _MAX_CACHED_BYTES:
            self.clear()
        self._cache[key] = made
        self._bytes += len(made.body)


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
            parts.append(framed_event(_body(told), told.previous_offset))
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
        events = [
            (change.offset, framed_event(_body(first, change), first.previous_offset))
            for first, change in latest.values()
        ]
        parts = [event for _, event in sorted(events, key=lambda pair: pair[0])]
        return self._frame(parts, self.end, self.through)

    def _frame(self, parts: list[bytes], end: int, through: int) -> Frame:
        if parts:
            parts.append(bookmark(Position(incarnation=self.incarnation, offset=through)))
        return Frame(body=b"".join(parts), end=end, through=through)


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


def _body(told: Told, merged: Change | None = None) -> bytes:
    """Return an event's bytes, made when first asked for: per change, or per audience where it is told otherwise."""
    if merged is not None and merged is not told.change:
        return encode_body(merged)
    if told.change is told.item.change:
        if told.item.body is None:
            told.item.body = encode_body(told.change)
        return told.item.body
    if told.body is None:
        told.body = encode_body(told.change)
    return told.body
