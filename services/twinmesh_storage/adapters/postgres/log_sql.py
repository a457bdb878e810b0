"""The statements of the log, by name."""

from __future__ import annotations

from typing import Final

from twinmesh_storage.adapters.postgres.copying import copy_statement
from twinmesh_storage.domain.entries import EntryKind

LEASE: Final = """
select lease_holder,
       lease_holder in ('', %(holder)s)
       or lease_expire_time < clock_timestamp()
       or not exists (select from pg_stat_activity
                      where pid = lease_backend_pid and backend_start = lease_backend_start)
from partition_state where partition_id = 0
"""
"""Whether asking for the lease has a chance: a look that waits for nobody."""

END_SESSIONS: Final = """
select pg_terminate_backend(a.pid) from pg_stat_activity a, partition_state p
where p.partition_id = 0 and p.lease_holder = %(holder)s
  and a.datname = current_database() and a.pid <> pg_backend_pid()
  and ((a.pid = p.lease_backend_pid and a.backend_start = p.lease_backend_start)
       or a.application_name = 'twinmesh-storage-' || %(tag)s)
"""
"""A process that was stopped in the middle of a COPY keeps its locks for ever: no timeout of the server ends that."""

LOCK_PARTITION: Final = "select from partition_state where partition_id = 0 for update"
"""Also waits for a fold of the holder before, which `for key share` marks."""

ACQUIRE: Final = """
update partition_state set
    lease_epoch = lease_epoch + 1,
    lease_holder = %(holder)s,
    lease_address = %(address)s,
    lease_expire_time = clock_timestamp() + make_interval(secs => %(lease_s)s),
    lease_backend_pid = pg_backend_pid(),
    -- A database of one session (the WebAssembly build) knows no such row.
    lease_backend_start = coalesce(
        (select backend_start from pg_stat_activity where pid = pg_backend_pid()), '-infinity')
where partition_id = 0
  and (lease_holder in ('', %(holder)s)
       or lease_expire_time < clock_timestamp()
       or not exists (select from pg_stat_activity
                      where pid = lease_backend_pid and backend_start = lease_backend_start))
returning lease_epoch
"""
"""Free, ours, expired, or its holder's session is gone: a killed holder is replaced at once, a hung one in time."""

RENEW: Final = """
update partition_state set lease_expire_time = clock_timestamp() + make_interval(secs => %(lease_s)s)
where partition_id = 0 and lease_epoch = %(epoch)s
"""

FENCE: Final = """
select lease_epoch, head_offset, greatest(clock_timestamp(), commit_time)
from partition_state where partition_id = 0 for no key update
"""
"""Holds the row until the commit, so that groups become visible in the order of their offsets."""

LOCK_PRODUCERS: Final = """
select p.tenant, p.producer_id, p.epoch, p.last_sequence, p.last_hash, p.last_offset, p.last_commit_time, p.last_receipt
from producer p join unnest(%s::text[], %s::text[]) as k (tenant, producer_id) using (tenant, producer_id)
order by p.tenant, p.producer_id for update of p
"""

READ_REQUESTS: Final = """
select r.tenant, r.request_id, r.content_hash, r.log_offset, r.commit_time, r.receipt
from request r join unnest(%s::text[], %s::text[]) as k (tenant, request_id) using (tenant, request_id)
"""

LOCK_QUARANTINE: Final = """
select q.tenant, q.quarantine_id
from quarantine q join unnest(%s::text[], %s::bigint[]) as k (tenant, quarantine_id) using (tenant, quarantine_id)
where q.state = 1 order by q.tenant, q.quarantine_id for update of q
"""

MOVE_QUARANTINE: Final = """
update quarantine set state = %(state)s, resolve_offset = %(offset)s, principal = %(principal)s, comment = %(comment)s
where tenant = %(tenant)s and quarantine_id = any(%(ids)s)
"""

JUDGE_QUARANTINE: Final = """
update quarantine q set reason = v.reason, message = v.message
from unnest(%(ids)s::bigint[], %(reasons)s::smallint[], %(messages)s::text[]) as v (quarantine_id, reason, message)
where q.tenant = %(tenant)s and q.quarantine_id = v.quarantine_id
"""

MOVE_PRODUCERS: Final = """
with moved as (
    update producer p set
        last_sequence = v.sequence, last_hash = v.hash, last_offset = v.log_offset, last_receipt = v.receipt,
        last_commit_time = %(commit_time)s::timestamptz
    from unnest(%(tenant)s::text[], %(producer_id)s::text[], %(epoch)s::bigint[], %(sequence)s::bigint[],
                %(hash)b::bytea[], %(offset)s::bigint[], %(receipt)b::bytea[])
         as v (tenant, producer_id, epoch, sequence, hash, log_offset, receipt)
    where p.tenant = v.tenant and p.producer_id = v.producer_id
      and p.epoch = v.epoch and p.last_sequence < v.sequence
    returning 1)
select 1 / (count(*) = cardinality(%(tenant)s::text[]))::int from moved
"""
"""Compare-and-set: a row that is not as it was read (it is locked, so this cannot be) fails the transaction."""

