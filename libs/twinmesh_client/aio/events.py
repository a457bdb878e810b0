"""Dated facts of a twin: recording and listing them."""

from __future__ import annotations

from datetime import datetime

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_client.aio.connection import Connection, new_request_id
from twinmesh_client.aio.questions import event_message
from twinmesh_client.durations import moment_us, proto_moment
from twinmesh_client.replicas import Event, event
from twinmesh_client.transport import call


async def record(
    connection: Connection, twin_id: str, kind: str, *, start: datetime, end: datetime | None, mode: str, message: str
) -> Event:
    """Record a fact; see `Twin.record_event`."""
    body = event_message(twin_id, kind, start=start, end=end, mode=mode, message=message)
    request = statesync_pb2.RecordEventRequest(event=body, request_id=new_request_id())
    answer = await call(connection.events.RecordEvent, request, timeout_s=connection.timeout_s)
    return event(answer.event)


async def newest(connection: Connection, twin_id: str, limit: int) -> list[Event]:
    """Return a twin's newest events."""
    request = statesync_pb2.ListEventsRequest(twin_id=twin_id, page_size=limit)
    answer = await call(connection.events.ListEvents, request, timeout_s=connection.timeout_s)
    return [event(e) for e in answer.events]


async def end(connection: Connection, twin_id: str, event_id: str, at: datetime) -> Event:
    """End an event; see `Direction.end_event`."""
    request = statesync_pb2.EndEventRequest(
        twin_id=twin_id,
        event_id=event_id,
        end_time=proto_moment(moment_us(at, "end")),
        request_id=new_request_id(),
    )
    answer = await call(connection.events.EndEvent, request, timeout_s=connection.timeout_s)
    return event(answer.event)
