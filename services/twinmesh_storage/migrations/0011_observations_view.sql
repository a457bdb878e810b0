-- History for people and dashboards: packed blocks as rows. domain/columns.py says how columns are packed; what it
-- writes and what these functions read is held together by a test.

create function little_endian(data bytea, at integer, width integer) returns bigint
language sql immutable strict parallel safe
return case width
    when 1 then get_byte(data, at)::bigint
    when 2 then (get_byte(data, at) + (get_byte(data, at + 1) << 8))::bigint
    when 4 then get_byte(data, at)::bigint + (get_byte(data, at + 1) << 8) + (get_byte(data, at + 2) << 16)
                + (get_byte(data, at + 3)::bigint << 24)
    else (get_byte(data, at)::bigint + (get_byte(data, at + 1) << 8) + (get_byte(data, at + 2) << 16)
          + (get_byte(data, at + 3)::bigint << 24) + (get_byte(data, at + 4)::bigint << 32)
          + (get_byte(data, at + 5)::bigint << 40) + (get_byte(data, at + 6)::bigint << 48))
         | (get_byte(data, at + 7)::bigint << 56)
end;

-- 64-bit arithmetic wraps around, there as in the packing.
create function wrapped(value numeric) returns bigint
language sql immutable strict parallel safe
return case
    when value between -9223372036854775808 and 9223372036854775807 then value::bigint
    else (mod(mod(value + 9223372036854775808, 18446744073709551616) + 18446744073709551616, 18446744073709551616)
          - 9223372036854775808)::bigint
end;

create function packed_differences(data bytea, at integer, n integer) returns bigint[]
language plpgsql immutable strict parallel safe as $$
declare
    start bigint := little_endian(data, at, 8);
    least_step bigint := little_endian(data, at + 8, 8);
    width integer := get_byte(data, at + 16);
begin
    -- Small differences of telemetry add up as integers; a numeric sum takes four times as long.
    if width = 1 and abs(least_step) < 1000000000000 and abs(start) < 4611686018427387904 then
        return array(
            select start + least_step * i + coalesce(sum(get_byte(data, at + 16 + i)) filter (where i > 0)
                over (order by i rows unbounded preceding), 0)
            from generate_series(0, n - 1) as i order by i);
    end if;
    return array(
        select wrapped(start + sum(case when i = 0 then 0
            else least_step::numeric + little_endian(data, at + 17 + width * (i - 1), width) end)
            over (order by i rows unbounded preceding))
        from generate_series(0, n - 1) as i order by i);
end $$;

create function packed_frame(data bytea, at integer, n integer) returns bigint[]
language sql immutable strict parallel safe
return array(
    select little_endian(data, at, 8) + little_endian(data, at + 9 + get_byte(data, at + 8) * i, get_byte(data, at + 8))
    from generate_series(0, n - 1) as i order by i);

create function packed_ints(data bytea, n integer) returns bigint[]
language plpgsql immutable strict parallel safe as $$
begin
    case get_byte(data, 0)
        when 0 then  -- RAW
            return array(select little_endian(data, 1 + 8 * i, 8) from generate_series(0, n - 1) as i order by i);
        when 1 then  -- CONST
            return array_fill(little_endian(data, 1, 8), array[n]);
        when 2 then  -- RUNS
            return array(
                select r.value from (
                    select k, little_endian(data, 5 + 8 * k, 8) as value,
                           little_endian(data, 5 + 8 * little_endian(data, 1, 4)::integer + 4 * k, 4) as length
                    from generate_series(0, little_endian(data, 1, 4)::integer - 1) as k) r
                cross join lateral generate_series(1, r.length) order by r.k);
        when 3 then  -- STEP
            return array(select little_endian(data, 1, 8) + little_endian(data, 9, 8) * i
                         from generate_series(0, n - 1) as i order by i);
        when 4 then return packed_differences(data, 1, n);  -- DELTA
        when 5 then return packed_frame(data, 1, n);  -- FRAME
        else raise exception 'column tag % is not known', get_byte(data, 0);
    end case;
