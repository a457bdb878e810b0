-- Readable history, folded from the log.

create table series (
    tenant               text   not null,
    series_id            bigint generated always as identity,
    twin_id              text   not null,
    channel              text   not null,
    kind                 smallint not null,
    unit                 text   not null,
    expected_interval_us bigint not null,
    primary key (tenant, series_id),
    unique (tenant, twin_id, channel),
    unique (series_id)
);

-- How far the log is folded into blocks; moved in the transaction that writes the blocks.
create table fold_state (
    partition_id smallint primary key,
    fold_offset  bigint   not null
) with (fillfactor = 50);
insert into fold_state values (0, 0);

-- One row per series and span of time; blocks of a series never overlap. Columns are packed little-endian behind a
-- one-byte tag (domain/columns.py). The statistics are those of GOOD values; null where there is none.
create table block (
    tenant          text     not null,
    series_id       bigint   not null,
    t0              bigint   not null,  -- first event time, microseconds since the Unix epoch
    t1              bigint   not null,  -- last event time, included
    n               integer  not null,
    good_count      integer  not null,
    uncertain_count integer  not null,
    bad_count       integer  not null,
    max_offset      bigint   not null,
    min_value       double precision,
    max_value       double precision,
    sum_value       double precision,
    m2_value        double precision,
    first_value     double precision,
    last_value      double precision,
    ts              bytea    not null,
    val             bytea    not null,
    quality         bytea    not null,
    log_offset      bytea    not null,
    primary key (tenant, series_id, t0)
);
alter table block alter column ts set storage external;
alter table block alter column val set storage external;
alter table block alter column quality set storage external;
alter table block alter column log_offset set storage external;
