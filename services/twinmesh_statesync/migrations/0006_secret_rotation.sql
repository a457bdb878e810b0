-- The secret before the newest one goes on signing for a while, beside it: receivers change over without refusing any.
ALTER TABLE subscription ADD COLUMN previous_secret text NOT NULL DEFAULT '';
ALTER TABLE subscription ADD COLUMN previous_until_unix_us bigint NOT NULL DEFAULT 0;
ALTER TABLE subscription ADD COLUMN rotate_request_id text NOT NULL DEFAULT '';
