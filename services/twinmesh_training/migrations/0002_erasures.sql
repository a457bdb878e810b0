-- Twins that were erased, as the log tells it: a dataset read before holds what nobody may keep any more.
-- The incarnation is the one under which the erasure was first heard of: offsets of another cannot be compared.
create table erasures (
    tenant      text   not null,
    twin_id     text   not null,
    log_offset  bigint not null,
    incarnation text   not null,
    primary key (tenant, twin_id, log_offset)
);
create table erasures_position (
    singleton   boolean primary key default true check (singleton),
    incarnation text    not null,
    log_offset  bigint  not null
);
