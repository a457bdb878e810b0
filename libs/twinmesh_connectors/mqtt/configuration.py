"""The table of an MQTT connector in the file of connectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from twinmesh_connectors.config import Table
from twinmesh_connectors.mqtt.connector import MqttConnector
from twinmesh_connectors.mqtt.payloads import FORMATS, PlainTopic, check_pointer
from twinmesh_connectors.mqtt.session import Broker
from twinmesh_connectors.mqtt.sparkplug import Sparkplug
from twinmesh_connectors.mqtt.topics import NameTemplate, TopicTemplate
from twinmesh_connectors.readings import KIND_NAMES, TIME_FORMATS
from twinmesh_core.ids import name_violation
from twinmesh_core.kinds import ChannelKind

_T = TypeVar("_T")


def from_config(name: str, table: Table) -> MqttConnector:
    """Build it from its table; see docs/connectors.md for every key."""
    broker = _broker(name, table)
    qos = table.whole("qos", 1, most=2)
    topics = [_topic(entry) for entry in table.tables("topics")]
    sparkplug = _sparkplug(table.table("sparkplug")) if table.has("sparkplug") else None
    if not topics and sparkplug is None:
        raise table.wrong("topics", f"is missing; write [[{table.key('topics')}]] with its topic, or a sparkplug table")
    return MqttConnector(name, broker, topics=topics, sparkplug=sparkplug, qos=qos)


def _broker(name: str, table: Table) -> Broker:
    tls = table.truth("tls", False)
    return Broker(
        host=table.text("host", example='"broker.example"'),
        port=table.whole("port", 8883 if tls else 1883, least=1, most=65_535),
        client_id=table.text("client_id", f"twinmesh-{name}"),
        version=5 if table.choice("protocol", ("5", "3.1.1"), "5") == "5" else 4,
        session_expiry_s=round(table.span_s("session_expiry", "1h")),
        keep_alive_s=max(5, round(table.span_s("keep_alive", "30s"))),
        username=table.text("username", ""),
        password=table.secret("password_env"),
        tls=tls,
        ca=_file(table, "ca"),
        certificate=_file(table, "certificate"),
        key=_file(table, "key"),
    )


def _file(table: Table, name: str) -> Path | None:
    if not table.has(name):
        return None
    path = table.path_of(name)
    if not path.is_file():
        raise table.wrong(name, "names no file; check the path")
    return path


def _topic(table: Table) -> PlainTopic:
    topic = _made(table, "topic", lambda: TopicTemplate(table.text("topic", example='"plants/{twin}/{channel}"')))
    form = table.choice("format", FORMATS, "json")
    twin = _made(table, "twin", lambda: NameTemplate(table.text("twin", "{twin}"), topic.names))
    value = _pointer(table, "value")
    fields: dict[str, str] = {}
    for pointer, named in table.texts("fields").items():
        fields[_made(table, "fields", partial(check_pointer, pointer))] = _channel(table, "fields", named)
    if fields and (value or form != "json"):
        raise table.wrong("fields", "goes with format json and without value; take one of them out")
    channel = None
    if table.has("channel"):
        channel = _made(table, "channel", lambda: NameTemplate(table.text("channel"), topic.names))
    elif "channel" in topic.names:
        channel = NameTemplate("{channel}", topic.names)
    elif form != "json":
        raise table.wrong("channel", "is missing; name it, or put {channel} into the topic")
    if fields and channel is not None:
        raise table.wrong("fields", "names channels itself; take channel out")
    made = PlainTopic(
        topic=topic,
        form=form,
        twin=twin,
        channel=channel,
        value=value,
        fields=fields,
        time=_pointer(table, "time"),
        time_form=table.choice("time_format", TIME_FORMATS, "iso"),
        quality=_pointer(table, "quality"),
        unit=_pointer(table, "unit"),
        units=table.texts("units"),
        kinds=_kinds(table),
        names=table.texts("names"),
    )
    table.finish()
    return made


def _sparkplug(table: Table) -> Sparkplug:
    group = table.text("group", "+")
    if "/" in group or "#" in group:
        raise table.wrong("group", "must be one group, or + for all")
    twin, node_twin = table.text("twin", "{device}"), table.text("node_twin", "{node}")
    names = {metric: _channel(table, "names", c) for metric, c in table.texts("names").items()}
    units, kinds, mark_stale = table.texts("units"), _kinds(table), table.truth("mark_stale", True)
    try:
        made = Sparkplug(
            group=group, twin=twin, node_twin=node_twin, names=names, kinds=kinds, units=units, mark_stale=mark_stale
        )
    except ValueError as error:
        raise table.wrong("twin", str(error)) from None
    table.finish()
    return made


def _kinds(table: Table) -> dict[str, ChannelKind]:
    found: dict[str, ChannelKind] = {}
    for channel, word in table.texts("kinds").items():
        if word not in KIND_NAMES:
            raise table.wrong(f"kinds.{channel}", f"is {word!r}; choose from {', '.join(KIND_NAMES)}")
        found[channel] = KIND_NAMES[word]
    return found


def _pointer(table: Table, name: str) -> str:
    if not table.has(name):
        return ""
    return _made(table, name, lambda: check_pointer(table.text(name)))


def _channel(table: Table, name: str, channel: str) -> str:
    violation = name_violation(table.key(name), channel)
    if violation is not None:
        raise table.wrong(name, f"names the channel {channel!r}: {violation.description}")
    return channel


def _made(table: Table, name: str, make: Callable[[], _T]) -> _T:
    try:
        return make()
    except ValueError as error:
        raise table.wrong(name, str(error)) from None
