"""OPC UA from a real server (asyncua's) into a real mesh: qualities, units, whole objects, and what was missed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from asyncua import ua
from asyncua.server.server import Server as UaServer
from asyncua.ua.status_codes import StatusCodes
from tests.integration.connectors.conftest import history, running, until
from tests.integration.ingestion.mesh import Mesh

from twinmesh_connectors.opcua.connector import Object, OpcUaConnector, Server
from twinmesh_connectors.opcua.values import Item
from twinmesh_core.kinds import ChannelKind
from twinmesh_local.ports import free_port

# A server takes three seconds of CPU to build its address space, so the default run has few of them.
T0 = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=10)
BAD = StatusCodes.BadSensorFailure
UNCERTAIN = StatusCodes.UncertainSensorNotAccurate


@dataclass(slots=True)
class Plc:
    """A server with one pump on a port that it keeps over its lives."""

    port: int = field(default_factory=free_port)
    server: Any = None
    pump: Any = None
    nodes: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"opc.tcp://127.0.0.1:{self.port}/plant"

    async def start(self) -> None:
        self.server = UaServer()
        await self.server.init()
        self.server.set_endpoint(self.url)
        self.server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        space = await self.server.register_namespace("urn:plant")
        self.pump = await self.server.nodes.objects.add_object(space, "Pump 1")
        motor = await self.pump.add_object(space, "Motor")
        for parent, name, value in (
            (self.pump, "temperature", 20.0),
            (self.pump, "stage", 1),
            (self.pump, "running", False),
            (self.pump, "note", "hello"),
            (motor, "speed", 1500.0),
        ):
            node_id = ua.NodeId.from_string(f"ns={space};s=P1.{name}")
            self.nodes[name] = await parent.add_variable(node_id, name, value)
        unit = ua.EUInformation(DisplayName=ua.LocalizedText("degF"))
        await self.nodes["temperature"].add_property(0, "EngineeringUnits", unit)
        await self.server.start()

    async def stop(self) -> None:
        await self.server.stop()

    async def write(self, name: str, value: Any, seconds: float, status: int = 0) -> None:
        variant = None if value is None else ua.Variant(value, await self.nodes[name].read_data_type_as_variant_type())
        stamp: Any = T0 + timedelta(seconds=seconds)
        await self.nodes[name].write_value(
            ua.DataValue(variant, ua.StatusCode(ua.UInt32(status)), SourceTimestamp=stamp, ServerTimestamp=stamp)
        )


@asynccontextmanager
async def serving() -> AsyncIterator[Plc]:
    plc = Plc()
    await plc.start()
    try:
        yield plc
    finally:
        await plc.stop()


def item(name: str, **changes: Any) -> Item:
    return Item(node=f"ns=2;s=P1.{name}", twin_id="P1", channel=name, sampling_ms=20.0, **changes)


def connector(plc: Plc, *items: Item, **changes: Any) -> OpcUaConnector:
    options = {"items": items, **changes}
    history_s = options.pop("history_s", 0.0)
    return OpcUaConnector("plc", Server(url=plc.url, publishing_ms=50.0, history_s=history_s), **options)


def us(seconds: float) -> int:
    return round((T0 + timedelta(seconds=seconds)).timestamp() * 1e6)


async def stored(plant: Mesh, name: str, *times: float) -> dict[int, tuple[Any, int]] | None:
    """Return value and quality by time once all of these times are there."""
    found = {t: (v, q) for t, v, q in (await history(plant, name)).get(name, ())}
    return found if all(us(t) in found for t in times) else None


async def test_values_come_with_their_kind_unit_quality_and_source_time(plant: Mesh) -> None:
    async with serving() as plc:
        items = (item("temperature"), item("stage", kind=ChannelKind.STATE), item("running"), item("note"))
        async with running(connector(plc, *items), plant.channel) as runner:
            await until(lambda: runner.status.rows_read >= 4)
            for second, (name, value, status) in enumerate(
                (
                    ("temperature", 212.0, 0),
                    ("stage", 2, 0),
                    ("running", True, 0),
                    ("note", "grün", 0),
                    ("temperature", 213.8, UNCERTAIN),
                    ("temperature", None, BAD),
                )
            ):
                await plc.write(name, value, second, status)
                await until(partial(stored, plant, name, second))
            temperature = await stored(plant, "temperature", 0, 4, 5)
            others = [await stored(plant, n, t) for n, t in (("stage", 1), ("running", 2), ("note", 3))]
        assert temperature is not None
        assert {t: (round(v, 6), q) for t, (v, q) in temperature.items() if t >= us(0) and t <= us(5)} == {
            us(0): (100.0, 1),  # degF, as the server says
            us(4): (101.0, 2),
            us(5): (101.0, 3),  # no value any more: the last one, BAD
        }
        assert [o[us(t)] for o, t in zip(others, (1, 2, 3), strict=True) if o] == [(2, 1), (1, 1), ("grün".encode(), 1)]


@pytest.mark.slow
async def test_the_variables_of_an_object_are_channels(plant: Mesh) -> None:
    async with serving() as plc:
        same = await plc.pump.add_variable(ua.NodeId.from_string("ns=2;s=P1.same"), "Temperature!", 5.0)
        whole = Object(node=plc.pump.nodeid.to_string(), twin_id="P1", sampling_ms=20.0)
        reader = connector(plc, item("note"), objects=[whole])  # one of them is named by itself, too
        async with running(reader, plant.channel) as runner:
            await until(lambda: runner.status.rows_durable >= 5)
            found = await until(lambda: _found(plant))
        assert found["note"][0][1] == b"hello"
        assert runner.status.rows_dropped == {"name taken by another variable": 1}
        assert same.nodeid.to_string() in runner.status.note
        assert len(found["note"]) == 1
        # temperature lands; motor_speed is no channel of the type and waits in quarantine, with its name
        rows = await plant.quarantine()
        assert {r.channel for r in rows} >= {"motor_speed"}


async def _found(plant: Mesh) -> dict[str, list] | None:
    found = await history(plant, "temperature", "note", "running")
    return found if len(found) == 3 else None


@pytest.mark.slow
async def test_a_server_that_restarts_is_found_again(plant: Mesh) -> None:
    async with serving() as plc:
        async with running(connector(plc, item("temperature", unit="Cel")), plant.channel) as runner:
            await until(lambda: runner.status.rows_durable >= 1)
            await plc.stop()
            await until(lambda: runner.status.restarts >= 1)
            await plc.start()
            await plc.write("temperature", 55.0, 30)
            await until(lambda: stored(plant, "temperature", 30), 40)
        assert plc.url in runner.status.last_error


@pytest.mark.slow
async def test_what_the_server_recorded_meanwhile_is_read_from_its_history(plant: Mesh) -> None:
    async with serving() as plc:
        await plc.server.historize_node_data_change(plc.nodes["temperature"], timedelta(hours=1), 1_000)
        reader = connector(plc, item("temperature", unit="Cel"), history_s=3_600.0)
        await plc.write("temperature", 41.0, 1)
        async with running(reader, plant.channel):
            await until(lambda: stored(plant, "temperature", 1))
        for second in range(2, 50):
            await plc.write("temperature", 40.0 + second, second)
        async with running(reader, plant.channel):
            found = await until(lambda: stored(plant, "temperature", *range(1, 50)))
        assert [found[us(s)][0] for s in range(2, 50)] == [40.0 + s for s in range(2, 50)]


@pytest.mark.slow
async def test_what_the_server_does_not_have_is_told(plant: Mesh) -> None:
    async with serving() as plc:
        async with running(connector(plc, item("temperature", unit="Cel"), item("absent")), plant.channel) as runner:
            await until(lambda: runner.status.rows_durable >= 1)
            assert runner.status.rows_dropped == {"node refused: BadNodeIdUnknown": 1}
        async with running(connector(plc, item("absent")), plant.channel) as runner:
            await until(lambda: "has none of the nodes" in runner.status.last_error)


async def test_an_absent_server_is_named(plant: Mesh) -> None:
    async with running(connector(Plc(), item("temperature")), plant.channel) as runner:
        await until(lambda: runner.status.restarts >= 1)
        assert "cannot be reached" in runner.status.last_error
