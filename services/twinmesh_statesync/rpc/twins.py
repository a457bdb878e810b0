"""TwinService: twin types and twins, created and deleted through the log, read from the fold."""

from __future__ import annotations

import asyncio
from typing import Any

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.statesync.v1.statesync_pb2_grpc import TwinServiceServicer
from twinmesh_core.errors import Internal, invalid_field
from twinmesh_core.ids import require_resource_id, require_twin_id
from twinmesh_core.inheritance import as_written
from twinmesh_core.registry import TwinType
from twinmesh_core.registry_fold import Outcome
from twinmesh_core.registry_rules import check_writable, units_of
from twinmesh_core.units import TABLE, Units
from twinmesh_runtime.caller import current_caller
from twinmesh_runtime.registry_mapping import (
    twin_from_message,
    twin_to_message,
    twin_type_from_message,
    twin_type_to_message,
)
from twinmesh_statesync.domain.alarms.writing import limit_units, with_usable_rules
from twinmesh_statesync.domain.entries import CreateTwin, CreateTwinType, DeleteTwin
from twinmesh_statesync.domain.writer import Writer, request_id_or_new
from twinmesh_statesync.rpc.identities import Identities
from twinmesh_statesync.rpc.listing import Listing
from twinmesh_statesync.rpc.mapping.values import position_to_message
from twinmesh_statesync.rpc.mutation import content_of
from twinmesh_statesync.rpc.past import PastReads
from twinmesh_statesync.rpc.past_lists import PastLists
from twinmesh_statesync.rpc.reading import Reading, page_of, page_size, read_token


