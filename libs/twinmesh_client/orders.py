"""What a device is asked to do: orders and targets, and how its handlers answer them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from twinmesh_client.commands import Command
from twinmesh_core.errors import invalid_field


class Refused(Exception):  # noqa: N818  the device's word
    """The device will not or cannot do what it was asked; the text goes back to whoever asked."""


class Cancelled(Exception):  # noqa: N818  the device's word
    """The device gave an order up because it was asked to."""


class Order:
    """A command at the device; safe to use from any thread.

    Attributes:
        command: as it was received.
        twin_id: the twin it goes to.
        command_id: its id.
        name: its name in the twin type.
        args: its arguments by name.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        self.twin_id = command.twin_id
        self.command_id = command.command_id
        self.name = command.name
        self.args: Mapping[str, Any] = command.args
        self.cancel_reason = command.cancel_reason
        self._loop = asyncio.get_running_loop()
        self._cancel = asyncio.Event()
        self._news = asyncio.Event()
        self._told: tuple[float | None, str] = (None, "")
        if command.cancel_requested:
            self._cancel.set()

    def __repr__(self) -> str:
        return f"Order({self.name}, {dict(self.args)})"

    @property
    def cancel_requested(self) -> bool:
        """Whether it is to be given up: a caller asked for it, or it ended without the device (it expired)."""
        return self._cancel.is_set()

    def check_cancelled(self) -> None:
        """Raise `Cancelled` if it is to be given up: call it where stopping is safe."""
        if self._cancel.is_set():
            raise Cancelled(self.cancel_reason or "given up on request")

    async def wait_cancelled(self) -> None:
        """Return once it is to be given up."""
        await self._cancel.wait()

    def progress(self, percent: float | None = None, message: str = "") -> None:
        """Tell how far it is, 0 to 100, and what is being done; returns at once, and only the newest is sent on.

        Raises:
            InvalidArgument: the percentage is none.
        """
        if percent is not None and not 0 <= percent <= 100:
            raise invalid_field("percent", "must be 0 to 100")
        self._told = (percent, message[:1_000])
        self._loop.call_soon_threadsafe(self._news.set)

    def give_up(self, reason: str) -> None:
        """Note that it is to be given up; for the device's own loop."""
        self.cancel_reason = reason
        self._cancel.set()

    async def next_progress(self) -> tuple[float | None, str]:
        """Return the newest progress once there is any that was not returned; for the device's own loop."""
        await self._news.wait()
        self._news.clear()
        return self._told


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A desired value at the device.

    Attributes:
        offset: the log entry that set it: a newer target has a greater one.
        deadline: by when the facts should meet it; None = no deadline, or it came by a command.
    """

    twin_id: str
    channel: str
    value: Any
    offset: int
    deadline: datetime | None = None


Handler = Callable[[Order], Any]
"""Does a command; plain or async (a plain one runs on a thread). What it returns is the answer: a mapping is the result
by name, a text is the message, any other value is the result ``value``. Raising `Refused` or any other error fails the
command with its text, raising `Cancelled` gives it up."""
DesiredHandler = Callable[[Target], Any]
"""Obeys a desired value; plain or async. What it returns is reported as the channel's value (None = nothing is, the
handler did or will). Raising `Refused` or any other error rejects the target with its text."""
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
