"""Newest values as bytes: at 10,000 series a dictionary of Python objects would cost far more than the values.

A series' dictionary entry never changes, so its bytes are kept, and so is all of an answer that does not depend on
the values: asked for the same again, three columns per section are copied between bytes that are there already.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core import wire
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.observations import BYTE, ObservationBatch, Section, text_section
from twinmesh_storage.domain.answers import series_key
from twinmesh_storage.domain.directory import Directory
from twinmesh_storage.domain.latest_reader import Selection
from twinmesh_storage.domain.rows import Lane, Rows
from twinmesh_storage.domain.series import Series

_KEPT: Final = 64
_NUMERIC: Final = (
    (2, "doubles", (ChannelKind.GAUGE, ChannelKind.COUNTER)),
    (3, "int64s", (ChannelKind.STATE,)),
    (4, "bools", (ChannelKind.BOOL,)),
)
_TEXT: Final = (("texts", ChannelKind.TEXT), ("jsons", ChannelKind.JSON))


class TwinSelections:
    """The series of twins as selections, kept until the catalogue grows."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], tuple[int, Selection]] = OrderedDict()

    async def of(self, tenant: str, twin_ids: Sequence[str]) -> Selection:
        """Return all series of these twins."""
        key = (tenant, tuple(twin_ids))
        kept = self._kept.get(key)
        if kept is not None and kept[0] == self._directory.version:
            self._kept.move_to_end(key)
            return kept[1]
        selection = Selection.of(await self._directory.of_twins(tenant, twin_ids))
        self._kept[key] = (self._directory.version, selection)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return selection


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedBatch:
    """The pieces of a serialized batch without its dictionary, the dictionary, and what tells it from any other."""

    dictionary: bytes
    dictionary_id: int
    sections: list[Any]


class LatestEncoder:
    """Writes newest rows as the bytes of an ObservationBatch."""

    def __init__(self) -> None:
        self._entries: dict[int, bytes] = {}
        self._templates: OrderedDict[int, _Template] = OrderedDict()

    def encode(self, selection: Selection, by_lane: dict[Lane, Rows], *, lasting: bool) -> EncodedBatch:
        """Return a batch whose dictionary holds the series that have a row, in the order asked.

        Args:
            lasting: the selection will be seen again, as the same object.
        """
        if lasting and sum(map(len, by_lane.values())) == len(selection.ids):
            template = self._template(selection)
            return EncodedBatch(
                dictionary=template.dictionary,
                dictionary_id=template.dictionary_id(),
                sections=template.fill(by_lane),
            )
        found = np.concatenate([rows.series for rows in by_lane.values()])
        present = np.isin(selection.ids, found)
        there = Selection.of([s for s, known in zip(selection.series, present.tolist(), strict=True) if known])
        template = _Template(there, self._dictionary(there.series))
        return EncodedBatch(dictionary=template.dictionary, dictionary_id=0, sections=template.fill(by_lane))

    def _template(self, selection: Selection) -> _Template:
        template = self._templates.get(id(selection))
        if template is None or template.selection is not selection:
            template = _Template(selection, self._dictionary(selection.series))
            self._templates[id(selection)] = template
            if len(self._templates) > _KEPT:
                self._templates.popitem(last=False)
        return template

    def _dictionary(self, series: Sequence[Series]) -> bytes:
        return b"".join(map(self._entry, series))

    def _entry(self, series: Series) -> bytes:
        entry = self._entries.get(series.series_id)
        if entry is None:
            entry = self._entries[series.series_id] = wire.encode(ObservationBatch(series=(series_key(series),)))
        return entry


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """One numeric section: the bytes before each of its columns, and which rows of the lane are its own."""

    before_times: bytes
    before_quality: bytes
    before_values: bytes
    mine: npt.NDArray[np.intp] | slice
    is_byte: bool


class _Template:
    """Everything of an answer in which each series of a selection has a row, except times, qualities and values."""

    def __init__(self, selection: Selection, dictionary: bytes) -> None:
        self.selection = selection
        self.dictionary = dictionary
        self._dictionary_id = 0
        kinds = selection.kinds
        numeric = kinds <= ChannelKind.BOOL
        rank = np.cumsum(numeric) - 1
        self._columns: list[_Columns] = []
        for number, name, members in _NUMERIC:
            handles = np.flatnonzero(np.isin(kinds, [int(kind) for kind in members]))
            if len(handles):
                whole = len(handles) == np.count_nonzero(numeric)
                mine = slice(None) if whole else rank[handles]
                self._columns.append(_columns(number, handles.astype("<u4"), name == "bools", mine))
        text_rank = np.cumsum(~numeric) - 1
        self._texts = [
            (name, handles.astype(np.uint32), text_rank[handles])
            for name, kind in _TEXT
            if len(handles := np.flatnonzero(kinds == int(kind)))
        ]

    def dictionary_id(self) -> int:
        """Return what tells the dictionary from any other."""
        if not self._dictionary_id:
            self._dictionary_id = int.from_bytes(blake2b(self.dictionary, digest_size=8).digest(), "little") or 1
        return self._dictionary_id

    def fill(self, by_lane: dict[Lane, Rows]) -> list[Any]:
        """Return the bytes of the sections, with these rows."""
        parts: list[Any] = []
        for columns in self._columns:
            rows = by_lane[Lane.NUMERIC]
            value = rows.value[columns.mine]
            parts += (
                columns.before_times,
                _buffer(rows.ts[columns.mine], "<i8"),
                columns.before_quality,
                _buffer(rows.quality[columns.mine], "u1"),
                columns.before_values,
                _buffer(value.astype(BYTE) if columns.is_byte else value, "u1" if columns.is_byte else "<i8"),
            )
        if self._texts:
            sections: dict[str, Any] = {}
            for name, handles, mine in self._texts:
                rows = by_lane[Lane.TEXT].take(mine)
                sections[name] = text_section(handles, rows.ts, rows.value.tolist(), rows.quality)
            parts.append(wire.encode(ObservationBatch(**sections)))
        return parts


def _columns(number: int, handles: npt.NDArray[np.uint32], is_byte: bool, mine: Any) -> _Columns:
    """Return the bytes around the columns of a section, as `wire.encode` writes it for rows that state a quality."""
    n = len(handles)
    empty = np.zeros(n, np.int64)
    section = Section(
        series=handles,
        time_unix_us=empty,
        quality=np.ones(n, np.uint8),
        values=empty.astype(BYTE) if is_byte else empty,
    )
    field = {2: "doubles", 3: "int64s", 4: "bools"}[number]
    encoded = wire.encode(ObservationBatch(**{field: section}))  # type: ignore[arg-type]  # one of its sections
    size = n if is_byte else 8 * n
    values_at = len(encoded) - size
    before_values = 1 + len(wire.encode_varint(size))
    quality_at = values_at - before_values - n
    before_quality = 1 + len(wire.encode_varint(n))
    times_at = quality_at - before_quality - 8 * n
    return _Columns(
        before_times=encoded[:times_at],
        before_quality=encoded[times_at + 8 * n : quality_at],
        before_values=encoded[quality_at + n : values_at],
        mine=mine,
        is_byte=is_byte,
    )


def _buffer(column: npt.NDArray[Any], dtype: str) -> Any:
    return np.ascontiguousarray(column, dtype).view(np.uint8).data
