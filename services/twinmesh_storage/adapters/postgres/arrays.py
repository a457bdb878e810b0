"""Arrays as arguments of statements, sent as PostgreSQL's binary form without a look at each element.

psycopg dumps a list element by element, on the event loop: six lists of a thousand take longer than a commit. The form:
number of dimensions, a flag for NULLs, the element type's OID, length and lower bound, then each element with its
length before it. Source: PostgreSQL's ``array_recv`` (src/backend/utils/adt/arrayfuncs.c).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

_HEAD: Final = struct.Struct("!iiIii")
_EMPTY: Final = struct.Struct("!iiI")
_ELEMENT: Final = np.dtype([("length", ">i4"), ("value", ">i8")])
_INT8: Final = psycopg.adapters.types["int8"]
_TEXT: Final = psycopg.adapters.types["text"]


class BigInts:
    """A ``bigint[]``.

    Args:
        values: int64 [n], or what becomes it.
    """

    __slots__ = ("values",)

    def __init__(self, values: npt.NDArray[np.int64] | Sequence[int]) -> None:
        self.values = np.asarray(values, np.int64)


class Texts:
    """A ``text[]`` without NULLs."""

    __slots__ = ("values",)

    def __init__(self, values: Iterable[str]) -> None:
        self.values = list(values)


class _BigIntsDumper(Dumper):
    format = Format.BINARY
    oid = _INT8.array_oid

    def dump(self, obj: BigInts) -> Buffer:
        n = len(obj.values)
        if not n:
            return _EMPTY.pack(0, 0, _INT8.oid)
        elements = np.empty(n, _ELEMENT)
        elements["length"] = 8
        elements["value"] = obj.values
        return _HEAD.pack(1, 0, _INT8.oid, n, 1) + elements.tobytes()


class _TextsDumper(Dumper):
    format = Format.BINARY
    oid = _TEXT.array_oid

    def dump(self, obj: Texts) -> Buffer:
        if not obj.values:
            return _EMPTY.pack(0, 0, _TEXT.oid)
        pieces = [_HEAD.pack(1, 0, _TEXT.oid, len(obj.values), 1)]
        # Few texts are named many times: tenants, in practice.
        known: dict[str, bytes] = {}
        for value in obj.values:
            piece = known.get(value)
            if piece is None:
                encoded = value.encode()
                piece = known[value] = struct.pack("!i", len(encoded)) + encoded
            pieces.append(piece)
        return b"".join(pieces)


psycopg.adapters.register_dumper(BigInts, _BigIntsDumper)
psycopg.adapters.register_dumper(Texts, _TextsDumper)
