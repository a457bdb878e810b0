"""What entries do to commands: queue, deliver, report progress, end with a result, cancel or ask to give up."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from twinmesh_core.errors import AlreadyExists, FailedPrecondition, NotFound, Reason, invalid_field
from twinmesh_core.ids import quoted
from twinmesh_statesync.domain.arguments import checked_args
from twinmesh_statesync.domain.commands import Command, CommandState, may_move
from twinmesh_statesync.domain.entries import CancelCommand, QueueCommand, UpdateCommand
from twinmesh_statesync.domain.targets import follow_command
from twinmesh_statesync.domain.twin_state import Draft, TwinState

_BY_DEVICE: Final = (CommandState.DELIVERED, CommandState.SUCCEEDED, CommandState.FAILED)


def queued(draft: Draft, action: QueueCommand) -> Command:
    """Return the command that an action asks for, as it begins.

    Raises:
        AlreadyExists: a command of this id.
        InvalidArgument: the twin's type has no such command, or not with these arguments.
    """
    state = draft.state
    if action.command_id in state.commands:
        raise AlreadyExists(
            f"Command {quoted(action.command_id)} of {quoted(action.twin_id)} exists; choose another id."
        )
    spec = state.twin_type.command(action.name)
    if spec is None:
        names = ", ".join(command.name for command in state.twin_type.commands) or "none"
        raise invalid_field("name", f"{quoted(action.name)} is not a command of this twin's type; it has: {names}")
    args = checked_args(state.twin_type, spec, action)
    return Command(
        command_id=action.command_id,
        twin_id=action.twin_id,
        name=action.name,
        args=args,
        state=CommandState.QUEUED,
        message="",
        create_time_unix_us=draft.commit_time_unix_us,
        expire_time_unix_us=action.expire_time_unix_us,
        create_offset=draft.offset,
        offset=draft.offset,
        update_time_unix_us=draft.commit_time_unix_us,
    )


def update_command(draft: Draft, action: UpdateCommand) -> None:
    """Move a command, or take the progress of one that stays DELIVERED.

    Raises:
        NotFound: COMMAND_NOT_FOUND.
        FailedPrecondition: COMMAND_STATE, with the present state.
    """
    command = require_command(draft.state, action.command_id)
    if not may_move(command.state, action.state):
        raise _cannot(command, f"become {action.state.name}")
    moved = command
    if action.state is CommandState.DELIVERED:
        moved = _progressed(command, action)
    elif command.state is not action.state:
        moved = replace(command, message=action.message, result=dict(action.result))
    if moved is command and command.state is action.state:
        return
    moved = touched(draft, moved, action.state)
    if command.state is CommandState.QUEUED and action.state in _BY_DEVICE:
        moved = replace(moved, deliver_time_unix_us=draft.commit_time_unix_us)
    draft.put_command(moved)
    if command.state is not moved.state:
        follow_command(draft, moved)


def cancel_command(draft: Draft, action: CancelCommand) -> None:
    """End a command that the device has not taken, or by force; ask the device to give up one that it has.

    Raises:
        NotFound: COMMAND_NOT_FOUND.
        FailedPrecondition: COMMAND_STATE, it has ended.
    """
    command = require_command(draft.state, action.command_id)
    if command.state is CommandState.CANCELLED:
        return
    if command.state.ended:
        raise _cannot(command, "be cancelled")
    if command.state is CommandState.QUEUED or action.force:
        moved = touched(draft, replace(command, message=action.message), CommandState.CANCELLED)
        draft.put_command(moved)
        follow_command(draft, moved)
    elif not command.cancel_requested:
        asked = replace(command, cancel_requested=True, cancel_reason=action.message)
        draft.put_command(touched(draft, asked, command.state))


def touched(draft: Draft, command: Command, state: CommandState) -> Command:
    """Return the command in a state, moved by the draft's entry."""
    return replace(command, state=state, offset=draft.offset, update_time_unix_us=draft.commit_time_unix_us)


def require_command(state: TwinState, command_id: str) -> Command:
    """Return a command of the twin; raises `NotFound` (COMMAND_NOT_FOUND)."""
    command = state.commands.get(command_id)
    if command is None:
        raise NotFound(
            f"{quoted(state.twin.twin_id)} has no command {quoted(command_id)}; list them with ListCommands",
            reason=Reason.COMMAND_NOT_FOUND,
        )
    return command


def _progressed(command: Command, action: UpdateCommand) -> Command:
    percent = command.progress_percent if action.progress_percent is None else action.progress_percent
    message = action.progress_message or command.progress_message
    words = action.message or command.message
    if (percent, message, words) == (command.progress_percent, command.progress_message, command.message):
        return command
    return replace(command, progress_percent=percent, progress_message=message, message=words)


def _cannot(command: Command, what: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"Command {quoted(command.command_id)} is {command.state.name} and cannot {what}.",
        reason=Reason.COMMAND_STATE,
        metadata={"state": command.state.name},
    )
