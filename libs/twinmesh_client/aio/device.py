"""The device side: report facts, obey commands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import command_pb2
from twinmesh_client.aio.connection import Connection, new_request_id
from twinmesh_client.commands import Command, command
from twinmesh_client.transport import call, stream
from twinmesh_core.errors import DeadlineExceeded, FailedPrecondition, NotFound, Reason, Unavailable

Handler = Callable[[Command], Awaitable[str | None]]
"""Does a command; returns words for the answer. Raising `Refused` fails the command with its text."""
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 3.0


class Refused(Exception):  # noqa: N818  the device's word
    """The device will not or cannot do a command; the text goes back to whoever sent it."""


class Device:
    """Stands for one or more twins: hands their commands to a handler, in order, and acknowledges them."""

    def __init__(self, connection: Connection, twin_ids: Sequence[str], handlers: Mapping[str, Handler]) -> None:
        self._connection = connection
        self._twin_ids = tuple(twin_ids)
        self._handlers = dict(handlers)
        self._done: dict[str, tuple[command_pb2.CommandState.ValueType, str]] = {}

    async def run(self) -> None:
        """Obey for ever; reconnects by itself. A command that was done but not acknowledged is not done again."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                request = statesync_pb2.FollowCommandsRequest(twin_ids=self._twin_ids)
                async with aclosing(
                    stream(self._connection.commands.FollowCommands, request, timeout_s=None)
                ) as answers:
                    async for answer in answers:
                        pause_s = FIRST_PAUSE_S
                        for message in answer.commands:
                            await self._obey(command(message))
            except (Unavailable, DeadlineExceeded, NotFound):
                # Away, restarting, or the twin is not created yet: what is queued waits for this device.
                pass
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _obey(self, order: Command) -> None:
        if order.command_id not in self._done:
            if order.state == "QUEUED" and not await self._acknowledge(order, command_pb2.COMMAND_STATE_DELIVERED, ""):
                return
            self._done[order.command_id] = await self._do(order)
            while len(self._done) > 1_000:
                del self._done[next(iter(self._done))]
        await self._acknowledge(order, *self._done[order.command_id])

    async def _do(self, order: Command) -> tuple[command_pb2.CommandState.ValueType, str]:
        handler = self._handlers.get(order.name)
        if handler is None:
            return command_pb2.COMMAND_STATE_FAILED, f"this device has no command {order.name}"
        try:
            return command_pb2.COMMAND_STATE_SUCCEEDED, await handler(order) or ""
        except Refused as refusal:
            return command_pb2.COMMAND_STATE_FAILED, str(refusal)

    async def _acknowledge(self, order: Command, state: command_pb2.CommandState.ValueType, message: str) -> bool:
        request = statesync_pb2.AcknowledgeCommandRequest(
            twin_id=order.twin_id,
            command_id=order.command_id,
            state=state,
            message=message[:1_000],
            request_id=new_request_id(),
        )
        try:
            await call(self._connection.commands.AcknowledgeCommand, request, timeout_s=self._connection.timeout_s)
        except FailedPrecondition as error:
            if error.reason != Reason.COMMAND_STATE:
                raise
            # It ended meanwhile: cancelled, or expired.
            return False
        return True


def device_value(order: Command) -> Any:
    """Return the argument ``value`` of a command that carries a desired value."""
    return order.args.get("value")
