"""The table of an OPC UA connector, and status codes as qualities."""

import textwrap

import pytest
from asyncua import ua
from asyncua.ua.status_codes import StatusCodes

from twinmesh_client import InvalidArgument
from twinmesh_connectors.config import read_config
from twinmesh_connectors.opcua.values import Item, overflowed, quality_of_status, reading_of
from twinmesh_connectors.readings import Unreadable
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.quality import Quality

ITEM = Item(node="ns=2;s=a", twin_id="P1", channel="temperature", unit="Cel")


@pytest.fixture
def read(tmp_path):
    def write_and_read(text: str):
        path = tmp_path / "connectors.toml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return read_config(path)

    return write_and_read


def test_a_whole_table(read):
    (entry,) = read("""
        [connectors.line]
        kind = "opcua"
        url = "opc.tcp://plc.example:4840"
        publishing = "250ms"
        history = "1d"
        [[connectors.line.nodes]]
        node = "ns=2;s=Pump1.Temperature"
        twin = "P1"
        channel = "temperature"
        kind = "gauge"
        unit = "degF"
        sampling = "100ms"
        queue = 20
        [[connectors.line.objects]]
        node = "ns=2;i=7"
        twin = "P2"
    """).entries
    connector = entry.connector
    assert (connector._server.publishing_ms, connector._server.history_s) == (250.0, 86_400.0)
    (item,) = connector._items
    assert (item.kind, item.unit, item.sampling_ms, item.queue) == (ChannelKind.GAUGE, "degF", 100.0, 20)
    assert connector._objects[0].twin_id == "P2"


NODE = "[[connectors.o.nodes]]\ntwin = 'P1'\n"


@pytest.mark.parametrize(
    ("keys", "key", "remedy"),
    [
        ("url = 'http://x'", "o.url", "opc.tcp://"),
        ("url = 'opc.tcp://user:pw@x'", "o.url", "keys of their own"),
        ("url = 'opc.tcp://x'", "o.nodes", "node, twin and channel"),
        (f"url = 'opc.tcp://x'\n{NODE}channel = 'a'\nnode = 'Pump1'", "nodes[0].node", "ns=2;s="),
        (f"url = 'opc.tcp://x'\n{NODE}channel = 'A b'\nnode = 'i=1'", "nodes[0].channel", "lower-case"),
        (f"url = 'opc.tcp://x'\n{NODE}channel = 'a'\nnode = 'i=1'\nqueue = 0", "nodes[0].queue", "1 to 100000"),
        ("url = 'opc.tcp://x'\nsecurity = 'Basic256Sha256'", "o.security", "POLICY,MODE"),
        (
            f"url = 'opc.tcp://x'\n{NODE}channel = 'a'\nnode = 'i=1'\n{NODE}channel = 'b'\nnode = 'i=1'",
            "o.nodes",
            "twice",
        ),
    ],
)
def test_what_is_wrong_is_named(read, keys, key, remedy):
    with pytest.raises(InvalidArgument) as error:
        read(f"[connectors.o]\nkind = 'opcua'\n{keys}")
    (violation,) = error.value.field_violations
    assert violation.field.endswith(key)
    assert remedy in violation.description


def test_the_severity_of_a_status_is_the_quality():
    codes = StatusCodes
    assert quality_of_status(codes.Good) == Quality.GOOD
    assert quality_of_status(codes.GoodLocalOverride) == Quality.GOOD
    assert quality_of_status(codes.UncertainLastUsableValue) == Quality.UNCERTAIN
    assert quality_of_status(codes.BadCommunicationError) == Quality.BAD
    assert quality_of_status(0xC000_0000) == Quality.BAD
    assert overflowed(0x0480)
    assert not overflowed(codes.BadSensorFailure)


def test_a_bad_value_without_a_number_before_any_is_told():
    bad = ua.DataValue(None, ua.StatusCode(ua.UInt32(StatusCodes.BadNoCommunication)))
    with pytest.raises(Unreadable, match="before any value"):
        reading_of(ITEM, bad, 1, None)


def test_arrays_are_documents_and_unknown_types_are_told():
    found = reading_of(ITEM, ua.DataValue(ua.Variant([1.5, 2.5], ua.VariantType.Double)), 1, None)
    assert (found.kind, found.value, found.unit) == (ChannelKind.JSON, "[1.5, 2.5]", "")
    with pytest.raises(Unreadable, match="NodeId"):
        reading_of(ITEM, ua.DataValue(ua.Variant(ua.NodeId.from_string("ns=2;i=1"), ua.VariantType.NodeId)), 1, None)
