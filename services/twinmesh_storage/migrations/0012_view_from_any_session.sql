-- People and dashboards ask with a search path of their own: names are bound where the functions are made. A body that
-- is parsed (begin atomic) can still be inlined, so partitions are left out while planning as before.

alter function packed_differences(bytea, integer, integer) set search_path from current;
alter function packed_ints(bytea, integer) set search_path from current;
alter function packed_bytes(bytea, integer) set search_path from current;
alter function packed_doubles(bytea, integer) set search_path from current;

do $do$
begin
    -- Over hypertables the function is another one, made with them.
    if exists (select from fold_state where form = 'hypertable') then
        return;
    end if;
    execute $body$
create or replace function observations_between(start_time timestamptz, end_time timestamptz)
returns table (tenant text, twin_id text, channel text, unit text, "time" timestamptz, value double precision,
               "text" text, quality text, log_offset bigint)
language sql stable parallel safe
begin atomic
    select b.tenant, s.twin_id, s.channel, s.unit, timestamptz 'epoch' + r.ts * interval '1 microsecond',
           r.value, r.text, (array['GOOD', 'UNCERTAIN', 'BAD'])[r.quality], r.log_offset
    from series s
    -- A block is within its cell, and the cells of a width class are at most this wide (domain/partitions.py): by
    -- plain bounds, partitions are left out while planning.
    join (select * from block where width = 0 and t0 < unix_us(end_time) and t1 >= unix_us(start_time)
          union all select * from block where width = 1 and t0 < unix_us(end_time) and t1 >= unix_us(start_time)
              and t0 >= unix_us(start_time) - 600000000
          union all select * from block where width = 2 and t0 < unix_us(end_time) and t1 >= unix_us(start_time)
              and t0 >= unix_us(start_time) - 21600000000
          union all select * from block where width = 3 and t0 < unix_us(end_time) and t1 >= unix_us(start_time)
              and t0 >= unix_us(start_time) - 604800000000
          union all select * from block where width = 4 and t0 < unix_us(end_time) and t1 >= unix_us(start_time)
              and t0 >= unix_us(start_time) - 174182400000000) b
        on b.tenant = s.tenant and b.series_id = s.series_id
    cross join lateral unnest(
        packed_ints(b.ts, b.n),
        case when s.kind in (1, 2) then packed_doubles(b.val, b.n)
             when s.kind in (3, 4) then packed_ints(b.val, b.n)::double precision[] end,
        case when s.kind in (5, 6) then packed_texts(b.val, b.n) end,
        packed_bytes(b.quality, b.n),
        packed_ints(b.log_offset, b.n)) as r (ts, value, text, quality, log_offset)
    where r.ts >= unix_us(start_time) and r.ts < unix_us(end_time);
end
$body$;
end $do$;
