"""Single rows, gathered into columns."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.errors import invalid_field
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import (
    ObservationBatch,
    SeriesKey,
    bool_section,
    concat,
    double_section,
    int64_section,
    text_section,
)
from twinmesh_core.quality import Quality

MAX_GATHERED_BYTES: Final = 4 * 1024 * 1024
"""Of texts and numbers together: a batch is closed beyond it, whatever its rows."""
_ROW_BYTES: Final = 21
_SECTIONS: Final = {
    ChannelKind.GAUGE: "doubles",
    ChannelKind.COUNTER: "doubles",
    ChannelKind.STATE: "int64s",
    ChannelKind.BOOL: "bools",
    ChannelKind.TEXT: "texts",
    ChannelKind.JSON: "jsons",
}
_BUILDERS: Final[dict[str, Any]] = {
    "doubles": double_section,
    "int64s": int64_section,
    "bools": bool_section,
    "texts": text_section,
    "jsons": text_section,
}


class _Rows:
    """The columns of one section, as they grow."""

    __slots__ = ("handles", "quality", "times", "values")

    def __init__(self) -> None:
        self.handles: list[int] = []
        self.times: list[int] = []
        self.values: list[Any] = []
        self.quality: list[int] = []


class Gatherer:
    """Rows and small batches on their way to one batch; not for several threads.

    Attributes:
        rows: gathered so far.
        bytes: what they take, about.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.bytes = 0
        self._series: dict[tuple[str, str, str], int] = {}
        self._sections: dict[str, _Rows] = {}
        self._batches: list[ObservationBatch] = []

    def add(
        self,
        twin_id: str,
        channel: str,
        value: Any,
        time_unix_us: int,
        *,
        unit: str = "",
        quality: Quality = Quality.UNSPECIFIED,
        kind: ChannelKind | None = None,
    ) -> None:
        """Take one row.

        Args:
            twin_id: the twin.
            channel: the channel.
            value: a number, a truth, a text, or a dict or list for JSON; numpy scalars are taken as well.
            time_unix_us: event time.
            unit: of the value, if not the channel's own.
            quality: what the source says of it.
            kind: of the channel; None = as the value looks, every number being a gauge's.

        Raises:
            InvalidArgument: the value is none that the kind takes; nothing is taken.
        """
        section, plain = _plain(channel, value, kind)
        series = (twin_id, channel, unit)
        handle = self._series.setdefault(series, len(self._series))
        rows = self._sections.get(section)
        if rows is None:
            rows = self._sections[section] = _Rows()
        rows.handles.append(handle)
        rows.times.append(time_unix_us)
        rows.values.append(plain)
        rows.quality.append(quality)
        self.rows += 1
        self.bytes += _ROW_BYTES + (len(plain) if isinstance(plain, bytes) else 0)

    def add_batch(self, batch: ObservationBatch) -> None:
        """Take the rows of a batch, after those taken before; raises `InvalidArgument` for handles without a series."""
        batch.check_handles()
        self._seal()
        self._batches.append(batch)
        self.rows += batch.point_count()
        self.bytes += _ROW_BYTES * batch.point_count() + len(batch.texts.heap) + len(batch.jsons.heap)

    def take(self) -> ObservationBatch:
        """Return everything as one batch and begin anew."""
        self._seal()
        batches, self._batches = self._batches, []
        self.rows = self.bytes = 0
        return batches[0] if len(batches) == 1 else concat(batches)

    def _seal(self) -> None:
        if not self._sections:
            return
        series = tuple(SeriesKey(twin_id=t, channel=c, unit=u) for t, c, u in self._series)
        columns = {
            name: _BUILDERS[name](rows.handles, rows.times, rows.values, rows.quality if any(rows.quality) else None)
            for name, rows in self._sections.items()
        }
        self._batches.append(ObservationBatch(series=series, **columns))
        self._series, self._sections = {}, {}


