-- What should be in Triton, where each model's calls go, and which replica may change it.

CREATE TABLE deployment (
    tenant          text        NOT NULL,
    model_id        text        NOT NULL,
    version         integer     NOT NULL CHECK (version >= 1),
    task            text        NOT NULL CHECK (task IN ('FORECAST', 'DYNAMICS')),
    signature       jsonb       NOT NULL,
    twin_ids        text[]      NOT NULL,
    artifact_sha256 text        NOT NULL,
    state           text        NOT NULL CHECK (state IN ('LOADING', 'READY', 'FAILED')),
    message         text        NOT NULL DEFAULT '',
    ready_time_us   bigint      NOT NULL DEFAULT 0,   -- microseconds since the Unix epoch; 0 = never
    PRIMARY KEY (tenant, model_id, version)
);

-- One row per model: moving it is what a roll and a roll-back are.
CREATE TABLE pointer (
    tenant   text    NOT NULL,
    model_id text    NOT NULL,
    serving  integer NOT NULL CHECK (serving >= 1),
    previous integer NOT NULL DEFAULT 0,              -- kept loaded for a roll-back; 0 = none
    PRIMARY KEY (tenant, model_id)
);

-- The replica that reconciles a tenant. Expiry is judged by the database's clock alone.
CREATE TABLE lease (
    tenant     text        NOT NULL PRIMARY KEY,
    holder     text        NOT NULL,
    expires_at timestamptz NOT NULL
);
