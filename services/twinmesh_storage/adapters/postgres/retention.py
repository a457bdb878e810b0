"""Checkpoints of followers, and the trimming of the log, in PostgreSQL."""

from __future__ import annotations

from typing import Any, Final

from twinmesh_core.errors import Unavailable
from twinmesh_runtime.postgres import Pool, connection
from twinmesh_storage.domain.ports import TrimState

_LOOK_ENTRIES: Final = 20_000
"""Most entries that one step of the mark passes over."""
_SWEEP_ENTRIES: Final = 500
"""Most entries that one transaction deletes."""

_REGISTER: Final = """
insert into checkpoint (consumer, incarnation, log_offset, update_time, expire_time)
values (%(consumer)s, %(incarnation)s::uuid, %(offset)s, clock_timestamp(),
        clock_timestamp() + make_interval(secs => %(keep_s)s))
on conflict (consumer) do update set
    incarnation = excluded.incarnation, log_offset = excluded.log_offset,
    update_time = excluded.update_time, expire_time = excluded.expire_time
"""

# An entry's commit time never falls with its offset, so the newest one that is old enough bounds all of them.
_ADVANCE: Final = """
update trim_state t set trim_offset = least(f.fold_offset, c.covered, aged.log_offset)
from fold_state f,
     (select min(log_offset) as covered from checkpoint
      where expire_time > clock_timestamp()
        and incarnation = (select incarnation from partition_state where partition_id = 0)) c,
     (select max(log_offset) filter (where commit_time < clock_timestamp() - make_interval(secs => %(keep_s)s))
          as log_offset
      from (select log_offset, commit_time from log
            where log_offset > (select trim_offset from trim_state where partition_id = 0)
            order by log_offset limit %(entries)s) page) aged
where t.partition_id = 0 and f.partition_id = 0
  and least(f.fold_offset, c.covered, aged.log_offset) > t.trim_offset
  and c.covered is not null and aged.log_offset is not null
"""

_LOCK: Final = "select trim_offset, swept_offset from trim_state where partition_id = 0 for update"
_SWEEP: Final = """
with gone as (
    delete from log where kind = 1 and log_offset > %(after)s and log_offset <= %(through)s
    returning tenant, point_count)
insert into trimmed as t (tenant, entry_count, point_count)
select tenant, count(*), sum(point_count) from gone group by tenant
on conflict (tenant) do update set
    entry_count = t.entry_count + excluded.entry_count, point_count = t.point_count + excluded.point_count
"""
_SWEPT: Final = "update trim_state set swept_offset = %s where partition_id = 0"


class PostgresRetention:
    """`LogRetention` on PostgreSQL.

    Args:
        timeout_s: bound of a call; a step of trimming may take ten times as long.
    """

    def __init__(self, *, pool: Pool, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s

    async def register(self, consumer: str, incarnation: str, offset: int, keep_s: float) -> TrimState:
        """See `LogRetention.register`."""
        arguments = {"consumer": consumer, "incarnation": incarnation, "offset": offset, "keep_s": keep_s}
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            await conn.execute(_REGISTER, arguments)
            return _state(await (await conn.execute(_LOCK)).fetchone())

    async def advance(self, keep_s: float) -> TrimState:
        """See `LogRetention.advance`."""
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            await conn.execute(_ADVANCE, {"keep_s": keep_s, "entries": _LOOK_ENTRIES})
            return _state(await (await conn.execute(_LOCK)).fetchone())

    async def sweep(self) -> TrimState:
        """See `LogRetention.sweep`."""
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            state = _state(await (await conn.execute(_LOCK)).fetchone())
            through = min(state.trim_offset, state.swept_offset + _SWEEP_ENTRIES)
            if through > state.swept_offset:
                await conn.execute(_SWEEP, {"after": state.swept_offset, "through": through})
                await conn.execute(_SWEPT, (through,))
            return TrimState(trim_offset=state.trim_offset, swept_offset=through)


def _state(row: tuple[Any, ...] | None) -> TrimState:
    if row is None:
        raise Unavailable("The log is not there yet; try again.", retry_after_s=1.0)
    return TrimState(trim_offset=row[0], swept_offset=row[1])
