"""Readings: single values as sources give them, and how many of them become one batch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import (
    ObservationBatch,
    SeriesKey,
    bool_section,
    double_section,
    int64_section,
    text_section,
)
from twinmesh_core.quality import Quality
from twinmesh_core.time import MAX_TIME_UNIX_US, MIN_TIME_UNIX_US

KIND_NAMES: Final = {kind.name.lower(): kind for kind in ChannelKind if kind is not ChannelKind.UNSPECIFIED}
"""Kinds as a configuration writes them."""
TIME_FORMATS: Final = ("iso", "s", "ms", "us", "ns")
MAX_BATCH_ROWS: Final = 10_000
MAX_BATCH_BYTES: Final = 4 << 20
"""Most of one batch: what a source gives at once may be many times as much."""
MAX_TEXT_BYTES: Final = 1 << 20
"""Longest text or JSON document of one value."""
_ROW_BYTES: Final = 64
_US: Final = {"s": 1e6, "ms": 1e3, "us": 1.0}
_INT64: Final = 1 << 63
_TRUTHS: Final[dict[Any, bool]] = {
    1: True,
    "true": True,
    "on": True,
    "1": True,
    0: False,
    "false": False,
    "off": False,
    "0": False,
}
# OPC DA and Sparkplug numbers, and the words that gateways write.
_QUALITIES: Final[dict[Any, Quality]] = {
    "good": Quality.GOOD,
    "uncertain": Quality.UNCERTAIN,
    "stale": Quality.UNCERTAIN,
    "bad": Quality.BAD,
    192: Quality.GOOD,
    64: Quality.UNCERTAIN,
    500: Quality.UNCERTAIN,
    0: Quality.BAD,
}


class Unreadable(Exception):  # noqa: N818 -- an outcome that is counted, not a failure of the connector
    """A message or a value of the source that cannot be understood.

    Args:
        reason: in few words, the same for all of its kind: it is counted by this.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One value of one channel.

    Attributes:
        value: float, int, bool, str or (JSON) anything that JSON can say; it fits `kind`.
        time_unix_us: event time, microseconds since the Unix epoch.
        quality: UNSPECIFIED = not stated by the source.
        unit: UCUM code or alias; empty = the channel's own.
    """

    twin_id: str
    channel: str
    kind: ChannelKind
    value: Any
    time_unix_us: int
    quality: Quality = Quality.UNSPECIFIED
    unit: str = ""


def kind_of(value: object) -> ChannelKind:
    """Return the kind that a value has by itself: numbers are gauges, objects and arrays JSON."""
    if isinstance(value, bool):
        return ChannelKind.BOOL
    if isinstance(value, int | float):
        return ChannelKind.GAUGE
    return ChannelKind.TEXT if isinstance(value, str) else ChannelKind.JSON


def fitted(value: Any, kind: ChannelKind) -> Any:
    """Return a value as its channel's kind holds it; NaN and infinity pass, the mesh quarantines them by name.

    Raises:
        Unreadable: it does not fit.
    """
    try:
        if kind.has_unit:
            return float(value)
        if kind is ChannelKind.STATE:
            number = int(value) if isinstance(value, int | str) else _whole(float(value))
            if not -_INT64 <= number < _INT64:
                raise ValueError
            return number
        if kind is ChannelKind.BOOL:
            return _truth(value)
        return _bounded_text(_as_text(value, kind))
    except (TypeError, ValueError, OverflowError):
        raise Unreadable(f"value is no {kind.name.lower()}") from None


def _as_text(value: Any, kind: ChannelKind) -> str:
    if kind is ChannelKind.TEXT and isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, allow_nan=kind is ChannelKind.TEXT)


def _bounded_text(text: str) -> str:
    if len(text) > MAX_TEXT_BYTES or _text_bytes(text) > MAX_TEXT_BYTES:
        raise Unreadable(f"value longer than {MAX_TEXT_BYTES >> 20} MiB")
    return text


def _whole(value: float) -> int:
    if not value.is_integer():
        raise ValueError
    return int(value)


def _truth(value: Any) -> bool:
    word = value.strip().lower() if isinstance(value, str) else value
    if word not in _TRUTHS:
        raise ValueError
    return _TRUTHS[word]


def quality_of(value: Any) -> Quality:
    """Return the quality that a source's word or number means (GOOD, 192, "stale", true ...).

    Raises:
        Unreadable: it is none of those.
    """
    if isinstance(value, bool):
        return Quality.GOOD if value else Quality.BAD
    found = _QUALITIES.get(value.strip().lower() if isinstance(value, str) else value)
    if found is None:
        raise Unreadable("quality not understood")
    return found


def time_of(value: Any, form: str) -> int:
    """Return an event time in microseconds since the Unix epoch; finer input is floored.

    Args:
        value: a number, or a text.
        form: one of `TIME_FORMATS`; ``iso`` is ISO 8601 with an offset from UTC.

    Raises:
        Unreadable: it is no such time.
    """
    try:
        if form == "iso":
            stamp = datetime.fromisoformat(value)
            if stamp.tzinfo is None:
                raise Unreadable("time without an offset from UTC")
            whole = int(stamp.replace(microsecond=0).timestamp())
            return _bounded(whole * 1_000_000 + stamp.microsecond)
        if form == "ns":
            return _bounded(int(value) // 1_000)
        if isinstance(value, int):
            return _bounded(value * int(_US[form]))
        return _bounded(math.floor(float(value) * _US[form]))
    except (TypeError, ValueError, OverflowError):
        raise Unreadable("time not understood") from None


def _bounded(time_unix_us: int) -> int:
    if not MIN_TIME_UNIX_US <= time_unix_us <= MAX_TIME_UNIX_US:
        raise Unreadable("time beyond the years 1 to 9999")
    return time_unix_us


def channel_name(text: str) -> str:
    """Return a foreign name as a channel's: lower case, everything else an underscore, starting with a letter."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return (name if name[:1].isalpha() else f"c_{name}")[:63]


