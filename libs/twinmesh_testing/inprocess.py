"""A service served in the test's own process: the real server and interceptors on a free loopback port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from twinmesh_runtime.server import ServiceServer
from twinmesh_runtime.service import Service
from twinmesh_runtime.settings import ServiceSettings

TOKEN = "test"  # noqa: S105  a service's name
_READY_TIMEOUT_S = 10.0


@asynccontextmanager
async def serve(service: Service, *, token: str = TOKEN, settings: ServiceSettings | None = None) -> AsyncIterator[str]:
    """Serve `service`, its background tasks and checks included; yields its target (``127.0.0.1:port``).

    Leaving the block stops it at once, without a drain. A background task that raises fails the test.

    Args:
        service: what a service's `compose` returns.
        token: its token, which names the metrics.
        settings: bounds and deadlines; the port is always a free one.
    """
    async with serve_server(service, token=token, settings=settings) as (_, target):
        yield target


@asynccontextmanager
async def serve_server(
    service: Service, *, token: str = TOKEN, settings: ServiceSettings | None = None
) -> AsyncIterator[tuple[ServiceServer, str]]:
    """Serve as `serve` does and yield the server as well, for tests that drain it."""
    server = ServiceServer(token, settings if settings is not None else ServiceSettings(), service)
    serving: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    leave = asyncio.Event()

    async def live() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_ended(task)) for task in service.background]
                port = await server.start()
                tasks.append(group.create_task(server.keep_ready()))
                async with asyncio.timeout(_READY_TIMEOUT_S):
                    await server.health.until_ready()
                serving.set_result(f"127.0.0.1:{port}")
                await leave.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await server.stop()

    # A task of its own, since a fixture's two halves may run in different ones and a TaskGroup belongs to one.
    life = asyncio.get_running_loop().create_task(live())
    try:
        waited: set[asyncio.Future[Any]] = {life, serving}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            life.result()
        yield server, serving.result()
    finally:
        leave.set()
        await life


async def _ended(task: Callable[[], Awaitable[None]]) -> None:
    await task()
