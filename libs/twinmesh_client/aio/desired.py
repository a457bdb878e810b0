"""Writing targets of a twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_client.aio.connection import Connection, new_request_id
from twinmesh_client.commands import command
from twinmesh_client.conditions import Condition, messages
from twinmesh_client.durations import Span, proto_span
from twinmesh_client.replicas import DesiredWrite, Position, delta_items, position
from twinmesh_client.transport import call
from twinmesh_client.values import map_to_proto


async def write_desired(
    connection: Connection,
    twin_id: str,
    values: Mapping[str, Any],
    *,
    remove: Sequence[str],
    if_revision: int | None,
    deadline: Span | None,
    units: Mapping[str, str] | None,
    tolerances: Mapping[str, float] | None,
    when: Sequence[Condition],
) -> DesiredWrite:
    """Set targets, all or nothing; see `Twin.set_desired`."""
    request = statesync_pb2.SetDesiredRequest(
        twin_id=twin_id,
        values=map_to_proto(values, "values"),
        remove=remove,
        if_revision=if_revision,
        units=units,
        tolerances=tolerances,
        conditions=messages(when),
        request_id=new_request_id(),
    )
    if deadline is not None:
        request.deadline.CopyFrom(proto_span(deadline, "deadline"))
    answer = await call(connection.replicas.SetDesired, request, timeout_s=connection.timeout_s)
    written = position(answer.position)
    return DesiredWrite(
        twin_id=twin_id,
        before=Position(incarnation=written.incarnation, offset=written.offset - 1),
        offset=written.offset,
        channels=frozenset(values),
        revision=answer.desired.revision,
        delta=delta_items(answer.delta),
        commands=tuple(command(c) for c in answer.commands),
    )
