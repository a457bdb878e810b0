"""Recording events: dated facts of a twin, from people and systems."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from twinmesh_core.errors import AlreadyExists, ResourceExhausted
from twinmesh_core.ids import quoted
from twinmesh_statesync.domain.entries import RecordEvent
from twinmesh_statesync.domain.twin_state import Draft, require_channel

MAX_EVENTS: Final = 100_000
"""Events of one twin."""


def record_event(draft: Draft, action: RecordEvent) -> None:
    """Record an event; raises `NotFound`, `AlreadyExists`, `ResourceExhausted`."""
    event = action.event
    if event.channel:
        require_channel(draft.state, event.channel)
    if event.event_id in draft.state.events:
        raise AlreadyExists(f"Event {quoted(event.event_id)} of {quoted(event.twin_id)} exists; choose another id.")
    if len(draft.state.events) >= MAX_EVENTS:
        raise ResourceExhausted(f"{quoted(event.twin_id)} has {MAX_EVENTS} events, which is the most a twin can keep.")
    draft.events.append(replace(event, offset=draft.offset))
