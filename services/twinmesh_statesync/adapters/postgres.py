"""The checkpoint in PostgreSQL, schema `statesync`: rows of JSON, written by COPY, one transaction per save.

A row that a save replaces moves to `checkpoint_superseded` if a generation lies between the two saves that wrote it and
its successor. So a generation costs the rows that changed since, once, and can be read or taken back to at any time.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from psycopg import AsyncConnection

from twinmesh_runtime.postgres import Pool, connection
from twinmesh_statesync.domain.checkpoint import CHANGES, EVENT, TWIN, VERDICT, Checkpoint, Position, Record
from twinmesh_statesync.domain.generations import Generation
from twinmesh_statesync.domain.leases import Fence

_LOAD_POSITION: Final = "SELECT incarnation, log_offset FROM checkpoint_position"
_LOAD_RECORDS: Final = (
    "SELECT tenant, kind, key, log_offset, body::text FROM checkpoint_record ORDER BY log_offset, key"
)
_LOCK_POSITION: Final = "SELECT incarnation, log_offset FROM checkpoint_position FOR UPDATE"
_FENCE: Final = "SELECT FROM lease WHERE duty = %s AND holder = %s AND epoch = %s FOR SHARE"
"""Held until the commit: nobody takes the duty over in the middle of a save."""
_SAVE_POSITION: Final = """
    INSERT INTO checkpoint_position (incarnation, log_offset) VALUES (%s, %s)
    ON CONFLICT (singleton) DO UPDATE
    SET incarnation = excluded.incarnation, log_offset = excluded.log_offset, saved_at = now()
"""
_STAGE: Final = """
    CREATE TEMPORARY TABLE staged (tenant text, kind text, key text, log_offset bigint, body text) ON COMMIT DROP
"""
_COPY: Final = "COPY staged (tenant, kind, key, log_offset, body) FROM STDIN"
_SUPERSEDE: Final = """
    INSERT INTO checkpoint_superseded (tenant, kind, key, log_offset, body, since_offset, until_offset)
    SELECT tenant, kind, key, kept.log_offset, kept.body, kept.since_offset, %(at)s
    FROM staged JOIN checkpoint_record kept USING (tenant, kind, key)
    WHERE kind <> ALL (%(unversioned)s) AND EXISTS (
        SELECT FROM generation g WHERE g.log_offset >= kept.since_offset AND g.log_offset < %(at)s)
    ON CONFLICT DO NOTHING
"""
_UPSERT: Final = """
    INSERT INTO checkpoint_record (tenant, kind, key, log_offset, body, since_offset)
    SELECT tenant, kind, key, log_offset, body::json, %(at)s FROM staged WHERE body IS NOT NULL
    ON CONFLICT (tenant, kind, key) DO UPDATE
    SET log_offset = excluded.log_offset, body = excluded.body, since_offset = excluded.since_offset
"""
_DELETE: Final = """
    DELETE FROM checkpoint_record kept USING staged
    WHERE staged.body IS NULL AND (kept.tenant, kept.kind, kept.key) = (staged.tenant, staged.kind, staged.key)
"""
_CLEAR: Final = (
    "DELETE FROM checkpoint_record",
    "DELETE FROM checkpoint_superseded",
    "DELETE FROM generation",
)
_ADD_GENERATION: Final = (
    "INSERT INTO generation (log_offset, commit_time_unix_us) VALUES (%s, %s) ON CONFLICT DO NOTHING"
)
_GENERATIONS: Final = "SELECT log_offset, commit_time_unix_us FROM generation ORDER BY log_offset"
_GENERATION_AT: Final = """
    SELECT g.log_offset, p.incarnation FROM generation g, checkpoint_position p
    WHERE g.log_offset <= %s ORDER BY g.log_offset DESC LIMIT 1
"""
_VERSIONS_AT: Final = """
    SELECT tenant, kind, key, log_offset, body::text FROM checkpoint_record
    WHERE tenant = %(tenant)s AND since_offset <= %(at)s AND {which}
    UNION ALL
    SELECT tenant, kind, key, log_offset, body::text FROM checkpoint_superseded
    WHERE tenant = %(tenant)s AND since_offset <= %(at)s AND until_offset > %(at)s AND {which}
"""
_ALL_AT: Final = _VERSIONS_AT.format(which="kind <> ALL (%(unversioned)s)")
_TWINS_AT: Final = _VERSIONS_AT.format(which="kind = %(twin)s AND key = ANY (%(twin_ids)s)")
_EVENTS_AT: Final = _VERSIONS_AT.format(which="kind = %(event)s AND split_part(key, '/', 1) = ANY (%(twin_ids)s)")
_REST_AT: Final = _VERSIONS_AT.format(which="kind <> ALL (%(unversioned)s) AND kind NOT IN (%(twin)s, %(event)s)")
_FORGET_BEFORE: Final = "DELETE FROM generation WHERE log_offset < %s"
_FORGET: Final = "DELETE FROM generation WHERE log_offset = ANY (%s)"
_SWEEP: Final = """
    DELETE FROM checkpoint_superseded s WHERE NOT EXISTS (
        SELECT FROM generation g WHERE g.log_offset >= s.since_offset AND g.log_offset < s.until_offset)
