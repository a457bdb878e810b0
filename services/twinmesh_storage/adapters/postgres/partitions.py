"""The partitions of blocks in PostgreSQL: made as data comes, dropped when nobody needs them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg.sql import SQL, Identifier, Literal

from twinmesh_storage.domain.partitions import MOST_PARTITIONS, Partition

Connection = AsyncConnection[Any]

# Two processes may believe to lead; they take turns. Attaching lets reads and writes of the parent go on.
_TURN: Final = "select pg_advisory_xact_lock(hashtextextended(current_schema() || '.block', 0))"
_LIST: Final = """
select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = to_regclass(current_schema() || '.block_' || %s)
"""
_CREATE: Final = SQL("create table {} (like {} including all)")
_ATTACH: Final = SQL("alter table {} attach partition {} for values from ({}) to ({})")
_FOREIGN: Final = SQL("""
select exists (select from {table} where tenant <> %(tenant)s or series_id <> all(%(series)s)),
       (select coalesce(sum(n), 0) from {table})
""")
_DROP: Final = SQL("drop table {}")
# Dropping waits for reads that are under way, and later reads wait for it: not for long.
_SHORT_WAIT: Final = "set local lock_timeout = '1s'"


class Partitions:
    """What this process knows of the partitions."""

    def __init__(self, *, most: int = MOST_PARTITIONS) -> None:
        self._most = most
        self._known: set[str] = set()

    def forget(self) -> None:
        """Look again: another process may have dropped some."""
        self._known.clear()

    async def ensure(self, conn: Connection, wanted: Iterable[Partition]) -> frozenset[Partition]:
        """Create what is missing, in the caller's transaction; returns those of the wanted that exist."""
        wanted = frozenset(wanted)
        missing = [partition for partition in sorted(wanted) if partition.name not in self._known]
        if missing:
            await conn.execute(_TURN)
            for width in sorted({partition.width for partition in missing}):
                names = await self.names(conn, width)
                for partition in missing:
                    if partition.width == width and partition.name not in names and len(names) < self._most:
                        await _create(conn, partition)
                        names.add(partition.name)
                self._known |= names
        return frozenset(partition for partition in wanted if partition.name in self._known)

    async def names(self, conn: Connection, width: int) -> set[str]:
        """Return the tables of a class."""
        return {row[0] for row in await (await conn.execute(_LIST, (str(width),))).fetchall()}

    async def drop_before(self, conn: Connection, tenant: str, ids: Sequence[int], time_unix_us: int) -> int:
        """Drop partitions that end by a time and hold nothing of other series; returns how many rows they had.

        One that cannot be locked soon is left: its rows are then deleted one by one.
        """
        dropped = 0
        for width in range(1, 5):
            for name in sorted(await self.names(conn, width)):
                if Partition(width, int(name.rsplit("_", 1)[1].replace("m", "-"))).end > time_unix_us:
                    continue
                table = Identifier(name)
                cursor = await conn.execute(_FOREIGN.format(table=table), {"tenant": tenant, "series": list(ids)})
                row = await cursor.fetchone()
                if row is None or row[0]:
                    continue
                try:
                    async with conn.transaction():
                        await conn.execute(_SHORT_WAIT)
                        await conn.execute(_DROP.format(table))
                except psycopg.errors.LockNotAvailable:
                    continue
                dropped += int(row[1])
                self._known.discard(name)
        return dropped


async def _create(conn: Connection, partition: Partition) -> None:
    parent, table = Identifier(f"block_{partition.width}"), Identifier(partition.name)
    await conn.execute(_CREATE.format(table, parent))
    await conn.execute(_ATTACH.format(parent, table, Literal(partition.start), Literal(partition.end)))
