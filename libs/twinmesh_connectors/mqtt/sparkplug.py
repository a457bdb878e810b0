"""Sparkplug B: births that name what later messages only number, data, and deaths.

An edge node announces its metrics in a birth, with an alias for each; data then carries aliases, and a sequence
number from 0 to 255 by which a listener knows that it missed nothing. Whoever missed something, or came late, asks for
a new birth. Source: Eclipse Sparkplug specification 3.0, chapters 5 and 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from google.protobuf.message import DecodeError

from twinmesh_connectors.mqtt.sparkplug_message import Payload
from twinmesh_connectors.mqtt.topics import NameTemplate
from twinmesh_connectors.readings import (
    Reading,
    Unreadable,
    channel_name,
    entity_name,
    fitted,
    kind_of,
    quality_of,
)
from twinmesh_core.ids import entity_id_violation
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.quality import Quality

NAMESPACE: Final = "spBv1.0"
PLACES: Final = ("group", "node", "device")
REBIRTH: Final = "Node Control/Rebirth"
MAX_NODES: Final = 10_000
"""Edge nodes that are remembered; beyond it new ones are refused, and counted."""
MAX_METRICS: Final = 100_000
"""Metrics of one edge node that are remembered."""
_SIGNED_BITS: Final = {1: 8, 2: 16, 3: 32, 4: 64}
_BOOLEAN: Final = 11
_OWN: Final = ("Node Control/", "Device Control/", "Node Info/", "Properties/")
_BIRTHS: Final = ("NBIRTH", "DBIRTH")
_DEATHS: Final = ("NDEATH", "DDEATH")
_DATA: Final = ("NDATA", "DDATA")


@dataclass(slots=True)
class _Metric:
    name: str
    datatype: int
    unit: str
    last: Reading | None = None


@dataclass(slots=True)
class _Node:
    """What the last births said; `devices` holds the node's own metrics under "".

    `channels` says which metric of a device has a channel: two names may become one, and must not become one series.
    """

    birth_sequence: int | None = None
    next_sequence: int | None = None
    aliases: dict[int, tuple[str, str]] = field(default_factory=dict)
    devices: dict[str, dict[str, _Metric]] = field(default_factory=dict)
    channels: dict[tuple[str, str], str] = field(default_factory=dict)

    def forget(self) -> None:
        self.aliases.clear()
        self.devices.clear()
        self.channels.clear()

    def metric_count(self) -> int:
        return sum(map(len, self.devices.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What one message said.

    Attributes:
        readings: its values.
        reasons: why values could not be read.
        rebirth: (group, node) that must be asked for a new birth; None = nobody.
    """

    readings: list[Reading] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    rebirth: tuple[str, str] | None = None


