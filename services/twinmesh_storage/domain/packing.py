"""Landed batches at rest: the same bytes in a tenth of the room, restored exactly.

PostgreSQL writes a body twice (WAL and table) through 2 kB pieces, which costs more than all else that happens to a
batch. What batches repeat is therefore left out of what it is given: names (deflated once per dictionary), handles that
go round and round, one time for a whole round, values rounded to a few decimals.

A packed body begins with a byte that no message can begin with, so both forms may stand in one table. It is
self-contained, and `unpack` gives back every byte; whatever is not laid out as expected stays as it is.

    body     = 0x01, u4 length, deflated dictionary, section...
    section  = u1 field number, u1 form, u4 length, content
    content  = the section's bytes (form 0), or u4 rows, then the columns series, time, quality, values,
               each as u4 length and a packed column (form 1)
    column   = u1 pattern: 0 none, 1 each value k times, 2 the first k values over and over, 3 absent;
               u4 k for 1 and 2; then the values that are left, in a form of `columns`
"""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from twinmesh_core import wire
from twinmesh_storage.domain import columns

_PACKED: Final = 0x01
_VERBATIM, _COLUMNS = 0, 1
_PLAIN, _REPEATED, _TILED, _ABSENT = range(4)
_LEAST_BYTES: Final = 512
"""A smaller body stays as it is: there is nothing to gain."""
_DEFLATE_LEVEL: Final = 6  # once per dictionary, then remembered
_KEPT: Final = 256
_KEPT_BYTES: Final = 32 << 20
_MAX_DICTIONARY: Final = 64 << 20

Column = npt.NDArray[Any]
_SERIES, _TIME, _QUALITY, _VALUES = 1, 2, 3, 4
_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    2: np.dtype("<i8"),  # doubles, as their bits
    3: np.dtype("<i8"),
    4: np.dtype("u1"),
}
"""Value type of the sections that are packed, by field number; the others are texts."""
_DOUBLES: Final = 2


class Packer:
    """Packs bodies and restores them; one per process, safe on any thread."""

    def __init__(self) -> None:
        self._deflated = _Kept()  # by the identity of the dictionary, which stands for its bytes
        self._inflated = _Kept()  # by the deflated bytes

    def pack(self, body: bytes) -> bytes:
        """Return the body as it is to be stored; the body itself where packing it gains nothing."""
        if len(body) < _LEAST_BYTES:
            return body
        try:
            series, end = wire.dictionary(body)
            parts = [_pack_section(body, *field) for field in wire.fields(body, end)]
        except wire.NotCanonical:
            return body
        dictionary = self._deflated.get(id(series), series, lambda: zlib.compress(body[:end], _DEFLATE_LEVEL))
        packed = b"".join((bytes([_PACKED]), struct.pack("<I", len(dictionary)), dictionary, *parts))
        return packed if len(packed) < len(body) else body

    def unpack(self, stored: bytes) -> bytes:
        """Return the body that `pack` was given."""
        if not stored or stored[0] != _PACKED:
            return stored
        (length,) = struct.unpack_from("<I", stored, 1)
        position = 5 + length
        deflated = stored[5:position]
        parts: list[Any] = [self._inflated.get(deflated, None, lambda: _inflate(deflated))]
        while position < len(stored):
            number, form, length = struct.unpack_from("<BBI", stored, position)
            position += 6
            content = stored[position : position + length]
            parts += _record(number, [content] if form == _VERBATIM else _unpack_columns(number, content))
            position += length
        return b"".join(parts)


class _Kept:
    """What was computed for the newest keys, bounded in bytes."""

    def __init__(self) -> None:
        self._known: OrderedDict[object, tuple[object, bytes]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: object, owner: object, compute: Callable[[], bytes]) -> bytes:
        """Return what `compute` returned for this key; where the key is an identity, `owner` is whose, and is kept."""
        with self._lock:
            known = self._known.get(key)
            if known is not None and known[0] is owner:
                self._known.move_to_end(key)
                return known[1]
        value = compute()
        with self._lock:
            old = self._known.pop(key, None)
            self._bytes += len(value) - (len(old[1]) if old is not None else 0)
            self._known[key] = (owner, value)
            while len(self._known) > 1 and (len(self._known) > _KEPT or self._bytes > _KEPT_BYTES):
                _, (_, gone) = self._known.popitem(last=False)
                self._bytes -= len(gone)
        return value


def _inflate(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, _MAX_DICTIONARY)


def _pack_section(body: bytes, number: int, wire_type: int, start: int, end: int) -> bytes:
    if wire_type != wire.LEN:
        raise wire.NotCanonical
    content = _pack_columns(body, number, start, end) if number in _DTYPES else None
    form = _VERBATIM if content is None else _COLUMNS
    if content is None:
        content = body[start:end]
    return struct.pack("<BBI", number, form, len(content)) + content


