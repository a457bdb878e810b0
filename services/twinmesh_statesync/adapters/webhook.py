"""Webhooks: one signed POST per attempt, to the address that was vetted, on a connection of its own.

Written on asyncio's streams: what is needed is small (no redirects, no body of the answer, no reuse), and what matters
is that the socket goes to the very address that was looked at, and that everything ends in time.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from twinmesh_statesync.adapters.guard import Guard
from twinmesh_statesync.domain.delivery.payload import signed_headers
from twinmesh_statesync.domain.delivery.ports import DeliveryFailedError
from twinmesh_statesync.domain.delivery.subscriptions import Delivery, Subscription

_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r\n]")
_MAX_LINE: Final = 8 * 1024


class WebhookCarrier:
    """Sends deliveries by HTTP.

    Args:
        guard: says where they may go.
        timeout_s: of one attempt, from the look-up to the status line of the answer.
        user_agent: how we introduce ourselves.
        tls: trust of https; None = the system's.
    """

    def __init__(
        self, guard: Guard, *, timeout_s: float = 10.0, user_agent: str = "twinmesh", tls: ssl.SSLContext | None = None
    ) -> None:
        self._guard = guard
        self._timeout_s = timeout_s
        self._user_agent = user_agent
        self._tls = tls or ssl.create_default_context()

    async def send(self, subscription: Subscription, delivery: Delivery) -> None:
        """Send it once; see the port."""
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._post(subscription, delivery)
        except TimeoutError:
            raise DeliveryFailedError(f"no answer within {self._timeout_s:g} s") from None
        except ssl.SSLError as error:
            raise DeliveryFailedError(f"TLS failed: {error.reason or 'unknown'}") from None
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            raise DeliveryFailedError("the connection failed") from None
        if not 200 <= status < 300:
            hint = " (redirects are not followed)" if 300 <= status < 400 else ""
            raise DeliveryFailedError(f"the receiver answered {status}{hint}")

    async def close(self) -> None:
        """Nothing is kept open."""

    async def _post(self, subscription: Subscription, delivery: Delivery) -> int:
        parts = urlsplit(subscription.target.url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        where = await self._guard.resolve(host, parts.port or (443 if secure else 80))
        if not secure and not where.private:
            raise DeliveryFailedError("plain http is for networks that an operator allows; use https")
        reader, writer = await asyncio.open_connection(
            where.address,
            where.port,
            ssl=self._tls if secure else None,
            server_hostname=host if secure else None,
            limit=_MAX_LINE,
        )
        try:
            writer.write(self._request(subscription, delivery, parts.netloc, _path(subscription.target.url)))
            await writer.drain()
            return _status(await reader.readuntil(b"\n"))
        finally:
            writer.transport.abort()
            with suppress(OSError, ssl.SSLError):
                await writer.wait_closed()

    def _request(self, subscription: Subscription, delivery: Delivery, netloc: str, path: str) -> bytes:
        body = delivery.body.encode()
        headers = {
            "host": netloc,
            "user-agent": self._user_agent,
            "content-type": "application/json",
            "content-length": str(len(body)),
            "accept": "*/*",
            "connection": "close",
            **signed_headers(subscription.target, delivery.delivery_id, time.time_ns() // 1_000, body),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def _path(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _status(line: bytes) -> int:
    found = _STATUS.match(line)
    if found is None:
        raise DeliveryFailedError("the receiver does not speak HTTP")
    return int(found[1])
