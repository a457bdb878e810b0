"""A real HTTP receiver of webhooks, which a test tells how to behave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request as it came."""

    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def message(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """What came, and how the next request is answered: a status, or None = never."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    answer: Callable[[Received], int | None] = lambda _: 204
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def types(self) -> list[str]:
        """Return what was told, each id once, in the order in which it first came."""
        return [message["type"] for message in {r.id: r.message for r in self.received}.values()]

    async def until(self, met: Callable[[], Any], timeout_s: float = 20.0) -> None:
        """Return once something is so, looking at each request."""
        async with asyncio.timeout(timeout_s):
            while not met():
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """Serve on a free port of loopback until the block is left."""
    made = Receiver()
    hanging = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1)[:1] + line.split(": ", 1)[1:] for line in lines[1:] if line)
            body = await reader.readexactly(int(headers["content-length"]))
            got = Received(headers=headers, body=body)
            made.received.append(got)
            made.news.set()
            status = made.answer(got)
            if status is None:
                await hanging.wait()
            else:
                writer.write(
                    f"HTTP/1.1 {status} X\r\nlocation: {made.url}/elsewhere\r\ncontent-length: 0\r\n\r\n".encode()
                )
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever sent it went away
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        hanging.set()
        server.close()
