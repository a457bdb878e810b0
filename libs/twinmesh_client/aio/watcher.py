"""A watch that resumes by itself, and proves that nothing was missed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import position_pb2
from twinmesh_client.aio.connection import Connection
from twinmesh_client.replica_cache import ReplicaCache
from twinmesh_client.replicas import Position, Replica, WatchEvent, position, watch_event
from twinmesh_client.transport import stream
from twinmesh_client.watch_proof import GapDetected, RevisionProof, WatchProof
from twinmesh_core.errors import (
    FailedPrecondition,
    OutOfRange,
    Reason,
    ResourceExhausted,
    Unavailable,
    invalid_field,
)

__all__ = ["GapDetected", "RevisionProof", "WatchProof", "Watcher"]

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 3.0
POLICIES = {
    "reliable": statesync_pb2.WATCH_POLICY_RELIABLE,
    "latest": statesync_pb2.WATCH_POLICY_LATEST,
    "close": statesync_pb2.WATCH_POLICY_CLOSE,
}
_LOST = (Reason.COMPACTED, Reason.LOG_REWOUND, Reason.FUTURE_OFFSET)


class Watcher(AsyncGenerator[WatchEvent, None]):
    """Changes of twins for ever: reconnects and resumes where it stopped; iterate over it, and close it after use.

    Without `resume_after` a snapshot comes first, ended by an event of kind SYNCED. Where the changes after its place
    cannot be told any more (the log was restored to an earlier point, or the watcher was away for longer than changes
    are kept) it yields RESET, a new snapshot, DELETED for each twin that it told of and that is gone, then SYNCED; or
    it raises, see `resync`.

    Raises:
        GapDetected: the server's own revisions or offsets prove that something was missed, repeated or out of order;
            never passes silently.
        OutOfRange, FailedPrecondition: the changes cannot be told, and `resync` is off.
        TwinmeshError: anything that trying again does not mend.
    """

    def __init__(
        self,
        connection: Connection,
        twin_ids: Sequence[str] = (),
        twin_type: str = "",
        resume_after: Position | None = None,
        policy: str = "reliable",
        resync: bool | None = None,
        keep_replicas: bool = False,
        filter: str = "",  # noqa: A002  the word of the field
        mask: Sequence[str] = (),
    ) -> None:
        if policy not in POLICIES:
            raise invalid_field("policy", f"{policy!r} is unknown; choose from {', '.join(POLICIES)}")
        self._connection = connection
        self._policy = policy
        self._resync = resume_after is None if resync is None else resync
        self._request = statesync_pb2.WatchRequest(
            twin_ids=twin_ids,
            twin_type_id=twin_type,
            filter=filter,
            policy=POLICIES[policy],
            when_lost=statesync_pb2.WATCH_LOSS_RESNAPSHOT if self._resync else statesync_pb2.WATCH_LOSS_FAIL,
        )
        self._request.read_mask.paths.extend(mask)
        self._after = resume_after
        self._checked = RevisionProof(resume_after, chosen=bool(filter or mask))
        self._cache = ReplicaCache() if keep_replicas else None
        self._gone: dict[str, int] = {}
        self._events = self._watched()

    @property
    def proof(self) -> WatchProof:
        """What was told so far, and that it was whole: events, twins, resumes, resets, the position reached."""
        return self._checked.proof

    @property
    def replicas(self) -> Mapping[str, Replica]:
        """The replicas as of the last event taken, by twin; a copy. Only with `keep_replicas`.

        Raises:
            FailedPrecondition: the watch was opened without `keep_replicas`.
        """
        if self._cache is None:
            raise FailedPrecondition("This watch keeps no replicas; open it with keep_replicas=True.")
        return self._cache.replicas(self._checked.proof.position or Position(incarnation="", offset=0))

    async def asend(self, value: None) -> WatchEvent:
        """Return the next event; what iteration calls."""
        return await self._events.asend(value)

    async def athrow(
        self,
        kind: type[BaseException] | BaseException,
        error: BaseException | object = None,
        trace: TracebackType | None = None,
    ) -> WatchEvent:
        """Raise at the place where it waits."""
        raised: BaseException = kind if isinstance(kind, BaseException) else kind()
        return await self._events.athrow(error if isinstance(error, BaseException) else raised)

    async def aclose(self) -> None:
        """End the watch."""
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _watched(self) -> AsyncGenerator[WatchEvent, None]:
        pause_s = FIRST_PAUSE_S
        while True:
            lost = None
            try:
                async with aclosing(self._frames()) as frames:
                    async for frame in frames:
                        pause_s = FIRST_PAUSE_S
                        for event in self._taken(frame):
                            yield event
            except (OutOfRange, FailedPrecondition) as error:
                if error.reason not in _LOST or self._after is None or not self._resync:
                    raise
                lost = self._after
            except ResourceExhausted as error:
                if error.reason != Reason.WATCHER_TOO_SLOW or self._policy == "close":
                    raise
            except Unavailable:
                # The server went away, or is draining: another one, or the same one restarted, goes on.
                pass
            if lost is not None:
                self._begin_anew()
                yield WatchEvent(kind="RESET", offset=lost.offset, through=lost)
            elif self._after is None:
                # A snapshot that was cut off begins again; what it told already may be gone by then.
                self._forget()
            # Thousands lose the same server at the same time, and should not all come back at the same time.
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 -- spread, not secrecy
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            self._checked.resumed()

    def _frames(self) -> AsyncGenerator[Any, None]:
        request = statesync_pb2.WatchRequest()
        request.CopyFrom(self._request)
        if self._after is not None:
            request.resume_after.CopyFrom(
                position_pb2.LogPosition(incarnation=self._after.incarnation, offset=self._after.offset)
            )
        return stream(self._connection.replicas.Watch, request, timeout_s=None)

    def _taken(self, frame: statesync_pb2.WatchResponse) -> Iterator[WatchEvent]:
        through = position(frame.through)
        for message in frame.events:
            event = watch_event(message, through)
            if event.kind == "RESET":
                self._begin_anew()
            else:
                self._checked.check(event)
                self._gone.pop(event.twin_id, None)
                if self._cache is not None:
                    self._cache.take(message)
            yield event
        if frame.synced:
            yield from self._vanished(through)
            yield WatchEvent(kind="SYNCED", offset=through.offset, through=through)
        # A snapshot can only be resumed once it is complete.
        if self._after is not None or frame.synced:
            self._after = through
            self._checked.reached(through)

    def _vanished(self, through: Position) -> Iterator[WatchEvent]:
        """Yield a deletion of each twin that was told before a new snapshot and is not in it."""
        gone, self._gone = self._gone, {}
        for twin_id, revision in gone.items():
            if self._cache is not None:
                self._cache.drop(twin_id)
            yield WatchEvent(
                kind="DELETED",
                offset=through.offset,
                twin_id=twin_id,
                revision=revision,
                previous_revision=revision,
                through=through,
            )

    def _begin_anew(self) -> None:
        self._after = None
        self._checked.reset()
        self._forget()

    def _forget(self) -> None:
        self._gone.update(self._checked.forget())
        if self._cache is not None:
            self._cache.clear()
