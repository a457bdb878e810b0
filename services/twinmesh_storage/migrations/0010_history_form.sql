-- How this history is kept: "blocks" or "hypertable"; chosen before its first row and never changed in place.
alter table fold_state add column form text;
