-- Erasures of twins: what was asked for, and how far each is. They hold no value of the twin and stay as a record.
create table erasure (
    tenant            text        not null,
    erasure_id        text        not null,
    twin_id           text        not null,
    principal         text        not null,
    content_hash      bytea       not null,
    create_time       timestamptz not null,
    state             smallint    not null,
    step              smallint    not null,
    log_offset        bigint      not null,  -- of the entry that hid the observations; 0 = not written yet
    done_offset       bigint      not null,
    rounds            integer     not null,
    entries_rewritten bigint      not null,
    rows_erased       bigint      not null,
    scrubbed          bigint      not null,
    message           text        not null,
    end_time          timestamptz,
    primary key (tenant, erasure_id)
);
create index erasure_running on erasure (create_time) where state = 1;
