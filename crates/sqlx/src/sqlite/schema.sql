CREATE TABLE IF NOT EXISTS waxseal_schema (
    version    INTEGER PRIMARY KEY,
    applied_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
);

-- What decides is in row. All other columns are an index, or for people.
CREATE TABLE waxseal_keys (
    row_id     BLOB PRIMARY KEY NOT NULL CHECK (length(row_id) = 16),
    branch     BLOB CHECK (length(branch) = 32),
    period     INTEGER,
    epoch      INTEGER CHECK (epoch BETWEEN 0 AND 4294967295),
    row        BLOB NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
    changed_at TEXT,
    erased_at  TEXT,
    kind TEXT GENERATED ALWAYS AS (
        CASE WHEN substr(row, 1, 4) <> x'C1574B01' THEN 'unknown' ELSE
            CASE substr(row, 6, 1)
                WHEN x'00' THEN 'dek' WHEN x'01' THEN 'branch' WHEN x'02' THEN 'index'
                ELSE 'unknown' END
        END) VIRTUAL,
    state TEXT GENERATED ALWAYS AS (
        CASE
            WHEN length(row) = 42 AND substr(row, 1, 5) = x'C1574B0101'
                 AND substr(row, 6, 1) IN (x'00', x'01', x'02')
                 AND substr(row, 7, 2) = x'0000' AND substr(row, 41, 2) = x'0000' THEN 'tombstone'
            WHEN substr(row, 1, 5) = x'C1574B0100' THEN 'live'
            ELSE 'unknown'
        END) VIRTUAL,
    period_start TEXT GENERATED ALWAYS AS (
        CASE WHEN period BETWEEN -62135596800 AND 253402300799
             THEN strftime('%Y-%m-%dT%H:%M:%SZ', period, 'unixepoch') END) VIRTUAL,
    CHECK ((branch IS NULL) = (period IS NULL) AND (period IS NULL) = (epoch IS NULL)),
    CHECK ((state = 'tombstone') = (erased_at IS NOT NULL))
);

CREATE UNIQUE INDEX waxseal_keys_place ON waxseal_keys (branch, period, epoch)
    WHERE branch IS NOT NULL;

CREATE TRIGGER waxseal_keys_stay BEFORE DELETE ON waxseal_keys
BEGIN
    SELECT RAISE(ABORT, 'rows of waxseal_keys are erased, never deleted');
END;

CREATE TRIGGER waxseal_tombstones_stay BEFORE UPDATE ON waxseal_keys WHEN OLD.state = 'tombstone'
BEGIN
    SELECT RAISE(ABORT, 'a tombstone of waxseal_keys is never changed');
END;

CREATE TRIGGER waxseal_keys_keep_their_place BEFORE UPDATE OF row_id, branch, period, epoch
    ON waxseal_keys
BEGIN
    SELECT RAISE(ABORT, 'a row of waxseal_keys keeps its id and its place');
END;

INSERT INTO waxseal_schema (version) VALUES (1);
