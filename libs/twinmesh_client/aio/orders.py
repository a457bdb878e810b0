"""The caller's side of commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_client.aio.connection import Connection, new_request_id
from twinmesh_client.commands import Command, command
from twinmesh_client.conditions import Condition, messages
from twinmesh_client.durations import Span, proto_span
from twinmesh_client.transport import call
from twinmesh_client.values import map_to_proto


async def send(
    connection: Connection,
    twin_id: str,
    name: str,
    args: Mapping[str, Any] | None,
    *,
    time_to_live: Span | None,
    units: Mapping[str, str] | None,
    when: Sequence[Condition],
    request_id: str,
) -> Command:
    """Queue an order; see `Twin.send_command`."""
    request = statesync_pb2.SendCommandRequest(
        twin_id=twin_id,
        name=name,
        args=map_to_proto(args or {}, "args"),
        conditions=messages(when),
        arg_units=units or {},
        request_id=request_id or new_request_id(),
    )
    if time_to_live is not None:
        request.time_to_live.CopyFrom(proto_span(time_to_live, "time_to_live"))
    answer = await call(connection.commands.SendCommand, request, timeout_s=connection.timeout_s)
    return command(answer.command)


async def get(connection: Connection, twin_id: str, command_id: str) -> Command:
    """Return a command; see `Twin.command`."""
    request = statesync_pb2.GetCommandRequest(twin_id=twin_id, command_id=command_id)
    answer = await call(connection.commands.GetCommand, request, timeout_s=connection.timeout_s)
    return command(answer.command)


async def cancel(connection: Connection, twin_id: str, command_id: str, reason: str, *, force: bool) -> Command:
    """Cancel a command, or ask its device to give it up; see `Twin.cancel_command`."""
    request = statesync_pb2.CancelCommandRequest(
        twin_id=twin_id, command_id=command_id, message=reason, force=force, request_id=new_request_id()
    )
    answer = await call(connection.commands.CancelCommand, request, timeout_s=connection.timeout_s)
    return command(answer.command)


async def newest(connection: Connection, twin_id: str, limit: int) -> list[Command]:
    """Return a twin's newest commands."""
    request = statesync_pb2.ListCommandsRequest(twin_id=twin_id, page_size=limit)
    answer = await call(connection.commands.ListCommands, request, timeout_s=connection.timeout_s)
    return [command(c) for c in answer.commands]
