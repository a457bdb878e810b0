"""Reads of the past: which offset and time a request asks for, and the twins as they were then."""

from __future__ import annotations

import builtins
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_core.errors import NotFound, Reason, invalid_field
from twinmesh_core.ids import quoted, require_twin_id
from twinmesh_core.registry import Twin
from twinmesh_runtime.registry_mapping import time_from_message
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.past import Past, with_facts
from twinmesh_statesync.domain.replica import Replica
from twinmesh_statesync.domain.twin_state import NO_REPLICA, TwinState
from twinmesh_statesync.domain.values import ReportedValue
from twinmesh_statesync.domain.writer import time_left_s
from twinmesh_statesync.rpc.reading import Reading

_FACTS_TWINS: Final = 500
"""Twins whose facts are asked for in one call."""
Request = statesync_pb2.GetReplicaRequest | statesync_pb2.ListTwinsRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A point of the past.

    Attributes:
        as_of: what was known.
        time_unix_us: the event time; None = the latest.
    """

    as_of: Position
    time_unix_us: int | None


class PastReads:
    """Read access to the past for handlers.

    Args:
        reading: read access to the present.
        past: folds what was.
    """

    def __init__(self, reading: Reading, past: Past) -> None:
        self._reading = reading
        self._past = past

    async def asked(self, request: Request) -> Asked | None:
        """Return the point of the past that a request asks for, once it is folded; None = the present.

        Raises:
            InvalidArgument: the request is malformed.
            OutOfRange: FUTURE_OFFSET.
            FailedPrecondition: LOG_REWOUND.
        """
        if request.at_offset < 0:
            raise invalid_field("at_offset", "must be 0 (the present) or the offset of an entry")
        await self._reading.at_least(max(request.min_offset, request.at_offset), request.incarnation)
        if not request.at_offset and not request.HasField("at_event_time"):
            return None
        time = None
        if request.HasField("at_event_time"):
            time = time_from_message(request.at_event_time)
        live = self._reading.live
        return Asked(
            as_of=Position(incarnation=live.incarnation, offset=request.at_offset or live.fold.offset),
            time_unix_us=time,
        )

    async def replica(self, tenant: str, twin_id: str, asked: Asked) -> tuple[Twin, Replica]:
        """Return a twin and its replica as they were.

        Raises:
            NotFound: TWIN_NOT_FOUND, there was no such twin.
            OutOfRange: COMPACTED, AS_OF_PRUNED.
        """
        require_twin_id(twin_id)
        state = await self._known(tenant, twin_id, asked.as_of.offset)
        if asked.time_unix_us is None:
            return state.twin, state.replica
        rest = await self._committed(state, asked)
        facts = await self.facts(tenant, [twin_id], asked)
        return state.twin, with_facts(state, rest, facts.get(twin_id, {}))

    async def fold(self, tenant: str, asked: Asked) -> Fold:
        """Return the twins of a tenant as they were, by what was committed."""
        if asked.time_unix_us is not None:
            limit = asked.as_of.offset
            return await self._past.at_time(tenant, asked.time_unix_us, limit, timeout_s=time_left_s())
        if asked.as_of == self._reading.live.position:
            return self._reading.live.fold
        return await self._past.at_offset(tenant, asked.as_of.offset, timeout_s=time_left_s())

    async def replicas(self, tenant: str, states: Collection[TwinState], asked: Asked) -> builtins.list[Replica]:
        """Return the replicas of twins of such a fold, with the facts that the request asks for."""
        if asked.time_unix_us is None or not states:
            return [state.replica for state in states]
        facts = await self.facts(tenant, [state.twin.twin_id for state in states], asked)
        return [with_facts(state, state.replica, facts.get(state.twin.twin_id, {})) for state in states]

    def place(self) -> AbstractAsyncContextManager[None]:
        """Wait for one of the few places of those who look at all twins of the past.

        Raises:
            DeadlineExceeded: the block took longer than the call may.
        """
        return self._past.place(time_left_s())

    async def facts(self, tenant: str, twin_ids: Collection[str], asked: Asked) -> dict[str, dict[str, ReportedValue]]:
        """Return the newest facts by the event time that is asked for, by twin and channel."""
        ids, found = list(twin_ids), dict[str, dict[str, ReportedValue]]()
        for at in range(0, len(ids), _FACTS_TWINS):
            some = ids[at : at + _FACTS_TWINS]
            found |= await self._past.facts_at(tenant, some, asked.time_unix_us or 0, asked.as_of.offset)
        return found

    async def _known(self, tenant: str, twin_id: str, offset: int) -> TwinState:
        """Return a twin as it was known at an offset."""
        state = self._reading.live.fold.state(tenant, twin_id)
        if state is None or not state.alive or state.replica.offset > offset:
            if state is None:
                self._reading.live.fold.registry.require_twin(tenant, twin_id)
            fold = await self._past.at_offset(tenant, offset, [twin_id], timeout_s=time_left_s())
            state = fold.state(tenant, twin_id)
        if state is None or not state.alive:
            raise NotFound(f"There was no twin {quoted(twin_id)} as of offset {offset}.", reason=Reason.TWIN_NOT_FOUND)
        return state

    async def _committed(self, state: TwinState, asked: Asked) -> Replica:
        """Return the replica by what was committed up to the time asked for."""
        time = asked.time_unix_us or 0
        first_life = not state.previous_create_offset
        if first_life and time < state.twin.create_time_unix_us:
            # Recorded facts are older than the twin they were written to; nobody wanted or predicted anything then.
            return NO_REPLICA
        twin_id = state.twin.twin_id
        fold = await self._past.at_time(state.tenant, time, asked.as_of.offset, [twin_id], timeout_s=time_left_s())
        then = fold.state(state.tenant, twin_id)
        return then.replica if then is not None and then.alive else NO_REPLICA
