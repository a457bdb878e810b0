"""The thread on which the sync SDK runs the async one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from twinmesh_core.errors import FailedPrecondition

ResultT = TypeVar("ResultT")
CLOSE_TIMEOUT_S = 10.0


class Portal:
    """Runs coroutines on an event loop of its own thread; safe to use from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="twinmesh-sdk", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Return the coroutine's result; an interrupt (Ctrl-C) cancels it, waits for its end and is raised again.

        Raises:
            FailedPrecondition: the connection is closed, or this is the SDK's own thread (a callback such as `on_ack`),
                which would wait for itself.
        """
        self._refuse_if_unable(coroutine)
        result: Future[ResultT] = Future()
        tasks: list[asyncio.Task[ResultT]] = []

        def start() -> None:
            tasks.append(self._loop.create_task(coroutine))
            tasks[0].add_done_callback(lambda task: _hand_over(task, result))

        def interrupt() -> None:
            tasks[0].cancel()

        self._loop.call_soon_threadsafe(start)
        try:
            return result.result()
        except BaseException:
            if not result.done():
                self._loop.call_soon_threadsafe(interrupt)
                # What the coroutine tidies up must be done before anything else is asked of the same objects.
                with suppress(FutureCancelled, TimeoutError):
                    result.exception(CLOSE_TIMEOUT_S)
            raise

    def _refuse_if_unable(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise FailedPrecondition("A callback of the SDK must not call the SDK: hand the work to another thread.")
        if self._loop.is_closed():
            coroutine.close()
            raise FailedPrecondition("This connection is closed; open a new one with connect().")

    def call(self, function: Callable[[], ResultT]) -> ResultT:
        """Return what a plain function returns when it is called on the event loop."""
        return self.run(_called(function))

    def iterate(self, items: AsyncGenerator[ResultT, None]) -> Generator[ResultT, None, None]:
        """Yield what the async generator yields; leaving the loop closes it."""
        try:
            while True:
                try:
                    yield self.run(_next(items))
                except StopAsyncIteration:
                    return
        finally:
            if not self._loop.is_closed():
                self.run(_close(items))

    def close(self) -> None:
        """Cancel what still runs, stop the loop and end the thread."""
        if self._loop.is_closed():
            return
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_TIMEOUT_S)
        self._loop.close()


def _hand_over(task: asyncio.Task[ResultT], result: Future[ResultT]) -> None:
    if task.cancelled():
        result.cancel()
        return
    error = task.exception()
    if error is not None:
        result.set_exception(error)
    else:
        result.set_result(task.result())


async def _called(function: Callable[[], ResultT]) -> ResultT:
    return function()


async def _next(items: AsyncGenerator[ResultT, None]) -> ResultT:
    return await anext(items)


async def _close(items: AsyncGenerator[Any, None]) -> None:
    await items.aclose()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
