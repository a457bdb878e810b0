-- How long history is kept: by twin and channel, either of them '' = all; the most specific rule counts. keep_us 0 = for ever.
create table retention_rule (
    tenant      text        not null,
    twin_id     text        not null,
    channel     text        not null,
    keep_us     bigint      not null,
    principal   text        not null,
    update_time timestamptz not null,
    primary key (tenant, twin_id, channel)
);

-- Observations before this event time may have been dropped; null = none was.
alter table series add column history_start bigint;
