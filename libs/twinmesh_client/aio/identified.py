"""What a twin is, read and changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_client.aio.connection import Connection, new_request_id
from twinmesh_client.aio.questions import update_request
from twinmesh_client.registry_mapping import twin_from_message
from twinmesh_client.transport import call
from twinmesh_core import registry
from twinmesh_core.geometry import Geometry


class Identified:
    """The part of a twin's handle that is about its identity."""

    twin_id: str
    _connection: Connection

    async def identity(self, *, min_offset: int = 0) -> registry.Twin:
        """Return what the twin is: type, attributes, properties, relationships, geometry, and its revision."""
        request = statesync_pb2.GetTwinRequest(twin_id=self.twin_id, min_offset=min_offset)
        answer = await call(self._connection.twins.GetTwin, request, timeout_s=self._connection.timeout_s)
        return twin_from_message(answer.twin)

    async def update(
        self,
        *,
        display_name: str | None = None,
        time_zone: str | None = None,
        attributes: Mapping[str, str | None] | None = None,
        properties: Mapping[str, Any] | None = None,
        relationships: Mapping[str, Sequence[str]] | None = None,
        geometry: Geometry | None = None,
        if_revision: int | None = None,
    ) -> registry.Twin:
        """Change what the twin is, and return it as it is then; what is not given stays.

        Args:
            display_name: for people.
            time_zone: IANA zone of the entity.
            attributes: by key; None removes it.
            properties: by name, in the type's units; None removes it (one with a default goes back to that).
            relationships: targets by name of the edge; they replace all edges of that name.
            geometry: its own shape and place.
            if_revision: only if the twin's revision (see `identity`) is still this one.

        Raises:
            Conflict: it is at another revision; `metadata` has the current one and the current values.
            InvalidArgument: a value does not fit the type; names it.
            NotFound: there is no such twin.
        """
        request = update_request(
            self.twin_id,
            display_name=display_name,
            time_zone=time_zone,
            attributes=attributes,
            properties=properties,
            relationships=relationships,
            geometry=geometry,
        )
        request.request_id = new_request_id()
        if if_revision is not None:
            request.if_revision = if_revision
        answer = await call(self._connection.twins.UpdateTwin, request, timeout_s=self._connection.timeout_s)
        return twin_from_message(answer.twin)
