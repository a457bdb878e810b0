-- Where the process that holds the lease is reached: the others forward appends there.
alter table partition_state add column lease_address text not null default '';
