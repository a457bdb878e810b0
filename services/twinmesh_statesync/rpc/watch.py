"""Watch: snapshot, SYNCED, then frames of changes; each watcher is a cursor, woken only by what concerns it.

A watcher whose place the ring does not reach back to, on resume or because it read too slowly, reads from a replay
until the ring does: nothing is skipped and nothing told twice, since both hold whole offsets in order.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import position_pb2
from twinmesh_core.errors import FailedPrecondition, OutOfRange, Reason, ResourceExhausted, Unavailable, invalid_field
from twinmesh_core.ids import require_resource_id, require_twin_id
from twinmesh_core.time import US_PER_S, Clock
from twinmesh_runtime.registry_mapping import duration_from_message
from twinmesh_statesync.domain.catalogue import Catalogue
from twinmesh_statesync.domain.changes import Change
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.filter import EVERYTHING, hops, parse_filter
from twinmesh_statesync.domain.interest import Interest
from twinmesh_statesync.domain.live import LiveFold, rewound
from twinmesh_statesync.domain.mask import read_mask
from twinmesh_statesync.domain.replay import Replays
from twinmesh_statesync.domain.version import TwinVersion
from twinmesh_statesync.domain.writer import DEFAULT_WAIT_S
from twinmesh_statesync.rpc.audience import Audience, Audiences
from twinmesh_statesync.rpc.frames import FRAME_BYTES, Frames, Snapshots, bookmark, reset
from twinmesh_statesync.rpc.reading import Reading

MAX_TWIN_IDS: Final = 10_000
_SNAPSHOT_TWINS: Final = 100
HEARTBEAT_S: Final = 0.25
"""How often devices that follow commands look whether a sign of life is due; one timer for all of them."""
MAX_BOOKMARK_S: Final = 4.75
"""A bookmark takes some of the promised 5 s to arrive."""
_BOOKMARK_S: Final = 0.75
_BOOKMARK_PER_WATCHER_S: Final = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """What a watcher asked for; `bookmark_s` 0 = as the server likes."""

    wanted: Interest
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
        catalogue: finds the twins of a snapshot.
        replays: where changes come from that are not in memory.
        clock: for bookmarks.
        close_after: changes that a watcher with policy CLOSE may lie behind.
        heartbeat_s: how often those who follow commands are woken.
    """

    def __init__(
        self,
        reading: Reading,
        catalogue: Catalogue,
        replays: Replays,
        clock: Clock,
        *,
        close_after: int = 10_000,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._reading = reading
        self._catalogue = catalogue
        self._replays = replays
        self._live: LiveFold = reading.live
        self._clock = clock
        self._close_after = close_after
        self._heartbeat_s = heartbeat_s
        self._frames = Frames()
        self._snapshots = Snapshots()
        self._audiences = Audiences(self._live)
        self._draining = False
        self._live.listeners.on_erasure(self._forget)

    def _forget(self, _erasure: Change) -> None:
        self._frames.clear()
        self._snapshots.clear()

    async def beat(self) -> None:
        """Wake those who follow commands now and then; runs for ever."""
        while True:
            await asyncio.sleep(self._heartbeat_s)
            self._live.pulse.touch()

    async def drain(self) -> None:
        """End every watch, and let none begin; each is told where to resume."""
        self._draining = True
        self._live.pulse.touch()
        self._audiences.wake_all()
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
            InvalidArgument: the request is malformed; of a filter, with the column.
            OutOfRange: COMPACTED, FUTURE_OFFSET.
            FailedPrecondition: LOG_REWOUND.
            ResourceExhausted: WATCHER_TOO_SLOW, for policy CLOSE.
            Unavailable: DRAINING.
        """
        terms = _terms(request)
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
        with self._audiences.joined(tenant, terms.wanted) as audience:
            if after is None:
                # Nothing is awaited between looking at the fold and joining those who hear what follows: they agree.
                position = self._live.position
                place.through, place.caught_up = position.offset, True
                async with aclosing(self._snapshot(tenant, audience, position)) as parts:
                    async for part in parts:
                        yield part
            while True:
                self._check(place)
                index = self._index_after(audience, place.through)
                if index is None:
                    frames = self._replayed(audience, place, terms)
                else:
                    frames = self._changes(audience, index, place, terms)
                async with aclosing(frames):
                    async for frame in frames:
                        yield frame

    def _index_after(self, audience: Audience, through: int) -> int | None:
        """Return where memory goes on after an offset; None = it does not reach back, or cannot judge that far back."""
        index = audience.ring.index_after(through)
        if index is None or index >= audience.since or not audience.chosen:
            return index
        return index if through >= audience.ring.versions_floor else None

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

    async def _snapshot(self, tenant: str, audience: Audience, position: Position) -> AsyncGenerator[bytes, None]:
        mask = audience.interest.mask
        part: list[bytes] = []
        size = 0
        for version in await self._found(tenant, audience, position):
            state = self._live.fold.state(tenant, version.twin.twin_id)
            current = state is not None and state.version is version
            part.append(self._snapshots.event(tenant, version, mask, current=current))
            size += len(part[-1])
            if len(part) == _SNAPSHOT_TWINS or size > FRAME_BYTES:
                # No position: a watcher cut off half way has to begin again.
                yield b"".join(part)
                part, size = [], 0
        if part:
            yield b"".join(part)
        yield self._bookmark(tenant, position, judged=audience.chosen, synced=True)

    async def _found(self, tenant: str, audience: Audience, position: Position) -> Sequence[TwinVersion]:
        """Return the twins of a snapshot, as of a position that is the present when this is called."""
        wanted, judge = audience.interest, audience.judge
        if wanted.expression != EVERYTHING and not wanted.twin_ids:
            selected = await self._catalogue.select(tenant, wanted.expression, position.offset)
            return [version for version in selected if judge.wants(version)]
        states = self._live.fold.states(tenant)
        ids = wanted.twin_ids or states.keys()
        living = (state.version for state in map(states.get, ids) if state is not None)
        return [version for version in living if version is not None and judge.wants(version)]

    async def _changes(
        self, audience: Audience, index: int, place: _Place, terms: _Terms
    ) -> AsyncGenerator[bytes, None]:
        """Yield frames from memory; ends when it does not reach back to the watcher any more."""
        while True:
            self._check(place)
            if audience.lost(index):
                return
            self._check_close(audience.count_after(index) if terms.close else 0, place, terms)
            beats = audience.beats
            if audience.behind(index):
                end = audience.ring.end
                frame = self._frames.frame(audience, index, self._live.position, latest=terms.latest)
                index, place.through = frame.end, frame.through
                if frame.body:
                    yield frame.body
                    place.told_s = self._clock.monotonic_s()
                else:
                    await asyncio.sleep(0)
                if index < end:
                    continue  # it catches up
                # What came while this was sent is told with the rest of the beat: else each change were a frame.
                if (due_s := self._due_s(place, terms)) > 0:
                    await audience.wait(due_s, since=beats)
                continue
            index = audience.ring.end
            place.through, place.caught_up = self._live.fold.offset, True
            due_s = self._due_s(place, terms)
            if due_s <= 0:
                yield self._told(place, terms)
                continue
            await audience.wait(due_s, since=beats)

    async def _replayed(self, audience: Audience, place: _Place, terms: _Terms) -> AsyncGenerator[bytes, None]:
        """Yield frames from a replay; ends when the ring reaches back to the watcher, or another replay is needed."""
        wanted = audience.interest
        with self._replays.joined(place.tenant, place.through, wanted.twin_ids, judged=wanted.chosen) as (
            replay,
            reader,
        ):
            while self._index_after(audience, place.through) is None:
                news = replay.next()
                self._check(place)
                if replay.failed is not None:
                    raise copy.copy(replay.failed)
                if not replay.reaches(place.through):
                    return
                index = replay.index_after(place.through)
                if index is not None and index < replay.ring.end:
                    frame = self._frames.frame(
                        audience, index, replay.position, latest=terms.latest, replayed=replay.ring
                    )
                    place.through = frame.through
                    replay.moved(reader, place.through)
                    if frame.body:
                        yield frame.body
                        place.told_s = self._clock.monotonic_s()
                    else:
                        await asyncio.sleep(0)
                    continue
                place.through = max(place.through, replay.position.offset if index is not None else 0)
                if self._due_s(place, terms) <= 0:
                    # It may not be read for long: meanwhile nobody waits for more.
                    replay.moved(reader, place.through)
                    yield self._told(place, terms)
                    continue
                replay.wants(reader)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(self._due_s(place, terms), self._heartbeat_s)):
                        await news.wait()

    def _due_s(self, place: _Place, terms: _Terms) -> float:
        """Return the time left until a bookmark is due; who did not say waits longer in a crowd of watchers."""
        usual_s = min(max(_BOOKMARK_S, self._live.pulse.crowd * _BOOKMARK_PER_WATCHER_S), MAX_BOOKMARK_S)
        return (terms.bookmark_s or usual_s) - (self._clock.monotonic_s() - place.told_s)

    def _told(self, place: _Place, terms: _Terms) -> bytes:
        place.told_s = self._clock.monotonic_s()
        position = Position(incarnation=self._live.incarnation, offset=place.through)
        return self._bookmark(place.tenant, position, judged=terms.wanted.chosen)

    def _bookmark(self, tenant: str, position: Position, *, judged: bool, synced: bool = False) -> bytes:
        return bookmark(
            position,
            synced=synced,
            compacted_to=self._live.compacted_to(tenant, judged=judged),
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


def _terms(request: statesync_pb2.WatchRequest) -> _Terms:
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
        raise invalid_field("bookmark_interval", "must be at most 5 s; 0 leaves it to the server")
    expression = parse_filter(request.filter)
    if next(hops(expression), None) is not None:
        raise invalid_field(
            "filter",
            "relationships are followed in lists only, since a watch judges each twin by its own changes; "
            "list the twins, and watch them by twin_ids",
        )
    return _Terms(
        wanted=Interest(
            twin_ids=frozenset(request.twin_ids),
            twin_type_id=request.twin_type_id,
            expression=expression,
            mask=read_mask(request.read_mask.paths, "read_mask"),
        ),
        latest=request.policy == statesync_pb2.WATCH_POLICY_LATEST,
        close=request.policy == statesync_pb2.WATCH_POLICY_CLOSE,
        resnapshot=request.when_lost == statesync_pb2.WATCH_LOSS_RESNAPSHOT,
        bookmark_s=min(interval_us / US_PER_S, MAX_BOOKMARK_S),
    )