class TwinServicer(TwinServiceServicer):
    """Serves twin types and twins.

    Args:
        reading: read access to the fold.
        writer: has mutations decided.
        listing: answers lists.
        past: read access to what was.
        units: which units there are.
    """

    def __init__(
        self, reading: Reading, writer: Writer, listing: Listing, past: PastReads, units: Units = TABLE
    ) -> None:
        self._reading = reading
        self._listing = listing
        self._past = past
        self._past_lists = PastLists(reading, past)
        self._writer = writer
        self._units = units
        self._identities = Identities(reading, writer, units)

    async def CreateTwinType(  # noqa: N802
        self, request: statesync_pb2.CreateTwinTypeRequest, context: Any
    ) -> statesync_pb2.CreateTwinTypeResponse:
        """Create a version of a twin type."""
        caller = current_caller()
        wanted = as_written(twin_type_from_message(request.twin_type))
        unlearnt = self._units.unlearnt(units_of(wanted) | limit_units(wanted))
        if unlearnt:
            await asyncio.to_thread(self._units.learn, unlearnt)
        wanted = with_usable_rules(wanted, self._units)
        check_writable(wanted, self._units)
        decided = await self._writer.write(
            caller.tenant,
            caller.principal,
            CreateTwinType(twin_type=wanted),
            request_id=request_id_or_new(request.request_id),
            content=content_of(request),
        )
        stored = self._reading.live.fold.registry.require_twin_type(caller.tenant, wanted.twin_type_id, wanted.version)
        return statesync_pb2.CreateTwinTypeResponse(
            twin_type=twin_type_to_message(stored), position=position_to_message(decided.position)
        )

    async def GetTwinType(  # noqa: N802
        self, request: statesync_pb2.GetTwinTypeRequest, context: Any
    ) -> statesync_pb2.GetTwinTypeResponse:
        """Return a twin type."""
        tenant = current_caller().tenant
        require_resource_id(request.twin_type_id, "twin_type_id")
        if request.version < 0:
            raise invalid_field("version", "must be 0 (the newest) or greater")
        await self._reading.at_least(request.min_offset, request.incarnation)
        found = self._reading.live.fold.registry.require_twin_type(tenant, request.twin_type_id, request.version)
        if request.declared:
            found = self._reading.live.fold.registry.declared_type(tenant, found)
        return statesync_pb2.GetTwinTypeResponse(twin_type=twin_type_to_message(found), as_of=self._reading.as_of())

    async def ListTwinTypes(  # noqa: N802
        self, request: statesync_pb2.ListTwinTypesRequest, context: Any
    ) -> statesync_pb2.ListTwinTypesResponse:
        """List the newest version of each twin type."""
        size, token = page_size(request.page_size), read_token(request.page_token, self._reading.live)
        pinned = self._reading.pinned(token)
        newest: dict[str, TwinType] = {}
        for twin_type in self._reading.live.fold.registry.twin_types(current_caller().tenant):
            if twin_type.create_offset <= pinned.offset:
                newest[twin_type.twin_type_id] = twin_type
        page, next_token = page_of(list(newest.values()), token, lambda t: t.twin_type_id, size, pinned)
        return statesync_pb2.ListTwinTypesResponse(
            twin_types=map(twin_type_to_message, page), next_page_token=next_token, as_of=self._reading.as_of()
        )

    async def CreateTwin(  # noqa: N802
        self, request: statesync_pb2.CreateTwinRequest, context: Any
    ) -> statesync_pb2.CreateTwinResponse:
        """Create a twin."""
        caller = current_caller()
        wanted = twin_from_message(request.twin)
        check_writable(wanted)
        decided = await self._writer.write(
            caller.tenant,
            caller.principal,
            CreateTwin(twin=wanted, if_absent=request.if_absent),
            request_id=request_id_or_new(request.request_id),
            content=content_of(request),
        )
        state = self._reading.live.fold.state(caller.tenant, wanted.twin_id)
        if state is None:
            raise Internal("The twin was created and cannot be found.")
        return statesync_pb2.CreateTwinResponse(
            twin=twin_to_message(state.twin),
            position=position_to_message(decided.position),
            created=decided.verdict.outcome is Outcome.ACCEPTED,
        )

    async def CreateTwins(  # noqa: N802
        self, request: statesync_pb2.CreateTwinsRequest, context: Any
    ) -> statesync_pb2.CreateTwinsResponse:
        """Create many twins."""
        return await self._identities.create(current_caller(), request)

    async def UpdateTwin(  # noqa: N802
        self, request: statesync_pb2.UpdateTwinRequest, context: Any
    ) -> statesync_pb2.UpdateTwinResponse:
        """Change what a twin is."""
        return await self._identities.update(current_caller(), request)

    async def MigrateTwins(  # noqa: N802
        self, request: statesync_pb2.MigrateTwinsRequest, context: Any
    ) -> statesync_pb2.MigrateTwinsResponse:
        """Bring twins to another version of their type."""
        return await self._identities.migrate(current_caller(), request)

    async def GetTwin(  # noqa: N802
        self, request: statesync_pb2.GetTwinRequest, context: Any
    ) -> statesync_pb2.GetTwinResponse:
        """Return a twin."""
        state = await self._reading.twin(
            current_caller().tenant, request.twin_id, request.min_offset, request.incarnation
        )
        return statesync_pb2.GetTwinResponse(twin=twin_to_message(state.twin), as_of=self._reading.as_of())

    async def ListTwins(  # noqa: N802
        self, request: statesync_pb2.ListTwinsRequest, context: Any
    ) -> statesync_pb2.ListTwinsResponse:
        """List the twins that match, as they are or as they were."""
        tenant = current_caller().tenant
        asked = await self._past.asked(request)
        if asked is None:
            return await self._listing.list(tenant, request)
        return await self._past_lists.list(tenant, request, asked)

    async def CountTwins(  # noqa: N802
        self, request: statesync_pb2.CountTwinsRequest, context: Any
    ) -> statesync_pb2.CountTwinsResponse:
        """Count the twins that match."""
        return await self._listing.count(current_caller().tenant, request)

    async def DeleteTwin(  # noqa: N802
        self, request: statesync_pb2.DeleteTwinRequest, context: Any
    ) -> statesync_pb2.DeleteTwinResponse:
        """Delete a twin."""
        caller = current_caller()
        require_twin_id(request.twin_id)
        decided = await self._writer.write(
            caller.tenant,
            caller.principal,
            DeleteTwin(twin_id=request.twin_id),
            request_id=request_id_or_new(request.request_id),
            content=content_of(request),
        )
        return statesync_pb2.DeleteTwinResponse(position=position_to_message(decided.position))
