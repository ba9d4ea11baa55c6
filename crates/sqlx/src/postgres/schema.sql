CREATE TABLE IF NOT EXISTS waxseal_schema (
    version    bigint PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE waxseal_keys (
    row_id     bytea PRIMARY KEY CHECK (octet_length(row_id) = 16),
    branch     bytea CHECK (octet_length(branch) = 32),
    period     bigint,
    epoch      bigint CHECK (epoch BETWEEN 0 AND 4294967295),
    row        bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz,
    erased_at  timestamptz,
    kind text NOT NULL GENERATED ALWAYS AS (
        CASE WHEN octet_length(row) < 6 OR substring(row FROM 1 FOR 4) <> '\xc1574b01'
             THEN 'unknown' ELSE
            CASE get_byte(row, 5) WHEN 0 THEN 'dek' WHEN 1 THEN 'branch' WHEN 2 THEN 'index'
                 ELSE 'unknown' END
        END) STORED,
    state text NOT NULL GENERATED ALWAYS AS (
        CASE
            WHEN octet_length(row) = 42 AND substring(row FROM 1 FOR 5) = '\xc1574b0101'
                 AND get_byte(row, 5) <= 2
                 AND substring(row FROM 7 FOR 2) = '\x0000'
                 AND substring(row FROM 41 FOR 2) = '\x0000' THEN 'tombstone'
            WHEN substring(row FROM 1 FOR 5) = '\xc1574b0100' THEN 'live'
            ELSE 'unknown'
        END) STORED,
    period_start timestamptz GENERATED ALWAYS AS (
        CASE WHEN period BETWEEN -62135596800 AND 253402300799
             THEN to_timestamp(period::double precision) END) STORED,
    CONSTRAINT waxseal_keys_place_is_whole
        CHECK ((branch IS NULL) = (period IS NULL) AND (period IS NULL) = (epoch IS NULL)),
    -- Whoever may not write erased_at can make no tombstone.
    CONSTRAINT waxseal_keys_erased_with_permission
        CHECK ((state = 'tombstone') = (erased_at IS NOT NULL))
);

CREATE UNIQUE INDEX waxseal_keys_place ON waxseal_keys (branch, period, epoch)
    WHERE branch IS NOT NULL;

COMMENT ON TABLE waxseal_keys IS
    'Wrapped keys of waxseal. No key is here in plain. What decides is in row; all other columns are an index, or for people.';
COMMENT ON COLUMN waxseal_keys.row_id IS 'First 16 bytes of the id of the key';
COMMENT ON COLUMN waxseal_keys.branch IS 'SHA-256 of the context of the branch, for branch keys';
COMMENT ON COLUMN waxseal_keys.period IS 'When the period of the branch key began: seconds since 1970';
COMMENT ON COLUMN waxseal_keys.epoch IS 'How many keys of this branch and period were erased before';
COMMENT ON COLUMN waxseal_keys.row IS 'The key row: state, kind, id, context, wrapped keys';
COMMENT ON COLUMN waxseal_keys.created_at IS 'When the row was inserted, by the clock of this server';
COMMENT ON COLUMN waxseal_keys.changed_at IS 'When the row was last replaced, by a rewrap or an erasure';
COMMENT ON COLUMN waxseal_keys.erased_at IS 'When the row became a tombstone';
COMMENT ON COLUMN waxseal_keys.kind IS 'dek, branch or index; unknown for rows of later versions';
COMMENT ON COLUMN waxseal_keys.state IS 'live or tombstone; unknown for rows of later versions';
COMMENT ON COLUMN waxseal_keys.period_start IS 'The period as a time';
COMMENT ON TABLE waxseal_schema IS 'Versions of the schema of waxseal-sqlx, the highest is in force';

CREATE FUNCTION waxseal_keys_stay() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP IN ('DELETE', 'TRUNCATE') THEN
        RAISE EXCEPTION 'rows of waxseal_keys are erased, never deleted' USING ERRCODE = '23001';
    ELSIF OLD.state = 'tombstone' THEN
        RAISE EXCEPTION 'a tombstone of waxseal_keys is never changed' USING ERRCODE = '23001';
    ELSIF ROW (NEW.row_id, NEW.branch, NEW.period, NEW.epoch)
          IS DISTINCT FROM ROW (OLD.row_id, OLD.branch, OLD.period, OLD.epoch) THEN
        RAISE EXCEPTION 'a row of waxseal_keys keeps its id and its place' USING ERRCODE = '23001';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER waxseal_keys_stay BEFORE UPDATE OR DELETE ON waxseal_keys
    FOR EACH ROW EXECUTE FUNCTION waxseal_keys_stay();
CREATE TRIGGER waxseal_keys_are_not_truncated BEFORE TRUNCATE ON waxseal_keys
    FOR EACH STATEMENT EXECUTE FUNCTION waxseal_keys_stay();

INSERT INTO waxseal_schema (version) VALUES (1);
