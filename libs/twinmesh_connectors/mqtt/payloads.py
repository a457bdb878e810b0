"""Payloads of plain topics to readings: a number, a text, or JSON taken apart by JSON Pointers (RFC 6901)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from twinmesh_connectors.mqtt.topics import NameTemplate, TopicTemplate
from twinmesh_connectors.readings import Reading, Unreadable, fitted, kind_of, quality_of, time_of
from twinmesh_core.ids import entity_id_violation, name_violation
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.quality import Quality

FORMATS: Final = ("json", "number", "text")
MAX_VALUES: Final = 10_000
"""Most values of one message."""
_MISSING: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTopic:
    """How the messages of one topic template become readings.

    Attributes:
        topic: what is subscribed to.
        form: one of `FORMATS`.
        twin: the twin's id.
        channel: the channel, where a message holds one value.
        value: pointer to the value; empty = see `fields`.
        fields: channel by pointer, for messages of several values; empty = the payload is the value, or an object whose
            scalar members are channels.
        time: pointer to the event time; empty = the time of arrival.
        time_form: how it is written.
        quality: pointer to the quality; empty = not stated.
        unit: pointer to the unit; empty = see `units`.
        units: unit by channel.
        kinds: kind by channel, where it is not what the value suggests.
        names: channel by foreign name.
    """

    topic: TopicTemplate
    form: str = "json"
    twin: NameTemplate
    channel: NameTemplate | None = None
    value: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    time: str = ""
    time_form: str = "iso"
    quality: str = ""
    unit: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, ChannelKind] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def has_time(self) -> bool:
        """Return whether messages carry their own event time."""
        return self.form == "json" and bool(self.time)

    def read(self, places: Mapping[str, str], payload: bytes, arrived_unix_us: int) -> tuple[list[Reading], list[str]]:
        """Return the readings of one message, and the reasons for values that could not be read.

        Raises:
            Unreadable: the message as a whole.
        """
        document = self._document(payload)
        twin_id = self.twin.fill(places)
        if entity_id_violation("twin", twin_id) is not None:
            raise Unreadable("name is no twin id")
        readings: list[Reading] = []
        reasons: list[str] = []
        for item in document if isinstance(document, list) and (self.value or self.fields) else [document]:
            for channel, value in self._values(places, item):
                if len(readings) + len(reasons) >= MAX_VALUES:
                    raise Unreadable(f"more than {MAX_VALUES} values in a message")
                try:
                    readings.append(self._reading(twin_id, channel, value, item, arrived_unix_us))
                except Unreadable as error:
                    reasons.append(error.reason)
        return readings, reasons

    def _document(self, payload: bytes) -> Any:
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            raise Unreadable("payload is not UTF-8") from None
        if self.form == "text":
            return text
        if self.form == "number":
            return fitted(text, ChannelKind.GAUGE)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise Unreadable("payload is no JSON") from None

    def _values(self, places: Mapping[str, str], item: Any) -> Iterator[tuple[str, Any]]:
        if self.fields:
            for pointer, channel in self.fields.items():
                value = resolve(item, pointer)
                if value is not _MISSING and value is not None:
                    yield channel, value
            return
        value = resolve(item, self.value) if self.value else item
        if value is _MISSING:
            raise Unreadable("value is not in the message")
        if self.channel is not None:
            name = self.channel.fill(places)
            yield self.names.get(name, name), value
            return
        if not isinstance(value, dict):
            raise Unreadable("payload is no object, and no channel is configured")
        taken = {pointer[1:] for pointer in (self.time, self.quality, self.unit) if pointer.count("/") == 1}
        for name, member in value.items():
            if name not in taken and member is not None and not isinstance(member, dict | list):
                yield self.names.get(name, name), member

    def _reading(self, twin_id: str, channel: str, value: Any, item: Any, arrived_unix_us: int) -> Reading:
        if name_violation("channel", channel) is not None:
            raise Unreadable("name is no channel name")
        if value is None:
            raise Unreadable("value is null")
        kind = self.kinds.get(channel) or (ChannelKind.TEXT if self.form == "text" else kind_of(value))
        unit = self.units.get(channel, "")
        if self.unit:
            stated = resolve(item, self.unit)
            unit = stated if isinstance(stated, str) else unit
        return Reading(
            twin_id=twin_id,
            channel=channel,
            kind=kind,
            value=fitted(value, kind),
            time_unix_us=self._time(item, arrived_unix_us),
            quality=self._quality(item),
            unit=unit if kind.has_unit else "",
        )

    def _time(self, item: Any, arrived_unix_us: int) -> int:
        if not self.has_time():
            return arrived_unix_us
        value = resolve(item, self.time)
        if value is _MISSING:
            raise Unreadable("time is not in the message")
        return time_of(value, self.time_form)

    def _quality(self, item: Any) -> Quality:
        if not self.quality:
            return Quality.UNSPECIFIED
        value = resolve(item, self.quality)
        return Quality.UNSPECIFIED if value is _MISSING or value is None else quality_of(value)


def check_pointer(text: str) -> str:
    """Return a JSON Pointer as it is; raises `ValueError` with the remedy when it is none."""
    if not text.startswith("/") or re.search(r"~(?![01])", text):
        raise ValueError(f"is {text!r}, no JSON Pointer; write e.g. /value or /data/0/temperature")
    return text


def resolve(document: Any, pointer: str) -> Any:
    """Return what a JSON Pointer points to, or the mark for "nothing there".

    Source: RFC 6901, section 4.
    """
    at = document
    for token in pointer.split("/")[1:]:
        token = token.replace("~1", "/").replace("~0", "~")
        if isinstance(at, dict) and token in at:
            at = at[token]
        elif isinstance(at, list) and token.isdecimal() and int(token) < len(at):
            at = at[int(token)]
        else:
            return _MISSING
    return at
