"""The checkpoint in PostgreSQL, schema `statesync`: rows of JSON, written by COPY, one transaction per save."""

from __future__ import annotations

from typing import Any, Final

from psycopg import AsyncConnection

from twinmesh_runtime.postgres import Pool, connection
from twinmesh_statesync.domain.checkpoint import Checkpoint, Position, Record

_LOAD_POSITION: Final = "SELECT incarnation, log_offset FROM checkpoint_position"
_LOAD_RECORDS: Final = (
    "SELECT tenant, kind, key, log_offset, body::text FROM checkpoint_record ORDER BY log_offset, key"
)
_LOCK_POSITION: Final = "SELECT incarnation, log_offset FROM checkpoint_position FOR UPDATE"
_SAVE_POSITION: Final = """
    INSERT INTO checkpoint_position (incarnation, log_offset) VALUES (%s, %s)
    ON CONFLICT (singleton) DO UPDATE
    SET incarnation = excluded.incarnation, log_offset = excluded.log_offset, saved_at = now()
"""
_STAGE: Final = """
    CREATE TEMPORARY TABLE staged (tenant text, kind text, key text, log_offset bigint, body text) ON COMMIT DROP
"""
_COPY: Final = "COPY staged (tenant, kind, key, log_offset, body) FROM STDIN"
_UPSERT: Final = """
    INSERT INTO checkpoint_record (tenant, kind, key, log_offset, body)
    SELECT tenant, kind, key, log_offset, body::json FROM staged WHERE body IS NOT NULL
    ON CONFLICT (tenant, kind, key) DO UPDATE SET log_offset = excluded.log_offset, body = excluded.body
"""
_DELETE: Final = """
    DELETE FROM checkpoint_record kept USING staged
    WHERE staged.body IS NULL AND (kept.tenant, kept.kind, kept.key) = (staged.tenant, staged.kind, staged.key)
"""
_CLEAR_RECORDS: Final = "DELETE FROM checkpoint_record"


class PostgresCheckpoints:
    """Keeps the checkpoint in the schema that the pool's search path names.

    Args:
        pool: open pool on migrated tables.
        timeout_s: seconds that a load or a save may take.
    """

    def __init__(self, pool: Pool, *, timeout_s: float = 60.0) -> None:
        self._pool = pool
        self._timeout_s = timeout_s

    async def load(self) -> Checkpoint | None:
        """Return the checkpoint as one snapshot of both tables; see the port."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            position = await (await conn.execute(_LOAD_POSITION)).fetchone()
            if position is None:
                return None
            rows = await (await conn.execute(_LOAD_RECORDS)).fetchall()
        return Checkpoint(
            position=Position(incarnation=position[0], offset=position[1]),
            records=tuple(
                Record(tenant=t, kind=kind, key=key, offset=at, body=body) for t, kind, key, at, body in rows
            ),
        )

    async def save(self, checkpoint: Checkpoint) -> bool:
        """Add to the checkpoint in one transaction; see the port."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            kept = await (await conn.execute(_LOCK_POSITION)).fetchone()
            position = checkpoint.position
            if kept is not None and kept[0] == position.incarnation and kept[1] > position.offset:
                return False
            if checkpoint.complete:
                await conn.execute(_CLEAR_RECORDS)
            if checkpoint.records:
                await _write(conn, checkpoint.records)
            await conn.execute(_SAVE_POSITION, (position.incarnation, position.offset))
        return True


async def _write(conn: AsyncConnection[Any], records: tuple[Record, ...]) -> None:
    # The last record of a key wins, as it does in memory; ON CONFLICT could not touch a row twice.
    latest = {(record.tenant, record.kind, record.key): record for record in records}
    await conn.execute(_STAGE)
    async with conn.cursor().copy(_COPY) as copy:
        for record in latest.values():
            await copy.write_row((record.tenant, record.kind, record.key, record.offset, record.body))
    await conn.execute(_DELETE)
    await conn.execute(_UPSERT)
