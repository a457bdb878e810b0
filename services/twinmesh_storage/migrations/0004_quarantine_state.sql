-- A row kept aside stays on record when it is replayed or discarded: how it left, with which entry, and who decided.

alter table quarantine
    add column raw_value      bytea    not null default '',  -- the value's bytes where they are not UTF-8
    add column state          smallint not null default 1,   -- 1 open, 2 replayed, 3 discarded
    add column resolve_offset bigint,
    add column principal      text     not null default '',
    add column comment        text     not null default '';
drop index quarantine_reason;
create index quarantine_reason on quarantine (tenant, state, reason, quarantine_id);
create index quarantine_open on quarantine (tenant, quarantine_id) where state = 1;
