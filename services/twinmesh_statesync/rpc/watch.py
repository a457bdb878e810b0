"""Watch: snapshot, SYNCED, then frames of changes; each watcher is a cursor into the tenant's ring and nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_core.errors import OutOfRange, Reason, ResourceExhausted, Unavailable, invalid_field
from twinmesh_core.ids import require_resource_id, require_twin_id
from twinmesh_core.time import US_PER_S, Clock
from twinmesh_runtime.registry_mapping import duration_from_message
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.live import LiveFold, rewound
from twinmesh_statesync.domain.ring import Ring
from twinmesh_statesync.domain.writer import DEFAULT_WAIT_S
from twinmesh_statesync.rpc.frames import FRAME_BYTES, Filter, Frames, bookmark
from twinmesh_statesync.rpc.mapping.replicas import encode_event, snapshot_change
from twinmesh_statesync.rpc.reading import Reading

MAX_TWIN_IDS: Final = 10_000
_SNAPSHOT_TWINS: Final = 100
HEARTBEAT_S: Final = 0.25
"""How often sleeping watchers look whether a bookmark is due; one timer for all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """What a watcher asked for."""

    wanted: Filter
    latest: bool
    close: bool
    bookmark_s: float


class Watches:
    """All watches of this process.

    Args:
        reading: read access to the fold.
        clock: for bookmarks.
        close_after: changes that a watcher with policy CLOSE may lie behind.
        heartbeat_s: how often bookmarks are looked after.
    """

    def __init__(
        self, reading: Reading, clock: Clock, *, close_after: int = 10_000, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self._reading = reading
        self._live: LiveFold = reading.live
        self._clock = clock
        self._close_after = close_after
        self._heartbeat_s = heartbeat_s
        self._frames = Frames()
        self._draining = False

    async def beat(self) -> None:
        """Wake the watchers now and then, for bookmarks; runs for ever."""
        while True:
            await asyncio.sleep(self._heartbeat_s)
            self._live.pulse.touch()

    async def drain(self) -> None:
        """End every watch, and let none begin; each is told where to resume."""
        self._draining = True
        self._live.pulse.touch()
        await asyncio.sleep(0)

    def check_draining(self, through: int) -> None:
        """Raise `Unavailable` (DRAINING) with the position to resume from once the process drains."""
        if self._draining:
            raise Unavailable(
                f"The server drains; reconnect and resume after offset {through}.",
                reason=Reason.DRAINING,
                metadata={"resume_offset": str(through), "incarnation": self._live.incarnation},
            )

    async def watch(self, tenant: str, request: statesync_pb2.WatchRequest) -> AsyncGenerator[bytes, None]:
        """Yield serialized WatchResponses until the watcher leaves or an error of the contract ends it.

        Raises:
            InvalidArgument: the request is malformed.
            OutOfRange: COMPACTED, FUTURE_OFFSET.
            FailedPrecondition: LOG_REWOUND.
            ResourceExhausted: WATCHER_TOO_SLOW, for policy CLOSE.
            Unavailable: DRAINING.
        """
        terms = _terms(request, self._heartbeat_s)
        self.check_draining(request.resume_after.offset)
        await self._live.check()
        generation = self._live.generation
        if request.HasField("resume_after"):
            through = await self._resume_point(request.resume_after.incarnation, request.resume_after.offset)
            ring = self._live.ring(tenant)
            index = ring.index_after(through)
            if index is None:
                raise _compacted(through, ring)
        else:
            # Nothing is awaited between looking at the replicas and at the end of the ring: they agree.
            ring = self._live.ring(tenant)
            index, position = ring.end, self._live.position
            through = position.offset
            async for part in self._snapshot(tenant, terms.wanted, position):
                yield part
        with self._live.pulse.joined():
            async for frame in self._changes(ring, index, through, terms, generation):
                yield frame

    async def _resume_point(self, incarnation: str, offset: int) -> int:
        if incarnation and incarnation != self._live.incarnation:
            raise rewound()
        if offset < 0:
            raise invalid_field("resume_after.offset", "must be 0 or the offset of an entry")
        if offset > self._live.fold.offset:
            await self._reading.not_beyond_head(offset)
            await self._live.wait_for(offset, timeout_s=DEFAULT_WAIT_S)
        return offset

    async def _snapshot(self, tenant: str, wanted: Filter, position: Position) -> AsyncGenerator[bytes, None]:
        states = self._live.fold.states(tenant)
        ids = wanted.twin_ids or states.keys()
        found = [
            (state.twin, state.replica)
            for state in (states.get(twin_id) for twin_id in ids)
            if state is not None and state.alive and wanted.wants(state.twin)
        ]
        part: list[bytes] = []
        size = 0
        for twin, replica in found:
            part.append(encode_event(snapshot_change(tenant, twin, replica)))
            size += len(part[-1])
            if len(part) == _SNAPSHOT_TWINS or size > FRAME_BYTES:
                # No position: a watcher cut off half way has to begin again.
                yield b"".join(part)
                part, size = [], 0
        if part:
            yield b"".join(part)
        yield bookmark(position, synced=True)

    async def _changes(
        self, ring: Ring, index: int, through: int, terms: _Terms, generation: int
    ) -> AsyncGenerator[bytes, None]:
        told_s = self._clock.monotonic_s()
        while True:
            news = self._live.pulse.next()
            self._check(ring, index, through, terms, generation)
            if index < ring.end:
                frame = self._frames.frame(ring, terms.wanted, index, self._live.position, latest=terms.latest)
                index, through = frame.end, frame.through
                if frame.body:
                    yield frame.body
                    told_s = self._clock.monotonic_s()
                else:
                    await asyncio.sleep(0)
                continue
            through = self._live.fold.offset
            if self._clock.monotonic_s() - told_s >= terms.bookmark_s:
                yield bookmark(Position(incarnation=self._live.incarnation, offset=through))
                told_s = self._clock.monotonic_s()
                continue
            await news.wait()

    def _check(self, ring: Ring, index: int, through: int, terms: _Terms, generation: int) -> None:
        if self._live.generation != generation:
            raise rewound()
        self.check_draining(through)
        if index < ring.first:
            raise _compacted(through, ring)
        if terms.close and ring.end - index > self._close_after:
            raise ResourceExhausted(
                f"The watcher is {ring.end - index} changes behind and its policy allows {self._close_after}; "
                f"reconnect and resume after offset {through}.",
                reason=Reason.WATCHER_TOO_SLOW,
                metadata={"resume_offset": str(through), "incarnation": self._live.incarnation},
            )


def _terms(request: statesync_pb2.WatchRequest, heartbeat_s: float) -> _Terms:
    if len(request.twin_ids) > MAX_TWIN_IDS:
        raise invalid_field("twin_ids", f"must hold at most {MAX_TWIN_IDS:,} ids; watch by type, or in several calls")
    for i, twin_id in enumerate(request.twin_ids):
        require_twin_id(twin_id, f"twin_ids[{i}]")
    if request.twin_type_id:
        require_resource_id(request.twin_type_id, "twin_type_id")
    if request.policy not in statesync_pb2.WatchPolicy.values():
        raise invalid_field("policy", "must be RELIABLE, LATEST or CLOSE")
    interval_us = duration_from_message(request.bookmark_interval)
    if not 0 <= interval_us <= 5 * US_PER_S:
        raise invalid_field("bookmark_interval", "must be at most 5 s; 0 takes 1 s")
    return _Terms(
        wanted=Filter(twin_ids=frozenset(request.twin_ids), twin_type_id=request.twin_type_id),
        latest=request.policy == statesync_pb2.WATCH_POLICY_LATEST,
        close=request.policy == statesync_pb2.WATCH_POLICY_CLOSE,
        # Looked at every heartbeat: due one beat earlier, so that the silence is never longer than asked for.
        bookmark_s=max((interval_us or US_PER_S) / US_PER_S - heartbeat_s, 0.0),
    )


def _compacted(through: int, ring: Ring) -> OutOfRange:
    return OutOfRange(
        f"The changes after offset {through} are no longer kept (the oldest kept is after {ring.floor}); "
        "start again with a snapshot.",
        reason=Reason.COMPACTED,
        metadata={"compacted_to": str(ring.floor)},
    )
