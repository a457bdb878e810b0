-- Classes of retention: twin types give them to channels, ingestion tells them with the series, rules may be about one.
-- class_offset: the offset of the registry that told the class; what was told as of an earlier one changes nothing.
alter table series add column retention_class text not null default '';
alter table series add column class_offset bigint not null default 0;

-- A rule of a class is one of all twins and channels: '' = of any class.
alter table retention_rule add column retention_class text not null default '';
alter table retention_rule drop constraint retention_rule_pkey;
alter table retention_rule add primary key (tenant, twin_id, channel, retention_class);
