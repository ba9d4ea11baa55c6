-- Operators and functions of the trigger are those of the system, wherever the session looks first.
ALTER FUNCTION waxseal_keys_stay() SET search_path = pg_catalog, pg_temp;

INSERT INTO waxseal_schema (version) VALUES (2);
