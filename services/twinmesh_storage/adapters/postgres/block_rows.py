"""Block rows between PostgreSQL and the domain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from psycopg import AsyncConnection

from twinmesh_core.pace import Pace
from twinmesh_storage.adapters.postgres.blocks_sql import COLUMNS, COPY_BLOCKS
from twinmesh_storage.adapters.postgres.copying import (
    NULL,
    bytea_head,
    copy_rows,
    float8,
    int2,
    int4,
    int8,
    joined,
    row_head,
    text,
)
from twinmesh_storage.adapters.postgres.folds import Moved
from twinmesh_storage.domain.blocks import Block
from twinmesh_storage.domain.parts import Statistics


def block_chunks(blocks: Sequence[Block], widths: Sequence[int], pace: Pace | None = None) -> list[bytes]:
    """Return the rows that add blocks to their width classes, for `copy_chunks`."""

    def pieces() -> Iterator[bytes]:
        for block, width in zip(blocks, widths, strict=True):
            yield _piece(block, width)
            if pace is not None:
                pace.step()

    return joined(pieces())


async def copy_chunks(conn: AsyncConnection[Any], chunks: Sequence[bytes]) -> None:
    """Add blocks.

    Raises:
        Moved: a partition was dropped meanwhile.
    """
    if not chunks:
        return
    try:
        await copy_rows(conn, COPY_BLOCKS, chunks)
    except psycopg.errors.CheckViolation as error:
        raise Moved from error


def _piece(block: Block, width: int) -> bytes:
    s = block.statistics
    numbers = (
        NULL * 6 if s is None else b"".join(float8(v) for v in (s.minimum, s.maximum, s.sum, s.m2, s.first, s.last))
    )
    columns = (block.ts, block.val, block.quality, block.log_offset)
    return b"".join(
        (
            row_head(len(COLUMNS)),
            text(block.tenant),
            int8(block.series_id),
            int8(block.t0),
            int8(block.t1),
            int4(block.n),
            *(int4(count) for count in block.counts),
            int8(block.max_offset),
            numbers,
            *(part for column in columns for part in (bytea_head(len(column)), column)),
            int2(width),
        )
    )


def to_block(row: tuple[Any, ...]) -> Block:
    """Return the block of a row that begins with `COLUMNS`."""
    return Block(
        tenant=row[0],
        series_id=row[1],
        t0=row[2],
        t1=row[3],
        n=row[4],
        counts=(row[5], row[6], row[7]),
        max_offset=row[8],
        statistics=None
        if row[9] is None
        else Statistics(minimum=row[9], maximum=row[10], sum=row[11], m2=row[12], first=row[13], last=row[14]),
        ts=row[15],
        val=row[16],
        quality=row[17],
        log_offset=row[18],
    )
