"""A producer session: batches in sequence, each stored exactly once, whatever happens to connections and servers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import grpc.aio

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh_client.acks import WriteAck, total, write_ack
from twinmesh_client.limits import MAX_UNACKED_BYTES, MAX_UNACKED_POINTS, PATIENCE_S
from twinmesh_client.transport import MAX_MESSAGE_BYTES, rpc_errors
from twinmesh_core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    Reason,
    ResourceExhausted,
    TwinmeshError,
    Unavailable,
)
from twinmesh_core.observations import ObservationBatch
from twinmesh_core.wire import encode, encode_varint

METHOD: Final = "/twinmesh.ingestion.v1.IngestionService/WriteStream"
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 3.0
SILENCE_S: Final = 30.0
"""A session without a welcome, or without an acknowledgement of what it sent, for so long is opened anew."""
Dial = Callable[[], Awaitable[grpc.aio.Channel]]
"""Finds the ingestion service anew for each session; the channel belongs to the dialler."""
_Stream = grpc.aio.StreamStreamCall[bytes, ingestion_pb2.WriteStreamResponse]


@dataclass(slots=True)
class _Unacked:
    sequence: int
    message: bytes
    point_count: int


class Writer:
    """Sends batches of one producer exactly once; made by `Mesh.writer`.

    A background task keeps the session: it reconnects, asks the server for the last durable sequence, drops what is
    durable and sends the rest again. What `write` took is kept until it is acknowledged.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel | Dial,
        producer_id: str,
        *,
        backfill: bool = False,
        on_ack: Callable[[WriteAck], None] | None = None,
        patience_s: float = PATIENCE_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._channel = channel
        self._producer_id = producer_id
        self._backfill = backfill
        self._on_ack = on_ack
        self._patience_s = patience_s
        self._silence_s = silence_s
        self._unacked: deque[_Unacked] = deque()
        self._unacked_points = 0
        self._unacked_bytes = 0
        self._unsent = 0
        self._next_sequence = 0
        self._heard_s = 0.0
        """Loop time since which somebody waits in vain: the last progress, or when waiting began."""
        self._changed = asyncio.Condition()
        self._failure: TwinmeshError | None = None
        self._acknowledged = WriteAck()
        self._session: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._reconnects = 0
        self._replayed = 0
        self._durable_without_ack = 0
        self._abandoned = False

    @property
    def failure(self) -> TwinmeshError | None:
        """Why the session ended for good; None while it lives."""
        return self._failure

    @property
    def reconnects(self) -> int:
        """Sessions opened again after a failure."""
        return self._reconnects

    @property
    def replayed(self) -> int:
        """Acknowledgements that answered a repeated delivery."""
        return self._replayed

    @property
    def durable_without_ack(self) -> int:
        """Points that a server said are durable, but whose acknowledgement was lost with a connection."""
        return self._durable_without_ack

    @property
    def acknowledged(self) -> WriteAck:
        """The sum of all acknowledgements so far."""
        return self._acknowledged

    async def __aenter__(self) -> Self:
        self._session = asyncio.create_task(self._keep_session(), name="twinmesh-writer")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session = self._session
        if session is None:
            return
        try:
            if kind is None and not self._abandoned:
                await self.flush()
        finally:
            session.cancel()
            await asyncio.gather(session, return_exceptions=True)

    async def write(self, batch: ObservationBatch) -> int:
        """Take one batch and return its sequence; waits while too much is unacknowledged.

        Raises:
            ResourceExhausted: the batch is too large for one message; nothing was taken.
            TwinmeshError: the session ended for good (fenced by a newer one, or the mesh was away for too long).
        """
        point_count = batch.point_count()
        if not point_count:
            return self._next_sequence
        columns = encode(batch)
        if len(columns) > MAX_MESSAGE_BYTES - 1_024:
            raise ResourceExhausted(
                f"The batch has {len(columns):,} bytes and a message holds {MAX_MESSAGE_BYTES:,}; "
                "write it in smaller batches.",
                reason=Reason.MESSAGE_TOO_LARGE,
            )
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._failure is not None or (self._ready.is_set() and self._takes(point_count, len(columns)))
            )
            self._raise_failure()
            if not self._unacked:
                self._heard_s = asyncio.get_running_loop().time()
            self._next_sequence += 1
            message = _batch_message(self._next_sequence, columns, backfill=self._backfill)
            self._unacked.append(_Unacked(sequence=self._next_sequence, message=message, point_count=point_count))
            self._unacked_points += point_count
            self._unacked_bytes += len(message)
            self._unsent += 1
            self._changed.notify_all()
            return self._next_sequence

    async def flush(self) -> WriteAck:
        """Wait until everything taken is durable; returns the sum of all acknowledgements so far; raises as `write`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure is not None or not self._unacked)
            self._raise_failure()
        return self._acknowledged

    def abandon(self) -> None:
        """Give up what is not yet acknowledged: leaving the session no longer waits for it."""
        self._abandoned = True

    def _takes(self, point_count: int, byte_count: int) -> bool:
        return not self._unacked or (
            self._unacked_points + point_count <= MAX_UNACKED_POINTS
            and self._unacked_bytes + byte_count <= MAX_UNACKED_BYTES
        )

    def _raise_failure(self) -> None:
        if self._failure is not None:
            # Each caller gets its own: raising one object twice would chain their tracebacks.
            raise _copy(self._failure)

    async def _keep_session(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = FIRST_PAUSE_S
        self._heard_s = loop.time()
        failure: TwinmeshError = Unavailable("The writer was closed.")
        try:
            while True:
                heard_before = self._heard_s
                try:
                    await self._run_session()
                except TwinmeshError as error:
                    if self._heard_s > heard_before:
                        pause_s = FIRST_PAUSE_S
                    waiting = bool(self._unacked) or not self._ready.is_set()
                    if not _mends(error) or (waiting and loop.time() - self._heard_s > self._patience_s):
                        failure = error
                        return
                    self._reconnects += 1
                    await asyncio.sleep(max(pause_s, error.retry_after_s or 0.0))
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        except Exception:
            failure = Internal(
                "The writer failed by a defect of the SDK; what it had not had acknowledged may be lost."
            )
            raise
        finally:
            # However it ends, whoever waits in `write` or `flush` must hear of it.
            self._failure = failure
            async with self._changed:
                self._changed.notify_all()

    async def _open(self) -> _Stream:
        channel = await self._channel() if callable(self._channel) else self._channel
        call: grpc.aio.StreamStreamMultiCallable[bytes, ingestion_pb2.WriteStreamResponse] = channel.stream_stream(
            METHOD, response_deserializer=ingestion_pb2.WriteStreamResponse.FromString
        )
        return call()

    async def _run_session(self) -> None:
        opened = await self._open()
        try:
            await self._welcome(opened)
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._send(opened)), group.create_task(self._watch_for_silence())]
                group.create_task(self._receive(opened, helpers))
        except BaseExceptionGroup as failures:
            # The first is the cause, the rest its consequences; a defect must not hide behind them.
            known, defects = failures.split(TwinmeshError)
            raise (defects or known or failures).exceptions[0] from None
        finally:
            opened.cancel()

    async def _welcome(self, opened: _Stream) -> None:
        hello = ingestion_pb2.WriteStreamRequest(hello=ingestion_pb2.ProducerHello(producer_id=self._producer_id))
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
        await self._rewind(first.welcome.last_sequence)

    async def _rewind(self, durable: int) -> None:
        """Go back to what the server says is durable; raises when another producer of this name has written."""
        async with self._changed:
            if not self._ready.is_set():
                self._next_sequence = durable
            elif durable > self._next_sequence:
                raise FailedPrecondition(
                    f"Another writer uses the producer id {self._producer_id!r} and has written up to sequence "
                    f"{durable}; give each source of batches an id of its own.",
                    reason=Reason.PRODUCER_FENCED,
                )
            while self._unacked and self._unacked[0].sequence < durable:
                # Stored, but its own answer is lost: only the last durable batch is answered again.
                self._durable_without_ack += self._unacked[0].point_count
                self._forget_first()
            self._unsent = len(self._unacked)
            self._ready.set()
            self._changed.notify_all()

    async def _send(self, opened: _Stream) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._unsent > 0)
                item = self._unacked[len(self._unacked) - self._unsent]
                self._unsent -= 1
            try:
                with rpc_errors():
                    await opened.write(item.message)
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
            if self._unacked and loop.time() - since_s > self._silence_s:
                raise DeadlineExceeded(f"The server acknowledged nothing for {self._silence_s:g} s.")
            await asyncio.sleep(self._silence_s / 10)

    async def _take(self, message: ingestion_pb2.ProducerAck) -> None:
        ack = write_ack(message.ack)
        async with self._changed:
            while self._unacked and self._unacked[0].sequence <= message.sequence:
                self._forget_first()
            self._acknowledged = total((self._acknowledged, ack))
            self._replayed += ack.replayed
            self._heard_s = asyncio.get_running_loop().time()
            self._changed.notify_all()
        if self._on_ack is not None:
            self._on_ack(ack)

    def _forget_first(self) -> None:
        first = self._unacked.popleft()
        self._unacked_points -= first.point_count
        self._unacked_bytes -= len(first.message)
        self._unsent = min(self._unsent, len(self._unacked))


def _mends(error: TwinmeshError) -> bool:
    """Whether a new session may go on where this one failed."""
    if isinstance(error, Unavailable | DeadlineExceeded):
        return True
    if isinstance(error, ResourceExhausted):
        return error.retryable
    return isinstance(error, FailedPrecondition) and error.reason == Reason.NOT_SEQUENCER


def _copy(error: TwinmeshError) -> TwinmeshError:
    rebuild, state = error.__reduce__()
    return rebuild(*state)  # type: ignore[operator,misc,no-any-return]  # the pickle protocol's untyped pair


def _batch_message(sequence: int, batch: bytes, *, backfill: bool) -> bytes:
    """Encode WriteStreamRequest{batch: ProducerBatch{sequence, batch, backfill}} around encoded columns."""
    body = b"".join(
        (
            b"\x08",
            encode_varint(sequence),
            b"\x12",
            encode_varint(len(batch)),
            batch,
            b"\x18\x01" if backfill else b"",
        )
    )
    return b"".join((b"\x12", encode_varint(len(body)), body))
