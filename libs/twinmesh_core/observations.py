"""Observations in columns: the value types that the wire, the pipeline and the stores hand to one another.

A batch is a dictionary of series and one section per column type. A row's `series` is an index into the dictionary.
Columns are numpy arrays, little-endian, and may be read-only views of a received message: nobody writes into them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core.errors import invalid_field
from twinmesh_core.kinds import ChannelKind
from twinmesh_core.quality import Quality

HANDLE: Final = np.dtype("<u4")
TIME: Final = np.dtype("<i8")
QUALITY: Final = np.dtype("u1")
FLOAT64: Final = np.dtype("<f8")
INT64: Final = np.dtype("<i8")
BYTE: Final = np.dtype("u1")
END_OFFSET: Final = np.dtype("<u4")

MAX_ROWS: Final = 1_000_000
"""Most rows of one batch."""

Rows = npt.NDArray[np.bool_] | npt.NDArray[np.intp]
"""Which rows: a mask of one bool per row, or row numbers in the wanted order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesKey:
    """What a row's handle stands for: a channel of a twin, and the unit of the values.

    Attributes:
        twin_id: the twin.
        channel: the channel's name in the twin's type.
        unit: UCUM code or alias of the values; empty = the channel's own. In a landed batch: the canonical unit.
        series_id: durable id issued by storage; 0 = not filled in.
        twin_type_id: the twin type the batch was validated against; empty before ingestion.
        twin_type_version: its version; 0 before ingestion.
        kind: the channel's kind; UNSPECIFIED before ingestion.
    """

    twin_id: str
    channel: str
    unit: str = ""
    series_id: int = 0
    twin_type_id: str = ""
    twin_type_version: int = 0
    kind: ChannelKind = ChannelKind.UNSPECIFIED


