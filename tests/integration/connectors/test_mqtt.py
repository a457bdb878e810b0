"""MQTT on a real Mosquitto into a real mesh: what is published arrives once, whoever goes away in between."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from tests.integration.connectors.conftest import history, running, until
from tests.integration.connectors.mosquitto import Mosquitto
from tests.integration.ingestion.mesh import Mesh
from tests.unit.connectors.sparkplug_edge import BOOLEAN, INT64, metric, payload

from twinmesh_client.transport import open_channel
from twinmesh_connectors.mqtt.connector import MqttConnector
from twinmesh_connectors.mqtt.payloads import PlainTopic
from twinmesh_connectors.mqtt.session import Broker
from twinmesh_connectors.mqtt.sparkplug import Sparkplug
from twinmesh_connectors.mqtt.sparkplug_message import Payload
from twinmesh_connectors.mqtt.topics import NameTemplate, TopicTemplate
from twinmesh_core.kinds import ChannelKind

MS = int(time.time() * 1000) - 60_000


def connector(broker: Mosquitto, **changes: object) -> MqttConnector:
    template = TopicTemplate("plants/{twin}")
    topic = PlainTopic(
        topic=template,
        twin=NameTemplate("{twin}", template.names),
        time="/ts",
        time_form="ms",
        quality="/q",
        units={"temperature": "degF"},
        kinds={"stage": ChannelKind.STATE},
    )
    where = Broker(host="127.0.0.1", port=broker.port, client_id="twinmesh-test", keep_alive_s=5)
    options = {"topics": [topic], **changes}
    return MqttConnector("plant", where, **options)  # type: ignore[arg-type]  # options of the test


class Publisher:
    """A device: publishes and waits until the broker has it."""

    def __init__(self, port: int) -> None:
        self.heard: list[paho.MQTTMessage] = []
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_message = lambda _c, _u, message: self.heard.append(message)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def publish(self, topic: str, body: bytes | str, *, qos: int = 1, retain: bool = False) -> None:
        self._client.publish(topic, body, qos=qos, retain=retain).wait_for_publish(10)

    def listen(self, topic: str) -> None:
        self._client.subscribe(topic, 1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def publisher(broker: Mosquitto) -> Iterator[Publisher]:
    made = Publisher(broker.port)
    try:
        yield made
    finally:
        made.close()


def sample(number: int, **more: object) -> str:
    return json.dumps({"ts": MS + number, "temperature": 140.0 + number, **more})


async def test_messages_become_observations_and_what_cannot_be_read_is_counted(plant: Mesh, broker: Mosquitto) -> None:
    async with running(connector(broker), plant.channel) as runner:
        await until(lambda: runner.status.state == "running")
        with publisher(broker) as device:
            await until(lambda: _published(device, sample(0, stage=2, running=True, note="ok", q=192)) or rows(plant))
            device.publish("plants/P1", sample(1, q="bad"))
            device.publish("plants/P1", "{broken")
            device.publish("plants/P1", json.dumps({"temperature": 1}))
            device.publish("plants/P1", sample(2, stage=1.5))
        await until(lambda: sum(runner.status.rows_dropped.values()) >= 3)
        found = await until(lambda: rows(plant, at_least=3))
    times = {MS * 1000 + 1000 * n for n in range(3)}
    assert {t for t, _, _ in found["temperature"]} == times
    by_time = {t: (round(v, 6), q) for t, v, q in found["temperature"]}
    assert by_time[MS * 1000] == (60.0, 1)  # 140 degF
    assert by_time[MS * 1000 + 1000][1] == 3
    assert {v for _, v, _ in found["stage"]} == {2}
    assert set(runner.status.rows_dropped) == {"payload is no JSON", "time is not in the message", "value is no state"}
    assert "broken" not in runner.status.line()


def _published(device: Publisher, body: str) -> bool:
    """Publish; False, so that an `or` goes on to look for the outcome."""
    device.publish("plants/P1", body)
    return False


async def rows(plant: Mesh, *, at_least: int = 1) -> dict[str, list] | None:
    found = await history(plant, "temperature", "stage", "running", "note")
    return found if len(found.get("temperature", ())) >= at_least else None


async def test_what_is_published_while_the_connector_or_the_broker_is_away_arrives_once(
    plant: Mesh, broker: Mosquitto
) -> None:
    reader = connector(broker)
    async with running(reader, plant.channel) as runner:
        await until(lambda: runner.status.state == "running")
        with publisher(broker) as device:
            await until(lambda: _published(device, sample(0)) or rows(plant))
    with publisher(broker) as device:  # the connector is away; the broker keeps its session
        for n in range(1, 200):
            device.publish("plants/P1", sample(n))
    async with running(reader, plant.channel) as runner:
        await until(lambda: rows(plant, at_least=200))
        restarts = runner.status.restarts
        broker.stop(signal.SIGKILL)
        broker.start()
        await until(lambda: runner.status.restarts > restarts and runner.status.state == "running")
        with publisher(broker) as device:
            for n in range(200, 300):
                device.publish("plants/P1", sample(n))
        found = await until(lambda: rows(plant, at_least=300))
    assert [t for t, _, _ in found["temperature"]] == [1000 * (MS + n) for n in range(300)]
    assert "went away" in runner.status.last_error or "cannot be reached" in runner.status.last_error


async def test_nothing_is_acknowledged_to_the_broker_before_it_is_safe(plant: Mesh, broker: Mosquitto) -> None:
    reader = connector(broker)
    async with running(reader, plant.channel) as runner:
        await until(lambda: runner.status.state == "running")
        with publisher(broker) as device:
            await until(lambda: _published(device, sample(0)) or rows(plant))
    async with open_channel("127.0.0.1:1") as nowhere, running(reader, nowhere, "other") as runner:
        with publisher(broker) as device:
            for n in range(1, 50):
                device.publish("plants/P1", sample(n))
        await asyncio.sleep(0.5)  # time enough to acknowledge, if it were to
    async with running(reader, plant.channel):
        found = await until(lambda: rows(plant, at_least=50))
    assert [t for t, _, _ in found["temperature"]] == [1000 * (MS + n) for n in range(50)]


async def test_messages_of_many_values_are_cut_to_size(plant: Mesh, broker: Mosquitto) -> None:
    template = TopicTemplate("bulk/{twin}/{channel}")
    topic = PlainTopic(
        topic=template,
        twin=NameTemplate("{twin}", template.names),
        channel=NameTemplate("{channel}", template.names),
        value="/v",
        time="/t",
        time_form="ms",
    )
    with publisher(broker) as device:
        async with running(connector(broker, topics=[topic]), plant.channel) as runner:
            await until(lambda: runner.status.state == "running")
            for part in range(12):
                samples = [{"t": MS + 5_000 * part + i, "v": float(i % 100)} for i in range(5_000)]
                device.publish("bulk/P1/temperature", json.dumps(samples))
            found = await until(lambda: rows(plant, at_least=60_000))
    assert [t for t, _, _ in found["temperature"]] == [1000 * (MS + i) for i in range(60_000)]
    assert runner.status.restarts == 0


async def test_a_retained_message_without_a_time_is_not_given_the_time_of_now(plant: Mesh, broker: Mosquitto) -> None:
    template = TopicTemplate("old/{twin}/{channel}")
    topic = PlainTopic(topic=template, twin=NameTemplate("{twin}", template.names),
                       channel=NameTemplate("{channel}", template.names), form="number")  # fmt: skip
    with publisher(broker) as device:
        device.publish("old/P1/temperature", b"50", retain=True)
        async with running(connector(broker, topics=[topic]), plant.channel) as runner:
            await until(lambda: runner.status.rows_dropped == {"retained, without a time of its own": 1})
            device.publish("old/P1/temperature", b"51")
            found = await until(lambda: rows(plant))
    assert [v for _, v, _ in found["temperature"]] == [51.0]


async def test_sparkplug_is_followed_and_asked_for_births(plant: Mesh, broker: Mosquitto) -> None:
    with publisher(broker) as edge:
        edge.listen("spBv1.0/G/NCMD/E")
        reader = connector(broker, topics=[], sparkplug=Sparkplug(names={"Motor/T": "temperature"}))
        async with running(reader, plant.channel) as runner:
            await until(lambda: runner.status.state == "running")
            data = payload(metric(value=61.5, alias=1, ms=MS + 1), seq=5, ms=MS)

            def heard() -> list[paho.MQTTMessage]:
                edge.publish("spBv1.0/G/DDATA/E/P1", data)
                return edge.heard

            await until(heard)
            asked = Payload.FromString(edge.heard[0].payload)
            assert (asked.metrics[0].name, asked.metrics[0].boolean_value) == ("Node Control/Rebirth", True)

            edge.publish("spBv1.0/G/NBIRTH/E", payload(metric("bdSeq", 0, INT64), seq=0, ms=MS))
            running_metric = metric("Running", True, BOOLEAN, alias=2)
            birth = payload(metric("Motor/T", 60.0, alias=1, ms=MS), running_metric, seq=1, ms=MS)
            edge.publish("spBv1.0/G/DBIRTH/E/P1", birth)
            edge.publish("spBv1.0/G/DDATA/E/P1", payload(metric(value=61.5, alias=1, ms=MS + 1), seq=2, ms=MS))
            edge.publish("spBv1.0/G/NDEATH/E", payload(metric("bdSeq", 0, INT64)))
            found = await until(lambda: rows(plant, at_least=3))
    assert [(v, q) for _, v, q in found["temperature"]] == [(60.0, 1), (61.5, 1), (61.5, 2)]
    assert found["temperature"][0][0] == MS * 1000
    assert found["running"][0][1:] == (1, 1)


async def test_a_broker_that_refuses_or_is_absent_is_named(plant: Mesh, tmp_path: Path) -> None:
    locked = Mosquitto(tmp_path, password_for="reader:right")
    reader = connector(locked)
    async with running(reader, plant.channel) as runner:
        await until(lambda: "cannot be reached: Connection refused" in runner.status.last_error)
        locked.start()
        try:
            await until(lambda: "refuses us: Not authorized" in runner.status.last_error)
        finally:
            locked.stop()


@pytest.mark.slow
@pytest.mark.faults
async def test_a_frozen_broker_is_noticed_and_left(plant: Mesh, broker: Mosquitto) -> None:
    async with running(connector(broker), plant.channel) as runner:
        await until(lambda: runner.status.state == "running")
        broker.freeze(True)
        try:
            await until(lambda: runner.status.restarts >= 1, 40)
        finally:
            broker.freeze(False)
        await until(lambda: runner.status.state == "running")
