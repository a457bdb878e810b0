"""The statements of history as blocks, by name."""

from __future__ import annotations

from typing import Final

from twinmesh_storage.adapters.postgres import folds
from twinmesh_storage.adapters.postgres.copying import copy_statement

COLUMNS: Final = (
    "tenant",
    "series_id",
    "t0",
    "t1",
    "n",
    "good_count",
    "uncertain_count",
    "bad_count",
    "max_offset",
    "min_value",
    "max_value",
    "sum_value",
    "m2_value",
    "first_value",
    "last_value",
    "ts",
    "val",
    "quality",
    "log_offset",
    "width",
)
COPY_BLOCKS: Final = copy_statement("block", COLUMNS)
_B: Final = ", ".join(f"b.{column}" for column in COLUMNS)

# Parameters and constants, not columns of other tables: so partitions are left out while planning already, of which
# there may be hundreds. A block never leaves its cell, which bounds where one that reaches into a range can begin.
_WITHIN: Final = "width = any(%(widths)s::smallint[]) and t0 >= %(low)s"

# Blocks of a series do not overlap, so only the last one that begins before the range can reach into it.
READ: Final = f"""
select {_B}, b.total from (
    select *, sum(n) over in_order as total, row_number() over in_order as number from (
        select s.rank, b.* from unnest(%(series)s::bigint[]) with ordinality as s (id, rank)
        cross join lateral (
            select * from block
            where tenant = %(tenant)s and series_id = s.id and t0 < %(end)s and t1 >= %(start)s and {_WITHIN}
              and t0 >= coalesce((select max(t0) from block
                                  where tenant = %(tenant)s and series_id = s.id and t0 <= %(start)s and {_WITHIN}),
                                 %(start)s)
            order by t0 limit %(limit)s) b
        order by s.rank, b.t0 limit %(limit)s) first_ones
    window in_order as (order by rank, t0)) b
where b.total - b.n < %(max_rows)s or b.number <= 2
order by b.total
"""  # noqa: S608 -- constants of this module

# One value with all records, as numpy reads them: a row of Python values for each block would cost ten times as much.
_RECORD: Final = " || ".join(
    [f"int8send(b.{name}::bigint)" for name in ("series_id", "t0", "t1")]
    + [f"int8send(b.{name}::bigint)" for name in ("good_count", "uncertain_count", "bad_count", "max_offset")]
    + [
        f"float8send(coalesce(b.{name}, 'NaN'))"
        for name in ("min_value", "max_value", "sum_value", "m2_value", "first_value", "last_value")
    ]
)
SUMMARIES: Final = f"""
select string_agg({_RECORD}, ''::bytea order by b.rank, b.t0) from (
    select s.rank, b.* from unnest(%(series)s::bigint[]) with ordinality as s (id, rank)
    cross join lateral (
        select series_id, t0, t1, good_count, uncertain_count, bad_count, max_offset,
               min_value, max_value, sum_value, m2_value, first_value, last_value from block
        where tenant = %(tenant)s and series_id = s.id and t0 < %(end)s and t1 >= %(start)s and {_WITHIN}
          and t0 >= coalesce((select max(t0) from block
                              where tenant = %(tenant)s and series_id = s.id and t0 <= %(start)s and {_WITHIN}),
                             %(start)s)
        order by t0 limit %(limit)s) b
    order by s.rank, b.t0 limit %(limit)s) b
"""  # noqa: S608 -- constants of this module

READ_LAST: Final = f"""
select {_B} from unnest(%(series)s::bigint[]) as s (id)
cross join lateral (
    select * from block where tenant = %(tenant)s and series_id = s.id and width in (0, %(width)s)
    order by t0 desc limit 1) b
"""  # noqa: S608 -- constants of this module

READ_BEFORE: Final = f"""
select {_B} from unnest(%(series)s::bigint[], %(before)s::bigint[]) as s (id, before)
cross join lateral (
    select * from block
    where tenant = %(tenant)s and series_id = s.id and width in (0, %(width)s) and t0 < s.before and t0 < %(most)s
    order by t0 desc limit 1) b
"""  # noqa: S608 -- constants of this module