class Sparkplug:
    """Follows every edge node of the topics it is given.

    Args:
        group: only this one; "+" = all.
        twin: id of a device's twin, from ``{group}``, ``{node}`` and ``{device}``.
        node_twin: id of an edge node's own twin, from ``{group}`` and ``{node}``.
        names: channel by metric name; others are made by `channel_name`.
        kinds: kind by channel, where it is not what the datatype suggests.
        units: unit by channel; else what the metric's property ``engUnit`` said.
        mark_stale: a death writes the last values once more as UNCERTAIN, so that no replica takes them for current.
    """

    def __init__(
        self,
        *,
        group: str = "+",
        twin: str = "{device}",
        node_twin: str = "{node}",
        names: Mapping[str, str] | None = None,
        kinds: Mapping[str, ChannelKind] | None = None,
        units: Mapping[str, str] | None = None,
        mark_stale: bool = True,
    ) -> None:
        self.subscription = f"{NAMESPACE}/{group}/#"
        self._twin = NameTemplate(twin, PLACES)
        self._node_twin = NameTemplate(node_twin, PLACES[:2])
        self._names = names or {}
        self._kinds = kinds or {}
        self._units = units or {}
        self._mark_stale = mark_stale
        self._nodes: dict[tuple[str, str], _Node] = {}

    def forget_sequences(self) -> None:
        """The broker was away: what came meanwhile is not known, so every node must give birth again."""
        for node in self._nodes.values():
            node.next_sequence = None

    def read(self, topic: str, body: bytes, arrived_unix_us: int) -> Heard:
        """Return what a message said.

        Raises:
            Unreadable: it is no Sparkplug message.
        """
        levels = topic.split("/")
        if len(levels) not in (4, 5) or levels[0] != NAMESPACE:
            return Heard()  # STATE of hosts, and what is not ours
        group, kind, name = levels[1:4]
        device = levels[4] if len(levels) == 5 else ""
        if kind not in (*_BIRTHS, *_DATA, *_DEATHS):
            return Heard()  # commands, which are for the edge node
        if (kind[0] == "D") != bool(device):
            raise Unreadable("topic is none of Sparkplug's")
        try:
            payload = Payload.FromString(body)
        except DecodeError:
            raise Unreadable("payload is no Sparkplug B") from None
        key = (group, name)
        node = self._nodes.get(key)
        if node is None:
            if kind in _DEATHS:
                return Heard()
            if len(self._nodes) >= MAX_NODES:
                raise Unreadable(f"more than {MAX_NODES} edge nodes")
            node = self._nodes[key] = _Node()
        if kind in _DEATHS:
            return self._death(node, kind, device, payload, arrived_unix_us)
        lost = not self._in_sequence(node, kind, payload)
        if kind in _BIRTHS:
            self._birth(node, kind, device, payload)
        heard = self._values(key, node, device, payload, arrived_unix_us)
        return replace(heard, rebirth=key) if lost or heard.rebirth else heard

    def _in_sequence(self, node: _Node, kind: str, payload: Any) -> bool:
        if not payload.HasField("seq"):
            return kind != "NBIRTH"  # tolerated: some devices leave it out
        expected, node.next_sequence = node.next_sequence, (int(payload.seq) + 1) % 256
        return kind == "NBIRTH" or (expected is not None and expected == payload.seq)

    def _birth(self, node: _Node, kind: str, device: str, payload: Any) -> None:
        if kind == "NBIRTH":
            node.forget()
            node.birth_sequence = _birth_sequence(payload)
        if node.metric_count() + len(payload.metrics) > MAX_METRICS:
            raise Unreadable(f"more than {MAX_METRICS} metrics of an edge node")
        metrics = node.devices[device] = {}
        for metric in payload.metrics:
            if metric.name:
                metrics[metric.name] = _Metric(metric.name, int(metric.datatype), _unit(metric))
                if metric.HasField("alias"):
                    node.aliases[int(metric.alias)] = (device, metric.name)

    def _values(self, key: tuple[str, str], node: _Node, device: str, payload: Any, arrived_unix_us: int) -> Heard:
        readings: list[Reading] = []
        reasons: list[str] = []
        unknown = False
        twin_id = self._twin_id(key, device)
        for metric in payload.metrics:
            known = self._known(node, device, metric)
            if known is None:
                unknown = True
                reasons.append("alias without a birth")
                continue
            if known.name == "bdSeq" or known.name.startswith(_OWN):
                continue
            try:
                channel = self._channel(node, device, known.name)
                reading = self._reading(twin_id, channel, known, metric, payload, arrived_unix_us)
            except Unreadable as error:
                reasons.append(error.reason)
                continue
            readings.append(reading)
            if not metric.is_historical:
                known.last = reading
        return Heard(readings=readings, reasons=reasons, rebirth=key if unknown else None)

    def _known(self, node: _Node, device: str, metric: Any) -> _Metric | None:
        name = metric.name
        if not name:
            of_device, name = node.aliases.get(int(metric.alias), ("", ""))
            if not name or of_device != device:
                return None
        known = node.devices.get(device, {}).get(name)
        if known is None and metric.name:
            # Named in full, so it can be read although its birth was missed.
            return _Metric(name, int(metric.datatype), _unit(metric))
        return known

    def _twin_id(self, key: tuple[str, str], device: str) -> str:
        group, name = (entity_name(part) for part in key)
        places = {"group": group, "node": name}
        twin_id = self._twin.fill({**places, "device": entity_name(device)}) if device else self._node_twin.fill(places)
        if entity_id_violation("twin", twin_id) is not None:
            raise Unreadable("name is no twin id")
        return twin_id

    def _channel(self, node: _Node, device: str, metric: str) -> str:
        channel = self._names.get(metric) or channel_name(metric)
        owner = node.channels.get((device, channel))
        if owner is None:
            if len(node.channels) >= MAX_METRICS:
                raise Unreadable(f"more than {MAX_METRICS} metrics of an edge node")
            node.channels[device, channel] = metric
        elif owner != metric:
            raise Unreadable("name taken by another metric")
        return channel

    def _reading(
        self, twin_id: str, channel: str, known: _Metric, metric: Any, payload: Any, arrived_unix_us: int
    ) -> Reading:
        stamp = metric.timestamp if metric.HasField("timestamp") else payload.timestamp
        time_unix_us = int(stamp) * 1_000 if stamp else arrived_unix_us
        if metric.is_null:
            if known.last is None:
                raise Unreadable("null before any value")
            return replace(known.last, time_unix_us=time_unix_us, quality=Quality.BAD)
        value = _value(metric, known.datatype or int(metric.datatype))
        kind = self._kinds.get(channel) or kind_of(value)
        unit = self._units.get(channel) or known.unit
        return Reading(
            twin_id=twin_id,
            channel=channel,
            kind=kind,
            value=fitted(value, kind),
            time_unix_us=time_unix_us,
            quality=_quality(metric),
            unit=unit if kind.has_unit else "",
        )

    def _death(self, node: _Node, kind: str, device: str, payload: Any, arrived_unix_us: int) -> Heard:
        if kind == "NDEATH" and node.birth_sequence is not None and _birth_sequence(payload) != node.birth_sequence:
            return Heard()  # the will of an earlier connection
        dead = [device] if device else list(node.devices)
        readings = []
        for name in dead if self._mark_stale else ():
            for metric in node.devices.get(name, {}).values():
                if metric.last is not None and metric.last.quality < Quality.UNCERTAIN:
                    readings.append(replace(metric.last, time_unix_us=arrived_unix_us, quality=Quality.UNCERTAIN))
        if kind == "DDEATH":
            self._in_sequence(node, kind, payload)
            node.devices.pop(device, None)
        else:
            # Its metrics are void until it is born again; so is its sequence.
            node.forget()
            node.next_sequence = None
        return Heard(readings=readings)


