"""One connection to a broker: messages into a bounded queue, acknowledged only when told.

The library's network thread hands messages over to the event loop. With MQTT 5 the broker itself holds back what is
not acknowledged (receive maximum), so the queue is bounded by it; messages of QoS 0, which nobody can hold back, are
bounded by dropping, counted.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from twinmesh_connectors.connector import SourceError

RECEIVE_MAXIMUM: Final = 500
"""Messages of QoS 1 and 2 that the broker may have on their way (MQTT 5)."""
MAX_PACKET_BYTES: Final = 1 << 20
"""Largest message that the broker may send (MQTT 5): with the number above, the bound of what waits in memory."""
MAX_QUEUED: Final = 20_000
MAX_QUEUED_BYTES: Final = 64 << 20
OPEN_TIMEOUT_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where a broker is, and who we are to it.

    Attributes:
        client_id: names our session at the broker, which keeps messages while we are away.
        session_expiry_s: for how long.
        keep_alive_s: after one and a half of it in silence, either side takes the connection for dead.
        ca: certificates to trust (PEM); None with `tls` = the system's.
        certificate, key: our own, for brokers that ask for one.
    """

    host: str
    port: int
    client_id: str
    version: int = 5
    session_expiry_s: int = 3_600
    keep_alive_s: int = 30
    username: str = ""
    password: str = ""
    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def address(self) -> str:
        """Host and port, for people."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as it came; `retained` = kept by the broker from before."""

    topic: str
    payload: bytes
    qos: int
    message_id: int
    retained: bool


class Session:
    """An open connection (``async with``).

    Raises:
        SourceError: on entering, when the broker cannot be reached or refuses.
    """

    def __init__(self, broker: Broker, subscriptions: dict[str, int]) -> None:
        self._broker = broker
        self._subscriptions = subscriptions
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._queue: deque[Message] = deque()
        self._queued_bytes = 0
        self._filled = asyncio.Event()
        self._ended = ""
        self.dropped = 0
        """Messages of QoS 0 that found the queue full."""
        self._client = self._make_client()

    async def __aenter__(self) -> Self:
        broker = self._broker
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await asyncio.to_thread(self._connect)
                self._client.loop_start()
                await self._opened
        except TimeoutError:
            await self._close()
            raise SourceError(f"broker {broker.address} did not answer within {OPEN_TIMEOUT_S:g} s") from None
        except (OSError, ValueError) as error:
            await self._close()
            raise SourceError(f"broker {broker.address} cannot be reached: {_words(error)}") from None
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def gather(self, most: int, within_s: float) -> list[Message]:
        """Return the messages of the next moment: waits for the first, then at most `within_s` for more.

        Raises:
            SourceError: the connection has ended, and nothing is queued.
        """
        while not self._queue:
            if self._ended:
                raise SourceError(self._ended)
            self._filled.clear()
            await self._filled.wait()
        deadline = self._loop.time() + within_s
        while len(self._queue) < most and self._loop.time() < deadline and not self._ended:
            self._filled.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._filled.wait()
            except TimeoutError:
                break
        taken = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        self._queued_bytes -= sum(len(message.payload) for message in taken)
        return taken

    def acknowledge(self, messages: list[Message]) -> None:
        """Tell the broker that these need not be sent again."""
        for message in messages:
            if message.qos:
                self._client.ack(message.message_id, message.qos)

    def publish(self, topic: str, payload: bytes) -> None:
        """Send one message of QoS 0, without waiting."""
        self._client.publish(topic, payload, qos=0)

    # --- on the library's thread, but for making and ending the client ---

    def _make_client(self) -> paho.Client:
        broker = self._broker
        five = broker.version == 5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=broker.client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            clean_session=None if five else False,
            reconnect_on_failure=False,  # the runner opens a new session, where people see it
            manual_ack=True,
        )
        if broker.username:
            client.username_pw_set(broker.username, broker.password or None)
        if broker.tls:
            context = ssl.create_default_context(cafile=str(broker.ca) if broker.ca else None)
            if broker.certificate is not None:
                context.load_cert_chain(broker.certificate, broker.key)
            client.tls_set_context(context)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _connect(self) -> None:
        broker = self._broker
        if broker.version == 5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # partly typed library
            properties.SessionExpiryInterval = broker.session_expiry_s
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            properties.MaximumPacketSize = MAX_PACKET_BYTES
            self._client.connect(
                broker.host, broker.port, broker.keep_alive_s, clean_start=False, properties=properties
            )
        else:
            self._client.connect(broker.host, broker.port, broker.keep_alive_s)

    def _on_connect(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._tell(self._refused, f"broker {self._broker.address} refuses us: {reason}")
            return
        five = self._broker.version == 5
        asked: list[tuple[str, Any]] = [
            (topic, SubscribeOptions(qos=qos) if five else qos) for topic, qos in self._subscriptions.items()
        ]
        client.subscribe(asked)

    def _on_subscribe(self, client: paho.Client, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        refused = [
            f"{topic} ({reason})"
            for topic, reason in zip(self._subscriptions, reasons, strict=False)
            if reason.is_failure
        ]
        if refused:
            self._tell(self._refused, f"broker {self._broker.address} refuses the topic {', '.join(refused)}")
        else:
            self._tell(self._ready)

    def _on_disconnect(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._tell(self._refused, f"broker {self._broker.address} went away: {reason}")

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        self._tell(
            self._take,
            Message(
                topic=message.topic,
                payload=bytes(message.payload),
                qos=message.qos,
                message_id=message.mid,
                retained=message.retain,
            ),
        )

    def _tell(self, call: Any, *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)

    # --- on the event loop ---

    def _take(self, message: Message) -> None:
        if not message.qos and (len(self._queue) >= MAX_QUEUED or self._queued_bytes >= MAX_QUEUED_BYTES):
            self.dropped += 1
            return
        self._queue.append(message)
        self._queued_bytes += len(message.payload)
        self._filled.set()

    def _ready(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    def _refused(self, why: str) -> None:
        self._ended = self._ended or why
        if not self._opened.done():
            self._opened.set_exception(SourceError(why))
        self._filled.set()

    async def _close(self) -> None:
        def close() -> None:
            self._client.disconnect()
            self._client.loop_stop()

        self._ended = self._ended or "the session was closed"
        await asyncio.to_thread(close)
        if self._opened.done() and not self._opened.cancelled():
            self._opened.exception()  # read: nobody else may


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