def entity_name(text: str) -> str:
    """Return a foreign name as a twin's id: what an id cannot hold becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:128]


def batches(readings: Sequence[Reading]) -> Iterator[ObservationBatch]:
    """Yield readings as batches, in order, each small enough for one message."""
    part: list[Reading] = []
    size = 0
    for reading in readings:
        weight = _ROW_BYTES + (_text_bytes(reading.value) if isinstance(reading.value, str) else 0)
        if part and (len(part) >= MAX_BATCH_ROWS or size + weight > MAX_BATCH_BYTES):
            yield to_batch(part)
            part, size = [], 0
        part.append(reading)
        size += weight
    if part:
        yield to_batch(part)


def _text_bytes(text: str) -> int:
    return len(text.encode())


def to_batch(readings: Sequence[Reading]) -> ObservationBatch:
    """Return readings as one batch, in their order within each kind."""
    index: dict[tuple[str, str, str], int] = {}
    columns: dict[str, tuple[list[int], list[int], list[Any], list[int]]] = {}
    for reading in readings:
        key = (reading.twin_id, reading.channel, reading.unit)
        series, times, values, qualities = columns.setdefault(_SECTION[reading.kind], ([], [], [], []))
        series.append(index.setdefault(key, len(index)))
        times.append(reading.time_unix_us)
        values.append(reading.value)
        qualities.append(int(reading.quality))
    sections: dict[str, Any] = {name: _BUILD[name](s, t, v, q) for name, (s, t, v, q) in columns.items()}
    keys = tuple(SeriesKey(twin_id=twin, channel=channel, unit=unit) for twin, channel, unit in index)
    return ObservationBatch(series=keys, **sections)


_SECTION: Final = {
    ChannelKind.GAUGE: "doubles",
    ChannelKind.COUNTER: "doubles",
    ChannelKind.STATE: "int64s",
    ChannelKind.BOOL: "bools",
    ChannelKind.TEXT: "texts",
    ChannelKind.JSON: "jsons",
}
_BUILD: Final[dict[str, Any]] = {
    "doubles": double_section,
    "int64s": int64_section,
    "bools": bool_section,
    "texts": text_section,
    "jsons": text_section,
}