# Blocks that overlap the span, and small ones before it with no bigger one between: merged, these overlap nothing.
READ_TOUCHED: Final = f"""
select {_B} from unnest(%(tenant)s::text[], %(series)s::bigint[], %(cell)s::bigint[], %(first)s::bigint[],
                        %(last)s::bigint[], %(small)s::int[]) as s (tenant, id, cell, first, last, small)
cross join lateral (
    select * from block
    where tenant = s.tenant and series_id = s.id and t0 >= s.cell and t0 <= s.last
      and width in (0, %(width)s) and t0 between %(low)s and %(high)s
      and (t1 >= s.first or (n < s.small and t0 > coalesce(
          (select max(x.t0) from block x
           where x.tenant = s.tenant and x.series_id = s.id and x.t0 >= s.cell and x.t1 < s.first and x.n >= s.small
             and x.width in (0, %(width)s) and x.t0 between %(low)s and %(high)s), s.cell - 1)))) b
"""  # noqa: S608 -- constants of this module

# A block that an edge of a hide cuts in two has to be unpacked; those wholly inside are moved as they are.
READ_CUT: Final = f"""
select {_B} from block b
where tenant = %(tenant)s and series_id = any(%(series)s) and t0 < %(end)s and t1 >= %(start)s
  and (t0 < %(start)s or t1 >= %(end)s) and {_WITHIN}
"""  # noqa: S608 -- constants of this module

MOVE_HIDDEN: Final = """
with gone as (
    delete from block
    where tenant = %(tenant)s and series_id = any(%(series)s) and t0 >= %(start)s and t0 < %(end)s and t1 < %(end)s
      and max_offset < %(offset)s
    returning *),
moved as (
    insert into superseded (tenant, series_id, t0, t1, n, min_offset, max_by_offset, superseded_time,
                            ts, val, quality, log_offset, by_offset)
    select tenant, series_id, t0, t1, n, 0, %(offset)s, %(time)s, ts, val, quality, log_offset, %(by)b from gone
    returning n)
select coalesce(sum(n), 0) from moved
"""

DELETE: Final = """
delete from block b
using unnest(%(tenant)s::text[], %(series)s::bigint[], %(t0)s::bigint[]) as k (tenant, series_id, t0)
where b.tenant = k.tenant and b.series_id = k.series_id and b.t0 = k.t0
  and b.width in (0, %(width)s) and b.t0 between %(low)s and %(high)s
"""

ERASE: Final = """
with gone as (delete from block where tenant = %(tenant)s and series_id = any(%(series)s) returning n)
select coalesce(sum(n), 0) from gone
"""
DROP_BEFORE: Final = """
with gone as (
    delete from block
    where tenant = %(tenant)s and series_id = any(%(series)s) and t1 < %(time)s and t0 < %(time)s returning n)
select coalesce(sum(n), 0) from gone
"""
DROP_STRADDLING: Final = f"""
delete from block b
where tenant = %(tenant)s and series_id = any(%(series)s) and t0 < %(time)s and t1 >= %(time)s and {_WITHIN}
returning {_B}
"""  # noqa: S608 -- constants of this module

SPANS: Final = """
select series_id, sum(n)::bigint, min(t0), max(t1) from block
where tenant = %(tenant)s and series_id = any(%(series)s) group by series_id
"""

COUNTS: Final = f"""
with mine as (select series_id from series where tenant = %(tenant)s and (%(twin)s = '' or twin_id = %(twin)s))
select c.*, coalesce(sum(b.good_count), 0), coalesce(sum(b.uncertain_count), 0), coalesce(sum(b.bad_count), 0)
from ({folds.COUNTS}) as c (entries, landed, series, quarantined, disk, fold, trim)
left join block b on b.tenant = %(tenant)s and (%(twin)s = '' or b.series_id in (select series_id from mine))
group by c.entries, c.landed, c.series, c.quarantined, c.disk, c.fold, c.trim
"""  # noqa: S608 -- constants of this module
