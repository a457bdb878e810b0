-- Processes that share the work, and who holds which part of it.

-- A row per process that lives: it counts until expire_time, or until its session is gone.
create table worker (
    holder      text        primary key,
    session     text        not null,  -- application name of its line to this database
    expire_time timestamptz not null
) with (fillfactor = 50);

-- Shards 0 to 63, and 64: the duty to write checkpoints. Whoever takes one over raises its epoch.
create table lease (
    duty   smallint primary key check (duty between 0 and 64),
    holder text     not null default '',
    epoch  bigint   not null default 0
) with (fillfactor = 50);

insert into lease (duty) select generate_series(0, 64);
