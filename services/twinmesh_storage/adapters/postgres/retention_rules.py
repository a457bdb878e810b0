"""Rules of how long history is kept, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from twinmesh_runtime.postgres import Pool, connection
from twinmesh_storage.domain.history_retention import RetentionRule
from twinmesh_storage.domain.series import Series

_PUT: Final = """
insert into retention_rule (tenant, twin_id, channel, retention_class, keep_us, principal, update_time)
values (%(tenant)s, %(twin)s, %(channel)s, %(class)s, %(keep)s, %(principal)s, clock_timestamp())
on conflict (tenant, twin_id, channel, retention_class) do update set
    keep_us = excluded.keep_us, principal = excluded.principal, update_time = excluded.update_time
"""
_REMOVE: Final = """
delete from retention_rule where tenant = %s and twin_id = %s and channel = %s and retention_class = %s
"""
_OF: Final = """
select tenant, twin_id, channel, keep_us, retention_class from retention_rule
where %(tenant)s::text is null or tenant = %(tenant)s order by tenant, twin_id, channel, retention_class
"""
_NOTE: Final = """
update series set history_start = greatest(history_start, %(time)s)
where tenant = %(tenant)s and series_id = any(%(series)s)
"""
_STARTS: Final = """
select series_id, history_start from series
where tenant = %(tenant)s and series_id = any(%(series)s) and history_start is not null
"""


class PostgresRetentionRules:
    """`RetentionRules` on PostgreSQL."""

    def __init__(self, *, pool: Pool, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s

    async def put(self, rule: RetentionRule, principal: str) -> None:
        """See `RetentionRules.put`."""
        arguments = {
            "tenant": rule.tenant,
            "twin": rule.twin_id,
            "channel": rule.channel,
            "class": rule.retention_class,
            "keep": rule.keep_us,
            "principal": principal,
        }
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            await conn.execute(_PUT, arguments)

    async def remove(self, tenant: str, twin_id: str, channel: str, retention_class: str) -> None:
        """See `RetentionRules.remove`."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            await conn.execute(_REMOVE, (tenant, twin_id, channel, retention_class))

    async def of(self, tenant: str | None) -> list[RetentionRule]:
        """See `RetentionRules.of`."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            rows = await (await conn.execute(_OF, {"tenant": tenant})).fetchall()
        return [
            RetentionRule(tenant=row[0], twin_id=row[1], channel=row[2], keep_us=row[3], retention_class=row[4])
            for row in rows
        ]

    async def note_start(self, tenant: str, series: Sequence[Series], time_unix_us: int) -> None:
        """See `RetentionRules.note_start`."""
        arguments = {"tenant": tenant, "series": [s.series_id for s in series], "time": time_unix_us}
        async with connection(self._pool, timeout_s=10 * self._timeout_s) as conn:
            await conn.execute(_NOTE, arguments)

    async def starts(self, tenant: str, series: Sequence[Series]) -> dict[int, int]:
        """See `RetentionRules.starts`."""
        arguments = {"tenant": tenant, "series": [s.series_id for s in series]}
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            rows = await (await conn.execute(_STARTS, arguments)).fetchall()
        return dict(rows)
