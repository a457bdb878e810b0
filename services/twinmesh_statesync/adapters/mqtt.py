"""MQTT 5: deliveries published at QoS 1, taken once the broker has acknowledged them."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from twinmesh_statesync.adapters.guard import Guard
from twinmesh_statesync.domain.delivery.payload import signed_headers
from twinmesh_statesync.domain.delivery.ports import DeliveryFailedError
from twinmesh_statesync.domain.delivery.subscriptions import Delivery, Subscription

_KEEP_ALIVE_S: Final = 30


class MqttCarrier:
    """Publishes deliveries; one connection per subscription, made when it is first needed and again after a failure.

    Args:
        guard: says where they may go.
        timeout_s: of one attempt, from the look-up to the broker's acknowledgement.
    """

    def __init__(self, guard: Guard, *, timeout_s: float = 10.0) -> None:
        self._guard = guard
        self._timeout_s = timeout_s
        self._lines: dict[tuple[str, str], _Line] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    async def send(self, subscription: Subscription, delivery: Delivery) -> None:
        """Publish it once; see the port."""
        key = (subscription.tenant, subscription.subscription_id)
        try:
            async with asyncio.timeout(self._timeout_s):
                async with self._locks.setdefault(key, asyncio.Lock()):
                    line = await self._line(key, subscription)
                await line.publish(subscription, delivery)
        except TimeoutError:
            await self._drop(key)
            raise DeliveryFailedError(f"the broker did not acknowledge within {self._timeout_s:g} s") from None
        except (OSError, ValueError) as error:
            await self._drop(key)
            raise DeliveryFailedError(f"the connection to the broker failed ({type(error).__name__})") from None
        except DeliveryFailedError:
            await self._drop(key)
            raise

    async def close(self) -> None:
        """Close every connection."""
        for key in list(self._lines):
            await self._drop(key)

    async def _line(self, key: tuple[str, str], subscription: Subscription) -> _Line:
        line = self._lines.get(key)
        if line is not None and line.target == subscription.target and line.alive:
            return line
        await self._drop(key)
        parts = urlsplit(subscription.target.url)
        secure = parts.scheme == "mqtts"
        where = await self._guard.resolve(parts.hostname or "", parts.port or (8883 if secure else 1883))
        if not secure and not where.private:
            raise DeliveryFailedError("plain mqtt is for networks that an operator allows; use mqtts")
        # With TLS by name: the certificate proves that it is the host that was meant, whatever it resolves to by now.
        host = (parts.hostname or "") if secure else where.address
        line = self._lines[key] = _Line(subscription, host, where.port, secure=secure)
        await line.open()
        return line

    async def _drop(self, key: tuple[str, str]) -> None:
        line = self._lines.pop(key, None)
        if line is not None:
            await asyncio.to_thread(line.close)


class _Line:
    """One connection to a broker; paho's thread does the work, and calls back into the event loop."""

    def __init__(self, subscription: Subscription, host: str, port: int, *, secure: bool) -> None:
        self.target = subscription.target
        self.alive = False
        self._host, self._port = host, port
        self._loop = asyncio.get_running_loop()
        self._connected: asyncio.Future[str] = self._loop.create_future()
        self._waiting: dict[int, asyncio.Future[str]] = {}
        name = hashlib.blake2b(f"{subscription.tenant}\0{subscription.subscription_id}".encode(), digest_size=8)
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=f"twinmesh-{name.hexdigest()}", protocol=paho.MQTTv5
        )
        if self.target.username:
            self._client.username_pw_set(self.target.username, self.target.password or None)
        if secure:
            self._client.tls_set_context(ssl.create_default_context())
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = lambda *_: self._tell(self._connected, "the broker cannot be reached")
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish

    async def open(self) -> None:
        """Connect; raises `DeliveryFailedError`."""
        await asyncio.to_thread(self._client.connect, self._host, self._port, _KEEP_ALIVE_S)
        self._client.loop_start()
        problem = await self._connected
        if problem:
            raise DeliveryFailedError(problem)
        self.alive = True

    async def publish(self, subscription: Subscription, delivery: Delivery) -> None:
        """Publish and wait for the acknowledgement; raises `DeliveryFailedError`."""
        body = delivery.body.encode()
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.ContentType = "application/json"
        headers = signed_headers(subscription.target, delivery.delivery_id, time.time_ns() // 1_000, body)
        properties.UserProperty = list(headers.items())
        taken: asyncio.Future[str] = self._loop.create_future()
        topic = f"{subscription.target.topic}/{delivery.subject}"
        # On the loop, so that the acknowledgement (told by paho's thread, through the loop) finds the future.
        sent = self._client.publish(topic, body, qos=1, properties=properties)
        if sent.rc != paho.MQTT_ERR_SUCCESS:
            raise DeliveryFailedError("the broker was lost")
        self._waiting[sent.mid] = taken
        try:
            problem = await taken
        finally:
            self._waiting.pop(sent.mid, None)
        if problem:
            raise DeliveryFailedError(problem)

    def close(self) -> None:
        """Disconnect and end paho's thread."""
        self.alive = False
        with suppress(OSError, ValueError):
            self._client.disconnect()
        self._client.loop_stop()
        # The client closes its last sockets when it is freed: at once, unless it and this keep one another alive.
        self._client.on_connect = self._client.on_connect_fail = None
        self._client.on_disconnect = self._client.on_publish = None

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._tell(self._connected, f"the broker refused: {reason}" if reason.is_failure else "")

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._loop.call_soon_threadsafe(self._lost, str(reason))

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        problem = f"the broker refused: {reason}" if reason.is_failure else ""
        self._loop.call_soon_threadsafe(self._acknowledged, mid, problem)

    def _acknowledged(self, mid: int, problem: str) -> None:
        taken = self._waiting.get(mid)
        if taken is not None and not taken.done():
            taken.set_result(problem)

    def _lost(self, reason: str) -> None:
        self.alive = False
        for taken in (self._connected, *self._waiting.values()):
            if not taken.done():
                taken.set_result(f"the broker was lost: {reason}")

    def _tell(self, future: asyncio.Future[str], problem: str) -> None:
        def tell() -> None:
            if not future.done():
                future.set_result(problem)

        self._loop.call_soon_threadsafe(tell)
