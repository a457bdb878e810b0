"""The connector: topics of one broker become observations, acknowledged to the broker once they are safe with us."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from twinmesh_client.aio.writer import Writer
from twinmesh_connectors.delivery import until_safe
from twinmesh_connectors.mqtt.payloads import PlainTopic
from twinmesh_connectors.mqtt.session import Broker, Message, Session
from twinmesh_connectors.mqtt.sparkplug import NAMESPACE, Sparkplug, rebirth_request
from twinmesh_connectors.readings import Reading, Unreadable, batches
from twinmesh_connectors.status import Status

BATCH_MESSAGES: Final = 2_000
GATHER_S: Final = 0.02
REBIRTH_EVERY_S: Final = 10.0
"""An edge node is asked for a new birth at most this often."""
_SHOWN: Final = 80


class MqttConnector:
    """Reads a broker's topics.

    A message of QoS 1 or 2 is acknowledged to the broker only after its observations are durable in the mesh, or on the
    disk of a spool: what the broker has accepted is not lost whoever dies. What it then sends again is the same series,
    event time and value, and counts once, where messages carry their event time.

    Args:
        name: in status lines.
        broker: where to connect.
        topics: plain topics.
        sparkplug: the Sparkplug host application; None = without.
        qos: asked for when subscribing.
    """

    def __init__(
        self,
        name: str,
        broker: Broker,
        *,
        topics: Sequence[PlainTopic] = (),
        sparkplug: Sparkplug | None = None,
        qos: int = 1,
    ) -> None:
        self._name = name
        self._broker = broker
        self._topics = tuple(topics)
        self._sparkplug = sparkplug
        self._subscriptions = {topic.topic.subscription: qos for topic in topics}
        if sparkplug is not None:
            self._subscriptions[sparkplug.subscription] = qos
        self._reborn_s: dict[tuple[str, str], float] = {}

    @property
    def name(self) -> str:
        """Name in status lines."""
        return self._name

    async def run(self, writer: Writer, status: Status) -> None:
        """Read the broker until the connection ends."""
        if self._sparkplug is not None:
            self._sparkplug.forget_sequences()
        async with Session(self._broker, self._subscriptions) as session:
            dropped = 0
            while True:
                messages = await session.gather(BATCH_MESSAGES, GATHER_S)
                readings = self._read(messages, session, status)
                if readings:
                    number = 0
                    for batch in batches(readings):
                        number = await writer.write(batch)
                    status.rows_read += len(readings)
                    if any(message.qos for message in messages):
                        await until_safe(writer, number)
                session.acknowledge(messages)
                if session.dropped > dropped:
                    status.drop("of QoS 0, faster than the mesh takes", session.dropped - dropped)
                    dropped = session.dropped

    def _read(self, messages: Sequence[Message], session: Session, status: Status) -> list[Reading]:
        readings: list[Reading] = []
        arrived_unix_us = time.time_ns() // 1_000
        for message in messages:
            try:
                found, reasons = self._read_one(message, session, arrived_unix_us)
            except Unreadable as error:
                found, reasons = [], [error.reason]
            readings.extend(found)
            for reason in reasons:
                status.drop(reason)
                status.note = f"last unreadable: {message.topic[:_SHOWN]} ({reason})"
        return readings

    def _read_one(self, message: Message, session: Session, arrived: int) -> tuple[list[Reading], list[str]]:
        if self._sparkplug is not None and message.topic.startswith(f"{NAMESPACE}/"):
            heard = self._sparkplug.read(message.topic, message.payload, arrived)
            if heard.rebirth is not None:
                self._ask_for_birth(heard.rebirth, session)
            return heard.readings, heard.reasons
        for topic in self._topics:
            places = topic.topic.match(message.topic)
            if places is None:
                continue
            if message.retained and not topic.has_time():
                # The broker kept it since nobody knows when: it would be given the time of now.
                raise Unreadable("retained, without a time of its own")
            return topic.read(places, message.payload, arrived)
        return [], ["of a topic that nobody asked for"]

    def _ask_for_birth(self, node: tuple[str, str], session: Session) -> None:
        now_s = time.monotonic()
        if now_s - self._reborn_s.get(node, -REBIRTH_EVERY_S) >= REBIRTH_EVERY_S:
            self._reborn_s[node] = now_s
            group, name = node
            session.publish(f"{NAMESPACE}/{group}/NCMD/{name}", rebirth_request(time.time_ns() // 1_000))
