-- Rows that are not readable any more: a newer row took their place, or a deletion hid them. Kept packed like blocks
-- (domain/columns.py), one row per series and fold, until the as-of horizon.
create table superseded (
    superseded_id   bigint   generated always as identity primary key,
    tenant          text     not null,
    series_id       bigint   not null,
    t0              bigint   not null,  -- first event time, microseconds since the Unix epoch
    t1              bigint   not null,  -- last event time, included
    n               integer  not null,
    min_offset      bigint   not null,  -- lowest offset of its rows
    max_by_offset   bigint   not null,  -- highest offset that superseded one of them
    superseded_time timestamptz not null,  -- commit time of that one
    ts              bytea    not null,
    val             bytea    not null,
    quality         bytea    not null,
    log_offset      bytea    not null,
    by_offset       bytea    not null
);
create index superseded_range on superseded (tenant, series_id, t0);
create index superseded_age on superseded (superseded_time);
alter table superseded alter column ts set storage external;
alter table superseded alter column val set storage external;
alter table superseded alter column quality set storage external;
alter table superseded alter column log_offset set storage external;
alter table superseded alter column by_offset set storage external;

-- As-of reads are complete from this offset on; moved in the transaction that prunes superseded rows.
alter table fold_state add column superseded_floor bigint not null default 0;
