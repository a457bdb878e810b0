"""The thread on which the sync SDK runs the async one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import CancelledError as FutureCancelled
from concurrent.futures import Future
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")
CLOSE_TIMEOUT_S = 10.0


class Portal:
    """Runs coroutines on an event loop of its own thread; safe to use from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="twinmesh-sdk", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Return the coroutine's result; an interrupt (Ctrl-C) cancels it and is raised again."""
        future: Future[ResultT] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except FutureCancelled:
            raise
        except BaseException:
            future.cancel()
            raise

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
            self.run(_close(items))

    def close(self) -> None:
        """Cancel what still runs, stop the loop and end the thread."""
        if self._loop.is_closed():
            return
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_TIMEOUT_S)
        self._loop.close()


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
