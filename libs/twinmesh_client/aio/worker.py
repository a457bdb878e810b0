"""One twin's orders and targets, done one after the other, in order."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh.type.v1 import command_pb2, replica_pb2
from twinmesh_client.aio.connection import Connection, new_request_id
from twinmesh_client.aio.typed import type_of
from twinmesh_client.commands import Command
from twinmesh_client.journal import Journal, Outcome
from twinmesh_client.orders import Cancelled, DesiredHandler, Handler, Order, Refused, Target
from twinmesh_client.transport import Method, call
from twinmesh_client.values import map_to_proto
from twinmesh_core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Reason,
    ResourceExhausted,
    Unavailable,
)

RETRIED: Final = (Unavailable, DeadlineExceeded)
"""What trying again mends, sooner or later."""
_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 3.0
_PROGRESS_S: Final = 0.5
"""Progress is sent on at most this often."""
_UNKNOWN_END: Final = "The device was restarted while it did this; whether it took effect is not known."
RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What all workers of a device share; `report` reports a channel's value (twin, channel, value)."""

    connection: Connection
    commands: Mapping[str, Handler]
    desired: Mapping[str, DesiredHandler]
    journal: Journal
    report: Callable[[str, str, Any], Awaitable[None]]


class Worker:
    """Does what one twin is asked to do."""

    def __init__(self, work: Work, twin_id: str) -> None:
        self._work = work
        self._twin_id = twin_id
        self._inbox: asyncio.Queue[Order | Target] = asyncio.Queue()
        self._orders: dict[str, Order] = {}
        self._newest: dict[str, int] = {}

    def take_command(self, command: Command) -> None:
        """Take a command, or news of one that is in hand already."""
        known = self._orders.get(command.command_id)
        if known is None:
            if not command.ended:
                order = self._orders[command.command_id] = Order(command)
                self._inbox.put_nowait(order)
        elif command.ended:
            known.give_up(f"it is {command.state}")
        elif command.cancel_requested:
            known.give_up(command.cancel_reason)

    def take_target(self, target: Target) -> None:
        """Take a target, unless it is known already."""
        if target.channel in self._work.desired and self._newest.get(target.channel, 0) < target.offset:
            self._newest[target.channel] = target.offset
            self._inbox.put_nowait(target)

    def forget(self) -> None:
        """Forget which targets are known: after a restore of the log their offsets mean nothing."""
        self._newest.clear()

    async def run(self) -> None:
        """Work for ever."""
        while True:
            item = await self._inbox.get()
            if isinstance(item, Order):
                try:
                    await self._carry_out(item)
                finally:
                    del self._orders[item.command_id]
            elif self._newest.get(item.channel) == item.offset:
                await self._obey(item)

    async def _carry_out(self, order: Order) -> None:
        journal, key = self._work.journal, f"{order.twin_id}/{order.command_id}"
        outcome = journal.get(key)
        if outcome is None:
            delivered = command_pb2.COMMAND_STATE_DELIVERED
            if order.command.state == "QUEUED" and not await self._acknowledge(order, delivered):
                return
            await asyncio.to_thread(journal.begin, key)
            outcome = await self._outcome(order)
            await asyncio.to_thread(journal.end, key, outcome)
        elif not outcome.state:
            outcome = Outcome(state="FAILED", message=_UNKNOWN_END)
            await asyncio.to_thread(journal.end, key, outcome)
        state = command_pb2.CommandState.Value(f"COMMAND_STATE_{outcome.state}")
        await self._acknowledge(order, state, message=outcome.message, result=outcome.result)

    async def _outcome(self, order: Order) -> Outcome:
        telling = asyncio.create_task(self._tell_progress(order))
        try:
            order.check_cancelled()
            answer = await self._handled(order)
        except Refused as refusal:
            return Outcome(state="FAILED", message=str(refusal))
        except Cancelled as cancelled:
            return Outcome(state="CANCELLED", message=str(cancelled))
        except Exception as error:  # noqa: BLE001  whatever a handler raises is the answer, and stops no other command
            return Outcome(state="FAILED", message=f"{type(error).__name__}: {error}")
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        return _answered(answer)

    async def _handled(self, order: Order) -> Any:
        handler = self._work.commands.get(order.name)
        if handler is not None:
            return await _called(handler, order)
        for channel in await self._carried(order.name):
            target = Target(
                twin_id=order.twin_id,
                channel=channel,
                value=order.args.get("value"),
                offset=order.command.create_offset,
            )
            reported = await _called(self._work.desired[channel], target)
            if reported is not None:
                await self._work.report(order.twin_id, channel, reported)
            return None
        raise Refused(f"this device has no command {order.name}")

    async def _carried(self, name: str) -> list[str]:
        """Return the channels whose targets travel by a command of this name, and that this device obeys."""
        if not self._work.desired:
            return []
        twin_type = await self._insist(lambda: type_of(self._work.connection, self._twin_id))
        return [c.name for c in twin_type.channels if c.set_command == name and c.name in self._work.desired]

    async def _obey(self, target: Target) -> None:
        await self._say(target, replica_pb2.DESIRED_STATE_DELIVERED)
        try:
            reported = await _called(self._work.desired[target.channel], target)
            if reported is not None:
                await self._work.report(target.twin_id, target.channel, reported)
        except Refused as refusal:
            await self._say(target, replica_pb2.DESIRED_STATE_REJECTED, str(refusal))
        except Exception as error:  # noqa: BLE001  as with commands
            await self._say(target, replica_pb2.DESIRED_STATE_REJECTED, f"{type(error).__name__}: {error}")

    async def _say(self, target: Target, state: replica_pb2.DesiredState.ValueType, reason: str = "") -> None:
        item = replica_pb2.DesiredAcknowledgement(
            channel=target.channel, set_offset=target.offset, state=state, reason=_short(reason)
        )
        request = statesync_pb2.AcknowledgeDesiredRequest(
            twin_id=target.twin_id, items=[item], request_id=new_request_id()
        )
        with suppress(NotFound):  # the twin was deleted meanwhile
            await self._ask(self._work.connection.replicas.AcknowledgeDesired, request)

    async def _tell_progress(self, order: Order) -> None:
        while True:
            percent, message = await order.next_progress()
            await self._acknowledge(
                order, command_pb2.COMMAND_STATE_DELIVERED, progress_percent=percent, progress_message=_short(message)
            )
            await asyncio.sleep(_PROGRESS_S)

    async def _acknowledge(
        self,
        order: Order,
        state: command_pb2.CommandState.ValueType,
        *,
        message: str = "",
        result: Mapping[str, Any] | None = None,
        **progress: Any,
    ) -> bool:
        """State what became of a command; returns whether the mesh took it, which it does not once it has ended."""
        request = statesync_pb2.AcknowledgeCommandRequest(
            twin_id=order.twin_id,
            command_id=order.command_id,
            state=state,
            message=_short(message),
            result=map_to_proto(result or {}, "result"),
            request_id=new_request_id(),
            **progress,
        )
        try:
            await self._ask(self._work.connection.commands.AcknowledgeCommand, request)
        except InvalidArgument as error:
            if not result:
                raise
            words = f"{message} (its result could not be sent: {error.message})"
            return await self._acknowledge(order, state, message=words.strip())
        except (FailedPrecondition, NotFound) as error:
            if isinstance(error, FailedPrecondition) and error.reason != Reason.COMMAND_STATE:
                raise
            # It ended meanwhile (cancelled, expired), or went with its twin.
            return False
        return True

    async def _ask(self, method: Method[RequestT, ResponseT], request: RequestT) -> ResponseT:
        timeout_s = self._work.connection.timeout_s
        return await self._insist(lambda: call(method, request, timeout_s=timeout_s))

    async def _insist(self, ask: Callable[[], Awaitable[ResponseT]]) -> ResponseT:
        """Ask until there is an answer, however long the mesh is away."""
        pause_s = _PAUSE_S
        while True:
            try:
                return await ask()
            except (*RETRIED, ResourceExhausted) as error:
                if error.reason == Reason.MESSAGE_TOO_LARGE:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _answered(answer: Any) -> Outcome:
    if isinstance(answer, str):
        return Outcome(state="SUCCEEDED", message=answer)
    if isinstance(answer, Mapping):
        return Outcome(state="SUCCEEDED", result=dict(answer))
    return Outcome(state="SUCCEEDED", result={} if answer is None else {"value": answer})


async def _called(handler: Callable[[Any], Any], argument: Any) -> Any:
    """Return what a handler returns: an async one runs here, a plain one on a thread."""
    if inspect.iscoroutinefunction(handler):
        return await handler(argument)
    answer = await asyncio.to_thread(handler, argument)
    return await answer if inspect.isawaitable(answer) else answer


def _short(text: str) -> str:
    """Return words as an acknowledgement may hold them: at most 1 KiB."""
    return text if len(text.encode()) <= 1_024 else text.encode()[:1_020].decode("utf-8", "ignore") + "…"
