"""Watch: snapshot, SYNCED, then frames of changes; each watcher is a cursor into the tenant's ring and nothing more.

A watcher whose place the ring does not reach back to, on resume or because it read too slowly, reads from a replay
until the ring does: nothing is skipped and nothing told twice, since both hold whole offsets in order.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import position_pb2
from twinmesh_core.errors import FailedPrecondition, OutOfRange, Reason, ResourceExhausted, Unavailable, invalid_field
from twinmesh_core.ids import require_resource_id, require_twin_id
from twinmesh_core.time import US_PER_S, Clock
from twinmesh_runtime.registry_mapping import duration_from_message
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.live import LiveFold, rewound
from twinmesh_statesync.domain.replay import Replays
from twinmesh_statesync.domain.writer import DEFAULT_WAIT_S
from twinmesh_statesync.rpc.frames import FRAME_BYTES, Filter, Frames, bookmark, reset
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
    resnapshot: bool


@dataclass(slots=True)
class _Place:
    """Where a watcher is.

    Attributes:
        tenant: whose changes it watches.
        through: everything up to here was told.
        generation: of the live fold that this offset belongs to.
        told_s: when it last got a frame.
        caught_up: it was at the end once: from then on policy CLOSE bounds it.
    """

    tenant: str
    through: int
    generation: int
    told_s: float
    caught_up: bool = False


class Watches:
    """All watches of this process.

    Args:
        reading: read access to the fold.
        replays: where changes come from that are not in memory.
        clock: for bookmarks.
        close_after: changes that a watcher with policy CLOSE may lie behind.
        heartbeat_s: how often bookmarks are looked after.
    """

    def __init__(
        self,
        reading: Reading,
        replays: Replays,
        clock: Clock,
        *,
        close_after: int = 10_000,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._reading = reading
        self._replays = replays
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

    def check_draining(self, through: int | None) -> None:
        """Raise `Unavailable` (DRAINING) with the position to resume from, if there is one, once the process drains."""
        if not self._draining:
            return
        if through is None:
            raise Unavailable("The server drains; reconnect and begin with a snapshot.", reason=Reason.DRAINING)
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
        after = request.resume_after if request.HasField("resume_after") else None
        self.check_draining(request.resume_after.offset)
        await self._live.check()
        with self._live.pulse.joined():
            while True:
                try:
                    async with aclosing(self._one_life(tenant, after, terms)) as frames:
                        async for frame in frames:
                            yield frame
                    return
                except (OutOfRange, FailedPrecondition) as error:
                    if not terms.resnapshot or error.reason not in (Reason.COMPACTED, Reason.LOG_REWOUND):
                        raise
                    lost = error.reason
                after = None
                yield reset(self._live.position, lost)
                await self._once_usable()

    async def _one_life(
        self, tenant: str, after: position_pb2.LogPosition | None, terms: _Terms
    ) -> AsyncGenerator[bytes, None]:
        """Yield frames until the position of the watcher cannot be followed any more."""
        place = _Place(tenant, 0, self._live.generation, self._clock.monotonic_s())
        if after is not None:
            place.through = await self._resume_point(after.incarnation, after.offset)
        else:
            # Nothing is awaited between looking at the replicas and at the end of the ring: they agree.
            position = self._live.position
            place.through, place.caught_up = position.offset, True
            async with aclosing(self._snapshot(tenant, terms.wanted, position)) as parts:
                async for part in parts:
                    yield part
        while True:
            self._check(place)
            index = self._live.ring(tenant).index_after(place.through)
            frames = self._replayed(place, terms) if index is None else self._changes(index, place, terms)
            async with aclosing(frames):
                async for frame in frames:
                    yield frame

    async def _once_usable(self) -> None:
        """Return when the fold is at the head of the log that began anew."""
        while True:
            news = self._live.pulse.next()
            self.check_draining(None)
            try:
                await self._live.check()
                return
            except Unavailable:
                await news.wait()

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
        yield self._bookmark(tenant, position, synced=True)

    async def _changes(self, index: int, place: _Place, terms: _Terms) -> AsyncGenerator[bytes, None]:
        """Yield frames from the ring; ends when it does not reach back to the watcher any more."""
        ring = self._live.ring(place.tenant)
        while True:
            news = self._live.pulse.next()
            self._check(place)
            if index < ring.first:
                return
            self._check_close(ring.end - index, place, terms)
            if index < ring.end:
                frame = self._frames.frame(ring, terms.wanted, index, self._live.position, latest=terms.latest)
                index, place.through = frame.end, frame.through
                if frame.body:
                    yield frame.body
                    place.told_s = self._clock.monotonic_s()
                else:
                    await asyncio.sleep(0)
                continue
            place.through, place.caught_up = self._live.fold.offset, True
            if self._is_bookmark_due(place, terms):
                yield self._told(place)
                continue
            await news.wait()

    async def _replayed(self, place: _Place, terms: _Terms) -> AsyncGenerator[bytes, None]:
        """Yield frames from a replay; ends when the ring reaches back to the watcher, or another replay is needed."""
        with self._replays.joined(place.tenant, place.through, terms.wanted.twin_ids) as (replay, reader):
            while self._live.ring(place.tenant).index_after(place.through) is None:
                news = replay.next()
                self._check(place)
                if replay.failed is not None:
                    raise copy.copy(replay.failed)
                if not replay.reaches(place.through):
                    return
                index = replay.index_after(place.through)
                if index is not None and index < replay.ring.end:
                    frame = self._frames.frame(replay.ring, terms.wanted, index, replay.position, latest=terms.latest)
                    place.through = frame.through
                    replay.moved(reader, place.through)
                    if frame.body:
                        yield frame.body
                        place.told_s = self._clock.monotonic_s()
                    else:
                        await asyncio.sleep(0)
                    continue
                place.through = max(place.through, replay.position.offset if index is not None else 0)
                if self._is_bookmark_due(place, terms):
                    # It may not be read for long: meanwhile nobody waits for more.
                    replay.moved(reader, place.through)
                    yield self._told(place)
                    continue
                replay.wants(reader)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(terms.bookmark_s, self._heartbeat_s)):
                        await news.wait()

    def _is_bookmark_due(self, place: _Place, terms: _Terms) -> bool:
        return self._clock.monotonic_s() - place.told_s >= terms.bookmark_s

    def _told(self, place: _Place) -> bytes:
        place.told_s = self._clock.monotonic_s()
        return self._bookmark(place.tenant, Position(incarnation=self._live.incarnation, offset=place.through))

    def _bookmark(self, tenant: str, position: Position, *, synced: bool = False) -> bytes:
        return bookmark(
            position,
            synced=synced,
            compacted_to=self._live.compacted_to(tenant),
            server_time_unix_us=self._clock.now_unix_us(),
            entries_behind=max(0, self._live.head_offset - position.offset),
        )

    def _check(self, place: _Place) -> None:
        if self._live.generation != place.generation:
            raise rewound()
        self.check_draining(place.through)

    def _check_close(self, behind: int, place: _Place, terms: _Terms) -> None:
        # A watcher that resumes has to catch up first; what bounds it is how far it falls behind afterwards.
        if terms.close and place.caught_up and behind > self._close_after:
            raise ResourceExhausted(
                f"The watcher is {behind} changes behind and its policy allows {self._close_after}; "
                f"reconnect and resume after offset {place.through}.",
                reason=Reason.WATCHER_TOO_SLOW,
                metadata={"resume_offset": str(place.through), "incarnation": self._live.incarnation},
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
    if request.when_lost not in statesync_pb2.WatchLoss.values():
        raise invalid_field("when_lost", "must be FAIL or RESNAPSHOT")
    interval_us = duration_from_message(request.bookmark_interval)
    if not 0 <= interval_us <= 5 * US_PER_S:
        raise invalid_field("bookmark_interval", "must be at most 5 s; 0 takes 1 s")
    return _Terms(
        wanted=Filter(twin_ids=frozenset(request.twin_ids), twin_type_id=request.twin_type_id),
        latest=request.policy == statesync_pb2.WATCH_POLICY_LATEST,
        close=request.policy == statesync_pb2.WATCH_POLICY_CLOSE,
        # Looked at every heartbeat: due one beat earlier, so that the silence is never longer than asked for.
        resnapshot=request.when_lost == statesync_pb2.WATCH_LOSS_RESNAPSHOT,
        bookmark_s=max((interval_us or US_PER_S) / US_PER_S - heartbeat_s, 0.0),
    )
