"""The servicer of ingestion: unary writes and producer sessions, with batches as raw bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol
from uuid import uuid4

import grpc
import grpc.aio

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh_core.errors import InvalidArgument, Reason, ResourceExhausted, Unavailable, invalid_field
from twinmesh_core.ids import require_producer_id, require_request_id
from twinmesh_core.observations import ObservationBatch
from twinmesh_core.time import Clock
from twinmesh_ingestion.domain.intake import Intake, Prepared
from twinmesh_ingestion.domain.outcomes import Ack
from twinmesh_ingestion.domain.session import Budget, Credits, Hold, ProducerSession, SequencedAck
from twinmesh_ingestion.rpc import mapping
from twinmesh_ingestion.rpc.acks import ack_to_message
from twinmesh_ingestion.rpc.quarantine import QuarantineServicer
from twinmesh_ingestion.rpc.requests import (
    BatchMessage,
    HelloMessage,
    WriteCall,
    content_hash,
    observations_bytes,
    read_stream,
    read_write,
)
from twinmesh_runtime.caller import current_caller
from twinmesh_runtime.observation_codec import decode_batch
from twinmesh_runtime.telemetry import counter, gauge

SERVICE: Final = "twinmesh.ingestion.v1.IngestionService"
MAX_UNANSWERED_BATCHES: Final = 256
"""Batches of one session whose acknowledgement is not sent yet; beyond it the session is not read."""
_SHED_RETRY_S: Final = 0.25


class Context(Protocol):
    """What a session needs of its call."""

    async def write(self, message: ingestion_pb2.WriteStreamResponse) -> None:
        """Send one answer; waits while the reader is slow."""
        ...


class IngestionServicer:
    """Serves ``twinmesh.ingestion.v1.IngestionService``.

    Args:
        intake: the way in.
        clock: receive times of the simple form, and the welcome's clock.
        quarantine: serves replay and discard.
        session_points: points of one session on their way at once.
        process_points: points of all callers on their way at once.
        session_bytes: bytes of one session's batches on their way at once.
        process_bytes: bytes of all callers' batches on their way at once.
    """

    def __init__(
        self,
        intake: Intake,
        clock: Clock,
        quarantine: QuarantineServicer,
        *,
        session_points: int,
        process_points: int,
        session_bytes: int,
        process_bytes: int,
    ) -> None:
        self._intake = intake
        self._clock = clock
        self._quarantine = quarantine
        self._session_points = session_points
        self._session_bytes = session_bytes
        self._credits = Credits(points=Budget(process_points), bytes=Budget(process_bytes))
        self._readers: set[asyncio.Task[None]] = set()
        self._draining = False
        self._points = counter("ingestion", "points", "Rows acknowledged, by outcome.", ("outcome",))
        self._verdicts = counter("ingestion", "verdicts", "Rows flagged or quarantined, by reason.", ("reason",))
        skew = gauge("ingestion", "clock_skew_worst_s", "Greatest distance of a producer's clock from ours, estimated.")
        skew.set_function(intake.skews.worst_s)
        in_flight = gauge("ingestion", "points_in_flight", "Rows on their way to storage.")
        in_flight.set_function(lambda: self._credits.points.in_flight)
        bytes_in_flight = gauge("ingestion", "bytes_in_flight", "Bytes of batches on their way to storage.")
        bytes_in_flight.set_function(lambda: self._credits.bytes.in_flight)
        sessions = gauge("ingestion", "producer_sessions", "Producer sessions that are open.")
        sessions.set_function(lambda: len(self._readers))

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service with handlers that take bytes: a typed parse of a batch costs more than all its checks."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Write": grpc.unary_unary_rpc_method_handler(
                self.write, response_serializer=ingestion_pb2.WriteResponse.SerializeToString
            ),
            "WriteStream": grpc.stream_stream_rpc_method_handler(
                self.write_stream, response_serializer=ingestion_pb2.WriteStreamResponse.SerializeToString
            ),
            "ReplayQuarantine": grpc.unary_unary_rpc_method_handler(
                self._quarantine.replay,
                request_deserializer=ingestion_pb2.ReplayQuarantineRequest.FromString,
                response_serializer=ingestion_pb2.ReplayQuarantineResponse.SerializeToString,
            ),
            "DiscardQuarantine": grpc.unary_unary_rpc_method_handler(
                self._quarantine.discard,
                request_deserializer=ingestion_pb2.DiscardQuarantineRequest.FromString,
                response_serializer=ingestion_pb2.DiscardQuarantineResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def drain(self) -> None:
        """End every session after what it has sent is acknowledged; its producer goes on from there elsewhere."""
        self._draining = True
        for reader in list(self._readers):
            reader.cancel()

    async def write(self, request: bytes, context: object) -> ingestion_pb2.WriteResponse:
        """Write one batch, or a few values of the simple form."""
        tenant = current_caller().tenant
        message = read_write(request)
        request_id = require_request_id(message.request_id) or f"auto-{uuid4().hex}"
        batch = _decoded(message)
        rows = batch.point_count() if batch is not None else len(message.observations)
        size = len(request)
        if not self._credits.fit(rows, size):
            raise ResourceExhausted(
                f"{self._credits.points.in_flight} points are on their way to storage, as many as may be; try again",
                reason=Reason.OVERLOADED,
                retry_after_s=_SHED_RETRY_S,
            )
        hold = Hold((self._credits,), rows, size)
        await hold.take()
        try:
            prepared = await self._prepare(tenant, message, batch)
            ack = await self._intake.append(tenant, prepared, request_id=request_id)
        finally:
            hold.give()
        self._count(ack)
        return ingestion_pb2.WriteResponse(ack=ack_to_message(ack))

    async def write_stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Serve one producer session until the producer ends it, it fails, or this server drains."""
        tenant = current_caller().tenant
        hello = await self._hello(requests)
        producer_id = hello.producer_id
        epoch, last_sequence, incarnation = await self._intake.open_producer(tenant, producer_id, hello.last_epoch)
        now = self._clock.now_unix_us()
        self._intake.skews.observe(
            tenant, producer_id, receive_time=now, sent_at=hello.client_time_unix_us, newest_event=None
        )
        await context.write(
            mapping.welcome(
                epoch=epoch,
                last_sequence=last_sequence,
                incarnation=incarnation,
                max_in_flight_points=self._session_points,
                max_in_flight_bytes=self._session_bytes,
                now_unix_us=now,
                skew=self._intake.skews.of(tenant, producer_id),
            )
        )
        answers: asyncio.Queue[Answer] = asyncio.Queue(MAX_UNANSWERED_BATCHES)
        async with asyncio.TaskGroup() as group:
            session = ProducerSession(
                intake=self._intake,
                tenant=tenant,
                producer_id=producer_id,
                epoch=epoch,
                last_sequence=last_sequence,
                group=group,
                bounds=(
                    Credits(points=Budget(self._session_points), bytes=Budget(self._session_bytes)),
                    self._credits,
                ),
            )
            reader = group.create_task(self._read(requests, session, answers, hello))
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
            if self._draining:
                reader.cancel()
            failure = await self._answer(answers, context, ranges=hello.ack_ranges)
            reader.cancel()
            session.abandon()
        if failure is not None:
            raise failure

    async def _prepare(self, tenant: str, message: WriteCall, batch: ObservationBatch | None) -> Prepared:
        if batch is not None and message.batch is not None:
            return await self._intake.prepare(
                tenant, batch, content_hash=content_hash(message.batch), backfill=message.backfill
            )
        observations = mapping.simple_observations(message.observations, receive_time_unix_us=self._clock.now_unix_us())
        return await self._intake.prepare_simple(
            tenant,
            observations,
            content_hash=content_hash(observations_bytes(message.observations)),
            backfill=message.backfill,
        )

    async def _hello(self, requests: AsyncIterator[bytes]) -> HelloMessage:
        try:
            first = read_stream(await anext(requests))
        except StopAsyncIteration:
            raise invalid_field("hello", "is missing: the stream ended before its first message") from None
        if not isinstance(first, HelloMessage):
            raise invalid_field("hello", "must be the first message of the stream")
        require_producer_id(first.producer_id, "hello.producer_id")
        return first

    async def _read(
        self,
        requests: AsyncIterator[bytes],
        session: ProducerSession,
        answers: asyncio.Queue[Answer],
        hello: HelloMessage,
    ) -> None:
        """Send batches on their way until there are no more; what ends the reading is the last answer."""
        end: Exception | None = None
        try:
            async for data in requests:
                message = read_stream(data)
                if not isinstance(message, BatchMessage):
                    raise invalid_field("hello", "was sent already; every later message is a batch")
                await answers.put(await _submitted(session, message, hello))
        except asyncio.CancelledError:
            if not self._draining:
                raise
            end = Unavailable(
                "This server is being replaced; connect again and go on after the last sequence of the welcome.",
                reason=Reason.DRAINING,
            )
        except Exception as error:  # noqa: BLE001  it ends the stream, after the answers that are due before it
            end = error
        await answers.put(end)

    async def _answer(self, answers: asyncio.Queue[Answer], context: Context, *, ranges: bool) -> Exception | None:
        """Send acknowledgements in the order of the batches; return what the stream must end with."""
        pending: SequencedAck | None = None
        while True:
            if pending is not None and answers.empty():
                await context.write(mapping.sequenced_ack_to_message(pending))
                pending = None
            answer = await answers.get()
            # What is durable is told before anything is waited for; an acknowledgement covers what is there with it.
            if pending is not None and isinstance(answer, asyncio.Future) and not answer.done():
                await context.write(mapping.sequenced_ack_to_message(pending))
                pending = None
            done, end = await _outcome(answer)
            if done is not None:
                self._count(done.ack)
                if pending is not None and done.joins(pending):
                    pending = done.joined(pending)
                    continue
            if pending is not None:
                await context.write(mapping.sequenced_ack_to_message(pending))
                pending = None
            if done is None:
                return end
            if ranges:
                pending = done
            else:
                await context.write(mapping.sequenced_ack_to_message(done))

    def _count(self, ack: Ack) -> None:
        outcome = "replayed" if ack.replayed else "accepted"
        self._points.labels(outcome).inc(ack.accepted_count)
        if not ack.replayed:
            self._points.labels("flagged").inc(ack.flagged_count)
            self._points.labels("quarantined").inc(ack.quarantined_count)
            self._points.labels("duplicate").inc(ack.duplicate_count)
            self._points.labels("deadbanded").inc(ack.deadbanded_count)
            for verdict in ack.outcomes:
                self._verdicts.labels(verdict.reason.name).inc(verdict.count)


