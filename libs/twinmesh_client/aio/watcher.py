"""A watch that resumes by itself, and proves that nothing was missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import position_pb2
from twinmesh_client.aio.connection import Connection
from twinmesh_client.replicas import Position, WatchEvent, position, watch_event
from twinmesh_client.transport import stream
from twinmesh_core.errors import (
    DataLoss,
    FailedPrecondition,
    OutOfRange,
    Reason,
    ResourceExhausted,
    Unavailable,
    invalid_field,
)

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 3.0
POLICIES = {
    "reliable": statesync_pb2.WATCH_POLICY_RELIABLE,
    "latest": statesync_pb2.WATCH_POLICY_LATEST,
    "close": statesync_pb2.WATCH_POLICY_CLOSE,
}
_RESET = (Reason.COMPACTED, Reason.LOG_REWOUND, Reason.FUTURE_OFFSET)


class GapDetected(DataLoss):
    """The server told a twin's revision that does not follow on the last one seen: something was missed."""


class RevisionProof:
    """Checks that the dense revisions of each twin follow on one another."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def reset(self) -> None:
        """Forget everything: a new snapshot begins."""
        self._last.clear()

    def check(self, event: WatchEvent) -> None:
        """Take one event; raises `GapDetected` when a revision is missing, repeated or out of order."""
        last = self._last.get(event.twin_id)
        follows = last is None or event.kind == "SNAPSHOT" or event.previous_revision == last
        if not follows or event.revision < event.previous_revision:
            raise GapDetected(
                f"{event.twin_id}: revision {event.revision} (after {event.previous_revision}) arrived at offset "
                f"{event.offset}, but the last one seen was {last}.",
                metadata={"twin_id": event.twin_id, "offset": str(event.offset)},
            )
        self._last[event.twin_id] = event.revision


async def watch(
    connection: Connection,
    *,
    twin_ids: Sequence[str] = (),
    twin_type: str = "",
    resume_after: Position | None = None,
    policy: str = "reliable",
    resync: bool = False,
) -> AsyncGenerator[WatchEvent, None]:
    """Yield changes of twins for ever: reconnects and resumes where it stopped.

    Without `resume_after` a snapshot comes first, ended by an event of kind SYNCED. When the server can no longer
    resume (compacted, or the log was rewound) the error is raised; with `resync` an event of kind RESET is yielded
    instead, and a new snapshot follows.

    Raises:
        GapDetected: the server's own revisions prove that something was missed; never passes silently.
        TwinmeshError: anything that trying again does not mend.
    """
    proof = RevisionProof()
    after = resume_after
    pause_s = FIRST_PAUSE_S
    while True:
        request = _request(twin_ids, twin_type, after, policy)
        try:
            async with aclosing(stream(connection.replicas.Watch, request, timeout_s=None)) as frames:
                async for frame in frames:
                    for event in _events(frame, proof):
                        yield event
                    # A snapshot can only be resumed once it is complete.
                    if after is not None or frame.synced:
                        after = position(frame.through)
                    pause_s = FIRST_PAUSE_S
        except (OutOfRange, FailedPrecondition) as error:
            if error.reason not in _RESET or after is None or not resync:
                raise
            yield WatchEvent(kind="RESET", offset=after.offset, through=after)
            after = None
        except ResourceExhausted as error:
            if error.reason != Reason.WATCHER_TOO_SLOW or policy == "close":
                raise
        except Unavailable:
            # The server went away, or is draining: another one, or the same one restarted, goes on from `after`.
            pass
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        if after is None:
            proof.reset()


def _request(
    twin_ids: Sequence[str], twin_type: str, after: Position | None, policy: str
) -> statesync_pb2.WatchRequest:
    if policy not in POLICIES:
        raise invalid_field("policy", f"{policy!r} is unknown; choose from {', '.join(POLICIES)}")
    request = statesync_pb2.WatchRequest(twin_ids=twin_ids, twin_type_id=twin_type, policy=POLICIES[policy])
    if after is not None:
        request.resume_after.CopyFrom(position_pb2.LogPosition(incarnation=after.incarnation, offset=after.offset))
    return request


def _events(frame: statesync_pb2.WatchResponse, proof: RevisionProof) -> Iterator[WatchEvent]:
    through = position(frame.through)
    for message in frame.events:
        event = watch_event(message, through)
        proof.check(event)
        yield event
    if frame.synced:
        yield WatchEvent(kind="SYNCED", offset=through.offset, through=through)
