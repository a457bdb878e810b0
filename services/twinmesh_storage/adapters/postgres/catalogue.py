"""The series catalogue and quarantine in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from twinmesh_core.kinds import ChannelKind
from twinmesh_core.time import from_datetime
from twinmesh_runtime.postgres import Pool, connection
from twinmesh_storage.domain.entries import QuarantinedRow, QuarantineFilter, QuarantineRow, QuarantineState
from twinmesh_storage.domain.ports import SeriesFilter
from twinmesh_storage.domain.series import Series, SeriesRequest, check_same

_S: Final = "s.tenant, s.series_id, s.twin_id, s.channel, s.kind, s.unit, s.expected_interval_us, s.retention_class"
_NAMES: Final = "unnest(%(twin)s::text[], %(channel)s::text[])"

_FIND: Final = f"""
select {_S} from {_NAMES} as k (twin_id, channel)
join series s on s.tenant = %(tenant)s and s.twin_id = k.twin_id and s.channel = k.channel
"""  # noqa: S608 -- constants of this module

_CREATE: Final = """
insert into series (tenant, twin_id, channel, kind, unit, expected_interval_us)
select %(tenant)s, v.twin_id, v.channel, v.kind, v.unit, v.interval_us
from unnest(%(twin)s::text[], %(channel)s::text[], %(kind)s::smallint[], %(unit)s::text[], %(interval)s::bigint[])
     as v (twin_id, channel, kind, unit, interval_us)
order by v.twin_id, v.channel
on conflict (tenant, twin_id, channel) do nothing
"""
"""In one order everywhere, so that two callers creating the same series wait for each other and do not deadlock."""

_CLASSIFY: Final = """
with told as (
    select distinct on (v.twin_id, v.channel) s.series_id, v.class, v.at
    from unnest(%(twin)s::text[], %(channel)s::text[], %(class)s::text[], %(at)s::bigint[])
         as v (twin_id, channel, class, at)
    join series s on s.tenant = %(tenant)s and s.twin_id = v.twin_id and s.channel = v.channel
    where s.retention_class <> v.class and s.class_offset <= v.at
    order by v.twin_id, v.channel, v.at desc),
locked as (
    select s.series_id from series s join told using (series_id)
    where s.tenant = %(tenant)s order by s.series_id for update of s)
update series s set retention_class = told.class, class_offset = told.at
from told join locked using (series_id)
where s.tenant = %(tenant)s and s.series_id = told.series_id and s.class_offset <= told.at
"""
"""Looks before it locks, in one order, since classes hardly ever change; a later word that came between stays."""

_LOAD: Final = f"select {_S} from series s"  # noqa: S608 -- constants of this module
_FIND_IDS: Final = f"{_LOAD} where s.tenant = %(tenant)s and s.series_id = any(%(ids)s)"
_LIST_TWINS: Final = f"{_LOAD} where s.tenant = %(tenant)s and s.twin_id = any(%(twins)s)"

_PAGE: Final = f"""
{_LOAD} where tenant = %(tenant)s and (%(twin)s = '' or twin_id = %(twin)s)
  and (%(channel)s = '' or channel = %(channel)s)
  and (cardinality(%(kinds)s::smallint[]) = 0 or kind = any(%(kinds)s))
  and (%(newest)s::bigint is null or series_id <= %(newest)s)
  and (twin_id, channel) > (%(after_twin)s, %(after_channel)s)
order by twin_id, channel limit %(limit)s
"""

_NEWEST_ID: Final = "select coalesce(max(series_id), 0) from series where tenant = %(tenant)s"

_QUARANTINE_FILTER: Final = """
from quarantine where tenant = %(tenant)s and state = %(state)s
  and (cardinality(%(reasons)s::smallint[]) = 0 or reason = any(%(reasons)s))
  and (%(twin)s = '' or twin_id = %(twin)s) and (%(channel)s = '' or channel = %(channel)s)
  and (%(start)s::bigint is null or time_unix_us >= %(start)s) and (%(end)s::bigint is null or time_unix_us < %(end)s)
  and log_offset >= %(start_offset)s
  and (%(end_offset)s = 0 or log_offset < %(end_offset)s)
  and (cardinality(%(ids)s::bigint[]) = 0 or quarantine_id = any(%(ids)s))
"""
_QUARANTINE_COLUMNS: Final = """quarantine_id, log_offset, commit_time, twin_id, channel, unit, time_unix_us, value,
quality, reason, message, raw_value, state, resolve_offset, principal, comment"""
_QUARANTINE_PAGE: Final = f"""
select {_QUARANTINE_COLUMNS}, found from (
    select page.*, sum(bytes) over (order by quarantine_id {{order}}) - bytes as bytes_before, count(*) over () as found
    from (select {_QUARANTINE_COLUMNS},
                 octet_length(value) + octet_length(raw_value) + octet_length(message) + 200 as bytes
          {_QUARANTINE_FILTER} and quarantine_id > %(after)s and (%(before)s = 0 or quarantine_id < %(before)s)
          order by quarantine_id {{order}} limit %(limit)s + 1) page) sized
