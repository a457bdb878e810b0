"""Reads of the past: which offset and time a request asks for, and the twins as they were then."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_core.errors import NotFound, Reason, invalid_field
from twinmesh_core.ids import quoted, require_twin_id
from twinmesh_core.registry import Twin
from twinmesh_runtime.registry_mapping import time_from_message
from twinmesh_statesync.domain.checkpoint import Position
from twinmesh_statesync.domain.fold import Fold
from twinmesh_statesync.domain.mask import read_mask
from twinmesh_statesync.domain.ordering import ordered, read_order
from twinmesh_statesync.domain.past import Past, with_facts
from twinmesh_statesync.domain.replica import Replica
from twinmesh_statesync.domain.then import Then
from twinmesh_statesync.domain.twin_state import NO_REPLICA, TwinState
from twinmesh_statesync.domain.values import ReportedValue
from twinmesh_statesync.domain.version import TwinVersion
from twinmesh_statesync.domain.writer import time_left_s
from twinmesh_statesync.rpc.listing import filter_of, require_replicas, summary
from twinmesh_statesync.rpc.mapping.values import position_to_message
from twinmesh_statesync.rpc.reading import Reading, page_of, page_size, read_token

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
        facts = await self._facts(tenant, [twin_id], asked)
        return state.twin, with_facts(state, rest, facts.get(twin_id, {}))

    async def list(
        self, tenant: str, request: statesync_pb2.ListTwinsRequest, asked: Asked
    ) -> statesync_pb2.ListTwinsResponse:
        """Answer one page of the twins as they were; every page of a list is of the position of its first.

        Raises:
            InvalidArgument: the request is malformed: the filter with its column, the order, the mask, the token.
            OutOfRange: COMPACTED, AS_OF_PRUNED.
        """
        size, token = page_size(request.page_size), read_token(request.page_token, self._reading.live)
        expression, order = filter_of(request.filter, request.twin_type_id), read_order(request.order_by)
        mask = read_mask(request.read_mask.paths, "read_mask")
        require_replicas(request, mask)
        if token is not None:
            asked = replace(asked, as_of=token.position)
        states = [state for state in (await self.fold(tenant, asked)).states(tenant).values() if state.alive]
        # Facts of a time are read from history: of all twins only where the answer depends on them.
        judged = bool(request.filter or order)
        replicas = await self.replicas(tenant, states, asked) if judged else [state.replica for state in states]
        then = Then(TwinVersion(s.twin, s.twin_type, replica) for s, replica in zip(states, replicas, strict=True))
        found = await asyncio.to_thread(lambda: ordered(then.matching(expression), order))
        page, following = page_of(found, token, lambda version: version.twin.twin_id, size, asked.as_of)
        if not judged:
            by_id = {state.twin.twin_id: state for state in states}
            told = [by_id[version.twin.twin_id] for version in page]
            replicas = await self.replicas(tenant, told, asked)
            page = [TwinVersion(v.twin, v.twin_type, replica) for v, replica in zip(page, replicas, strict=True)]
        shown = mask if request.include_replica else None
        return statesync_pb2.ListTwinsResponse(
            twins=(summary(version, shown) for version in page),
            next_page_token=following,
            as_of=position_to_message(asked.as_of),
        )

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
        facts = await self._facts(tenant, [state.twin.twin_id for state in states], asked)
        return [with_facts(state, state.replica, facts.get(state.twin.twin_id, {})) for state in states]

    async def _facts(self, tenant: str, twin_ids: Collection[str], asked: Asked) -> dict[str, dict[str, ReportedValue]]:
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
