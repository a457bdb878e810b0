"""Rows as binary COPY wants them, without a Python object per value.

The format: an 11-byte signature and two zero words; per row a field count, then each field as length and bytes; -1 at
the end. Source: PostgreSQL documentation, "COPY", section "Binary Format".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final

from psycopg import AsyncConnection
from psycopg.sql import SQL, Composed, Identifier

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"
NULL: Final = b"\xff\xff\xff\xff"
_PG_EPOCH_UNIX_US: Final = 946_684_800_000_000
_CHUNK: Final = 64 << 10


def int2(value: int) -> bytes:
    """Return a smallint field."""
    return struct.pack("!ih", 2, value)


def int4(value: int) -> bytes:
    """Return an integer field."""
    return struct.pack("!ii", 4, value)


def int8(value: int) -> bytes:
    """Return a bigint field."""
    return struct.pack("!iq", 8, value)


def float8(value: float) -> bytes:
    """Return a double precision field."""
    return struct.pack("!id", 8, value)


def timestamptz(time_unix_us: int) -> bytes:
    """Return a timestamptz field."""
    return struct.pack("!iq", 8, time_unix_us - _PG_EPOCH_UNIX_US)


def text(value: str) -> bytes:
    """Return a text field."""
    encoded = value.encode()
    return struct.pack("!i", len(encoded)) + encoded


def bytea_head(length: int) -> bytes:
    """Return what comes before the bytes of a bytea field."""
    return struct.pack("!i", length)


def row_head(fields: int) -> bytes:
    """Return what comes before the fields of a row."""
    return struct.pack("!h", fields)


def copy_statement(table: str, columns: Iterable[str]) -> Composed:
    """Return the statement that a binary COPY into these columns begins with."""
    return SQL("copy {} ({}) from stdin (format binary)").format(
        Identifier(table), SQL(", ").join(Identifier(column) for column in columns)
    )


def joined(pieces: Iterable[bytes]) -> list[bytes]:
    """Return pieces joined to chunks of a size that is worth a call."""
    chunks: list[bytes] = []
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= _CHUNK:
            chunks.append(b"".join(waiting))
            waiting, size = [], 0
    if waiting:
        chunks.append(b"".join(waiting))
    return chunks


async def copy_rows(conn: AsyncConnection[Any], statement: Composed, pieces: Iterable[bytes]) -> None:
    """Send rows, given as pieces of their bytes in order, through libpq's PQputCopyData.

    Small pieces are joined first; large ones (bodies) go as they are.
    """
    async with conn.cursor() as cursor, cursor.copy(statement) as copy:
        waiting = [HEADER]
        size = len(HEADER)
        for piece in pieces:
            if len(piece) >= _CHUNK:
                await copy.write(b"".join(waiting))
                await copy.write(piece)
                waiting, size = [], 0
                continue
            waiting.append(piece)
            size += len(piece)
            if size >= _CHUNK:
                await copy.write(b"".join(waiting))
                waiting, size = [], 0
        waiting.append(TRAILER)
        await copy.write(b"".join(waiting))
