"""Data values of OPC UA to readings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from asyncua import ua

from twinmesh_connectors.readings import Reading, Unreadable, fitted, kind_of
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.quality import Quality
from twinmesh_core.time import from_datetime

_OVERFLOW: Final = 0x0480
"""Info type "data value" with the overflow bit: the server's queue was too short. Source: OPC UA part 4, 7.39.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One monitored variable.

    Attributes:
        node: its node id as text.
        kind: None = what the value suggests.
        unit: UCUM code or alias; empty = the channel's own.
        sampling_ms: how often the server looks at it.
        queue: how many values the server keeps between two publications.
    """

    node: str
    twin_id: str
    channel: str
    kind: ChannelKind | None = None
    unit: str = ""
    sampling_ms: float = 500.0
    queue: int = 100


def quality_of_status(code: int) -> Quality:
    """Return the quality of a status code: its two severity bits, as OPC UA means them (part 4, 7.39.1)."""
    severity = (code >> 30) & 0b11
    return (Quality.GOOD, Quality.UNCERTAIN, Quality.BAD, Quality.BAD)[severity]


def overflowed(code: int) -> bool:
    """Return whether the server says that it dropped values before this one."""
    return code & _OVERFLOW == _OVERFLOW


def reading_of(item: Item, value: ua.DataValue, arrived_unix_us: int, last: Reading | None) -> Reading:
    """Return one data value as a reading.

    Its event time is the source's, else the server's, else that of arrival. A BAD value mostly comes without a number;
    then the last one is written again as BAD, so that nobody takes it for current.

    Raises:
        Unreadable: BAD or null before any value, or it does not fit the channel.
    """
    code = int(value.StatusCode.value) if value.StatusCode is not None else 0
    quality = quality_of_status(code)
    time_unix_us = _time(value.SourceTimestamp or value.ServerTimestamp, arrived_unix_us)
    raw = value.Value.Value if value.Value is not None else None
    if raw is None:
        if last is None:
            raise Unreadable("BAD or null before any value")
        return replace(last, time_unix_us=time_unix_us, quality=max(quality, Quality.UNCERTAIN))
    plain = _plain(raw)
    kind = item.kind or kind_of(plain)
    return Reading(
        twin_id=item.twin_id,
        channel=item.channel,
        kind=kind,
        value=fitted(plain, kind),
        time_unix_us=time_unix_us,
        quality=quality,
        unit=item.unit if kind.has_unit else "",
    )


def _time(stamp: datetime | None, arrived_unix_us: int) -> int:
    if stamp is None:
        return arrived_unix_us
    return from_datetime(stamp if stamp.tzinfo is not None else stamp.replace(tzinfo=UTC))


def _plain(value: Any) -> Any:
    """Return a value of OPC UA as plain Python says it."""
    if isinstance(value, bool | int | float | str):
        return value + 0 if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(value, datetime):
        return value.replace(tzinfo=value.tzinfo or UTC).isoformat()
    if isinstance(value, ua.LocalizedText):
        return value.Text or ""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    raise Unreadable(f"values of type {type(value).__name__} have no channel kind")
