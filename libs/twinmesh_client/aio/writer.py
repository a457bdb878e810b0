"""A producer session: batches in sequence, each stored exactly once, whatever happens to connections and servers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import grpc.aio

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh_client.acks import WriteAck, total, write_ack
from twinmesh_client.limits import MAX_UNACKED_POINTS, PATIENCE_S
from twinmesh_client.transport import rpc_errors
from twinmesh_core.errors import (
    DeadlineExceeded,
    FailedPrecondition,
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
        channel: grpc.aio.Channel,
        producer_id: str,
        *,
        backfill: bool = False,
        on_ack: Callable[[WriteAck], None] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._call: grpc.aio.StreamStreamMultiCallable[bytes, ingestion_pb2.WriteStreamResponse] = (
            channel.stream_stream(METHOD, response_deserializer=ingestion_pb2.WriteStreamResponse.FromString)
        )
        self._hello = ingestion_pb2.WriteStreamRequest(
            hello=ingestion_pb2.ProducerHello(producer_id=producer_id)
        ).SerializeToString()
        self._backfill = backfill
        self._on_ack = on_ack
        self._patience_s = patience_s
        self._unacked: deque[_Unacked] = deque()
        self._unacked_points = 0
        self._unsent = 0
        self._next_sequence = 0
        self._changed = asyncio.Condition()
        self._closing = False
        self._failure: TwinmeshError | None = None
        self._acks: list[WriteAck] = []
        self._session: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self.reconnects = 0
        """Sessions opened again after a failure."""
        self.replayed = 0
        """Acknowledgements that answered a repeated delivery."""
        self.durable_without_ack = 0
        """Points that a server said are durable, but whose acknowledgement was lost with a connection."""

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
            if kind is None:
                await self.flush()
        finally:
            self._closing = True
            session.cancel()
            await asyncio.gather(session, return_exceptions=True)

    async def write(self, batch: ObservationBatch) -> int:
        """Take one batch and return its sequence; waits while too much is unacknowledged.

        Raises:
            TwinmeshError: the session ended for good (fenced by a newer one, or the mesh was away for too long).
        """
        point_count = batch.point_count()
        if not point_count:
            return self._next_sequence
        await self._await_session()
        async with self._changed:
            await self._changed.wait_for(
                lambda: (
                    self._failure is not None
                    or self._unacked_points + point_count <= MAX_UNACKED_POINTS
                    or not self._unacked
                )
            )
            self._raise_failure()
            self._next_sequence += 1
            message = _batch_message(self._next_sequence, encode(batch), backfill=self._backfill)
            self._unacked.append(_Unacked(sequence=self._next_sequence, message=message, point_count=point_count))
            self._unacked_points += point_count
            self._unsent += 1
            self._changed.notify_all()
            return self._next_sequence

    async def flush(self) -> WriteAck:
        """Wait until everything taken is durable; returns the sum of all acknowledgements so far; raises as `write`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure is not None or not self._unacked)
            self._raise_failure()
        return self.acknowledged

    @property
    def acknowledged(self) -> WriteAck:
        """The sum of all acknowledgements so far."""
        self._acks = [total(self._acks)]
        return self._acks[0]

    async def _await_session(self) -> None:
        while not self._ready.is_set():
            self._raise_failure()
            waiting = asyncio.create_task(self._ready.wait())
            await asyncio.wait({waiting, *([self._session] if self._session else [])}, return_when="FIRST_COMPLETED")
            waiting.cancel()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _keep_session(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s, away_since = FIRST_PAUSE_S, loop.time()
        while not self._closing:
            acked_before = self._next_sequence - len(self._unacked)
            try:
                await self._run_session()
            except (Unavailable, DeadlineExceeded, ResourceExhausted, FailedPrecondition) as error:
                permanent = isinstance(error, FailedPrecondition) and error.reason != Reason.NOT_SEQUENCER
                if self._next_sequence - len(self._unacked) > acked_before:
                    pause_s, away_since = FIRST_PAUSE_S, loop.time()
                if permanent or loop.time() - away_since > self._patience_s:
                    await self._fail(error)
                    return
                self.reconnects += 1
                await asyncio.sleep(max(pause_s, error.retry_after_s or 0.0))
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            except TwinmeshError as error:
                await self._fail(error)
                return

    async def _fail(self, error: TwinmeshError) -> None:
        async with self._changed:
            self._failure = error
            self._ready.set()
            self._changed.notify_all()

    async def _run_session(self) -> None:
        opened = self._call()
        try:
            with rpc_errors():
                await opened.write(self._hello)
                first = await opened.read()
            if not isinstance(first, ingestion_pb2.WriteStreamResponse) or not first.HasField("welcome"):
                raise Unavailable("The server ended the session without a welcome.")
            await self._rewind(first.welcome.last_sequence)
            async with asyncio.TaskGroup() as group:
                sender = group.create_task(self._send(opened))
                group.create_task(self._receive(opened, sender))
        except* TwinmeshError as errors:
            raise errors.exceptions[0] from None
        except* asyncio.InvalidStateError:
            # gRPC's way to say that the call ended while something was being written to it.
            raise Unavailable("The session ended.") from None
        finally:
            opened.cancel()

    async def _rewind(self, durable: int) -> None:
        async with self._changed:
            if not self._unacked:
                self._next_sequence = durable
            while self._unacked and self._unacked[0].sequence < durable:
                # Stored, but its own answer is lost: only the last durable batch is answered again.
                self.durable_without_ack += self._unacked[0].point_count
                self._forget_first()
            self._unsent = len(self._unacked)
            self._ready.set()
            self._changed.notify_all()

    async def _send(self, opened: grpc.aio.StreamStreamCall[bytes, ingestion_pb2.WriteStreamResponse]) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._unsent > 0)
                item = self._unacked[len(self._unacked) - self._unsent]
                self._unsent -= 1
            try:
                with rpc_errors():
                    await opened.write(item.message)
            except asyncio.InvalidStateError:
                # The call has ended; the reader knows why, and a new session sends this one again.
                return

    async def _receive(
        self, opened: grpc.aio.StreamStreamCall[bytes, ingestion_pb2.WriteStreamResponse], sender: asyncio.Task[None]
    ) -> None:
        try:
            while True:
                with rpc_errors():
                    answer = await opened.read()
                if not isinstance(answer, ingestion_pb2.WriteStreamResponse):
                    raise Unavailable("The server ended the session.")
                await self._take(answer.ack)
        finally:
            sender.cancel()

    async def _take(self, message: ingestion_pb2.ProducerAck) -> None:
        ack = write_ack(message.ack)
        async with self._changed:
            while self._unacked and self._unacked[0].sequence <= message.sequence:
                self._forget_first()
            self._acks.append(ack)
            self.replayed += ack.replayed
            self._changed.notify_all()
        if self._on_ack is not None:
            self._on_ack(ack)

    def _forget_first(self) -> None:
        first = self._unacked.popleft()
        self._unacked_points -= first.point_count
        self._unsent = min(self._unsent, len(self._unacked))


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
