"""The device side of twins: report facts, obey targets, carry out commands; through outages, each command once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from twinmesh.statesync.v1 import statesync_pb2
from twinmesh_client.acks import WriteAck
from twinmesh_client.aio.connection import Connection
from twinmesh_client.aio.pump import Taken
from twinmesh_client.aio.spooling import spool_options
from twinmesh_client.aio.worker import RETRIED, Work, Worker
from twinmesh_client.aio.writer import Writer
from twinmesh_client.commands import command
from twinmesh_client.durations import Moment
from twinmesh_client.journal import Journal
from twinmesh_client.limits import SPOOL_MAX_BYTES
from twinmesh_client.orders import DesiredHandler, FunctionT, Handler, Target
from twinmesh_client.replicas import position, watch_event
from twinmesh_client.transport import stream
from twinmesh_core.errors import (
    FailedPrecondition,
    NotFound,
    Reason,
    ResourceExhausted,
    TwinmeshError,
    Unavailable,
    invalid_field,
)
from twinmesh_core.observations import ObservationBatch
from twinmesh_core.quality import Quality

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 3.0


class Device:
    """Stands for one or more twins; made by `Mesh.device`, used as a block (``async with``) or by `run` alone.

    It reconnects by itself. After each connection it takes what it missed, commands and targets alike, in the order in
    which they were decided, one after the other for each twin; what follows it takes as it comes.
    """

    def __init__(
        self,
        connection: Connection,
        twin_ids: Sequence[str],
        *,
        handlers: Mapping[str, Handler] | None = None,
        state: str | Path | None = None,
        producer_id: str = "",
        spool_max_bytes: int = SPOOL_MAX_BYTES,
    ) -> None:
        self._connection = connection
        self._twin_ids = tuple(twin_ids)
        if not self._twin_ids:
            raise invalid_field("twin_ids", "must name at least one twin")
        self._commands: dict[str, Handler] = dict(handlers or {})
        self._desired: dict[str, DesiredHandler] = {}
        self._state = None if state is None else Path(state)
        self._producer_id = producer_id or f"device-{self._twin_ids[0]}"
        self._spool_max_bytes = spool_max_bytes
        self._stack = AsyncExitStack()
        self._writer: Writer | None = None
        self._writer_lock = asyncio.Lock()
        self._workers: dict[str, Worker] = {}
        self._obeying: asyncio.Task[None] | None = None
        self._connected = False

    @property
    def connected(self) -> bool:
        """Whether it hears the mesh right now."""
        return self._connected

    def on_command(self, name: str) -> Callable[[FunctionT], FunctionT]:
        """Decorate the function that carries out a command: ``@device.on_command("open_valve")``; see `Handler`."""

        def remember(function: FunctionT) -> FunctionT:
            self._commands[name] = function
            return function

        return remember

    def on_desired(self, channel: str) -> Callable[[FunctionT], FunctionT]:
        """Decorate the function that obeys targets of a channel: ``@device.on_desired("speed")``; see `DesiredHandler`.

        Targets that the twin type sends by a command come to the same function, unless that command has one of its own.
        """

        def remember(function: FunctionT) -> FunctionT:
            self._desired[channel] = function
            return function

        return remember

    async def report(
        self,
        values: Mapping[str, Any],
        *,
        twin_id: str = "",
        time: Moment | None = None,
        units: Mapping[str, str] | None = None,
        quality: Quality = Quality.UNSPECIFIED,
    ) -> Taken:
        """Report what is true of the entity: a value per channel; returns when they are taken, not when they arrived.

        Args:
            values: by channel.
            twin_id: which of the device's twins; "" = its only, or first one.
            time: since when; None = now.
            units: of values that are not in their channel's own.
            quality: how far they can be trusted.

        Returns:
            Tells when they are written (with `state`: on disk) and when they are durable in the mesh.

        Raises:
            InvalidArgument: there is no value, or one is none that a channel can hold.
            TwinmeshError: the session with the mesh ended for good, e.g. another device of the same twin took over.
        """
        writer, twin = await self._open_writer(), twin_id or self._twin_ids[0]
        taken: Taken | None = None
        for channel, value in values.items():
            unit = (units or {}).get(channel, "")
            taken = await writer.observe(twin, channel, value, time=time, unit=unit, quality=quality)
        if taken is None:
            raise invalid_field("values", "holds no value; give at least one channel")
        return taken

    async def report_batch(self, batch: ObservationBatch) -> int:
        """Report many rows at once; returns the number of their batch."""
        return await (await self._open_writer()).write(batch)

    async def flush(self) -> WriteAck:
        """Wait until everything reported is durable in the mesh; returns the sum of what became of it."""
        return await (await self._open_writer()).flush()

    async def run(self) -> None:
        """Obey for ever; reconnects by itself. Outside of a block it opens and closes one.

        Raises:
            TwinmeshError: what trying again does not mend, e.g. PERMISSION_DENIED.
        """
        if self._obeying is None:
            async with self:
                await self.run()
        else:
            await asyncio.shield(self._obeying)

    async def __aenter__(self) -> Self:
        journal = None
        if self._state is not None:
            self._state.mkdir(parents=True, exist_ok=True)
            # Opened first: the spool's lock keeps a second process out of the whole directory.
            await self._open_writer()
            journal = await asyncio.to_thread(Journal, self._state / "commands.jsonl")
        shared = Work(
            connection=self._connection,
            commands=self._commands,
            desired=self._desired,
            journal=journal or Journal(None),
            report=self._report_back,
        )
        self._workers = {twin_id: Worker(shared, twin_id) for twin_id in self._twin_ids}
        self._obeying = asyncio.create_task(self._obey(), name="twinmesh-device")
        self._obeying.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._obeying is not None:
            self._obeying.cancel()
            await asyncio.gather(self._obeying, return_exceptions=True)
            self._obeying = None
        await self._stack.__aexit__(kind, error, trace)
        self._writer = None

    async def _open_writer(self) -> Writer:
        async with self._writer_lock:
            if self._writer is None:
                spool = spool_options(
                    None if self._state is None else self._state / "spool",
                    max_bytes=self._spool_max_bytes,
                    full="wait",
                    fsync=True,
                    keep_bytes=0,
                    accept_gap=False,
                )
                channel = self._connection.channels["ingestion"]
                writer = Writer(channel, self._producer_id, patience_s=math.inf, spool=spool)
                self._writer = await self._stack.enter_async_context(writer)
            return self._writer

    async def _report_back(self, twin_id: str, channel: str, value: Any) -> None:
        await self.report({channel: value}, twin_id=twin_id)

    async def _obey(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for worker in self._workers.values():
                    group.create_task(worker.run())
                group.create_task(self._listen())
        except BaseExceptionGroup as errors:
            raise _leaves(errors)[0] from errors

    async def _listen(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            heard = False
            try:
                async with self._streams() as (orders, news):
                    heard = self._connected = True
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._take_orders(orders))
                        group.create_task(self._take_news(news))
            except (TwinmeshError, ExceptionGroup) as error:
                # Away, restarting, or the twin is not created yet: what is decided meanwhile waits for this device.
                if not all(map(self._mends, _leaves(error))):
                    raise
            finally:
                self._connected = False
            pause_s = FIRST_PAUSE_S if heard else min(2 * pause_s, LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)

    @asynccontextmanager
    async def _streams(self) -> AsyncIterator[tuple[AsyncIterator[Any], AsyncIterator[Any]]]:
        """Yield both streams, after what was missed is in the workers' hands, in the order in which it was decided."""
        follow = statesync_pb2.FollowCommandsRequest(twin_ids=self._twin_ids)
        watch = statesync_pb2.WatchRequest(twin_ids=self._twin_ids, policy=statesync_pb2.WATCH_POLICY_LATEST)
        async with (
            aclosing(stream(self._connection.commands.FollowCommands, follow, timeout_s=None)) as orders,
            aclosing(stream(self._connection.replicas.Watch, watch, timeout_s=None)) as news,
        ):
            missed: list[tuple[int, Callable[[], None]]] = []
            first = await anext(orders, None)
            if first is None:
                raise _ended()
            missed += [(message.create_offset, self._taking(message)) for message in first.commands]
            async for frame in news:
                missed += [(target.offset, self._aiming(target)) for target in _targets(frame)]
                if frame.synced:
                    break
            for _, take in sorted(missed, key=lambda pair: pair[0]):
                take()
            yield orders, news

    def _mends(self, error: BaseException) -> bool:
        """Whether connecting again may mend it."""
        if isinstance(error, FailedPrecondition) and error.reason == Reason.LOG_REWOUND:
            for worker in self._workers.values():
                worker.forget()
            return True
        return isinstance(error, (*RETRIED, NotFound, ResourceExhausted))

    def _taking(self, message: Any) -> Callable[[], None]:
        return lambda: self._workers[message.twin_id].take_command(command(message))

    def _aiming(self, target: Target) -> Callable[[], None]:
        return lambda: self._workers[target.twin_id].take_target(target)

    async def _take_orders(self, orders: AsyncIterator[Any]) -> None:
        async for answer in orders:
            for message in answer.commands:
                self._taking(message)()
        raise _ended()

    async def _take_news(self, news: AsyncIterator[Any]) -> None:
        async for frame in news:
            for target in _targets(frame):
                self._aiming(target)()
        raise _ended()


def _ended() -> Unavailable:
    return Unavailable("The server ended the stream.")


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]


def _targets(frame: Any) -> list[Target]:
    """Return the targets of a frame that do not travel by a command."""
    through = position(frame.through)
    events = [watch_event(message, through) for message in frame.events]
    return [
        Target(twin_id=event.twin_id, channel=channel, value=want.value, offset=want.offset, deadline=want.deadline)
        for event in events
        for channel, want in event.desired.items()
        if not want.command_id
    ]
