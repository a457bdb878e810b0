"""Commands as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from twinmesh.type.v1 import command_pb2
from twinmesh_client.durations import moment
from twinmesh_client.values import Scalar, map_from_proto


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A persisted order to an entity; `state` is QUEUED, DELIVERED, SUCCEEDED, FAILED, EXPIRED or CANCELLED.

    Attributes:
        create_offset: its place in the order of the twin's commands.
        progress_percent: how far the device is; None = it said nothing.
        result: what it answered.
        cancel_requested: a caller asked the device to give it up.
    """

    command_id: str
    twin_id: str
    name: str
    args: Mapping[str, Scalar | None]
    state: str
    message: str
    create_time: datetime
    update_time: datetime
    expire_time: datetime | None
    offset: int
    create_offset: int = 0
    deliver_time: datetime | None = None
    progress_percent: float | None = None
    progress_message: str = ""
    result: Mapping[str, Scalar | None] = field(default_factory=dict)
    cancel_requested: bool = False
    cancel_reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether it will never change again."""
        return self.state not in ("QUEUED", "DELIVERED")


def command(message: command_pb2.Command) -> Command:
    """Return a command."""
    return Command(
        command_id=message.command_id,
        twin_id=message.twin_id,
        name=message.name,
        args=map_from_proto(message.args),
        state=command_pb2.CommandState.Name(message.state).removeprefix("COMMAND_STATE_"),
        message=message.message,
        create_time=moment(message.create_time),
        update_time=moment(message.update_time),
        expire_time=moment(message.expire_time) if message.HasField("expire_time") else None,
        offset=message.offset,
        create_offset=message.create_offset,
        deliver_time=moment(message.deliver_time) if message.HasField("deliver_time") else None,
        progress_percent=message.progress_percent if message.HasField("progress_percent") else None,
        progress_message=message.progress_message,
        result=map_from_proto(message.result),
        cancel_requested=message.cancel_requested,
        cancel_reason=message.cancel_reason,
    )