def column_batch(
    twin_id: str,
    channel: str,
    times: npt.ArrayLike,
    values: npt.ArrayLike,
    *,
    unit: str = "",
    quality: npt.ArrayLike | None = None,
    kind: ChannelKind | None = None,
) -> ObservationBatch:
    """Return the rows of one series as a batch, without looking at single values.

    Args:
        twin_id: the twin.
        channel: the channel.
        times: [n] event times: integers in microseconds since 1970, or numpy ``datetime64`` in UTC.
        values: [n] numbers, truths, or texts.
        unit: of the values, if not the channel's own.
        quality: [n] `Quality` codes; None = not stated.
        kind: of the channel; None = as the dtype says, every number being a gauge's.

    Raises:
        InvalidArgument: columns of different lengths, or values that the kind does not take.
    """
    stamps = np.asarray(times)
    if stamps.dtype.kind == "M":
        stamps = stamps.astype("M8[us]").astype(np.int64)
    if stamps.dtype.kind not in "iu" and len(stamps):
        raise invalid_field("times", "are no integers and no datetime64; give microseconds since 1970, or datetime64")
    array = np.asarray(values)
    name = (
        _SECTIONS[kind]
        if kind
        else {"b": "bools", "U": "texts", "O": "texts", "S": "texts"}.get(array.dtype.kind, "doubles")
    )
    if name in ("doubles", "int64s", "bools") and array.dtype.kind not in "bfiu":
        raise invalid_field("values", f"are no numbers, but the channel {channel!r} takes some")
    if name == "int64s" and array.dtype.kind == "f":
        if not (np.isfinite(array).all() and (array == np.round(array)).all() and (np.abs(array) < 2.0**53).all()):
            raise invalid_field("values", f"are no whole numbers, but the channel {channel!r} is a state")
        array = array.astype(np.int64)
    columns: dict[str, Any] = {name: _BUILDERS[name](np.zeros(len(stamps), np.uint32), stamps, array, quality)}
    return ObservationBatch(series=(SeriesKey(twin_id=twin_id, channel=channel, unit=unit),), **columns)


def pieces(batch: ObservationBatch, rows: int) -> list[ObservationBatch]:
    """Return a batch in pieces of at most so many rows of each section, in order; at least one piece."""
    longest = max(len(section) for _, section in batch.sections())
    if longest <= rows:
        return [batch]
    found = []
    for start in range(0, longest, rows):
        sections: dict[str, Any] = {
            name: section.select(np.arange(start, min(start + rows, len(section))))
            for name, section in batch.sections()
            if start < len(section)
        }
        found.append(ObservationBatch(series=batch.series, **sections))
    return found


def _plain(channel: str, value: Any, kind: ChannelKind | None) -> tuple[str, Any]:
    """Return the section of a value and the value as that section takes it."""
    if type(value) is float and (kind is None or kind in (ChannelKind.GAUGE, ChannelKind.COUNTER)):
        return "doubles", value
    plain = value.item() if isinstance(value, np.generic) else value
    section = _SECTIONS[kind] if kind else _looks_like(plain)
    try:
        if section == "doubles" and isinstance(plain, int | float):
            return section, float(plain)
        if section == "int64s" and isinstance(plain, int | float) and plain == int(plain):
            return section, _within(int(plain))
        if section == "bools" and (isinstance(plain, bool) or plain in (0, 1)):
            return section, bool(plain)
        if section == "texts" and isinstance(plain, str):
            return section, plain.encode()
        if section == "jsons":
            return section, (plain if isinstance(plain, str) else json.dumps(plain, allow_nan=False)).encode()
    except (ValueError, OverflowError, TypeError):
        pass
    what = f"takes {kind.name} values" if kind else "takes a number, a truth, a text, or a dict or list for JSON"
    raise invalid_field(channel, f"{what}, and {str(value)[:40]!r} is none")


def _looks_like(value: Any) -> str:
    if isinstance(value, bool):
        return "bools"
    if isinstance(value, int | float):
        return "doubles"
    if isinstance(value, str):
        return "texts"
    return "jsons" if isinstance(value, dict | list) else ""


def _within(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise OverflowError
    return value