"""
_REWIND: Final = (
    "DELETE FROM checkpoint_record WHERE since_offset > %(at)s",
    """
    INSERT INTO checkpoint_record (tenant, kind, key, log_offset, body, since_offset)
    SELECT tenant, kind, key, log_offset, body, since_offset FROM checkpoint_superseded
    WHERE since_offset <= %(at)s AND until_offset > %(at)s
    """,
    "DELETE FROM checkpoint_superseded WHERE until_offset > %(at)s",
    "DELETE FROM generation WHERE log_offset > %(at)s",
)
_UNVERSIONED: Final = [VERDICT, CHANGES]
"""Kinds of records of which only the newest version is kept."""


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
            records=_records(rows),
        )

    async def position(self) -> Position | None:
        """Return the position; see the port."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            row = await (await conn.execute(_LOAD_POSITION)).fetchone()
        return None if row is None else Position(incarnation=row[0], offset=row[1])

    async def save(self, checkpoint: Checkpoint, fence: Fence | None = None) -> bool:
        """Add to the checkpoint in one transaction; see the port."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            if fence is not None:
                held = await conn.execute(_FENCE, (fence.duty, fence.holder, fence.epoch))
                if await held.fetchone() is None:
                    return False
            kept = await (await conn.execute(_LOCK_POSITION)).fetchone()
            position = checkpoint.position
            if kept is not None and (
                kept[1] > position.offset if kept[0] == position.incarnation else not checkpoint.complete
            ):
                return False
            if checkpoint.complete:
                for statement in _CLEAR:
                    await conn.execute(statement)
            if checkpoint.forget_before:
                # Before the rows are replaced: none is moved aside for a generation that goes.
                await conn.execute(_FORGET_BEFORE, (checkpoint.forget_before,))
                await conn.execute(_SWEEP)
            if checkpoint.records:
                await _write(conn, checkpoint)
            for generation in checkpoint.generations:
                await conn.execute(_ADD_GENERATION, (generation.offset, generation.commit_time_unix_us))
            await conn.execute(_SAVE_POSITION, (position.incarnation, position.offset))
        return True

    async def generations(self) -> tuple[Generation, ...]:
        """Return the generations in order; see the port."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            rows = await (await conn.execute(_GENERATIONS)).fetchall()
        return tuple(Generation(offset=at, commit_time_unix_us=time) for at, time in rows)

    async def load_at(self, offset: int, tenant: str, twin_ids: Collection[str] = ()) -> Checkpoint | None:
        """Return a generation of one tenant; see the port."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            found = await (await conn.execute(_GENERATION_AT, (offset,))).fetchone()
            if found is None:
                return None
            at, incarnation = found
            arguments = {
                "at": at,
                "tenant": tenant,
                "twin_ids": list(twin_ids),
                "twin": TWIN,
                "event": EVENT,
                "unversioned": _UNVERSIONED,
            }
            rows = []
            for statement in (_TWINS_AT, _EVENTS_AT, _REST_AT) if twin_ids else (_ALL_AT,):
                rows += await (await conn.execute(statement, arguments)).fetchall()
        return Checkpoint(position=Position(incarnation=incarnation, offset=at), records=_records(rows))

    async def forget(self, offsets: Collection[int]) -> None:
        """Drop generations; see the port."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            await conn.execute(_LOCK_POSITION)
            await conn.execute(_FORGET, (list(offsets),))
            await conn.execute(_SWEEP)

    async def rewind(self, to: Position) -> bool:
        """Take the checkpoint back; see the port."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            kept = await (await conn.execute(_LOCK_POSITION)).fetchone()
            if kept is not None and kept[0] == to.incarnation:
                return True
            found = await (await conn.execute(_GENERATION_AT, (to.offset,))).fetchone()
            if found is None or found[0] != to.offset:
                return False
            for statement in _REWIND:
                await conn.execute(statement, {"at": to.offset})
            await conn.execute(_SAVE_POSITION, (to.incarnation, to.offset))
        return True


def _records(rows: list[Any]) -> tuple[Record, ...]:
    return tuple(Record(tenant=t, kind=kind, key=key, offset=at, body=body) for t, kind, key, at, body in rows)


async def _write(conn: AsyncConnection[Any], checkpoint: Checkpoint) -> None:
    # The last record of a key wins, as it does in memory; ON CONFLICT could not touch a row twice.
    latest = {(record.tenant, record.kind, record.key): record for record in checkpoint.records}
    at = {"at": checkpoint.position.offset, "unversioned": _UNVERSIONED}
    await conn.execute(_STAGE)
    async with conn.cursor().copy(_COPY) as copy:
        for record in latest.values():
            await copy.write_row((record.tenant, record.kind, record.key, record.offset, record.body))
    await conn.execute(_SUPERSEDE, at)
    await conn.execute(_DELETE)
    await conn.execute(_UPSERT, at)
