-- Notices are part of a checkpoint: what subscribers have not been told must survive the process.
ALTER TABLE checkpoint_record DROP CONSTRAINT checkpoint_record_kind_check;
ALTER TABLE checkpoint_record ADD CONSTRAINT checkpoint_record_kind_check
    CHECK (kind IN ('twin_type', 'twin', 'event', 'verdict', 'changes', 'notice'));

-- Who is told of what. The only table of this schema that the log cannot rebuild: back it up. Its secrets sign deliveries
-- and are never told by any call.
CREATE TABLE subscription (
    tenant               text NOT NULL,
    subscription_id      text NOT NULL,
    request_id           text NOT NULL,
    url                  text NOT NULL,
    secret               text NOT NULL,
    topic                text NOT NULL,
    username             text NOT NULL,
    password             text NOT NULL,
    wanted               json NOT NULL,
    retry_for_us         bigint NOT NULL,
    description          text NOT NULL,
    created_by           text NOT NULL,
    create_unix_us       bigint NOT NULL,
    incarnation          text NOT NULL,
    log_offset           bigint NOT NULL,
    delivered            bigint NOT NULL DEFAULT 0,
    failed_attempts      bigint NOT NULL DEFAULT 0,
    given_up             bigint NOT NULL DEFAULT 0,
    missed               bigint NOT NULL DEFAULT 0,
    last_success_unix_us bigint NOT NULL DEFAULT 0,
    last_failure_unix_us bigint NOT NULL DEFAULT 0,
    last_error           text NOT NULL DEFAULT '',
    PRIMARY KEY (tenant, subscription_id)
);

-- What its receiver has not taken yet; a row leaves when it was taken.
CREATE TABLE delivery (
    tenant           text NOT NULL,
    subscription_id  text NOT NULL,
    delivery_id      text NOT NULL,
    sequence         bigint GENERATED ALWAYS AS IDENTITY,
    place            text NOT NULL,
    subject          text NOT NULL,
    twin_id          text NOT NULL,
    body             text NOT NULL,
    tells_of_failure boolean NOT NULL,
    attempts         integer NOT NULL DEFAULT 0,
    create_unix_us   bigint NOT NULL,
    next_unix_us     bigint NOT NULL,
    dead             boolean NOT NULL DEFAULT false,
    PRIMARY KEY (tenant, subscription_id, delivery_id),
    FOREIGN KEY (tenant, subscription_id) REFERENCES subscription ON DELETE CASCADE
);

CREATE INDEX delivery_order ON delivery (tenant, subscription_id, subject, sequence) WHERE NOT dead;
CREATE INDEX delivery_due ON delivery (next_unix_us) WHERE NOT dead;
