"""A stream read by a thread of its own, ahead of the event loop that uses it.

On an event loop a message of a stream takes several turns to be read, and a turn is as long as whatever else is ready:
a hundred watchers to be told take tens of milliseconds. A stream that everything else waits for would then be read at
the pace of those who wait. Here each turn finds all that has come.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Generic, Protocol, TypeVar

import grpc

from twinmesh_client.rpc_status import error_from_rpc

AnswerT = TypeVar("AnswerT")
AnswerT_co = TypeVar("AnswerT_co", covariant=True)
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MAX_WAITING: Final = 16
"""Messages read ahead; beyond that the thread waits, and the server with it."""
_IN_A_ROW: Final = 8
"""Messages handed over before the event loop gets a turn."""


class Call(Protocol[AnswerT_co]):
    """A blocking streaming call."""

    def __iter__(self) -> Iterator[AnswerT_co]:
        """Return its answers."""
        ...

    def cancel(self) -> Any:
        """End it."""
        ...


async def read_ahead(call: Call[AnswerT], convert: Callable[[AnswerT], ResultT]) -> AsyncGenerator[ResultT, None]:
    """Yield the answers of a blocking call, in order; leaving the loop ends the call (close it when leaving early).

    Args:
        call: the call, of a channel made by `twinmesh_client.transport.open_blocking_channel`.
        convert: what is made of each answer, in the thread.

    Raises:
        TwinmeshError: whatever the server or the transport answered; after the answers that came before.
    """
    waiting = _Waiting[ResultT](asyncio.get_running_loop())
    thread = threading.Thread(target=_read, args=(call, convert, waiting), name="read-ahead", daemon=True)
    thread.start()
    try:
        handed = 0
        while (item := await waiting.take()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
            handed += 1
            if handed % _IN_A_ROW == 0:
                await asyncio.sleep(0)
    finally:
        waiting.close()
        call.cancel()


def _read(call: Call[AnswerT], convert: Callable[[AnswerT], ResultT], waiting: _Waiting[ResultT]) -> None:
    try:
        for answer in call:
            if not waiting.put(convert(answer)):
                return
        waiting.put(None)
    except grpc.RpcError as error:
        waiting.put(error_from_rpc(error))
    except Exception as error:  # noqa: BLE001  raised where the stream is used
        waiting.put(error)


class _Waiting(Generic[ItemT]):
    """What was read and not yet used: filled by a thread, emptied on an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[ItemT | Exception | None] = deque()
        self._filled = asyncio.Event()
        self._room = threading.Semaphore(MAX_WAITING)
        self._closed = False

    def put(self, item: ItemT | Exception | None) -> bool:
        """Add an item once there is room, from the thread; False = nobody takes it any more."""
        self._room.acquire()
        if self._closed:
            return False
        self._items.append(item)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._filled.set)
        return True

    async def take(self) -> ItemT | Exception | None:
        """Return the next item, as soon as there is one."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        self._room.release()
        return self._items.popleft()

    def close(self) -> None:
        """Take nothing more, and let the thread go."""
        self._closed = True
        self._room.release()
