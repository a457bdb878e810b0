-- What may leave the log, and what has left it.

-- How far followers have made the log durable on their side; a row past its expire_time holds nothing back.
create table checkpoint (
    consumer    text        primary key,
    incarnation uuid        not null,
    log_offset  bigint      not null,
    update_time timestamptz not null,
    expire_time timestamptz not null
);

-- Observations at or below trim_offset may be gone; it is committed before the first of them goes. Up to swept_offset
-- they are gone.
create table trim_state (
    partition_id smallint primary key,
    trim_offset  bigint   not null,
    swept_offset bigint   not null
) with (fillfactor = 50);
insert into trim_state values (0, 0, 0);

-- What was counted of entries that are gone, so that counts stay exact.
create table trimmed (
    tenant      text   primary key,
    entry_count bigint not null,
    point_count bigint not null
) with (fillfactor = 50);

-- To be called once after the database was restored to an earlier point, before the services start: offsets given since
-- then may be given again, so whoever holds one must be told that it means nothing any more. Nobody holds the lease
-- afterwards, and a sequencer that still runs finds that out in its next commit.
create function renew_incarnation() returns uuid language sql set search_path from current as $$
    delete from checkpoint;
    update partition_state set
        incarnation = gen_random_uuid(),
        last_group = null,
        lease_epoch = lease_epoch + 1,
        lease_holder = '',
        lease_expire_time = '-infinity'
    where partition_id = 0
    returning incarnation
$$;
