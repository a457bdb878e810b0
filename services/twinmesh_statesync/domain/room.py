"""How many commands a twin keeps: bounds that hold for every fold alike."""

from __future__ import annotations

from typing import Final

from twinmesh_core.errors import Reason, ResourceExhausted
from twinmesh_core.ids import quoted
from twinmesh_statesync.domain.commands import Command
from twinmesh_statesync.domain.twin_state import TwinState

MAX_ENDED_COMMANDS: Final = 1_000
"""Commands that ended, remembered per twin; older ones are forgotten."""
MAX_OPEN_COMMANDS: Final = 1_000
"""Commands that may wait for one twin."""


def check_room(state: TwinState) -> None:
    """Refuse another command where too many wait; raises `ResourceExhausted` (COMMAND_QUEUE_FULL)."""
    if sum(not command.state.ended for command in state.commands.values()) >= MAX_OPEN_COMMANDS:
        raise ResourceExhausted(
            f"{quoted(state.twin.twin_id)} has {MAX_OPEN_COMMANDS} commands waiting; cancel some, or let the device "
            "acknowledge them.",
            reason=Reason.COMMAND_QUEUE_FULL,
            metadata={"limit": str(MAX_OPEN_COMMANDS)},
        )


def forget_old_commands(state: TwinState) -> None:
    """Forget the oldest of the ended commands beyond the bound."""
    if len(state.commands) <= MAX_ENDED_COMMANDS + MAX_OPEN_COMMANDS:
        return
    ended = sorted((c for c in state.commands.values() if c.state.ended), key=Command.order)
    for command in ended[: len(ended) - MAX_ENDED_COMMANDS]:
        del state.commands[command.command_id]
