"""Rows as hypertables take and give them: binary COPY in, packed columns out; no Python object per value."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_storage.adapters.postgres.copying import (
    bytea_head,
    copy_statement,
    int2,
    int8,
    row_head,
    text,
    timestamptz,
)
from twinmesh_storage.adapters.timescale.tables import Table
from twinmesh_storage.domain.blocks import SeriesOf
from twinmesh_storage.domain.rows import Lane, Rows

_PG_EPOCH_UNIX_US: Final = 946_684_800_000_000
_CHUNK_ROWS: Final = 4_096
_COLUMNS: Final = {
    Lane.NUMERIC: ("tenant", "series_id", "time", "value", "whole", "quality", "log_offset"),
    Lane.TEXT: ("tenant", "series_id", "time", "body", "quality", "log_offset"),
}


def copy_into(table: Table) -> Any:
    """Return the statement that a COPY into a table begins with."""
    return copy_statement(table.name, _COLUMNS[table.lane])


def pieces(table: Table, rows: Rows, series_of: SeriesOf) -> Iterator[bytes]:
    """Yield rows by (series, time) as binary COPY wants them."""
    starts = np.flatnonzero(np.concatenate(([True], rows.series[1:] != rows.series[:-1])))
    edges = np.append(starts, len(rows)).tolist()
    for start, end in itertools.pairwise(edges):
        for at in range(start, end, _CHUNK_ROWS):
            part = rows.take(slice(at, min(end, at + _CHUNK_ROWS)))
            series = series_of(int(part.series[0]))
            head = row_head(len(_COLUMNS[table.lane])) + text(series.tenant) + int8(series.series_id)
            if table.lane is Lane.TEXT:
                yield from _texts(head, part)
            else:
                yield _numbers(head, part, is_double=series.kind.has_unit)


def _numbers(head: bytes, rows: Rows, *, is_double: bool) -> bytes:
    """Return fixed-width rows, as one array."""
    value = [("value_length", ">i4"), ("value", ">i8")]
    none = [("none", ">i4")]
    layout = [
        ("head", f"V{len(head)}"),
        ("time_length", ">i4"),
        ("time", ">i8"),
        *(value + none if is_double else none + value),
        ("quality_length", ">i4"),
        ("quality", ">i2"),
        ("offset_length", ">i4"),
        ("offset", ">i8"),
    ]
    out = np.zeros(len(rows), np.dtype(layout))
    out["head"] = np.frombuffer(head, f"V{len(head)}")
    out["time_length"] = out["value_length"] = out["offset_length"] = 8
    out["quality_length"] = 2
    out["none"] = -1
    out["time"] = rows.ts - _PG_EPOCH_UNIX_US
    out["value"] = rows.value
    out["quality"] = rows.quality
    out["offset"] = rows.offset
    return out.tobytes()


def _texts(head: bytes, rows: Rows) -> Iterator[bytes]:
    columns = (rows.ts.tolist(), rows.value.tolist(), rows.quality.tolist(), rows.offset.tolist())
    for time, body, quality, offset in zip(*columns, strict=True):
        yield b"".join((head, timestamptz(time), bytea_head(len(body)), body, int2(quality), int8(offset)))


def unpack(found: tuple[Any, ...], lane: Lane) -> Rows:
    """Return the rows of one series from what a `PACKED` selection gives after its id."""
    series_id, n, times, qualities, offsets, values = found[:6]
    value: npt.NDArray[Any]
    if lane is Lane.TEXT:
        value = np.empty(n, object)
        start = 0
        heap = found[6]
        for row, length in enumerate(np.frombuffer(values, ">i4").tolist()):
            value[row] = heap[start : start + length]
            start += length
    else:
        value = np.frombuffer(values, ">i8").astype(np.int64)
    return Rows(
        series=np.full(n, series_id, np.int64),
        ts=np.frombuffer(times, ">i8").astype(np.int64) + _PG_EPOCH_UNIX_US,
        value=value,
        quality=np.frombuffer(qualities, ">i2").astype(np.uint8),
        offset=np.frombuffer(offsets, ">i8").astype(np.int64),
    )
