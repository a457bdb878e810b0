"""The table of an OPC UA connector in the file of connectors."""

from __future__ import annotations

from typing import Final

from asyncua import ua
from asyncua.ua.uaerrors import UaError

from twinmesh_connectors.config import Table
from twinmesh_connectors.opcua.connector import Object, OpcUaConnector, Server, certificate_paths
from twinmesh_connectors.opcua.values import Item
from twinmesh_connectors.readings import KIND_NAMES
from twinmesh_core.ids import name_violation

_SCHEMES: Final = ("opc.tcp://",)


def from_config(name: str, table: Table) -> OpcUaConnector:
    """Build it from its table; see docs/connectors.md for every key."""
    server = _server(table)
    items = [_item(entry) for entry in table.tables("nodes")]
    objects = [_object(entry) for entry in table.tables("objects")]
    if not items and not objects:
        raise table.wrong(
            "nodes", f"is missing; write [[{table.key('nodes')}]] with node, twin and channel, or [[...objects]]"
        )
    seen = [item.node for item in items]
    for node in seen:
        if seen.count(node) > 1:
            raise table.wrong("nodes", f"has {node} twice; a node is one channel")
    return OpcUaConnector(name, server, items=items, objects=objects)


def _server(table: Table) -> Server:
    url = table.text("url", example='"opc.tcp://plc.example:4840"')
    if not url.startswith(_SCHEMES) or "@" in url:
        raise table.wrong("url", "must be opc.tcp://HOST:PORT/PATH; a name and password have keys of their own")
    security = table.text("security", "")
    if security and len(security.split(",")) not in (4, 5):
        raise table.wrong(
            "security", "must be POLICY,MODE,CERTIFICATE,KEY, e.g. Basic256Sha256,SignAndEncrypt,c.der,k.pem"
        )
    for path in certificate_paths(security):
        if not path.is_file():
            raise table.wrong("security", f"names {path.name}, which is no file; check the path")
    return Server(
        url=url,
        username=table.text("username", ""),
        password=table.secret("password_env"),
        security=security,
        publishing_ms=1e3 * table.span_s("publishing", "500ms"),
        history_s=table.span_s("history") if table.has("history") else 0.0,
    )


def _item(table: Table) -> Item:
    channel = table.text("channel", example='"temperature"')
    violation = name_violation(table.key("channel"), channel)
    if violation is not None:
        raise table.wrong("channel", violation.description)
    kind = table.choice("kind", ("", *KIND_NAMES), "")
    made = Item(
        node=_node(table),
        twin_id=table.entity("twin"),
        channel=channel,
        kind=KIND_NAMES.get(kind),
        unit=table.text("unit", ""),
        sampling_ms=1e3 * table.span_s("sampling", "500ms"),
        queue=table.whole("queue", 100, least=1, most=100_000),
    )
    table.finish()
    return made


def _object(table: Table) -> Object:
    made = Object(
        node=_node(table),
        twin_id=table.entity("twin"),
        sampling_ms=1e3 * table.span_s("sampling", "500ms"),
        queue=table.whole("queue", 100, least=1, most=100_000),
    )
    table.finish()
    return made


def _node(table: Table) -> str:
    text = table.text("node", example='"ns=2;s=Pump1.Temperature"')
    try:
        return ua.NodeId.from_string(text).to_string()
    except (UaError, ValueError, AttributeError):
        raise table.wrong(
            "node", f"is {text!r}, no node id; write e.g. ns=2;s=Pump1.Temperature or ns=3;i=1001"
        ) from None
