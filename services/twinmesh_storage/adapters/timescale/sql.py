"""The statements of history as hypertables, by name; `{table}` and `{packed}` are filled from constants.

Rows come back packed: one row per series, each column a bytea of big-endian values by time. That is what numpy wants,
and spares a Python object per value.
"""

from __future__ import annotations

from typing import Final

from psycopg.sql import SQL

from twinmesh_storage.adapters.postgres import folds
from twinmesh_storage.domain.rows import Lane

# A double's eight bytes are its bits, which is what rows carry.
_PACKED: Final = """
count(*), string_agg(timestamptz_send(time), ''::bytea order by time),
string_agg(int2send(quality), ''::bytea order by time), string_agg(int8send(log_offset), ''::bytea order by time),
"""
PACKED: Final = {
    Lane.NUMERIC: SQL(
        _PACKED
        + """string_agg(case when value is null then int8send(whole) else float8send(value) end,
                        ''::bytea order by time)"""
    ),
    Lane.TEXT: SQL(
        _PACKED
        + """string_agg(int4send(octet_length(body)), ''::bytea order by time),
             string_agg(body, ''::bytea order by time)"""
    ),
}

READ: Final = SQL("""
select id, {packed} from (
    select s.id, s.rank, o.* from unnest(%(series)s::bigint[]) with ordinality as s (id, rank)
    cross join lateral (
        select * from {table}
        where tenant = %(tenant)s and series_id = s.id and time >= %(start)s and time < %(end)s
        order by time limit %(limit)s) o
    order by s.rank, o.time limit %(limit)s) first_ones
group by id, rank order by rank
""")
READ_LAST: Final = SQL("""
select id, {packed} from (
    select s.id, o.* from unnest(%(series)s::bigint[]) as s (id)
    cross join lateral (
        select * from {table} where tenant = %(tenant)s and series_id = s.id order by time desc limit 1) o) newest
group by id
""")
READ_BEFORE: Final = SQL("""
select id, {packed} from (
    select s.id, o.* from unnest(%(series)s::bigint[], %(before)s::timestamptz[]) as s (id, before)
    cross join lateral (
        select * from {table} where tenant = %(tenant)s and series_id = s.id and time < s.before
        order by time desc limit %(limit)s) o) older
group by id
""")
NEWEST: Final = SQL("""
select s.id, o.time from unnest(%(tenant)s::text[], %(series)s::bigint[]) as s (tenant, id)
cross join lateral (
    select time from {table} where tenant = s.tenant and series_id = s.id order by time desc limit 1) o
""")

# With constants: so only the batches of this series and these times are unpacked and written anew.
READ_AT: Final = SQL("""
select %(series)s::bigint, {packed} from {table}
where tenant = %(tenant)s and series_id = %(series)s and time between %(first)s and %(last)s and time = any(%(times)s)
""")
DELETE_AT: Final = SQL("""
delete from {table}
where tenant = %(tenant)s and series_id = %(series)s and time between %(first)s and %(last)s and time = any(%(times)s)
""")
DELETE_RANGE: Final = SQL("""
delete from {table} where tenant = %(tenant)s and series_id = %(series)s and time >= %(start)s and time < %(end)s
""")

SPANS: Final = SQL("""
select series_id, count(*), min(time), max(time) from {table}
where tenant = %(tenant)s and series_id = any(%(series)s) group by series_id
""")
QUALITIES: Final = SQL("""
select quality, count(*) from {table}
where tenant = %(tenant)s and (%(twin)s = '' or series_id in (
    select series_id from series where tenant = %(tenant)s and twin_id = %(twin)s))
group by quality
""")
COUNTS: Final = folds.COUNTS

COUNT_BEFORE: Final = SQL("""
select count(*) filter (where tenant = %(tenant)s and series_id = any(%(series)s)),
       count(*) filter (where tenant <> %(tenant)s or series_id <> all(%(series)s))
from {table} where time < %(time)s
""")
DROP_CHUNKS: Final = "select drop_chunks(%s, older_than => %s::timestamptz)"
DELETE_BEFORE: Final = SQL("""
delete from {table} where tenant = %(tenant)s and series_id = any(%(series)s) and time < %(time)s
""")
ERASE: Final = SQL("delete from {table} where tenant = %(tenant)s and series_id = any(%(series)s)")

WITH_EXTENSION: Final = """
select set_config('search_path', concat_ws(',', quote_ident(current_schema()), extnamespace::regnamespace::text), true)
from pg_extension where extname = 'timescaledb'
"""
"""The extension's functions are in a schema of their own, which may be any."""
# By way of what settings there are: an unknown one would be an error, and these are young.
_SET: Final = "select set_config(name, v.value, true) from pg_settings join (values {}) as v (name, value) using (name)"
DIRECT: Final = _SET.format(
    "('timescaledb.enable_direct_compress_copy', %s), ('timescaledb.enable_direct_compress_copy_client_sorted', %s)"
)
ANY_NUMBER: Final = _SET.format("('timescaledb.max_tuples_decompressed_per_dml_transaction', '0')")
