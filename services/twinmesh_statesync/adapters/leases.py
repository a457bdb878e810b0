"""Leases in PostgreSQL, schema `statesync`: each step one statement of its own, so a stopped process locks nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from twinmesh_runtime.postgres import Pool, connection
from twinmesh_statesync.domain.leases import Fence, Roll

_BEAT: Final = """
    INSERT INTO worker (holder, session, expire_time)
    VALUES (%(holder)s, current_setting('application_name'), clock_timestamp() + make_interval(secs => %(lease_s)s))
    ON CONFLICT (holder) DO UPDATE SET session = excluded.session, expire_time = excluded.expire_time
"""
_LIVING: Final = """
    SELECT holder FROM worker
    WHERE expire_time > clock_timestamp()
      AND session IN (SELECT application_name FROM pg_stat_activity WHERE datname = current_database())
    ORDER BY holder COLLATE "C"
"""
"""A killed process is missed at once, since its session is gone; a stopped one when its sign of life expires."""
_BURY: Final = "DELETE FROM worker WHERE expire_time < clock_timestamp() - interval '1 hour'"
_LEASES: Final = "SELECT duty, holder, epoch FROM lease ORDER BY duty"
_CLAIM: Final = """
    WITH still AS (
        SELECT lease.duty
        FROM lease JOIN unnest(%(duties)s::smallint[], %(epochs)s::bigint[]) AS seen (duty, epoch) USING (duty, epoch)
        FOR UPDATE OF lease SKIP LOCKED
    )
    UPDATE lease SET holder = %(holder)s, epoch = lease.epoch + 1
    FROM still WHERE lease.duty = still.duty
    RETURNING lease.duty, lease.epoch
"""
"""Waits for nobody: a process that was stopped in the middle of a save holds the checkpoint's row."""
_GIVE_UP: Final = "UPDATE lease SET holder = '' WHERE holder = %(holder)s AND duty = ANY(%(duties)s)"
_LEAVE: Final = "UPDATE lease SET holder = '' WHERE holder = %(holder)s"
_FORGET: Final = "DELETE FROM worker WHERE holder = %(holder)s"


class PostgresLeases:
    """Keeps leases in the schema that the pool's search path names.

    Args:
        line: a pool of one connection, with autocommit and a name of its own: that its session stands is the sign that
            the process lives.
        timeout_s: seconds that a step may take.
    """

    def __init__(self, line: Pool, *, timeout_s: float = 2.0) -> None:
        self._line = line
        self._timeout_s = timeout_s

    async def beat(self, holder: str, *, lease_s: float) -> Roll:
        """Give a sign of life; see the port."""
        async with connection(self._line, timeout_s=self._timeout_s) as conn:
            await conn.execute(_BEAT, {"holder": holder, "lease_s": lease_s})
            await conn.execute(_BURY)
            living = await (await conn.execute(_LIVING)).fetchall()
            leases = await (await conn.execute(_LEASES)).fetchall()
        return Roll(
            # Just heard from, so alive, whatever the activity view says about its session.
            living=tuple(sorted({holder, *(row[0] for row in living)})),
            leases=tuple(Fence(duty=duty, holder=name, epoch=epoch) for duty, name, epoch in leases),
        )

    async def claim(self, holder: str, seen: Sequence[Fence]) -> tuple[Fence, ...]:
        """Take over duties; see the port."""
        values = {"holder": holder, "duties": [s.duty for s in seen], "epochs": [s.epoch for s in seen]}
        async with connection(self._line, timeout_s=self._timeout_s) as conn:
            rows = await (await conn.execute(_CLAIM, values)).fetchall()
        return tuple(Fence(duty=duty, holder=holder, epoch=epoch) for duty, epoch in rows)

    async def give_up(self, holder: str, duties: Sequence[int]) -> None:
        """Let go of duties; see the port."""
        async with connection(self._line, timeout_s=self._timeout_s) as conn:
            await conn.execute(_GIVE_UP, {"holder": holder, "duties": list(duties)})

    async def leave(self, holder: str) -> None:
        """Let go of everything; see the port."""
        async with connection(self._line, timeout_s=self._timeout_s) as conn:
            await conn.execute(_LEAVE, {"holder": holder})
            await conn.execute(_FORGET, {"holder": holder})