INSERT_REQUESTS: Final = """
insert into request (tenant, request_id, content_hash, log_offset, receipt, commit_time, expire_time)
select v.tenant, v.request_id, v.hash, v.log_offset, v.receipt, %(commit_time)s::timestamptz,
       case when v.expires then %(commit_time)s::timestamptz + make_interval(secs => %(keep_s)s) end
from unnest(%(tenant)s::text[], %(request_id)s::text[], %(hash)b::bytea[], %(offset)s::bigint[],
            %(receipt)b::bytea[], %(expires)s::boolean[])
     as v (tenant, request_id, hash, log_offset, receipt, expires)
"""

MOVE_HEAD: Final = """
update partition_state set
    head_offset = %(head)s,
    last_group = case when %(moved)s then %(group_id)s::uuid else last_group end,
    commit_time = case when %(moved)s then %(commit_time)s::timestamptz else commit_time end,
    lease_expire_time = clock_timestamp() + make_interval(secs => %(lease_s)s)
where partition_id = 0 and lease_epoch = %(epoch)s
"""

OPEN_PRODUCER: Final = """
insert into producer (tenant, producer_id, epoch, last_sequence, last_hash, last_offset, last_receipt)
values (%s, %s, 1, 0, '', 0, '')
on conflict (tenant, producer_id) do update set epoch = producer.epoch + 1
where %s::bigint = 0 or producer.epoch <= %s::bigint
returning epoch, last_sequence
"""

POSITION: Final = """
select p.incarnation, p.head_offset, p.commit_time, p.last_group, f.fold_offset, p.lease_address
from partition_state p join fold_state f using (partition_id) where partition_id = 0
"""

TRIM_OFFSET: Final = "select trim_offset from trim_state where partition_id = 0"

PRUNE_REQUESTS: Final = """
delete from request where (tenant, request_id) in (
    select tenant, request_id from request where expire_time < clock_timestamp() limit 10000)
"""

LOG_COLUMNS: Final = ("tenant", "log_offset", "kind", "commit_time", "point_count", "body")
COPY_LOG: Final = copy_statement("log", LOG_COLUMNS)

INSERT_LOG: Final = """
insert into log (tenant, log_offset, kind, commit_time, point_count, body)
select v.tenant, v.log_offset, v.kind, %(commit_time)s::timestamptz, v.point_count, v.body
from unnest(%(tenant)s::text[], %(offset)s::bigint[], %(kind)s::smallint[], %(points)s::integer[], %(body)b::bytea[])
     as v (tenant, log_offset, kind, point_count, body)
"""

QUARANTINE_COLUMNS: Final = (
    "tenant",
    "log_offset",
    "commit_time",
    "twin_id",
    "channel",
    "unit",
    "time_unix_us",
    "value",
    "quality",
    "reason",
    "message",
    "raw_value",
)
COPY_QUARANTINE: Final = copy_statement("quarantine", QUARANTINE_COLUMNS)

POINT_BYTES: Final = 24
"""What a point weighs once its body is unpacked, at most, on average."""

# Sizes come from the TOAST pointers, so no body beyond the bound is fetched; a packed one grows with its points.
_READ: Final = """
select log_offset, tenant, kind, commit_time, point_count, body
from (select page.*, sum(weight) over (order by log_offset) - weight as before
      from (select log_offset, tenant, kind, commit_time, point_count, body,
                   octet_length(body) + 24 * point_count as weight from log
            where log_offset > %(after)s and log_offset <= %(through)s{filters}
            order by log_offset limit %(entries)s) page) sized
where before < %(max_bytes)s
order by log_offset
"""


def _read(filters: str) -> str:
    return _READ.replace("{filters}", filters)


_READ_STATEMENTS: Final = {
    (of_tenant, kind): _read(
        (" and tenant = %(tenant)s" if of_tenant else "") + (f" and kind = {kind}" if kind else "")
    )
    for of_tenant in (False, True)
    for kind in (0, 1, 2)
}


def read_statement(of_tenant: bool, kinds: frozenset[EntryKind]) -> str:
    """Return the statement that reads entries of one tenant or all, of one kind or all."""
    return _READ_STATEMENTS[of_tenant, int(next(iter(kinds))) if len(kinds) == 1 else 0]