where bytes_before < %(max_bytes)s
order by quarantine_id {{order}} limit %(limit)s
"""  # noqa: S608 -- constants of this module
_QUARANTINE_PAGES: Final = {first: _QUARANTINE_PAGE.format(order="asc" if first else "desc") for first in (True, False)}
_QUARANTINE_COUNT: Final = f"select count(*) {_QUARANTINE_FILTER}"


class PostgresSeries:
    """`SeriesStore` on PostgreSQL."""

    def __init__(self, *, pool: Pool, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s

    async def resolve(self, tenant: str, requests: Sequence[SeriesRequest]) -> list[Series]:
        """See `SeriesStore.resolve`."""
        # An id is drawn for every row that an insert tries, so try only what is missing.
        known = {(s.twin_id, s.channel): s for s in await self.find(tenant, [(r.twin_id, r.channel) for r in requests])}
        missing = {(r.twin_id, r.channel): r for r in requests if (r.twin_id, r.channel) not in known}
        if missing:
            new = list(missing.values())
            arguments = {
                "tenant": tenant,
                "twin": [r.twin_id for r in new],
                "channel": [r.channel for r in new],
                "kind": [int(r.kind) for r in new],
                "unit": [r.unit for r in new],
                "interval": [r.expected_interval_us for r in new],
            }
            async with connection(self._pool, timeout_s=self._timeout_s) as conn:
                await conn.execute(_CREATE, arguments)
            known.update({(s.twin_id, s.channel): s for s in await self.find(tenant, list(missing))})
        for index, request in enumerate(requests):
            check_same(request, known[request.twin_id, request.channel], f"series[{index}]")
        return [known[r.twin_id, r.channel] for r in requests]

    async def classify(self, tenant: str, requests: Sequence[SeriesRequest]) -> None:
        """See `SeriesStore.classify`."""
        if not requests:
            return
        arguments = {
            "tenant": tenant,
            "twin": [r.twin_id for r in requests],
            "channel": [r.channel for r in requests],
            "class": [r.retention_class for r in requests],
            "at": [r.registry_offset for r in requests],
        }
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            await conn.execute(_CLASSIFY, arguments)

    async def load(self) -> list[Series]:
        """See `SeriesStore.load`."""
        return await self._query(_LOAD, {})

    async def find(self, tenant: str, names: Sequence[tuple[str, str]]) -> list[Series]:
        """See `SeriesStore.find`."""
        twins, channels = [n[0] for n in names], [n[1] for n in names]
        return await self._query(_FIND, {"tenant": tenant, "twin": twins, "channel": channels})

    async def find_ids(self, tenant: str, series_ids: Sequence[int]) -> list[Series]:
        """See `SeriesStore.find_ids`."""
        return await self._query(_FIND_IDS, {"tenant": tenant, "ids": list(series_ids)})

    async def list_twins(self, tenant: str, twin_ids: Sequence[str]) -> list[Series]:
        """See `SeriesStore.list_twins`."""
        return await self._query(_LIST_TWINS, {"tenant": tenant, "twins": list(twin_ids)})

    async def page(self, tenant: str, wanted: SeriesFilter, after: tuple[str, str], limit: int) -> list[Series]:
        """See `SeriesStore.page`."""
        arguments = {
            "tenant": tenant,
            "twin": wanted.twin_id,
            "channel": wanted.channel,
            "kinds": [int(kind) for kind in wanted.kinds],
            "newest": wanted.newest_id,
            "after_twin": after[0],
            "after_channel": after[1],
            "limit": limit,
        }
        return await self._query(_PAGE, arguments)

    async def newest_id(self, tenant: str) -> int:
        """See `SeriesStore.newest_id`."""
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            row = await (await conn.execute(_NEWEST_ID, {"tenant": tenant})).fetchone()
        return int(row[0]) if row else 0

    async def _query(self, statement: str, arguments: dict[str, Any]) -> list[Series]:
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            return [_series(row) for row in await (await conn.execute(statement, arguments)).fetchall()]


def _series(row: tuple[Any, ...]) -> Series:
    return Series(
        tenant=row[0],
        series_id=row[1],
        twin_id=row[2],
        channel=row[3],
        kind=ChannelKind.of(row[4]),
        unit=row[5],
        expected_interval_us=row[6],
        retention_class=row[7],
    )


class PostgresQuarantine:
    """`QuarantineStore` on PostgreSQL."""

    def __init__(self, *, pool: Pool, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s

    async def page(
        self, tenant: str, wanted: QuarantineFilter, *, oldest_first: bool, limit: int, max_bytes: int
    ) -> tuple[list[QuarantinedRow], bool, int]:
        """See `QuarantineStore.page`."""
        arguments = {
            "tenant": tenant,
            "state": int(wanted.state),
            "reasons": list(wanted.reasons),
            "twin": wanted.twin_id,
            "channel": wanted.channel,
            "start": wanted.start_time_unix_us,
            "end": wanted.end_time_unix_us,
            "start_offset": wanted.start_offset,
            "end_offset": wanted.end_offset,
            "ids": list(wanted.quarantine_ids),
            "after": wanted.after,
            "before": wanted.before,
            "limit": limit,
            "max_bytes": max_bytes,
        }
        async with connection(self._pool, timeout_s=self._timeout_s) as conn:
            rows = await (await conn.execute(_QUARANTINE_PAGES[oldest_first], arguments)).fetchall()
            counted = await (await conn.execute(_QUARANTINE_COUNT, arguments)).fetchone()
        more = bool(rows) and rows[0][-1] > len(rows)
        return [_quarantined(row) for row in rows], more, (counted[0] if counted else 0)


def _quarantined(row: tuple[Any, ...]) -> QuarantinedRow:
    return QuarantinedRow(
        quarantine_id=row[0],
        offset=row[1],
        commit_time_unix_us=from_datetime(row[2]),
        row=QuarantineRow(
            twin_id=row[3],
            channel=row[4],
            unit=row[5],
            time_unix_us=row[6],
            value=bytes(row[7]),
            quality=row[8],
            reason=row[9],
            message=row[10],
            raw_value=bytes(row[11]),
        ),
        state=QuarantineState(row[12]),
        resolve_offset=row[13] or 0,
        principal=row[14],
        comment=row[15],
    )
