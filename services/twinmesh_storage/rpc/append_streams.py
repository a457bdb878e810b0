"""Streams of appends: many entries on their way at once, answered in the order in which they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

from twinmesh.storage.v1 import storage_pb2
from twinmesh_core.errors import Reason, TwinmeshError, Unavailable
from twinmesh_storage.rpc.appends import ReceivedAppend, outcome_bytes, read_appends

_MAX_UNANSWERED: Final = 256
"""Entries of one stream that are not answered yet; beyond it the stream is not read."""
_ANSWER_BYTES: Final = 256 << 10
"""A message of answers is sent at this size, even if more are there."""

Append = Callable[[ReceivedAppend], Awaitable[storage_pb2.AppendResponse]]
Outcome = storage_pb2.AppendResponse | Exception
Answer = asyncio.Future[Outcome] | Exception | None
"""An entry on its way, or the end of the stream: with an error, or in peace."""


class Context(Protocol):
    """What a stream needs of its call."""

    async def write(self, message: bytes) -> None:
        """Send one message; waits while the reader is slow."""
        ...


class AppendStreams:
    """Serves streams of appends, until this process drains."""

    def __init__(self) -> None:
        self._readers: set[asyncio.Task[None]] = set()
        self._draining = False

    def drain(self) -> None:
        """End every stream once what it brought is answered."""
        self._draining = True
        for reader in list(self._readers):
            reader.cancel()

    async def serve(self, requests: AsyncIterator[bytes], context: Context, append: Append) -> None:
        """Append what the requests bring until they end, one cannot be read, or this process drains."""
        answers: asyncio.Queue[Answer] = asyncio.Queue(_MAX_UNANSWERED)
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(self._read(requests, answers, append, group))
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
            if self._draining:
                reader.cancel()
            end = await _answer(answers, context)
            reader.cancel()
        if end is not None:
            raise end

    async def _read(
        self, requests: AsyncIterator[bytes], answers: asyncio.Queue[Answer], append: Append, group: asyncio.TaskGroup
    ) -> None:
        end: Exception | None = None
        try:
            async for data in requests:
                for received in read_appends(data):
                    # Tasks begin in the order in which they are made, so entries queue in that of the stream.
                    await answers.put(group.create_task(_outcome(append, received)))
        except asyncio.CancelledError:
            if not self._draining:
                raise
            end = Unavailable("This server is being replaced; send again what is not answered.", reason=Reason.DRAINING)
        except Exception as error:  # noqa: BLE001  it ends the stream, after the answers that are due before it
            end = error
        await answers.put(end)


async def _outcome(append: Append, received: ReceivedAppend) -> Outcome:
    try:
        return await append(received)
    except Exception as error:  # noqa: BLE001  told in its turn
        return error


async def _answer(answers: asyncio.Queue[Answer], context: Context) -> Exception | None:
    """Send answers in the order of the entries, those that are there together; return what the stream must end with."""
    ready: list[bytes] = []

    async def send() -> None:
        if ready:
            await context.write(b"".join(ready))
            ready.clear()

    while True:
        if answers.empty() or sum(map(len, ready)) >= _ANSWER_BYTES:
            await send()
        answer = await answers.get()
        if not isinstance(answer, asyncio.Future):
            await send()
            return answer
        if not answer.done():
            await send()  # what is durable is told before anything is waited for
        outcome = await answer
        if isinstance(outcome, Exception) and not isinstance(outcome, TwinmeshError):
            await send()
            return outcome  # a defect: it is reported as that of any call
        ready.append(outcome_bytes(outcome))
