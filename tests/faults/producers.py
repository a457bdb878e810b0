"""Producers that resend after every failure as the protocol says, and note all of it in the ledger.

Run as a program it is one producer in a process of its own, to be stopped and to be copied:
``python -m tests.faults.producers PORT LEDGER PRODUCER COUNT PLAN``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter, deque
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol

import grpc.aio
from tests.faults.history import History
from tests.faults.points import CHANNEL, Plan
from tests.faults.world import storage_client
from tests.integration.storage.mesh import Storage

from twinmesh.ingestion.v1 import ingestion_pb2
from twinmesh.storage.v1 import storage_pb2
from twinmesh_client.transport import rpc_errors
from twinmesh_core import wire
from twinmesh_core.errors import FailedPrecondition, Reason, TwinmeshError, Unavailable
from twinmesh_core.observations import SeriesKey

PATIENCE_S: Final = 6.0
"""How long a producer waits for an answer before it takes it for lost."""
_PAUSE_S: Final = 0.05


class Producer(Protocol):
    """One source of ordered batches."""

    name: str

    async def run(self, more: Callable[[int], bool]) -> None:
        """Send batches while `more`, asked with the sequence, says so; returns when all are acknowledged."""
        ...


class Fenced(Exception):  # noqa: N818 -- the end of a zombie, not an error
    """A newer session of the producer exists."""


class SessionProducer:
    """A session with ingestion, several batches on their way; `acked` is what it was told."""

    def __init__(
        self,
        stub: Any,
        name: str,
        ledger: History,
        *,
        in_flight: int = 4,
        pause_s: float = 0.0,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.name = name
        self.acked = 0
        self._stub = stub
        self._ledger = ledger
        self._in_flight = in_flight
        self._pause_s = pause_s
        self._pending: deque[int] = deque()
        self._encoded: dict[int, bytes] = {}

    async def run(self, more: Callable[[int], bool]) -> None:
        """See `Producer.run`."""
        while self._pending or more(self._next):
            call = self._stub.WriteStream()
            sent: list[int] = []
            try:
                with rpc_errors():
                    await self._session(call, more, sent)
                    await call.done_writing()
            except (TwinmeshError, TimeoutError) as error:
                reason = error.reason if isinstance(error, TwinmeshError) else "TIMEOUT"
                for sequence in sent:
                    if sequence > self.acked:
                        self._ledger.note("info", self.name, sequence, reason=str(reason))
                await asyncio.sleep(_PAUSE_S)
            finally:
                call.cancel()

    @property
    def _next(self) -> int:
        return (self._pending[-1] if self._pending else self.acked) + 1

    async def _session(self, call: Any, more: Callable[[int], bool], sent: list[int]) -> None:
        hello = ingestion_pb2.ProducerHello(producer_id=self.name)
        await self._write(call, ingestion_pb2.WriteStreamRequest(hello=hello))
        welcome = (await self._read(call)).welcome
        self._ledger.note("welcome", self.name, welcome.last_sequence, epoch=welcome.epoch)
        while self._pending and self._pending[0] <= welcome.last_sequence:
            self._ok(self._pending[0], via="welcome", offset=0, accepted=None, quarantined=None, replayed=False)
        if welcome.last_sequence > self.acked:  # another copy of this producer went further
            self.acked = welcome.last_sequence
        waiting = deque(self._pending)
        on_their_way = 0
        while True:
            while on_their_way < self._in_flight and (waiting or more(self._next)):
                if not waiting:
                    waiting.append(self._next)
                    self._pending.append(self._next)
                sequence = waiting.popleft()
                self._ledger.note("invoke", self.name, sequence)
                sent.append(sequence)
                await self._write(call, self._message(sequence))
                on_their_way += 1
                if self._pause_s:
                    await asyncio.sleep(self._pause_s)
            if not on_their_way:
                return
            answer = (await self._read(call)).ack
            on_their_way -= 1
            if not self._pending or answer.sequence != self._pending[0]:
                self._ledger.note("wrong", self.name, answer.sequence, what="acknowledged out of turn")
                return
            ack = answer.ack
            self._ok(
                answer.sequence,
                via="ack",
                offset=ack.offset,
                accepted=ack.accepted_count,
                quarantined=ack.quarantined_count,
                replayed=ack.replayed,
            )

    async def _write(self, call: Any, message: ingestion_pb2.WriteStreamRequest) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await call.write(message)
        except asyncio.InvalidStateError:
            while True:  # the call is over: what is left to read ends with the reason
                await self._read(call)

    async def _read(self, call: Any) -> ingestion_pb2.WriteStreamResponse:
        async with asyncio.timeout(PATIENCE_S):
            answer: Any = await call.read()
            if answer is grpc.aio.EOF:
                await call.read()  # raises what ended the stream
                raise TimeoutError
        return answer

    def _ok(self, sequence: int, **answer: Any) -> None:
        self._ledger.note("ok", self.name, sequence, exact=not answer["replayed"], **answer)
        self._pending.popleft()
        self._encoded.pop(sequence, None)
        self.acked = sequence

    def _message(self, sequence: int) -> ingestion_pb2.WriteStreamRequest:
        encoded = self._encoded.get(sequence)
        if encoded is None:
            encoded = self._encoded[sequence] = wire.encode(self._ledger.plan.batch(self.name, sequence))
        message = ingestion_pb2.ProducerBatch(sequence=sequence, backfill=True)
        message.batch.MergeFromString(encoded)
        return ingestion_pb2.WriteStreamRequest(batch=message)


class UnaryProducer:
    """Writes one batch after the other by `Write`, each under a request id of its own."""

    def __init__(self, stub: Any, name: str, ledger: History) -> None:
        self.name = name
        self._stub = stub
        self._ledger = ledger

    async def run(self, more: Callable[[int], bool]) -> None:
        """See `Producer.run`."""
        sequence = 1
        while more(sequence):
            request = ingestion_pb2.WriteRequest(request_id=f"{self.name}-{sequence}", backfill=True)
            request.batch.MergeFromString(wire.encode(self._ledger.plan.batch(self.name, sequence)))
            while True:
                self._ledger.note("invoke", self.name, sequence)
                try:
                    with rpc_errors():
                        ack = (await self._stub.Write(request, timeout=PATIENCE_S)).ack
                except TwinmeshError as error:
                    self._ledger.note("info", self.name, sequence, reason=str(error.reason))
                    await asyncio.sleep(_PAUSE_S)
                    continue
                self._ledger.note(
                    "ok", self.name, sequence, via="ack", offset=ack.offset, exact=True, replayed=ack.replayed,
                    accepted=ack.accepted_count, quarantined=ack.quarantined_count,
                )  # fmt: skip
                break
            sequence += 1


class StampedProducer:
    """Appends to storage itself, under stamps.

    Args:
        stamps: False is a canary: it resends as if nothing had to be recognised.
        yields: raise `Fenced` when a newer session exists, instead of opening another one.
        keys: resolved by `resolve`.
    """

    def __init__(
        self,
        store: Storage,
        name: str,
        ledger: History,
        keys: tuple[SeriesKey, ...],
        *,
        stamps: bool = True,
        yields: bool = False,
        pause_s: float = 0.0,
    ) -> None:
        self.name = name
        self.acked = 0
        self._store = store
        self._ledger = ledger
        self._keys = keys
        self._stamps = stamps
        self._yields = yields
        self._pause_s = pause_s
        self._epoch = 0

    async def run(self, more: Callable[[int], bool]) -> None:
        """See `Producer.run`."""
        unsure = False
        while unsure or more(self.acked + 1):
            sequence = self.acked + 1
            try:
                if not self._epoch and self._stamps:
                    await self._open(sequence if unsure else 0)
                    unsure = False
                    continue
                body = wire.encode(self._ledger.plan.batch(self.name, sequence, self._keys))
                self._ledger.note("invoke", self.name, sequence)
                unsure = True
                answer = await self._store.ask("Append", self._request(sequence, body), timeout_s=PATIENCE_S)
            except TwinmeshError as error:
                if unsure:
                    self._ledger.note("info", self.name, sequence, reason=str(error.reason))
                if self._yields and error.reason == Reason.PRODUCER_FENCED:
                    raise Fenced from None
                self._epoch = 0
                await asyncio.sleep(_PAUSE_S)
            else:
                unsure = False
                self._ok(sequence, "ack", answer.position.offset, answer.replayed)
                if self._pause_s:
                    await asyncio.sleep(self._pause_s)

    async def _open(self, unsure: int) -> None:
        request = storage_pb2.OpenProducerRequest(producer_id=self.name)
        session = await self._store.ask("OpenProducer", request, timeout_s=PATIENCE_S)
        self._ledger.note("welcome", self.name, session.last_sequence, epoch=session.epoch)
        self._epoch = session.epoch
        if unsure and session.last_sequence >= unsure:
            self._ok(unsure, "welcome", 0, False)
        elif session.last_sequence > self.acked:
            self.acked = session.last_sequence  # another copy of this producer went further

    def _ok(self, sequence: int, via: str, offset: int, replayed: bool) -> None:
        self._ledger.note(
            "ok", self.name, sequence, via=via, offset=offset, exact=True, replayed=replayed,
            accepted=None, quarantined=None,
        )  # fmt: skip
        self.acked = sequence

    def _request(self, sequence: int, body: bytes) -> storage_pb2.AppendRequest:
        request = storage_pb2.AppendRequest(observations=body, content_hash=blake2b(body, digest_size=16).digest())
        if self._stamps:
            request.producer.producer_id = self.name
            request.producer.epoch = self._epoch
            request.producer.sequence = sequence
        return request


class DisorderlyProducer(StampedProducer):
    """Repeats, reorders and replays between its batches, by a way that loses nothing, and knows each answer due.

    Args:
        direct: that way.
        rng: chooses.

    Attributes:
        disorder: what it did, by kind.
    """

    def __init__(
        self, store: Storage, direct: Storage, name: str, ledger: History, keys: tuple[SeriesKey, ...], rng: Random
    ) -> None:
        super().__init__(store, name, ledger, keys)
        self.disorder: Counter[str] = Counter()
        self._direct = direct
        self._rng = rng
        self._acts = {
            "last again": self._last_again,
            "older again": self._older_again,
            "ahead": self._ahead,
            "number reused": self._reused,
            "older session": self._older_session,
            "shuffled": self._shuffled,
        }

    async def run(self, more: Callable[[int], bool]) -> None:
        """See `Producer.run`."""
        while more(self.acked + 1):
            until = self.acked + 1
            await super().run(lambda sequence, until=until: sequence <= until and more(sequence))  # type: ignore[misc]
            if self._epoch and self.acked:
                kind = self._rng.choice(list(self._acts))
                await self._acts[kind]()
                self.disorder[kind] += 1

    async def _last_again(self) -> None:
        answer = await self._send(self.acked)
        if isinstance(answer, TwinmeshError) or not answer.replayed:
            self._wrong("the last batch again was not recognised", answer)

    async def _older_again(self) -> None:
        answer = await self._send(self._rng.randint(1, self.acked))
        if isinstance(answer, TwinmeshError) or not answer.replayed:
            self._wrong("an older batch again was not recognised", answer)

    async def _ahead(self) -> None:
        answer = await self._send(self.acked + self._rng.randint(2, 9))
        expected = str(self.acked + 1)
        if (
            not isinstance(answer, FailedPrecondition)
            or answer.reason != Reason.SEQUENCE_GAP
            or answer.metadata.get("expected_sequence") != expected
        ):
            self._wrong("a gap was not refused with what is expected", answer)

    async def _reused(self) -> None:
        answer = await self._send(self.acked, content=self.acked + 1_000_000)
        if not isinstance(answer, TwinmeshError) or answer.reason != Reason.SEQUENCE_REUSED:
            self._wrong("another batch under the last number was not refused", answer)

    async def _older_session(self) -> None:
        self._epoch -= 1
        answer = await self._send(self.acked + 1)
        self._epoch += 1
        if not isinstance(answer, FailedPrecondition) or answer.reason != Reason.PRODUCER_FENCED:
            self._wrong("an older session was not fenced", answer)

    async def _shuffled(self) -> None:
        """Send the next few at once, in any order: what is accepted must be the next ones, without a gap."""
        sequences = list(range(self.acked + 1, self.acked + 5))
        self._rng.shuffle(sequences)
        for sequence in sequences:
            self._ledger.note("invoke", self.name, sequence)
        answers = await asyncio.gather(*(self._send(sequence) for sequence in sequences))
        by_sequence = dict(zip(sequences, answers, strict=True))
        for sequence in sorted(sequences):
            answer = by_sequence[sequence]
            if isinstance(answer, TwinmeshError):
                if answer.reason != Reason.SEQUENCE_GAP:
                    self._wrong("a batch out of turn was not refused as a gap", answer)
                self._ledger.note("info", self.name, sequence, reason=str(answer.reason))
            elif sequence != self.acked + 1:
                self._wrong("a batch was accepted before the one before it", answer)
            else:
                self._ok(sequence, "ack", answer.position.offset, answer.replayed)

    async def _send(self, sequence: int, content: int = 0) -> storage_pb2.AppendResponse | TwinmeshError:
        body = wire.encode(self._ledger.plan.batch(self.name, content or sequence, self._keys))
        while True:
            try:
                response: storage_pb2.AppendResponse = await self._direct.ask(
                    "Append", self._request(sequence, body), timeout_s=PATIENCE_S
                )
                return response
            except Unavailable:
                await asyncio.sleep(_PAUSE_S)
            except TwinmeshError as error:
                return error

    def _wrong(self, what: str, answer: object) -> None:
        told = answer.reason if isinstance(answer, TwinmeshError) else "accepted"
        self._ledger.note("wrong", self.name, self.acked, what=f"{what} ({told})")


async def resolve(store: Storage, name: str) -> tuple[SeriesKey, ...]:
    """Return the dictionary of a producer that talks to storage itself."""
    return await store.series(name, [CHANNEL])


async def main(port: str, ledger: str, producer: str, count: str, plan: str) -> int:
    """Send `count` batches as a producer; returns 3 when a newer session fenced this copy."""
    with History(Path(ledger), Plan(**json.loads(plan))) as history:
        async with storage_client(int(port)) as store:
            sender = StampedProducer(
                store, producer, history, await resolve(store, producer), yields=True, pause_s=0.005
            )

            try:
                await sender.run(lambda sequence: sequence <= int(count))
            except Fenced:
                return 3
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
