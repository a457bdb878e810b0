-- The checkpoint of the fold: one position, and the records that describe the fold at it.
CREATE TABLE checkpoint_position (
    singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    incarnation text NOT NULL,
    log_offset  bigint NOT NULL CHECK (log_offset >= 0),
    saved_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE checkpoint_record (
    tenant     text NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('twin_type', 'twin', 'event', 'verdict')),
    key        text NOT NULL,
    log_offset bigint NOT NULL,
    -- json, not jsonb: numbers must come back exactly as they were written, the sign of -0.0 included.
    body       json NOT NULL,
    PRIMARY KEY (tenant, kind, key)
);
