-- Blocks in partitions, so that old data is dropped as tables: first by width class, which follows the expected
-- interval of the series (domain/partitions.py), then by ranges of time that the compactor creates as data comes.
-- What was there before becomes the class without ranges, as it is.
alter table block rename to block_rest;
alter index block_pkey rename to block_rest_pkey;
alter table block_rest add column width smallint not null default 0;
alter table block_rest drop constraint block_rest_pkey;
alter table block_rest add primary key (tenant, series_id, t0, width);

create table block (like block_rest including defaults including storage) partition by list (width);
alter table block add primary key (tenant, series_id, t0, width);
alter table block attach partition block_rest for values in (0);

create table block_1 partition of block for values in (1) partition by range (t0);
create table block_2 partition of block for values in (2) partition by range (t0);
create table block_3 partition of block for values in (3) partition by range (t0);
create table block_4 partition of block for values in (4) partition by range (t0);
