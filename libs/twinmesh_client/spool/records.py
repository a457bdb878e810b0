"""What stands in a segment file: records one after another, each with a checksum of its head and one of its body.

::

    magic 4 | body bytes u32 | number u64 | points and the backfill bit u32 | crc32 of the body u32 | of the head u32

A writer that is killed leaves a beginning of what it wrote: a record that is *cut short* at the end of the last file
was never promised to anybody. Anything else that does not fit its checksum is damage, and named as such; the next
whole record is found by its magic.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_HEAD: Final = struct.Struct("<4sIQIII")
_MAGIC: Final = b"tmr1"
_BACKFILL: Final = 1 << 31
HEAD_BYTES: Final = _HEAD.size
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
_SEARCH_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One batch as it was taken.

    Attributes:
        number: in the spool, from 1.
        body: the encoded batch.
        points: its rows.
        backfill: declared as recorded history.
    """

    number: int
    body: bytes
    points: int
    backfill: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What stands at a position of a segment.

    Attributes:
        number: of the record, where its head is whole; else the least that it can be.
        end: position after it; of damage without a readable head, where the next whole head stands.
        record: the record; None when it is damaged or cut short.
        torn: cut short by the end of the file.
        headless: not even its head is readable, so nobody knows how many records are gone.
    """

    number: int
    end: int
    record: Record | None
    torn: bool = False
    headless: bool = False


def encode(record: Record) -> tuple[bytes, bytes]:
    """Return head and body as they are written."""
    flags = record.points | (_BACKFILL if record.backfill else 0)
    head = _HEAD.pack(_MAGIC, len(record.body), record.number, flags, zlib.crc32(record.body), 0)
    return head[:-4] + zlib.crc32(head[:-4]).to_bytes(4, "little"), record.body


def walk(fd: int, size: int, *, first: int, position: int = 0, bodies: bool = True) -> Iterator[Found]:
    """Yield what stands in a segment from a position on.

    Args:
        fd: of the open file.
        size: how much of the file counts.
        first: number that is expected at `position`.
        position: the beginning of a record.
        bodies: read and check bodies too; else only heads, and records come without their body.
    """
    expected = first
    while position < size:
        head = os.pread(fd, HEAD_BYTES, position)
        if position + HEAD_BYTES > size:
            yield Found(number=expected, end=size, record=None, torn=True)
            return
        fields = _fields(head)
        if fields is None or fields[1] < expected:
            after = _next_head(fd, position + 1, size, expected)
            yield Found(number=expected, end=after[0], record=None, headless=True)
            position, expected = after[0], after[1] or expected
            continue
        length, number, flags, body_crc = fields
        end = position + HEAD_BYTES + length
        if end > size:
            yield Found(number=number, end=size, record=None, torn=True)
            return
        body = os.pread(fd, length, position + HEAD_BYTES) if bodies else b""
        whole = not bodies or zlib.crc32(body) == body_crc
        record = Record(number=number, body=body, points=flags & ~_BACKFILL, backfill=bool(flags & _BACKFILL))
        yield Found(number=number, end=end, record=record if whole else None)
        position, expected = end, number + 1


def _fields(head: bytes) -> tuple[int, int, int, int] | None:
    """Return body bytes, number, flags and the body's checksum; None unless the head is whole."""
    magic, length, number, flags, body_crc, head_crc = _HEAD.unpack(head)
    if magic != _MAGIC or head_crc != zlib.crc32(head[:-4]) or length > MAX_BODY_BYTES:
        return None
    return length, number, flags, body_crc


def _next_head(fd: int, position: int, size: int, least: int) -> tuple[int, int]:
    """Return where the next whole head stands and its number; the size and 0 when there is none."""
    while position < size:
        chunk = os.pread(fd, _SEARCH_BYTES + HEAD_BYTES, position)
        at = chunk.find(_MAGIC)
        while 0 <= at < _SEARCH_BYTES:
            head = chunk[at : at + HEAD_BYTES]
            fields = _fields(head) if len(head) == HEAD_BYTES else None
            # A body may hold such bytes too, by chance or by malice; a number that goes on says it is none.
            if fields is not None and fields[1] >= least and position + at + HEAD_BYTES + fields[0] <= size:
                return position + at, fields[1]
            at = chunk.find(_MAGIC, at + 1)
        position += _SEARCH_BYTES
    return size, 0