def _decoded(message: WriteCall) -> ObservationBatch | None:
    """Return the batch of a unary write; None = it has the simple form."""
    if message.batch is not None and message.observations:
        raise invalid_field("batch", "is given together with observations; give exactly one of them")
    if message.batch is not None:
        return decode_batch(message.batch)
    if not message.observations:
        raise invalid_field("batch", "is missing, and so are observations; give exactly one of them")
    return None


async def _submitted(
    session: ProducerSession, message: BatchMessage, hello: HelloMessage
) -> asyncio.Future[SequencedAck]:
    hashed = content_hash(message.batch)
    try:
        return await session.submit(
            message.sequence,
            decode_batch(message.batch),
            content_hash=hashed,
            backfill=message.backfill,
            size=len(message.batch),
            sent_at_unix_us=message.client_time_unix_us or None,
        )
    except (InvalidArgument, ResourceExhausted) as error:
        of_the_batch = isinstance(error, InvalidArgument) or error.reason == Reason.MESSAGE_TOO_LARGE
        if not hello.continue_after_refusal or not of_the_batch or message.sequence < 1:
            raise
        return await session.refuse(message.sequence, message.batch, content_hash=hashed, error=error)


async def _outcome(answer: Answer) -> tuple[SequencedAck | None, Exception | None]:
    """Return what became of a batch, or what the stream must end with (None = in peace)."""
    if not isinstance(answer, asyncio.Future):
        return None, answer
    try:
        return await answer, None
    except Exception as error:  # noqa: BLE001  it ends the stream; those before it are acknowledged
        return None, error


Answer = asyncio.Future[SequencedAck] | Exception | None
"""A batch on its way, or the end of the stream: with an error, or in peace."""