def _pack_columns(body: bytes, number: int, start: int, end: int) -> bytes | None:
    """Return the packed columns of a section; None = its bytes are not those that `_unpack_columns` would give."""
    spans: dict[int, tuple[int, int]] = {}
    for field, wire_type, first, stop in wire.fields(body, start, end):
        if wire_type != wire.LEN:
            return None
        spans[field] = (first, stop)
    series = _span(body, spans, _SERIES, np.dtype("<u4"))
    time = _span(body, spans, _TIME, np.dtype("<i8"))
    quality = _span(body, spans, _QUALITY, np.dtype("u1"))
    values = _span(body, spans, _VALUES, _DTYPES[number])
    rows = len(series)
    if not rows or len(time) != rows or len(values) != rows or len(quality) not in (0, rows):
        return None
    if sum(len(part) for part in _encode(number, series, time, quality, values)) != end - start:
        return None
    if list(spans) != sorted(spans):
        return None
    packed = (
        _pack_column(series, lambda c: columns.encode_ints(c.astype(np.int64))),
        _pack_column(time, columns.encode_times),
        _pack_column(quality, columns.encode_bytes) if len(quality) else bytes([_ABSENT]),
        _pack_column(values, _value_encoder(number)),
    )
    return struct.pack("<I", rows) + b"".join(struct.pack("<I", len(column)) + column for column in packed)


def _value_encoder(number: int) -> Any:
    if number == _DOUBLES:
        return columns.encode_doubles
    return columns.encode_ints if _DTYPES[number].itemsize == 8 else columns.encode_bytes


def _span(body: bytes, spans: dict[int, tuple[int, int]], field: int, dtype: np.dtype[Any]) -> Column:
    start, stop = spans.get(field, (0, 0))
    count, odd = divmod(stop - start, dtype.itemsize)
    if odd:
        raise wire.NotCanonical
    return np.frombuffer(body, dtype, count, start)


def _pack_column(column: Column, encode: Any) -> bytes:
    pattern, k = _pattern(column)
    if pattern == _PLAIN:
        return bytes([_PLAIN]) + bytes(encode(column))
    left = column[::k] if pattern == _REPEATED else column[:k]
    return struct.pack("<BI", pattern, k) + bytes(encode(left))


def _pattern(column: Column) -> tuple[int, int]:
    """Return how a column repeats itself, and its k.

    Batches hold rounds (every series at one time, then at the next) or one series after the other; so handles and
    times either go round or stand still, for one and the same number of rows.
    """
    rows = len(column)
    if rows < 4:
        return _PLAIN, 0
    if column[1] == column[0]:
        k = _first(column != column[0], rows)
        if rows % k == 0 and (column.reshape(-1, k) == column[::k, None]).all():
            return _REPEATED, k
        return _PLAIN, 0
    k = _first(column[1 : rows // 2 + 1] == column[0], rows) + 1
    if 2 * k <= rows and (column[k : 2 * k] == column[:k]).all() and (column[k:] == column[:-k]).all():
        return _TILED, k
    return _PLAIN, 0


def _first(found: npt.NDArray[np.bool_], otherwise: int) -> int:
    at = int(found.argmax())
    return at if found[at] else otherwise


def _unpack_columns(number: int, content: bytes) -> list[Any]:
    (rows,) = struct.unpack_from("<I", content)
    position = 4
    found: list[Column] = []
    for field in (_SERIES, _TIME, _QUALITY, _VALUES):
        (length,) = struct.unpack_from("<I", content, position)
        packed = content[position + 4 : position + 4 + length]
        narrow = field == _QUALITY or (field == _VALUES and _DTYPES[number].itemsize == 1)
        found.append(_unpack_column(packed, rows, columns.decode_bytes if narrow else columns.decode_ints))
        position += 4 + length
    series, time, quality, values = found
    return _encode(number, series.astype("<u4"), time, quality, values)


def _unpack_column(packed: bytes, rows: int, decode: Any) -> Column:
    pattern = packed[0]
    if pattern == _ABSENT:
        return np.empty(0, np.uint8)
    if pattern == _PLAIN:
        plain: Column = decode(packed[1:], rows)
        return plain
    (k,) = struct.unpack_from("<I", packed, 1)
    left: Column = decode(packed[5:], rows // k if pattern == _REPEATED else k)
    if pattern == _REPEATED:
        return np.repeat(left, k)
    return np.resize(left, rows)


def _encode(number: int, series: Column, time: Column, quality: Column, values: Column) -> list[Any]:
    """Return the section's bytes as protobuf writes them; a column without rows is left out."""
    parts: list[Any] = []
    parts += _record(_SERIES, [_bytes(series, np.dtype("<u4"))])
    parts += _record(_TIME, [_bytes(time, np.dtype("<i8"))])
    if len(quality):
        parts += _record(_QUALITY, [_bytes(quality, np.dtype("u1"))])
    parts += _record(_VALUES, [_bytes(values, _DTYPES[number])])
    return parts


def _bytes(column: Column, dtype: np.dtype[Any]) -> Any:
    return np.ascontiguousarray(column, dtype).view(np.uint8).data


def _record(number: int, payload: list[Any]) -> list[Any]:
    return [bytes([number << 3 | wire.LEN]) + wire.encode_varint(sum(len(part) for part in payload)), *payload]