end $$;

create function packed_bytes(data bytea, n integer) returns smallint[]
language plpgsql immutable strict parallel safe as $$
begin
    case get_byte(data, 0)
        when 0 then
            return array(select get_byte(data, 1 + i)::smallint from generate_series(0, n - 1) as i order by i);
        when 1 then return array_fill(get_byte(data, 1)::smallint, array[n]);
        else
            return array(
                select r.value from (
                    select k, get_byte(data, 5 + k)::smallint as value,
                           little_endian(data, 5 + little_endian(data, 1, 4)::integer + 4 * k, 4) as length
                    from generate_series(0, little_endian(data, 1, 4)::integer - 1) as k) r
                cross join lateral generate_series(1, r.length) order by r.k);
    end case;
end $$;

-- The double whose bits these are; ingestion keeps no NaN and no infinity.
create function double_of_bits(bits bigint) returns double precision
language sql immutable strict parallel safe
return (case when bits < 0 then '-1'::double precision else 1 end)
    * case when ((bits >> 52) & 2047) = 0 then (bits & 4503599627370495)::double precision * power(2::double precision, -1074)
           else ((bits & 4503599627370495) | 4503599627370496)::double precision
                * power(2::double precision, ((bits >> 52) & 2047)::double precision - 1075)
      end;

create function packed_doubles(data bytea, n integer) returns double precision[]
language plpgsql immutable strict parallel safe as $$
begin
    case get_byte(data, 0)
        when 6 then  -- DECIMAL
            return array(select v / power(10::double precision, get_byte(data, 1))
                         from unnest(packed_frame(data, 2, n)) with ordinality as u (v, i) order by i);
        when 8 then  -- SLOPE
            return array(select v / power(10::double precision, get_byte(data, 1))
                         from unnest(packed_differences(data, 2, n)) with ordinality as u (v, i) order by i);
        else
            return array(select double_of_bits(v)
                         from unnest(packed_ints(data, n)) with ordinality as u (v, i) order by i);
    end case;
end $$;

create function packed_texts(data bytea, n integer) returns text[]
language sql immutable strict parallel safe
return array(
    select convert_from(substring(data from 2 + 4 * n + coalesce(lag(ends) over (order by i), 0)::integer
                                  for (ends - coalesce(lag(ends) over (order by i), 0))::integer), 'UTF8')
    from (select i, little_endian(data, 1 + 4 * i, 4) as ends from generate_series(0, n - 1) as i) e order by i);

create function unix_us(moment timestamptz) returns bigint
language sql immutable parallel safe
return case when moment = '-infinity' then -4611686018427387904 when moment = 'infinity' then 4611686018427387904
    else (extract(epoch from moment) * 1000000)::bigint end;

-- Kinds: 1 gauge, 2 counter (doubles), 3 state, 4 bool (whole numbers), 5 text, 6 JSON.
create function observations_between(start_time timestamptz, end_time timestamptz)
returns table (tenant text, twin_id text, channel text, unit text, "time" timestamptz, value double precision,
               "text" text, quality text, log_offset bigint)
language sql stable parallel safe as $$
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
    where r.ts >= unix_us(start_time) and r.ts < unix_us(end_time)
$$;

comment on function observations_between(timestamptz, timestamptz) is
'Readable observations with start_time <= time < end_time, for SQL users and dashboards: only blocks of that time are
read and unpacked. Filter by tenant, twin_id and channel, which find the series by index. A text or JSON value is in
"text", any other in "value". What is not folded yet is missing: it lags by the compactor, some seconds.';

create view observations as select * from observations_between('-infinity', 'infinity');
comment on view observations is
'All readable observations, as observations_between(start_time, end_time) gives them. A filter by tenant, twin_id and
channel is by index; a filter by time is applied after unpacking, so for a part of a long history use the function. What
is not folded yet is missing: it lags by the compactor, some seconds.';
