"""CommandService: orders to entities, from the caller who gives them to the device that obeys."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.statesync.v1.statesync_pb2_grpc import CommandServiceServicer
from twinmesh.type.v1 import command_pb2, observation_pb2
from twinmesh_core.errors import invalid_field
from twinmesh_core.ids import require_name, require_twin_id
from twinmesh_core.time import MAX_SPAN_US, Clock
from twinmesh_runtime.caller import Caller, current_caller
from twinmesh_runtime.registry_mapping import duration_from_message
from twinmesh_statesync.domain.commands import Command, CommandState
from twinmesh_statesync.domain.entries import Action, CancelCommand, QueueCommand, UpdateCommand
from twinmesh_statesync.domain.live import rewound
from twinmesh_statesync.domain.orders import require_command
from twinmesh_statesync.domain.writer import Decided, Writer, derived_id, request_id_or_new
from twinmesh_statesync.rpc.mapping.conditions import conditions_from_messages
from twinmesh_statesync.rpc.mapping.values import (
    command_state_from_message,
    command_to_message,
    position_to_message,
    values_from_messages,
)
from twinmesh_statesync.rpc.mutation import content_of
from twinmesh_statesync.rpc.reading import Reading, page_of, page_size, read_token
from twinmesh_statesync.rpc.replicas import check_conditions_count
from twinmesh_statesync.rpc.units import UnitConversions
from twinmesh_statesync.rpc.watch import Watches

MAX_ARGS: Final = 64
MAX_ARGS_BYTES: Final = 64 * 1_024
MAX_RESULT_BYTES: Final = 16 * 1_024
MAX_MESSAGE_BYTES: Final = 1_024
MAX_FOLLOWED: Final = 1_000
_SIGN_OF_LIFE_S: Final = 2.0
_ACKNOWLEDGED: Final = (
    CommandState.DELIVERED,
    CommandState.SUCCEEDED,
    CommandState.FAILED,
    CommandState.CANCELLED,
)
_WITHOUT_THE_DEVICE: Final = (CommandState.EXPIRED, CommandState.CANCELLED)
"""How a command may end that the device is at work on."""


class CommandServicer(CommandServiceServicer):
    """Serves commands.

    Args:
        reading: read access to the fold.
        writer: has mutations decided.
        watches: tells when the process drains.
        clock: turns a time to live into a time.
        units: converts the values of conditions and arguments.
    """

    def __init__(
        self, reading: Reading, writer: Writer, watches: Watches, clock: Clock, units: UnitConversions
    ) -> None:
        self._reading = reading
        self._writer = writer
        self._watches = watches
        self._clock = clock
        self._units = units

    async def SendCommand(  # noqa: N802
        self, request: statesync_pb2.SendCommandRequest, context: Any
    ) -> statesync_pb2.SendCommandResponse:
        """Queue a command."""
        caller = current_caller()
        require_twin_id(request.twin_id)
        require_name(request.name, "name")
        _check_values(request.args, "args", MAX_ARGS_BYTES)
        check_conditions_count(len(request.conditions))
        conditions = conditions_from_messages(request.conditions)
        if conditions:
            state = await self._reading.twin(caller.tenant, request.twin_id)
            conditions = await self._units.conditions(state, conditions)
        expire_time = None
        if request.HasField("time_to_live"):
            time_to_live_us = duration_from_message(request.time_to_live)
            if not 0 < time_to_live_us <= MAX_SPAN_US:
                raise invalid_field(
                    "time_to_live", "must be longer than 0 and at most 100 years; leave it out for no expiry"
                )
            expire_time = self._clock.now_unix_us() + time_to_live_us
        request_id = request_id_or_new(request.request_id)
        args = values_from_messages(request.args, "args")
        type_version = 0
        if request.arg_units:
            state = await self._reading.twin(caller.tenant, request.twin_id)
            args = await self._units.arguments(state, request.name, args, request.arg_units)
            type_version = state.twin_type.version
        action = QueueCommand(
            command_id=derived_id("c", caller.tenant, request_id),
            twin_id=request.twin_id,
            name=request.name,
            args=args,
            expire_time_unix_us=expire_time,
            conditions=conditions,
            type_version=type_version,
        )
        decided = await self._writer.write(
            caller.tenant, caller.principal, action, request_id=request_id, content=content_of(request)
        )
        state = await self._reading.twin(caller.tenant, request.twin_id)
        command = require_command(state, decided.verdict.ids[0])
        return statesync_pb2.SendCommandResponse(
            command=command_to_message(command), position=position_to_message(decided.position)
        )

    async def GetCommand(  # noqa: N802
        self, request: statesync_pb2.GetCommandRequest, context: Any
    ) -> statesync_pb2.GetCommandResponse:
        """Return a command."""
        _require_ids(request.twin_id, request.command_id)
        state = await self._reading.twin(
            current_caller().tenant, request.twin_id, request.min_offset, request.incarnation
        )
        return statesync_pb2.GetCommandResponse(
            command=command_to_message(require_command(state, request.command_id)), as_of=self._reading.as_of()
        )

    async def ListCommands(  # noqa: N802
        self, request: statesync_pb2.ListCommandsRequest, context: Any
    ) -> statesync_pb2.ListCommandsResponse:
        """List a twin's commands, newest first; later pages hold none that came after the first page."""
        size, token = page_size(request.page_size), read_token(request.page_token, self._reading.live)
        state = await self._reading.twin(
            current_caller().tenant, request.twin_id, request.min_offset, request.incarnation
        )
        pinned = self._reading.pinned(token)
        commands = sorted(
            (command for command in state.commands.values() if command.create_offset <= pinned.offset),
            key=Command.order,
            reverse=True,
        )
        page, next_token = page_of(commands, token, lambda c: c.command_id, size, pinned)
        return statesync_pb2.ListCommandsResponse(
            commands=map(command_to_message, page), next_page_token=next_token, as_of=self._reading.as_of()
        )

    async def AcknowledgeCommand(  # noqa: N802
        self, request: statesync_pb2.AcknowledgeCommandRequest, context: Any
    ) -> statesync_pb2.AcknowledgeCommandResponse:
        """State what became of a command."""
        state = command_state_from_message(request.state)
        if state not in _ACKNOWLEDGED:
            raise invalid_field("state", "must be DELIVERED, SUCCEEDED, FAILED or CANCELLED")
        progress = request.progress_percent if request.HasField("progress_percent") else None
        if progress is not None and not 0 <= progress <= 100:
            raise invalid_field("progress_percent", "must be 0 to 100")
        if (progress is not None or request.progress_message) and state is not CommandState.DELIVERED:
            raise invalid_field("progress_percent", "goes with the state DELIVERED")
        if request.result and state not in (CommandState.SUCCEEDED, CommandState.FAILED):
            raise invalid_field("result", "goes with the states SUCCEEDED and FAILED")
        _check_text(request.progress_message, "progress_message")
        _check_values(request.result, "result", MAX_RESULT_BYTES)
        action = UpdateCommand(
            command_id=request.command_id,
            twin_id=request.twin_id,
            state=state,
            message=request.message,
            progress_percent=progress,
            progress_message=request.progress_message,
            result=values_from_messages(request.result, "result"),
        )
        command, decided = await self._move(request, action)
        return statesync_pb2.AcknowledgeCommandResponse(command=command, position=position_to_message(decided.position))

    async def CancelCommand(  # noqa: N802
        self, request: statesync_pb2.CancelCommandRequest, context: Any
    ) -> statesync_pb2.CancelCommandResponse:
        """Cancel a command that has not ended, or ask the device that has it to give it up."""
        action = CancelCommand(
            command_id=request.command_id, twin_id=request.twin_id, message=request.message, force=request.force
        )
        command, decided = await self._move(request, action)
        return statesync_pb2.CancelCommandResponse(command=command, position=position_to_message(decided.position))

    async def FollowCommands(  # noqa: N802
        self, request: statesync_pb2.FollowCommandsRequest, context: Any
    ) -> AsyncGenerator[statesync_pb2.FollowCommandsResponse, None]:
        """Stream the commands that have not ended, then new ones; each once per stream, in order per twin."""
        tenant = current_caller().tenant
        twin_ids = list(dict.fromkeys(request.twin_ids))
        if not 1 <= len(twin_ids) <= MAX_FOLLOWED:
            raise invalid_field("twin_ids", f"must hold 1 to {MAX_FOLLOWED:,} ids")
        live = self._reading.live
        self._watches.check_draining(live.fold.offset)
        await live.check()
        for i, twin_id in enumerate(twin_ids):
            require_twin_id(twin_id, f"twin_ids[{i}]")
            live.fold.registry.require_twin(tenant, twin_id)
        generation = live.generation
        sent: dict[str, dict[str, bool]] = {twin_id: {} for twin_id in twin_ids}
        seen: dict[str, int] = {}
        told_s = float("-inf")
        while True:
            news = live.pulse.next()
            self._watches.check_draining(live.fold.offset)
            if live.generation != generation:
                raise rewound()
            fresh = self._fresh(tenant, sent, seen)
            now_s = self._clock.monotonic_s()
            if fresh or now_s - told_s >= _SIGN_OF_LIFE_S:
                told_s = now_s
                yield statesync_pb2.FollowCommandsResponse(
                    commands=map(command_to_message, fresh), as_of=self._reading.as_of()
                )
                continue
            await news.wait()

    def _fresh(self, tenant: str, sent: dict[str, dict[str, bool]], seen: dict[str, int]) -> list[Command]:
        """Return what this stream has to tell, looking only at twins that changed.

        That is: open commands it has not told, those that are to be given up since, and those it told that ended
        without the device. `sent` holds, by twin and command, whether the request to give it up was told.
        """
        now = self._clock.now_unix_us()
        fresh: list[Command] = []
        for twin_id, told in sent.items():
            state = self._reading.live.fold.state(tenant, twin_id)
            if state is None or seen.get(twin_id) == state.replica.revision:
                continue
            seen[twin_id] = state.replica.revision
            still_open = {command.command_id: command for command in state.open_commands()}
            for command_id in [c for c in told if c not in still_open]:
                del told[command_id]
                ended = state.commands.get(command_id)
                if ended is not None and ended.state in _WITHOUT_THE_DEVICE:
                    fresh.append(ended)
            for command_id, command in still_open.items():
                # A process that was away may not have noticed yet: nobody may act on an order that is out of date.
                expired = command.expire_time_unix_us is not None and command.expire_time_unix_us <= now
                if told.get(command_id) is not command.cancel_requested and not expired:
                    told[command_id] = command.cancel_requested
                    fresh.append(command)
        return sorted(fresh, key=Command.order)

    async def _move(
        self, request: statesync_pb2.AcknowledgeCommandRequest | statesync_pb2.CancelCommandRequest, action: Action
    ) -> tuple[command_pb2.Command, Decided]:
        caller: Caller = current_caller()
        _require_ids(request.twin_id, request.command_id)
        _check_text(request.message, "message")
        decided = await self._writer.write(
            caller.tenant,
            caller.principal,
            action,
            request_id=request_id_or_new(request.request_id),
            content=content_of(request),
        )
        twin = await self._reading.twin(caller.tenant, request.twin_id)
        return command_to_message(require_command(twin, request.command_id)), decided


def _check_text(text: str, field: str) -> None:
    if len(text.encode()) > MAX_MESSAGE_BYTES:
        raise invalid_field(field, f"must be at most {MAX_MESSAGE_BYTES:,} bytes")


def _check_values(values: Mapping[str, observation_pb2.Value], field: str, max_bytes: int) -> None:
    if len(values) > MAX_ARGS:
        raise invalid_field(field, f"must hold at most {MAX_ARGS} values")
    for name in values:
        require_name(name, field)
    size = sum(len(name) + value.ByteSize() for name, value in values.items())
    if size > max_bytes:
        raise invalid_field(field, f"has {size:,} bytes and may have {max_bytes:,}; send a reference to what is large")


def _require_ids(twin_id: str, command_id: str) -> None:
    require_twin_id(twin_id)
    require_twin_id(command_id, "command_id")
