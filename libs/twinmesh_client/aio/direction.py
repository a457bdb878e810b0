"""Directing one twin: targets, commands, and the record of what was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from twinmesh_client.aio import events, orders
from twinmesh_client.aio.connection import Connection
from twinmesh_client.aio.desired import write_desired
from twinmesh_client.commands import Command
from twinmesh_client.conditions import Condition
from twinmesh_client.durations import Span
from twinmesh_client.replicas import DesiredWrite, Event


class Direction:
    """What a caller has a twin do; the part of `Twin` that writes decisions."""

    def __init__(self, connection: Connection, twin_id: str) -> None:
        self._connection = connection
        self.twin_id = twin_id

    async def set_desired(
        self,
        values: Mapping[str, Any] | None = None,
        *,
        remove: Sequence[str] = (),
        if_revision: int | None = None,
        deadline: Span | None = None,
        units: Mapping[str, str] | None = None,
        tolerances: Mapping[str, float] | None = None,
        when: Sequence[Condition] = (),
    ) -> DesiredWrite:
        """Set targets, all or nothing.

        Args:
            values: targets by channel.
            remove: channels whose target is taken away.
            if_revision: only if the desired facet still has this revision (0 = nothing was ever desired).
            deadline: time by which the facts should meet them; a missed one is an event.
            units: unit of values that are not in their channel's own, e.g. ``{"oil": "degF"}``.
            tolerances: how near the facts must come, in the value's unit; None = as the twin type says.
            when: only if all of these hold, e.g. ``[tm.reported("valve") == "closed", tm.desired("speed").absent]``.

        Raises:
            Conflict: somebody else was first; `current_state` tells what the twin is now.
            FailedPrecondition: CONDITION_NOT_MET, likewise; NOT_CONTROLLABLE.
        """
        return await write_desired(
            self._connection,
            self.twin_id,
            values or {},
            remove=remove,
            if_revision=if_revision,
            deadline=deadline,
            units=units,
            tolerances=tolerances,
            when=when,
        )

    async def send_command(
        self,
        name: str,
        args: Mapping[str, Any] | None = None,
        *,
        time_to_live: Span | None = None,
        units: Mapping[str, str] | None = None,
        when: Sequence[Condition] = (),
        request_id: str = "",
    ) -> Command:
        """Queue an order for the entity; it is kept until the device takes it or it expires.

        Args:
            name: which command of the twin's type.
            args: its arguments; defaults of the type are filled in.
            time_to_live: nobody acts on it later than that.
            units: unit of arguments that are in another one than the type's.
            when: queued only if all of these hold.
            request_id: makes it idempotent; given by the SDK unless you do.

        Raises:
            FailedPrecondition: CONDITION_NOT_MET.
            ResourceExhausted: COMMAND_QUEUE_FULL, too many wait for this twin.
        """
        return await orders.send(
            self._connection,
            self.twin_id,
            name,
            args,
            time_to_live=time_to_live,
            units=units,
            when=when,
            request_id=request_id,
        )

    async def command(self, command_id: str) -> Command:
        """Return a command; raises `NotFound`."""
        return await orders.get(self._connection, self.twin_id, command_id)

    async def cancel_command(self, command_id: str, reason: str = "", *, force: bool = False) -> Command:
        """Cancel a command: at once while it waits; one that the device has is asked of it, unless `force` is set.

        Raises:
            FailedPrecondition: COMMAND_STATE, it has ended.
        """
        return await orders.cancel(self._connection, self.twin_id, command_id, reason, force=force)

    async def commands(self, *, limit: int = 100) -> list[Command]:
        """Return the newest commands."""
        return await orders.newest(self._connection, self.twin_id, limit)

    async def record_event(
        self, kind: str, *, start: datetime, end: datetime | None = None, mode: str = "", message: str = ""
    ) -> Event:
        """Record a dated fact: ``failure``, ``maintenance``, ``replacement``, ``operating_mode`` or ``note``."""
        return await events.record(
            self._connection, self.twin_id, kind, start=start, end=end, mode=mode, message=message
        )

    async def end_event(self, event_id: str, *, end: datetime) -> Event:
        """End an event that was recorded without an end; a maintenance suppresses alarms no more. Raises `NotFound`."""
        return await events.end(self._connection, self.twin_id, event_id, end)

    async def events(self, *, limit: int = 100) -> list[Event]:
        """Return events, newest first."""
        return await events.newest(self._connection, self.twin_id, limit)
