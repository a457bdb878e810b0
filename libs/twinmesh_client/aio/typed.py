"""The type of a twin."""

from __future__ import annotations

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_client.aio.connection import Connection
from twinmesh_client.registry_mapping import twin_type_from_message
from twinmesh_client.transport import call
from twinmesh_core.registry import TwinType


async def type_of(connection: Connection, twin_id: str) -> TwinType:
    """Return a twin's type; raises `NotFound`."""
    asked = statesync_pb2.GetTwinRequest(twin_id=twin_id)
    twin = (await call(connection.twins.GetTwin, asked, timeout_s=connection.timeout_s)).twin
    request = statesync_pb2.GetTwinTypeRequest(twin_type_id=twin.twin_type_id, version=twin.twin_type_version)
    answer = await call(connection.twins.GetTwinType, request, timeout_s=connection.timeout_s)
    return twin_type_from_message(answer.twin_type)
