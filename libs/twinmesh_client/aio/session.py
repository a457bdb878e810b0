"""Keeps one producer's session with the mesh: opened anew after every failure that mends, until it ends for good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import grpc.aio

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh_client.acks import WriteAck, total, write_ack
from twinmesh_client.aio.backlog import Backlog
from twinmesh_client.refusals import OnRefused, refuses
from twinmesh_client.transport import rpc_errors
from twinmesh_core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    Reason,
    ResourceExhausted,
    TwinmeshError,
    Unavailable,
)

METHOD: Final = "/twinmesh.ingestion.v1.IngestionService/WriteStream"
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 3.0
REFUSED_PAUSE_S: Final = 0.01
Dial = Callable[[], Awaitable[grpc.aio.Channel]]
"""Finds the ingestion service anew for each session; the channel belongs to the dialler."""
_Stream = grpc.aio.StreamStreamCall[bytes, ingestion_pb2.WriteStreamResponse]


class Session:
    """Sends what a backlog holds and tells it what is durable.

    Args:
        channel: to the ingestion service, or what finds it.
        producer_id: whose session it is.
        backlog: what is sent.
        on_ack: called after each acknowledgement; one may be of several batches.
        on_refused: told of each batch that the mesh refuses for good; the session goes on without it.
        sets_aside: whether it does so; else such a batch ends the session.
        patience_s: how long something may wait in vain before it ends for good.
        silence_s: a session that says nothing for so long is opened anew.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel | Dial,
        producer_id: str,
        backlog: Backlog,
        *,
        on_ack: Callable[[WriteAck], None] | None,
        on_refused: OnRefused | None,
        sets_aside: bool,
        patience_s: float,
        silence_s: float,
    ) -> None:
        self._channel = channel
        self._producer_id = producer_id
        self._backlog = backlog
        self._on_ack = on_ack
        self._on_refused = on_refused
        self._sets_aside = sets_aside
        self._refused: tuple[int, TwinmeshError] | None = None
        """Sequence and fault of a batch that was refused, until the next welcome says that it is not durable."""
        self._welcomed: int | None = None
        """Last durable sequence of the session that is open, or was the last one."""
        self._epoch = 0
        """Of the session that is open or ended last: a newer one of somebody else must not be fenced by us."""
        self._wary = False
        """Whether a batch was refused, and the next session begins with one batch at a time."""
        self._patience_s = patience_s
        self._silence_s = silence_s
        self._heard_s = 0.0
        """Loop time since which somebody waits in vain: the last progress, or when waiting began."""
        self.failure: TwinmeshError | None = None
        self.last_error: TwinmeshError | None = None
        self.connected = False
        self._in_session = False
        """Whether the session that is open, or ended last, was welcomed."""
        self.acknowledged = WriteAck()
        self.reconnects = 0
        self.replayed = 0
        self.durable_without_ack = 0

    def something_waits(self) -> None:
        """Begin to count patience anew, unless something waits already."""
        if self._backlog.started and self._backlog.durable == self._backlog.taken:
            self._heard_s = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Keep the session; returns when it has ended for good, with the reason in `failure`."""
        loop = asyncio.get_running_loop()
        pause_s = FIRST_PAUSE_S
        self._heard_s = loop.time()
        try:
            while True:
                heard_before = self._heard_s
                try:
                    await self._run_once()
                except TwinmeshError as error:
                    self.last_error = error
                    if self._heard_s > heard_before:
                        pause_s = FIRST_PAUSE_S
                    waiting = self._backlog.durable < self._backlog.taken or not self._backlog.started
                    if not (_mends(error) or self._goes_on_without(error)) or (
                        waiting and loop.time() - self._heard_s > self._patience_s
                    ):
                        await self.fail(error)
                        return
                    self.reconnects += 1
                    if self._refused is not None and self._in_session:
                        # The mesh is well, and going on without that batch is progress.
                        pause_s = FIRST_PAUSE_S
                        await asyncio.sleep(REFUSED_PAUSE_S)
                        continue
                    await asyncio.sleep(max(pause_s, error.retry_after_s or 0.0))
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        except asyncio.CancelledError:
            await self.fail(Unavailable("The writer was closed."))
            raise
        except Exception:
            await self.fail_by_defect()
            raise

    def _goes_on_without(self, error: TwinmeshError) -> bool:
        """Whether the session may go on when a batch is set aside; notes which one, as soon as that is certain."""
        if not self._sets_aside or not self._in_session or not refuses(error):
            return False
        window = self._backlog.window
        if window.sent == 1:
            self._refused = window.items[0].sequence, error
        # Acknowledgements may be lost with the session: only a batch that is alone is surely the one.
        self._wary = True
        return window.sent > 0

    async def fail(self, failure: TwinmeshError) -> None:
        """End for good: whoever waits must hear of it."""
        if self.failure is None:
            self.failure = failure
        self._backlog.end(self.failure)
        async with self._backlog.changed:
            self._backlog.changed.notify_all()

    async def fail_by_defect(self) -> None:
        """End because the SDK itself failed."""
        text = "The writer failed by a defect of the SDK; what it had not had acknowledged may be lost."
        await self.fail(Internal(text))

    async def _open(self) -> _Stream:
        channel = await self._channel() if callable(self._channel) else self._channel
        call: grpc.aio.StreamStreamMultiCallable[bytes, ingestion_pb2.WriteStreamResponse] = channel.stream_stream(
            METHOD, response_deserializer=ingestion_pb2.WriteStreamResponse.FromString
        )
        return call()

    async def _run_once(self) -> None:
        self._in_session = False
        opened = await self._open()
        try:
            await self._welcome(opened)
            self.connected = self._in_session = True
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._send(opened)), group.create_task(self._watch_for_silence())]
                group.create_task(self._receive(opened, helpers))
        except BaseExceptionGroup as failures:
            # The first is the cause, the rest its consequences; a defect must not hide behind them.
            known, defects = failures.split(TwinmeshError)
            raise (defects or known or failures).exceptions[0] from None
        finally:
            self.connected = False
            opened.cancel()

    async def _welcome(self, opened: _Stream) -> None:
        hello = ingestion_pb2.WriteStreamRequest(
            hello=ingestion_pb2.ProducerHello(producer_id=self._producer_id, ack_ranges=True, last_epoch=self._epoch)
        )
        # If no welcome comes of it, nobody knows whose the newest session is.
        self._epoch = 0
        try:
            async with asyncio.timeout(self._silence_s):
                with rpc_errors():
                    await opened.write(hello.SerializeToString())
                    first = await opened.read()
        except TimeoutError:
            raise DeadlineExceeded(f"The server did not open the session within {self._silence_s:g} s.") from None
        except asyncio.InvalidStateError:
            raise Unavailable("The session ended before it was opened.") from None
        if not isinstance(first, ingestion_pb2.WriteStreamResponse) or not first.HasField("welcome"):
            raise Unavailable("The server ended the session without a welcome.")
        self._epoch = first.welcome.epoch
        await self._begin(first.welcome)

    async def _begin(self, welcome: ingestion_pb2.ProducerWelcome) -> None:
        durable, window = welcome.last_sequence, self._backlog.window
        ask_again = True
        if self._refused is not None:
            sequence, error = self._refused
            if durable < sequence:
                refused = await self._backlog.set_aside(sequence, error)
                if refused is not None and self._on_refused is not None:
                    self._on_refused(refused)
            # Else it is durable in spite of all, and must not be asked about.
            ask_again = durable < sequence
            self._refused = None
        # A session that brought nothing about may have been ended by a batch, which the transport can hide.
        wary = self._wary or (durable == self._welcomed and window.sent > 0)
        # Whatever stood before a refused batch is durable: it is the next one.
        window.alone_until = durable + 1 if wary else 0
        self._welcomed, self._wary = durable, False
        self.durable_without_ack += await self._backlog.start(
            durable,
            ask_again=ask_again,
            points=welcome.max_in_flight_points,
            byte_count=welcome.max_in_flight_bytes,
        )

    async def _send(self, opened: _Stream) -> None:
        while True:
            item = await self._backlog.next()
            try:
                with rpc_errors():
                    await opened.write(item.message())
            except (asyncio.InvalidStateError, TwinmeshError):
                # The call has ended; the reader knows why, and a new session sends this one again.
                return

    async def _receive(self, opened: _Stream, helpers: list[asyncio.Task[None]]) -> None:
        try:
            while True:
                with rpc_errors():
                    answer = await opened.read()
                if not isinstance(answer, ingestion_pb2.WriteStreamResponse):
                    raise Unavailable("The server ended the session.")
                await self._take(answer.ack)
        finally:
            for helper in helpers:
                helper.cancel()

    async def _watch_for_silence(self) -> None:
        """Raise when a server that holds the connection open no longer acknowledges."""
        loop = asyncio.get_running_loop()
        opened_s = loop.time()
        while True:
            since_s = max(self._heard_s, opened_s)
            if self._backlog.window.items and loop.time() - since_s > self._silence_s:
                raise DeadlineExceeded(f"The server acknowledged nothing for {self._silence_s:g} s.")
            await asyncio.sleep(self._silence_s / 10)

    async def _take(self, message: ingestion_pb2.ProducerAck) -> None:
        ack = write_ack(message.ack)
        # Counted before it is settled: whoever waits for the batch may read the sum at once.
        self.acknowledged = total((self.acknowledged, ack))
        self.replayed += ack.replayed
        self._heard_s = asyncio.get_running_loop().time()
        await self._backlog.settle(message.sequence)
        if self._on_ack is not None:
            self._on_ack(ack)


def _mends(error: TwinmeshError) -> bool:
    """Whether a new session may go on where this one failed."""
    if isinstance(error, Unavailable | DeadlineExceeded):
        return True
    if isinstance(error, ResourceExhausted):
        return error.retryable
    return isinstance(error, FailedPrecondition) and error.reason == Reason.NOT_SEQUENCER
