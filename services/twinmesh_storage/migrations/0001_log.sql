-- The log, and what makes appending to it exactly-once.

-- One row per partition (there is one): who may append, and how far the log reaches. Every commit checks lease_epoch
-- here, so a sequencer that lost its lease can write nothing, whatever any clock says.
create table partition_state (
    partition_id        smallint    primary key,
    incarnation         uuid        not null,
    head_offset         bigint      not null,
    commit_time         timestamptz,
    last_group          uuid,
    lease_epoch         bigint      not null,
    lease_holder        text        not null,
    lease_expire_time   timestamptz not null,
    lease_backend_pid   integer     not null,
    lease_backend_start timestamptz not null
) with (fillfactor = 50);

insert into partition_state values
    (0, gen_random_uuid(), 0, null, null, 0, '', '-infinity', 0, '-infinity');

create table log (
    tenant      text        not null,
    log_offset  bigint      not null,
    kind        smallint    not null,  -- 1 observations, 2 control
    commit_time timestamptz not null,
    point_count integer     not null,
    body        bytea       not null,  -- the serialized batch or control entry, verbatim
    primary key (tenant, log_offset),
    unique (log_offset)
);
-- Packed binary columns do not compress well enough to pay for trying.
alter table log alter column body set storage external;
-- Followers of control entries alone skip the bulk.
create index log_control on log (log_offset) where kind = 2;

-- One high-water row per producer; it never expires, so a replay is recognised for ever.
create table producer (
    tenant        text   not null,
    producer_id   text   not null,
    epoch         bigint not null,
    last_sequence bigint not null,
    last_hash     bytea  not null,
    last_offset   bigint not null,
    last_commit_time timestamptz,
    last_receipt  bytea  not null,
    primary key (tenant, producer_id)
) with (fillfactor = 50);
alter table producer alter column last_receipt set storage external;

-- Request ids seen: of unary writes until expire_time, of control entries (null) as long as the log.
create table request (
    tenant       text        not null,
    request_id   text        not null,
    content_hash bytea       not null,
    log_offset   bigint      not null,
    commit_time  timestamptz not null,
    receipt      bytea       not null,
    expire_time  timestamptz,
    primary key (tenant, request_id)
);
create index request_expiry on request (expire_time) where expire_time is not null;

create table quarantine (
    tenant        text        not null,
    quarantine_id bigint      generated always as identity,
    log_offset    bigint      not null,
    commit_time   timestamptz not null,
    twin_id       text        not null,
    channel       text        not null,
    unit          text        not null,
    time_unix_us  bigint      not null,
    value         bytea       not null,  -- serialized twinmesh.type.v1.Value
    quality       smallint    not null,
    reason        smallint    not null,
    message       text        not null,
    primary key (tenant, quarantine_id)
);
create index quarantine_reason on quarantine (tenant, reason, quarantine_id);
