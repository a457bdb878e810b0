"""From an observation batch to the newest fact per series, in numpy before any Python object is touched.

A batch of 10,000 rows of a few series costs one sort per section; Python then sees one row per series.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import ObservationBatch, Section, TextSection
from twinmesh_core.quality import Quality
from twinmesh_statesync.domain.values import Json, ReportedValue, Value

SECTION_KINDS: Final[Mapping[str, frozenset[ChannelKind]]] = {
    "doubles": frozenset({ChannelKind.GAUGE, ChannelKind.COUNTER}),
    "int64s": frozenset({ChannelKind.STATE}),
    "bools": frozenset({ChannelKind.BOOL}),
    "texts": frozenset({ChannelKind.TEXT}),
    "jsons": frozenset({ChannelKind.JSON}),
}
"""Which kinds of channels a section's rows may belong to."""

_QUALITIES: Final = (Quality.GOOD, Quality.GOOD, Quality.UNCERTAIN, Quality.BAD)
"""Quality by its byte; a sender who states none means GOOD."""

Fact = tuple[frozenset[ChannelKind], ReportedValue]
"""A fact and the kinds of channels it fits."""


def newest_facts(batch: ObservationBatch, offset: int) -> dict[str, list[Fact]]:
    """Return, by twin, the row of each series with the greatest event time; of equal times the last row.

    Rows whose handle is not in the dictionary, or whose quality byte is none, are passed over: none ever lands.
    """
    found: dict[str, list[Fact]] = {}
    for name, section in batch.sections():
        if not len(section):
            continue
        rows = winning_rows(section.series, section.time_unix_us)
        rows = rows[(section.series[rows] < len(batch.series)) & (section.quality[rows] <= Quality.BAD)]
        kinds = SECTION_KINDS[name]
        columns = zip(
            section.series[rows].tolist(),
            section.time_unix_us[rows].tolist(),
            section.quality[rows].tolist(),
            _values(name, section, rows),
            strict=True,
        )
        for handle, time_unix_us, quality, value in columns:
            key = batch.series[handle]
            fact = (kinds, ReportedValue(key.channel, value, _QUALITIES[quality], time_unix_us, offset))
            facts = found.get(key.twin_id)
            if facts is None:
                found[key.twin_id] = [fact]
            else:
                facts.append(fact)
    return found


class Rows:
    """All rows of a batch by series, for what needs more than the newest; sorted once, when first asked for."""

    def __init__(self, batch: ObservationBatch) -> None:
        self._handles: dict[tuple[str, str], list[int]] = {}
        for handle, key in enumerate(batch.series):
            self._handles.setdefault((key.twin_id, key.channel), []).append(handle)
        self._sections = dict(batch.sections())
        self._sorted: dict[str, tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32]]] = {}

    def of(self, twin_id: str, channel: str, kind: ChannelKind) -> tuple[npt.NDArray[Any], ...] | None:
        """Return times (int64 [n]), values [n] and quality bytes (uint8 [n]) of a numeric series, in the batch's order.

        None = it has no rows of this kind.
        """
        name = "int64s" if kind is ChannelKind.STATE else "doubles"
        section, handles = self._sections.get(name), self._handles.get((twin_id, channel))
        if section is None or handles is None or not len(section) or isinstance(section, TextSection):
            return None
        if name not in self._sorted:
            order = np.argsort(section.series, kind="stable")
            self._sorted[name] = (order, section.series[order])
        order, ordered = self._sorted[name]
        spans = [np.searchsorted(ordered, [handle, handle + 1]) for handle in handles]
        rows = np.sort(np.concatenate([order[low:high] for low, high in spans]))
        return (section.time_unix_us[rows], section.values[rows], section.quality[rows]) if len(rows) else None


def winning_rows(series: npt.NDArray[np.uint32], time_unix_us: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Return, by series in ascending order, the number of its row with the greatest time; the last among equals."""
    order = np.lexsort((time_unix_us, series))  # stable: rows of equal time stay in their order
    ordered = series[order]
    last = np.empty(len(order), np.bool_)
    last[-1:] = True
    np.not_equal(ordered[1:], ordered[:-1], out=last[:-1])
    return order[last]


def _values(name: str, section: Section | TextSection, rows: npt.NDArray[np.intp]) -> list[Any]:
    if isinstance(section, TextSection):
        texts = [section.text_bytes(row).decode("utf-8", "replace") for row in rows.tolist()]
        return [Json(text) for text in texts] if name == "jsons" else texts
    values: list[Value] = section.values[rows].tolist()
    return [bool(value) for value in values] if name == "bools" else values
