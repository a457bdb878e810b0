-- Runs, models and versions. The tenant is the first column of every key.
-- States: 1 queued, 2 running, 3 succeeded, 4 failed, 5 cancelled. Stages: 1 candidate, 2 production, 3 retired.

create table runs (
    tenant             text     not null,
    run_id             text     not null,
    number             bigint   generated always as identity,  -- order of creation, and the position of page tokens
    request_id         text     not null default '',
    digest             text     not null default '',           -- of the spec that came with request_id
    model_id           text     not null,
    spec               jsonb    not null,
    state              smallint not null default 1,
    progress           float8   not null default 0,
    phase              text     not null default '',
    error_reason       text     not null default '',
    error_message      text     not null default '',
    evaluations        jsonb    not null default '[]',
    promoted_version   integer  not null default 0,
    create_time_us     bigint   not null,
    start_time_us      bigint   not null default 0,
    end_time_us        bigint   not null default 0,
    train_window_count bigint   not null default 0,
    revision           bigint   not null default 1,            -- counts changes, so that watchers send each once
    attempt            integer  not null default 0,            -- how many workers took it
    owner              text     not null default '',           -- the worker that holds it
    lease_until        timestamptz,                            -- after this a silent worker has lost it
    cancel_requested   boolean  not null default false,
    primary key (tenant, run_id)
);
create unique index runs_by_request on runs (tenant, request_id) where request_id <> '';
create index runs_by_number on runs (tenant, number desc);
create index runs_by_model on runs (tenant, model_id, number desc);
create index runs_open on runs (number) where state <= 2;

create table models (
    tenant             text     not null,
    model_id           text     not null,
    task               smallint not null,
    production_version integer  not null default 0,
    latest_version     integer  not null default 0,
    primary key (tenant, model_id)
);

create table versions (
    tenant           text     not null,
    model_id         text     not null,
    version          integer  not null,
    number           bigint   generated always as identity,
    task             smallint not null,
    family           smallint not null,
    stage            smallint not null default 1,
    signature        jsonb    not null,
    metrics          jsonb    not null,
    lineage          jsonb    not null,
    artifact_sha256  text     not null,
    artifact_bytes   bigint   not null,
    create_time_us   bigint   not null,
    passed_gate      boolean  not null,
    golden_rows      integer  not null,
    golden_tolerance float8   not null,
    golden_window    bytea    not null,
    golden_calendar  bytea    not null,
    golden_future    bytea    not null,
    golden_quantiles bytea    not null,
    primary key (tenant, model_id, version),
    foreign key (tenant, model_id) references models (tenant, model_id)
);
-- Exactly one version of a model serves; the database holds this, whoever writes.
create unique index versions_in_production on versions (tenant, model_id) where stage = 2;
create index versions_by_number on versions (tenant, number desc);
