-- Generations: positions that the checkpoint can be taken back to, for as long as one of them needs an older version of a row.
CREATE TABLE generation (
    log_offset          bigint PRIMARY KEY,
    -- Of the entry at log_offset (of the first entry, for 0): by it a restored log is recognized, and times are found.
    commit_time_unix_us bigint NOT NULL
);

-- The save that wrote the version of a row which is valid now.
ALTER TABLE checkpoint_record ADD COLUMN since_offset bigint NOT NULL DEFAULT 0;

-- Versions that were valid for the generations in [since_offset, until_offset).
CREATE TABLE checkpoint_superseded (
    tenant       text   NOT NULL,
    kind         text   NOT NULL,
    key          text   NOT NULL,
    log_offset   bigint NOT NULL,
    body         json   NOT NULL,
    since_offset bigint NOT NULL,
    until_offset bigint NOT NULL,
    PRIMARY KEY (tenant, kind, key, until_offset)
);