def _empty(dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    array = np.empty(0, dtype)
    array.flags.writeable = False
    return array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Section:
    """Rows with one fixed-width value each: doubles, int64s or bools, by the dtype of `values`.

    Attributes:
        series: uint32 [n], index into the batch's dictionary.
        time_unix_us: int64 [n], event time, UTC.
        quality: uint8 [n], `Quality` numbers; 0 = not stated (taken as GOOD).
        values: float64, int64 or uint8 (bools as 0 and 1) [n].
    """

    series: npt.NDArray[np.uint32]
    time_unix_us: npt.NDArray[np.int64]
    quality: npt.NDArray[np.uint8]
    values: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.series)

    def select(self, rows: Rows) -> Section:
        """Return only these rows, in the order given."""
        return Section(
            series=self.series[rows],
            time_unix_us=self.time_unix_us[rows],
            quality=self.quality[rows],
            values=self.values[rows],
        )

    def column_lengths(self) -> dict[str, int]:
        """Return the length of each column by its name on the wire."""
        return {
            "series": len(self.series),
            "time_unix_us": len(self.time_unix_us),
            "quality": len(self.quality),
            "value": len(self.values),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextSection:
    """Rows with one text (or JSON document) each, as bytes that should be UTF-8.

    Attributes:
        series: uint32 [n], index into the batch's dictionary.
        time_unix_us: int64 [n], event time, UTC.
        quality: uint8 [n], `Quality` numbers; 0 = not stated (taken as GOOD).
        end_offset: uint32 [n], where each row's text ends in `heap`, not decreasing.
        heap: all texts, one after the other.
    """

    series: npt.NDArray[np.uint32]
    time_unix_us: npt.NDArray[np.int64]
    quality: npt.NDArray[np.uint8]
    end_offset: npt.NDArray[np.uint32]
    heap: bytes

    def __len__(self) -> int:
        return len(self.series)

    def select(self, rows: Rows) -> TextSection:
        """Return only these rows, in the order given, with a heap that holds nothing else."""
        numbers = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        texts = [self.text_bytes(int(i)) for i in numbers]
        return TextSection(
            series=self.series[rows],
            time_unix_us=self.time_unix_us[rows],
            quality=self.quality[rows],
            end_offset=np.cumsum([len(t) for t in texts], dtype=np.int64).astype(END_OFFSET),
            heap=b"".join(texts),
        )

    def text_bytes(self, row: int) -> bytes:
        """Return one row's bytes."""
        start = int(self.end_offset[row - 1]) if row else 0
        return self.heap[start : int(self.end_offset[row])]

    def texts(self) -> Iterator[bytes]:
        """Yield every row's bytes in order."""
        start = 0
        for end in self.end_offset.tolist():
            yield self.heap[start:end]
            start = end

    def column_lengths(self) -> dict[str, int]:
        """Return the length of each column by its name on the wire."""
        return {
            "series": len(self.series),
            "time_unix_us": len(self.time_unix_us),
            "quality": len(self.quality),
            "end_offset": len(self.end_offset),
        }


def _empty_section(dtype: np.dtype[Any]) -> Section:
    return Section(series=_empty(HANDLE), time_unix_us=_empty(TIME), quality=_empty(QUALITY), values=_empty(dtype))


NO_DOUBLES: Final = _empty_section(FLOAT64)
NO_INT64S: Final = _empty_section(INT64)
NO_BOOLS: Final = _empty_section(BYTE)
NO_TEXTS: Final = TextSection(
    series=_empty(HANDLE), time_unix_us=_empty(TIME), quality=_empty(QUALITY), end_offset=_empty(END_OFFSET), heap=b""
)

SECTION_NAMES: Final = ("doubles", "int64s", "bools", "texts", "jsons")
"""Field names of the sections, in the order of their field numbers on the wire."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObservationBatch:
    """A dictionary of series and the rows that refer to it; lands whole and once.

    Handles beyond the dictionary are allowed here (the pipeline quarantines such rows); `check_handles` refuses them.

    Raises:
        InvalidArgument: UNEQUAL_COLUMNS, or INVALID_FIELD for offsets that decrease or do not fit the heap.
    """

    series: tuple[SeriesKey, ...] = ()
    doubles: Section = field(default=NO_DOUBLES)
    int64s: Section = field(default=NO_INT64S)
    bools: Section = field(default=NO_BOOLS)
    texts: TextSection = field(default=NO_TEXTS)
    jsons: TextSection = field(default=NO_TEXTS)

    def __post_init__(self) -> None:
        for name, section in self.sections():
            _check_columns(name, section)
            if isinstance(section, TextSection):
                _check_offsets(name, section)

    def sections(self) -> tuple[tuple[str, Section | TextSection], ...]:
        """Return every section with its name, in wire order, empty ones included."""
        return (
            ("doubles", self.doubles),
            ("int64s", self.int64s),
            ("bools", self.bools),
            ("texts", self.texts),
            ("jsons", self.jsons),
        )

    def point_count(self) -> int:
        """Return the number of rows in all sections."""
        return sum(len(section) for _, section in self.sections())

    def check_handles(self) -> None:
        """Refuse rows whose handle is not in the dictionary; raises `InvalidArgument` naming the section."""
        for name, section in self.sections():
            if len(section) and int(section.series.max()) >= len(self.series):
                raise invalid_field(
                    f"batch.{name}.series",
                    f"holds handle {int(section.series.max())}, but the dictionary has {len(self.series)} entries",
                )

    def used_series(self) -> npt.NDArray[np.intp]:
        """Return, ascending, the handles that at least one row uses."""
        used = np.zeros(len(self.series), np.bool_)
        for _, section in self.sections():
            used[section.series[section.series < len(self.series)]] = True
        return np.flatnonzero(used)


def _check_columns(name: str, section: Section | TextSection) -> None:
    lengths = section.column_lengths()
    if len(set(lengths.values())) == 1:
        return
    found = ", ".join(f"{column} {length}" for column, length in lengths.items())
    raise invalid_field(
        f"batch.{name}",
        f"columns have different lengths ({found}); send one entry per row in each, quality may be left out entirely",
        reason="UNEQUAL_COLUMNS",
    )


def _check_offsets(name: str, section: TextSection) -> None:
    ends = section.end_offset
    decreasing = len(ends) > 1 and bool((ends[1:] < ends[:-1]).any())
    last = int(ends[-1]) if len(ends) else 0
    if decreasing or last != len(section.heap):
        what = "decreases" if decreasing else f"ends at {last}, but the heap has {len(section.heap)} bytes"
        raise invalid_field(
            f"batch.{name}.end_offset",
            f"{what}; each row's text ends where the next begins, the last at the heap's end",
        )


def double_section(
    series: npt.ArrayLike, time_unix_us: npt.ArrayLike, values: npt.ArrayLike, quality: npt.ArrayLike | None = None
) -> Section:
    """Build the rows of GAUGE and COUNTER channels from anything array-like; quality None = not stated."""
    return _section(series, time_unix_us, np.ascontiguousarray(values, FLOAT64), quality)


def int64_section(
    series: npt.ArrayLike, time_unix_us: npt.ArrayLike, values: npt.ArrayLike, quality: npt.ArrayLike | None = None
) -> Section:
    """Build the rows of STATE channels from anything array-like; quality None = not stated."""
    return _section(series, time_unix_us, np.ascontiguousarray(values, INT64), quality)


def bool_section(
    series: npt.ArrayLike, time_unix_us: npt.ArrayLike, values: npt.ArrayLike, quality: npt.ArrayLike | None = None
) -> Section:
    """Build the rows of BOOL channels from anything array-like of truth values; quality None = not stated."""
    return _section(series, time_unix_us, np.ascontiguousarray(values, np.bool_).astype(BYTE), quality)


def text_section(
    series: npt.ArrayLike,
    time_unix_us: npt.ArrayLike,
    texts: Iterable[str | bytes],
    quality: npt.ArrayLike | None = None,
) -> TextSection:
    """Build the rows of TEXT or JSON channels; quality None = not stated."""
    encoded = [t.encode() if isinstance(t, str) else t for t in texts]
    handles = np.ascontiguousarray(series, HANDLE)
    return TextSection(
        series=handles,
        time_unix_us=np.ascontiguousarray(time_unix_us, TIME),
        quality=_quality(quality, len(handles)),
        end_offset=np.cumsum([len(t) for t in encoded], dtype=np.int64).astype(END_OFFSET),
        heap=b"".join(encoded),
    )


def concat(batches: Sequence[ObservationBatch]) -> ObservationBatch:
    """Return one batch with the rows of all, in order; equal dictionary entries become one.

    Raises:
        InvalidArgument: a row's handle is not in its dictionary.
    """
    index: dict[SeriesKey, int] = {}
    remapped: list[ObservationBatch] = []
    for batch in batches:
        batch.check_handles()
        translation = np.array([index.setdefault(key, len(index)) for key in batch.series], HANDLE)
        remapped.append(relabel(batch, tuple(index), translation))
    return ObservationBatch(
        series=tuple(index),
        doubles=_concat([b.doubles for b in remapped], NO_DOUBLES),
        int64s=_concat([b.int64s for b in remapped], NO_INT64S),
        bools=_concat([b.bools for b in remapped], NO_BOOLS),
        texts=_concat_texts([b.texts for b in remapped]),
        jsons=_concat_texts([b.jsons for b in remapped]),
    )


def relabel(
    batch: ObservationBatch, series: tuple[SeriesKey, ...], translation: npt.NDArray[np.uint32]
) -> ObservationBatch:
    """Return the batch with another dictionary; `translation[old handle]` is the new handle."""

    def moved(section: Section) -> Section:
        return replace(section, series=translation[section.series]) if len(section) else section

    def moved_text(section: TextSection) -> TextSection:
        return replace(section, series=translation[section.series]) if len(section) else section

    return ObservationBatch(
        series=series,
        doubles=moved(batch.doubles),
        int64s=moved(batch.int64s),
        bools=moved(batch.bools),
        texts=moved_text(batch.texts),
        jsons=moved_text(batch.jsons),
    )


def _section(
    series: npt.ArrayLike, time_unix_us: npt.ArrayLike, values: npt.NDArray[Any], quality: npt.ArrayLike | None
) -> Section:
    handles = np.ascontiguousarray(series, HANDLE)
    return Section(
        series=handles,
        time_unix_us=np.ascontiguousarray(time_unix_us, TIME),
        quality=_quality(quality, len(handles)),
        values=values,
    )


def _quality(quality: npt.ArrayLike | None, rows: int) -> npt.NDArray[np.uint8]:
    if quality is None:
        return np.full(rows, Quality.UNSPECIFIED, QUALITY)
    return np.ascontiguousarray(quality, QUALITY)


def _concat(sections: list[Section], empty: Section) -> Section:
    filled = [s for s in sections if len(s)]
    if not filled:
        return empty
    return Section(
        series=np.concatenate([s.series for s in filled]),
        time_unix_us=np.concatenate([s.time_unix_us for s in filled]),
        quality=np.concatenate([s.quality for s in filled]),
        values=np.concatenate([s.values for s in filled]),
    )


def _concat_texts(sections: list[TextSection]) -> TextSection:
    filled = [s for s in sections if len(s)]
    if not filled:
        return NO_TEXTS
    starts = np.cumsum([0] + [len(s.heap) for s in filled[:-1]], dtype=np.int64)
    ends = np.concatenate([s.end_offset.astype(np.int64) + start for s, start in zip(filled, starts, strict=True)])
    return TextSection(
        series=np.concatenate([s.series for s in filled]),
        time_unix_us=np.concatenate([s.time_unix_us for s in filled]),
        quality=np.concatenate([s.quality for s in filled]),
        end_offset=ends.astype(END_OFFSET),
        heap=b"".join(s.heap for s in filled),
    )
