"""EventService: dated facts of twins, recorded and listed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.statesync.v1.statesync_pb2_grpc import EventServiceServicer
from twinmesh_core.errors import Internal, invalid_field
from twinmesh_core.ids import require_name, require_twin_id
from twinmesh_core.time import MAX_TIME_UNIX_US, MIN_TIME_UNIX_US
from twinmesh_runtime.caller import current_caller
from twinmesh_runtime.registry_mapping import time_from_message
from twinmesh_statesync.domain.alarms.actions import EndEvent
from twinmesh_statesync.domain.entries import RecordEvent
from twinmesh_statesync.domain.events import Event, EventKind
from twinmesh_statesync.domain.writer import Writer, derived_id, request_id_or_new
from twinmesh_statesync.rpc.mapping.values import (
    event_from_message,
    event_kind_from_message,
    event_to_message,
    position_to_message,
)
from twinmesh_statesync.rpc.mutation import content_of
from twinmesh_statesync.rpc.reading import Reading, page_of, page_size, read_token

MAX_MODE_CHARACTERS: Final = 128
MAX_MESSAGE_BYTES: Final = 4_096


class EventServicer(EventServiceServicer):
    """Serves events.

    Args:
        reading: read access to the fold.
        writer: has mutations decided.
    """

    def __init__(self, reading: Reading, writer: Writer) -> None:
        self._reading = reading
        self._writer = writer

    async def RecordEvent(  # noqa: N802
        self, request: statesync_pb2.RecordEventRequest, context: Any
    ) -> statesync_pb2.RecordEventResponse:
        """Record an event."""
        caller = current_caller()
        event = _checked(request)
        request_id = request_id_or_new(request.request_id)
        event_id = derived_id("e", caller.tenant, request_id)
        decided = await self._writer.write(
            caller.tenant,
            caller.principal,
            RecordEvent(event=replace(event, event_id=event_id)),
            request_id=request_id,
            content=content_of(request),
        )
        state = self._reading.live.fold.state(caller.tenant, event.twin_id)
        stored = state.events.get(event_id) if state is not None else None
        if stored is None:
            raise Internal("The event was recorded and cannot be found.")
        return statesync_pb2.RecordEventResponse(
            event=event_to_message(stored), position=position_to_message(decided.position)
        )

    async def EndEvent(  # noqa: N802
        self, request: statesync_pb2.EndEventRequest, context: Any
    ) -> statesync_pb2.EndEventResponse:
        """End an event that was still going on."""
        caller = current_caller()
        require_twin_id(request.twin_id)
        require_twin_id(request.event_id, "event_id")
        if not request.HasField("end_time"):
            raise invalid_field("end_time", "is required: when it ended")
        end_time = time_from_message(request.end_time)
        if not MIN_TIME_UNIX_US <= end_time <= MAX_TIME_UNIX_US:
            raise invalid_field("end_time", "must be within the years 1 to 9999")
        decided = await self._writer.write(
            caller.tenant,
            caller.principal,
            EndEvent(twin_id=request.twin_id, event_id=request.event_id, end_time_unix_us=end_time),
            request_id=request_id_or_new(request.request_id),
            content=content_of(request),
        )
        state = await self._reading.twin(caller.tenant, request.twin_id)
        return statesync_pb2.EndEventResponse(
            event=event_to_message(state.events[request.event_id]), position=position_to_message(decided.position)
        )

    async def ListEvents(  # noqa: N802
        self, request: statesync_pb2.ListEventsRequest, context: Any
    ) -> statesync_pb2.ListEventsResponse:
        """List a twin's events by start time, newest first; all pages reflect the offset of the first."""
        size, token = page_size(request.page_size), read_token(request.page_token, self._reading.live)
        if request.kind and event_kind_from_message(request.kind) is EventKind.UNSPECIFIED:
            raise invalid_field("kind", "is not a kind of event; leave it out for all")
        state = await self._reading.twin(
            current_caller().tenant, request.twin_id, request.min_offset, request.incarnation
        )
        pinned = self._reading.pinned(token)
        events = sorted(
            (e for e in state.events.values() if e.offset <= pinned.offset and request.kind in (0, e.kind)),
            key=lambda e: (e.start_time_unix_us, e.offset, e.event_id),
            reverse=True,
        )
        page, next_token = page_of(events, token, lambda e: e.event_id, size, pinned)
        return statesync_pb2.ListEventsResponse(
            events=map(event_to_message, page), next_page_token=next_token, as_of=self._reading.as_of()
        )


def _checked(request: statesync_pb2.RecordEventRequest) -> Event:
    event = event_from_message(request.event)
    at = "event"
    require_twin_id(event.twin_id, f"{at}.twin_id")
    if event.kind is EventKind.UNSPECIFIED:
        raise invalid_field(f"{at}.kind", "is required: FAILURE, MAINTENANCE, REPLACEMENT, OPERATING_MODE or NOTE")
    if event.kind in (EventKind.NOT_CONVERGED, EventKind.DELIVERY_FAILED):
        raise invalid_field(f"{at}.kind", f"{event.kind.name} is written by the server alone")
    if not request.event.HasField("start_time"):
        raise invalid_field(f"{at}.start_time", "is required: when it happened or began")
    for name, time_unix_us in (("start_time", event.start_time_unix_us), ("end_time", event.end_time_unix_us)):
        if time_unix_us is not None and not MIN_TIME_UNIX_US <= time_unix_us <= MAX_TIME_UNIX_US:
            raise invalid_field(f"{at}.{name}", "must be within the years 1 to 9999")
    if event.end_time_unix_us is not None and event.end_time_unix_us < event.start_time_unix_us:
        raise invalid_field(f"{at}.end_time", "must not be before start_time")
    if len(event.mode) > MAX_MODE_CHARACTERS:
        raise invalid_field(f"{at}.mode", f"must be at most {MAX_MODE_CHARACTERS} characters")
    if len(event.message.encode()) > MAX_MESSAGE_BYTES:
        raise invalid_field(f"{at}.message", f"must be at most {MAX_MESSAGE_BYTES:,} bytes")
    if event.channel:
        require_name(event.channel, f"{at}.channel")
    return event