def rebirth_request(time_unix_us: int) -> bytes:
    """Return the payload of the command that asks an edge node for a new birth."""
    payload = Payload(timestamp=time_unix_us // 1_000)
    payload.metrics.add(name=REBIRTH, datatype=_BOOLEAN, boolean_value=True, timestamp=time_unix_us // 1_000)
    return bytes(payload.SerializeToString())


def _birth_sequence(payload: Any) -> int | None:
    for metric in payload.metrics:
        if metric.name == "bdSeq":
            return int(metric.long_value or metric.int_value)
    return None


def _value(metric: Any, datatype: int) -> Any:
    which = metric.WhichOneof("value")
    if which is None:
        raise Unreadable("value is of a kind that has no channel (data set, template, bytes)")
    value = getattr(metric, which)
    if which in ("int_value", "long_value") and datatype in _SIGNED_BITS:
        bits = _SIGNED_BITS[datatype]
        value &= (1 << bits) - 1
        return value - (1 << bits) if value >> (bits - 1) else value
    if which == "bytes_value":
        raise Unreadable("value is of a kind that has no channel (data set, template, bytes)")
    return value


def _properties(metric: Any) -> dict[str, Any]:
    found = {}
    for key, value in zip(metric.properties.keys, metric.properties.values, strict=False):
        which = value.WhichOneof("value")
        if which is not None and not value.is_null:
            found[key] = getattr(value, which)
    return found


def _unit(metric: Any) -> str:
    return str(_properties(metric).get("engUnit", ""))


def _quality(metric: Any) -> Quality:
    stated = _properties(metric).get("Quality")
    if stated is None:
        return Quality.UNSPECIFIED
    try:
        return quality_of(stated)
    except Unreadable:
        return Quality.UNCERTAIN
