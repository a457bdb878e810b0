"""Commands: persisted orders to an entity, and the moves their life allows.

::

    QUEUED ──> DELIVERED ──> SUCCEEDED | FAILED
       └──────────┴────────> SUCCEEDED | FAILED | EXPIRED | CANCELLED     (an acknowledgement implies the delivery)

A QUEUED command is cancelled at once. A DELIVERED one is with the device: the request to give it up is noted, the
device sees it and says what became of the command; only by force does it end without the device's word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from twinmesh_statesync.domain.values import Value


class CommandState(IntEnum):
    """Where a command is in its life; numbers equal ``twinmesh.type.v1.CommandState``."""

    UNSPECIFIED = 0
    QUEUED = 1
    DELIVERED = 2
    SUCCEEDED = 3
    FAILED = 4
    EXPIRED = 5
    CANCELLED = 6

    @property
    def ended(self) -> bool:
        """Whether it will never change again."""
        return self >= CommandState.SUCCEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One order to one twin.

    Attributes:
        command_id: unique within the tenant and twin.
        twin_id: the twin it goes to.
        name: its name in the twin type.
        args: its arguments by name.
        state: where it is in its life.
        message: why it failed or was cancelled, or what the device said of its success.
        create_time_unix_us: commit time of the entry that queued it.
        expire_time_unix_us: when it expires; None = never.
        create_offset: that entry's offset: the command's place in the twin's order.
        offset: the last entry that moved it.
        update_time_unix_us: commit time of that entry.
        progress_percent: how far the device is, 0 to 100; None = it said nothing.
        progress_message: what it is doing.
        result: what it answered, by name.
        cancel_requested: a caller asked the device to give it up.
        cancel_reason: why.
        deliver_time_unix_us: commit time of the entry by which the device took it; None = it did not.
    """

    command_id: str
    twin_id: str
    name: str
    args: Mapping[str, Value]
    state: CommandState
    message: str
    create_time_unix_us: int
    expire_time_unix_us: int | None
    create_offset: int
    offset: int
    update_time_unix_us: int
    progress_percent: float | None = None
    progress_message: str = ""
    result: Mapping[str, Value] = field(default_factory=dict)
    cancel_requested: bool = False
    cancel_reason: str = ""
    deliver_time_unix_us: int | None = None

    def order(self) -> tuple[int, str]:
        """Return the key by which a twin's commands are delivered; one entry may queue several."""
        return (self.create_offset, self.command_id)


_OPEN: Final = (CommandState.QUEUED, CommandState.DELIVERED)


def may_move(present: CommandState, wanted: CommandState) -> bool:
    """Whether a command may go from `present` to `wanted`; the state it is in already is always fine."""
    return present is wanted or (present in _OPEN and wanted > present)
