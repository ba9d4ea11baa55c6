//! The key store in PostgreSQL against a real server: the conformance suite with crashes and
//! outages, the schema, roles, failures.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;
mod duties;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{at, changed, class, dek, new_branch, spawn_all, text};
use futures_util::future::join_all;
use waxseal::ErrorKind;
use waxseal::kek::{Health, KekProvider};
use waxseal::store::StoreErrorClass::{Misconfigured, Throttled, Unavailable};
use waxseal::store::conformance::{self, Outcome, Step, Subject};
use waxseal::store::{BoxFuture, Insertion, KeyStore, StoreError, StoredRow};
use waxseal_sqlx::{PostgresKeyStore, PostgresOptions, PostgresRole};
use waxseal_testing::certificates::{Authority, Certificate};
use waxseal_testing::postgres::{PASSWORD, Postgres};

fn options(server: &Postgres, user: &str) -> PostgresOptions {
    PostgresOptions::new(server.url(user)).password(PASSWORD)
}

fn store(server: &Postgres, user: &str) -> PostgresKeyStore {
    PostgresKeyStore::new(options(server, user)).unwrap()
}

/// As the owner of the tables.
async fn migrated(server: &Postgres) -> PostgresKeyStore {
    let store = store(server, "postgres");
    store.migrate().await.unwrap();
    store
}

struct OnAServer {
    server: Mutex<Postgres>,
    stores: [PostgresKeyStore; 2],
}

impl Subject for OnAServer {
    fn store(&self) -> Arc<dyn KeyStore> {
        Arc::new(self.stores[0].clone())
    }

    fn another(&self) -> Arc<dyn KeyStore> {
        Arc::new(self.stores[1].clone())
    }

    fn run_at_once(&self, tasks: Vec<BoxFuture<'static, ()>>) -> BoxFuture<'_, ()> {
        spawn_all(tasks)
    }

    fn take_away(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            self.server.lock().unwrap().stop();
            Step::Done
        })
    }

    fn give_back(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            self.server.lock().unwrap().go_on();
            Step::Done
        })
    }

    fn answers_within(&self) -> Duration {
        Duration::from_secs(7)
    }

    fn crash(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            let mut server = self.server.lock().unwrap();
            server.kill();
            server.restart();
            Step::Done
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_on_a_server_that_is_killed_and_stopped_conforms() {
    let server = Postgres::with(&[]);
    let options = options(&server, "postgres").timeout(Duration::from_secs(5));
    let stores = [(); 2].map(|()| PostgresKeyStore::new(options.clone()).unwrap());
    stores[0].migrate().await.unwrap();
    let subject = OnAServer { server: Mutex::new(server), stores };
    let report = conformance::run(&subject).await;
    assert!(report.checks().all(|(_, outcome)| *outcome == Outcome::Passed), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_server_fails_no_call_that_begins_after_it() {
    let mut server = Postgres::with(&[]);
    let store = migrated(&server).await;
    let row = dek();
    store.insert(&row).await.unwrap();
    let reads = || join_all((0..8).map(|_| store.get(row.id())));
    for _ in 0..3 {
        // Eight connections are idle, and were used just now.
        reads().await.into_iter().for_each(|found| assert_eq!(found.unwrap().as_ref(), Some(&row)));
        server.kill();
        server.restart();
        reads().await.into_iter().for_each(|found| assert_eq!(found.unwrap().as_ref(), Some(&row)));
        server.kill();
        server.restart();
        assert_eq!(store.insert(&dek()).await.unwrap(), Insertion::Inserted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_is_made_once_whoever_else_makes_it() {
    let server = Postgres::start();
    for schema in ["public", "waxseal_keys_of_orders"] {
        let options = options(&server, "postgres").schema(schema);
        let before = PostgresKeyStore::new(options.clone()).unwrap();
        let error = before.get(dek().id()).await.unwrap_err();
        assert_eq!(error.class(), Misconfigured);
        assert!(error.to_string().contains("migrate"), "{error}");

        let migrating: Vec<_> = (0..20)
            .map(|_| {
                let store = PostgresKeyStore::new(options.clone()).unwrap();
                tokio::spawn(async move { store.migrate().await })
            })
            .collect();
        for one in migrating {
            one.await.unwrap().unwrap();
        }
        let versions = server.sql_in_keys(&format!("SELECT version FROM {schema}.waxseal_schema"));
        assert_eq!(versions, "1\n2");
        before.health().await.unwrap();
        before.insert(&dek()).await.unwrap();
        before.migrate().await.unwrap();
        let count = server.sql_in_keys(&format!("SELECT count(*) FROM {schema}.waxseal_keys"));
        assert_eq!(count, "1", "each schema has rows of its own, and a migration keeps them");
    }

    server.sql_in_keys("INSERT INTO waxseal_schema (version) VALUES (3)");
    let newer = store(&server, "postgres");
    for result in
        [newer.health().await, newer.migrate().await, newer.get(dek().id()).await.map(drop)]
    {
        let error = result.unwrap_err();
        assert_eq!(error.class(), Misconfigured);
        assert!(error.to_string().contains("version 3"), "{error}");
    }
}

#[tokio::test]
async fn an_operator_can_read_the_table_and_cannot_undo_an_erasure() {
    let server = Postgres::start();
    let (store, branch) = (migrated(&server).await, new_branch());
    let (live, erased, lone) = (at(branch, 1_798_761_600), at(new_branch(), 0), dek());
    for row in [&live, &erased, &lone] {
        store.insert(row).await.unwrap();
    }
    store.erase_branch(&erased.place().unwrap().branch).await.unwrap();
    store.insert(&dek().tombstone()).await.unwrap();
    assert!(store.replace(&lone, &changed(&lone)).await.unwrap());
    let shown = server.sql_in_keys(
        "SELECT kind, state, period_start AT TIME ZONE 'UTC', changed_at IS NOT NULL, \
         erased_at IS NOT NULL FROM waxseal_keys ORDER BY kind, state, period_start",
    );
    assert_eq!(
        shown,
        "branch|live|2027-01-01 00:00:00|f|f\n\
         branch|tombstone|1970-01-01 00:00:00|t|t\n\
         dek|live||t|f\n\
         dek|tombstone||f|t"
    );
    let without_comment = "SELECT count(*) FROM information_schema.columns AS c \
                           WHERE table_name = 'waxseal_keys' AND col_description( \
                           'waxseal_keys'::regclass, c.ordinal_position) IS NULL";
    assert_eq!(server.sql_in_keys(without_comment), "0");

    for (sql, why) in [
        ("DELETE FROM waxseal_keys", "never deleted"),
        ("TRUNCATE waxseal_keys", "never deleted"),
        ("UPDATE waxseal_keys SET row = '\\x00' WHERE state = 'tombstone'", "never changed"),
        ("UPDATE waxseal_keys SET erased_at = NULL", "never changed"),
        ("UPDATE waxseal_keys SET period = 7 WHERE state = 'live'", "its place"),
        (
            "UPDATE waxseal_keys SET erased_at = now() WHERE state = 'live'",
            "erased_with_permission",
        ),
    ] {
        let said = server.refused(sql);
        assert!(said.contains(why), "{sql}: {said}");
    }
    assert_eq!(store.get(live.id()).await.unwrap(), Some(live));
}

/// Undoes an erasure by an operator `=` for texts that never holds, which an eraser has put before
/// the system's.
fn undo_by_search_path(row: &StoredRow) -> String {
    let bytes: String = row.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let id: String = row.id().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "SET ROLE eraser; SET search_path = hostile, pg_catalog, public; \
         UPDATE public.waxseal_keys SET row = '\\x{bytes}', erased_at = NULL \
         WHERE row_id = '\\x{id}'"
    )
}

#[tokio::test]
async fn a_hostile_search_path_undoes_no_erasure_once_the_schema_is_migrated() {
    let server = Postgres::start();
    // As an earlier version of the crate left it.
    server.sql_in_keys(include_str!("../src/postgres/schema.sql"));
    server.role("eraser");
    server.sql_in_keys(&PostgresRole::Eraser.grants("public", "eraser").unwrap());
    server.sql_in_keys(
        "CREATE SCHEMA hostile AUTHORIZATION eraser; SET ROLE eraser; \
         CREATE FUNCTION hostile.never(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false'; \
         CREATE OPERATOR hostile.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.never)",
    );
    let (owner, eraser) = (store(&server, "postgres"), store(&server, "eraser"));
    let [before, after] = [dek(), dek()];
    for row in [&before, &after] {
        // Version 1 serves until an operator migrates.
        owner.insert(row).await.unwrap();
        assert!(eraser.replace(row, &row.tombstone()).await.unwrap());
    }
    owner.health().await.unwrap();
    for store in [&owner, &eraser] {
        assert!(store.warning().unwrap().contains("run `migrate`"), "{:?}", store.warning());
    }
    // The control: it is possible there.
    server.sql_in_keys(&undo_by_search_path(&before));
    assert_eq!(owner.get(before.id()).await.unwrap(), Some(before));

    owner.migrate().await.unwrap();
    let versions = server.sql_in_keys("SELECT version FROM waxseal_schema ORDER BY version");
    assert_eq!(versions, "1\n2");
    let said = server.refused(&undo_by_search_path(&after));
    assert!(said.contains("never changed"), "{said}");
    assert!(owner.get(after.id()).await.unwrap().unwrap().is_tombstone());
    // Connections from before the migration stay in use.
    assert_eq!(owner.warning(), None, "whoever migrated knows it at once");
    assert!(eraser.warning().is_some(), "nobody looked");
    eraser.health().await.unwrap();
    assert_eq!(eraser.warning(), None);
}

/// What is logged, as text.
#[derive(Clone, Default)]
struct Logged(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_schema_of_an_earlier_version_is_logged_once_and_degrades_the_health_of_branch_keys() {
    let server = Postgres::start();
    server.sql_in_keys(include_str!("../src/postgres/schema.sql"));
    let (logged, store) = (Logged::default(), Arc::new(store(&server, "postgres")));
    let writer = logged.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    // The only test of this binary that looks at the log. Connections are made on the runtime's
    // thread, which is this one.
    let guard = tracing::subscriber::set_default(subscriber);
    let root = waxseal::kek::local::LocalKek::in_memory("root").unwrap();
    let kek = waxseal::branch::BranchKek::builder(root).name("orders").store(store.clone());
    let kek = kek.build().unwrap();
    for _ in 0..3 {
        let health = kek.health().await.unwrap();
        let Health::Degraded(why) = health else { panic!("{health:?}") };
        assert!(why.starts_with("key store postgres: the schema has version 1"), "{why}");
    }
    // An erasure is done all the same: a tombstone that one role could undo is better than none.
    kek.erase::<&str, &str>([]).await.unwrap();
    let text = || String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text().matches("schema_outdated").count(), 1, "{}", text());
    assert!(text().contains("WARN waxseal_sqlx"), "{}", text());
    store.migrate().await.unwrap();
    assert_eq!(kek.health().await.unwrap(), Health::Ready);
    assert_eq!(text().matches("schema_outdated").count(), 1, "{}", text());
    drop(guard);
}

/// What a role can do: read, insert, replace, erase, insert a tombstone.
async fn abilities(store: &PostgresKeyStore, owner: &PostgresKeyStore) -> [bool; 6] {
    let (branch, row) = (new_branch(), dek());
    let placed = at(branch, 0);
    for row in [&row, &placed] {
        owner.insert(row).await.unwrap();
    }
    let can = |result: Result<(), StoreError>| match result {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.class(), Misconfigured, "{error}");
            let said = error.to_string();
            assert!(said.contains("permission denied for"), "{said}");
            false
        }
    };
    let reads = [
        store.get(row.id()).await.map(drop),
        store.branch(&branch, 0).await.map(drop),
        store.scan(None, 5).await.map(drop),
        store.health().await,
    ];
    let reads = reads.into_iter().map(can).collect::<Vec<_>>();
    assert!(reads[..3].iter().all(|read| *read == reads[0]), "{reads:?}");
    // Without reading rows: who sees that there are some can say that the store is well.
    assert!(reads[3] || !reads[0], "{reads:?}");
    let new = dek();
    let inserts = can(store.insert(&new).await.map(drop));
    if inserts {
        assert_eq!(store.insert(&new).await.unwrap(), Insertion::Exists(new));
    }
    let inserts_tombstones = can(store.insert(&dek().tombstone()).await.map(drop));
    let replaces = can(store.replace(&row, &changed(&row)).await.map(|done| assert!(done)));
    let current = owner.get(row.id()).await.unwrap().unwrap();
    let erases_one = can(store.replace(&current, &row.tombstone()).await.map(|done| assert!(done)));
    let erases = can(store.erase_branch(&branch).await.map(|done| assert_eq!(done.erased, 1)));
    let left = owner.get(placed.id()).await.unwrap().unwrap();
    assert_eq!(left.is_tombstone(), erases);
    [reads[0], inserts, inserts_tombstones, replaces, erases_one, erases]
}

#[tokio::test]
async fn each_role_can_do_what_it_needs_and_nothing_else() {
    let server = Postgres::start();
    let owner = migrated(&server).await;
    let (yes, no) = (true, false);
    for (role, name, expected) in [
        (None, "nobody_of_ours", [no, no, no, no, no, no]),
        (Some(PostgresRole::Reader), "reader", [yes, no, no, no, no, no]),
        (Some(PostgresRole::Writer), "writer", [yes, yes, no, no, no, no]),
        (Some(PostgresRole::Rewrapper), "rewrapper", [yes, no, no, yes, no, no]),
        (Some(PostgresRole::Eraser), "eraser", [yes, no, no, yes, yes, yes]),
    ] {
        server.role(name);
        if let Some(role) = role {
            server.sql_in_keys(&role.grants("public", name).unwrap());
        }
        let store = store(&server, name);
        assert_eq!(abilities(&store, &owner).await, expected, "{name}");
        assert_eq!(class(other_schema(&server, name).migrate().await), Misconfigured, "{name}");
        for sql in ["DELETE FROM waxseal_keys", "TRUNCATE waxseal_keys", "DROP TABLE waxseal_keys"]
        {
            server.refused(&format!("SET ROLE {name}; {sql}"));
        }
        server.refused(&format!("SET ROLE {name}; UPDATE waxseal_keys SET epoch = 9"));
        server.refused(&format!("SET ROLE {name}; UPDATE waxseal_schema SET version = 9"));
    }
    for name in ["", "Writer", "a b", "x;drop", "\"x\""] {
        assert!(PostgresRole::Reader.grants("public", name).is_err(), "{name}");
        assert!(PostgresRole::Reader.grants(name, "reader").is_err(), "{name}");
    }
    // They mean everybody, or the role that runs the statement.
    for name in ["public", "current_user", "pg_monitor"] {
        assert!(PostgresRole::Reader.grants("public", name).is_err(), "{name}");
    }
}

/// Where nothing was made yet.
fn other_schema(server: &Postgres, user: &str) -> PostgresKeyStore {
    PostgresKeyStore::new(options(server, user).schema("elsewhere")).unwrap()
}

#[tokio::test]
async fn failures_have_their_class_and_show_no_password_and_no_row() {
    let mut server =
        Postgres::with(&["fsync=off", "max_connections=12", "superuser_reserved_connections=3"]);
    let owner = migrated(&server).await;
    server.role("service");
    server.sql_in_keys(&PostgresRole::Writer.grants("public", "service").unwrap());
    let secret = "hunter2-of-the-test";
    let at_port =
        |port: u16| PostgresOptions::new(format!("postgres://service@127.0.0.1:{port}/keys"));
    let url = |of: &str| {
        PostgresOptions::new(format!(
            "postgres://service:{secret}@127.0.0.1:{}/{of}",
            server.port()
        ))
    };
    let unused = waxseal_testing::ports::free_port();
    for (what, options, expected) in [
        ("password of the URL", url("keys"), Misconfigured),
        ("password", at_port(server.port()).password(secret), Misconfigured),
        ("database", url("no_such").password(PASSWORD), Misconfigured),
        ("password file", url("keys").password_file("/no/such/file"), Misconfigured),
        ("TLS", url("keys?sslmode=require").password(PASSWORD), Misconfigured),
        ("port", at_port(unused).password(secret), Unavailable),
    ] {
        let debug = format!("{options:?}");
        let store = PostgresKeyStore::new(options).unwrap();
        let (row, began) = (dek(), Instant::now());
        let error = store.insert(&row).await.unwrap_err();
        assert_eq!(error.class(), expected, "{what}: {error}");
        assert!(began.elapsed() < Duration::from_secs(10), "{what}: {:?}", began.elapsed());
        let shown = format!("{} {debug} {store:?}", text(&error));
        assert!(!shown.contains(secret), "{what}: {shown}");
        let hex: String = row.as_bytes()[..20].iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!shown.contains(&hex), "{what}: {shown}");
    }

    // Nine connections are not reserved for superusers.
    let full: Vec<_> = (0..10).map(|_| store(&server, "service")).collect();
    let mut classes = Vec::new();
    for store in &full {
        classes.push(store.health().await.map_err(|error| error.class()));
    }
    assert!(classes.contains(&Ok(())) && classes.contains(&Err(Throttled)), "{classes:?}");
    drop(full);

    server.sql("ALTER ROLE service SET default_transaction_read_only = on");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(class(store(&server, "service").insert(&dek()).await), Unavailable, "read-only");

    server.kill();
    let (row, began) = (dek(), Instant::now());
    assert_eq!(class(owner.get(row.id()).await), Unavailable);
    assert!(began.elapsed() < Duration::from_secs(10));
    server.restart();
    assert_eq!(owner.insert(&row).await.unwrap(), Insertion::Inserted);
}

#[tokio::test]
async fn a_lock_that_somebody_keeps_is_unavailable_within_the_bound() {
    let server = Postgres::start();
    migrated(&server).await;
    let bound = Duration::from_millis(500);
    let store = PostgresKeyStore::new(options(&server, "postgres").timeout(bound)).unwrap();
    let row = dek();
    store.insert(&row).await.unwrap();
    let (holds, locked) = (
        "LOCK TABLE waxseal_keys; SELECT pg_sleep(60)",
        "granted AND mode = 'AccessExclusiveLock'",
    );
    let count = format!(
        "SELECT count(*) FROM pg_locks WHERE relation = 'waxseal_keys'::regclass AND {locked}"
    );
    std::thread::scope(|scope| {
        scope.spawn(|| server.refused(holds));
        while server.sql_in_keys(&count) == "0" {}
        let began = Instant::now();
        let calls = async { tokio::join!(store.insert(&row), store.get(row.id())) };
        let (insert, get) = waxseal_testing::support::block_on(calls);
        server
            .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LOCK%'");
        assert_eq!((class(insert), class(get)), (Unavailable, Unavailable));
        assert!(began.elapsed() < 20 * bound, "{:?}", began.elapsed());
    });
    assert_eq!(store.get(row.id()).await.unwrap(), Some(row));
}

#[tokio::test]
async fn a_standby_is_not_read_until_it_is_the_primary() {
    let mut server = Postgres::start();
    let store = migrated(&server).await;
    let row = dek();
    store.insert(&row).await.unwrap();
    server.kill();
    server.restart_as_standby();
    assert_eq!(server.sql_in_keys("SELECT pg_is_in_recovery(), count(*) FROM waxseal_keys"), "t|1");
    // The connection of before is broken.
    assert_eq!(class(store.get(row.id()).await), Unavailable);
    for result in [store.get(row.id()).await.map(drop), store.health().await] {
        let error = result.unwrap_err();
        assert_eq!(error.class(), Unavailable);
        assert!(error.to_string().contains("standby"), "{error}");
    }
    server.sql("SELECT pg_promote()");
    assert_eq!(store.get(row.id()).await.unwrap(), Some(row));
}

#[tokio::test]
async fn a_password_that_is_rotated_in_its_file_is_found() {
    let server = Postgres::start();
    migrated(&server).await;
    server.role("service");
    server.sql_in_keys(&PostgresRole::Reader.grants("public", "service").unwrap());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{PASSWORD}\n")).unwrap();
    let options = PostgresOptions::new(server.url("service")).password_file(file.path());
    let store = PostgresKeyStore::new(options).unwrap();
    store.health().await.unwrap();

    server.sql("ALTER ROLE service PASSWORD 'the-next-one'");
    std::fs::write(file.path(), "the-next-one").unwrap();
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'service'");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    store.health().await.unwrap();
}

#[tokio::test]
async fn a_session_that_would_lose_commits_or_look_elsewhere_is_put_right() {
    let server = Postgres::start();
    migrated(&server).await;
    server.role("service");
    server.sql_in_keys(&PostgresRole::Writer.grants("public", "service").unwrap());
    server.sql_in_keys(
        "CREATE SCHEMA elsewhere AUTHORIZATION service; \
         CREATE TABLE elsewhere.waxseal_keys (LIKE waxseal_keys); \
         ALTER ROLE service SET search_path = elsewhere, public; \
         ALTER ROLE service SET synchronous_commit = off; \
         ALTER ROLE service SET default_transaction_isolation = serializable",
    );
    server.sql_in_keys(
        "CREATE TABLE seen (synchronous_commit text, isolation text); \
         CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN \
         INSERT INTO public.seen VALUES (current_setting('synchronous_commit'), \
                                         current_setting('transaction_isolation')); \
         RETURN NEW; END $$; \
         CREATE TRIGGER look BEFORE INSERT ON waxseal_keys FOR EACH ROW EXECUTE FUNCTION look()",
    );
    let service = store(&server, "service");
    service.insert(&dek()).await.unwrap();
    assert_eq!(server.sql_in_keys("SELECT * FROM seen"), "on|read committed");
    assert_eq!(server.sql_in_keys("SELECT count(*) FROM elsewhere.waxseal_keys"), "0");
    server.sql("ALTER ROLE service SET synchronous_commit = remote_apply");
    store(&server, "service").insert(&dek()).await.unwrap();
    let stricter = "SELECT count(*) FROM seen WHERE synchronous_commit = 'remote_apply'";
    assert_eq!(server.sql_in_keys(stricter), "1", "what is stricter stays");
}

#[tokio::test]
async fn options_that_cannot_work_are_refused_at_once() {
    for (what, options) in [
        ("scheme", PostgresOptions::new("mysql://h/keys")),
        ("no URL", PostgresOptions::new("")),
        ("port", PostgresOptions::new("postgres://h:port/keys")),
        ("parameter", PostgresOptions::new("postgres://h/keys?sslmod=verify-full")),
        ("TLS mode", PostgresOptions::new("postgres://h/keys?sslmode=sometimes")),
        ("schema", PostgresOptions::new("postgres://h/keys").schema("Keys; DROP")),
        ("timeout", PostgresOptions::new("postgres://h/keys").timeout(Duration::ZERO)),
        ("connections", PostgresOptions::new("postgres://h/keys").max_connections(0)),
    ] {
        let error = PostgresKeyStore::new(options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{what}");
    }
    let named = PostgresKeyStore::new(PostgresOptions::new("postgres://h/keys").name("keys"));
    assert_eq!(named.unwrap().name(), "keys");
}

#[tokio::test]
async fn over_tls_the_server_has_to_show_a_certificate_of_an_authority_that_is_trusted() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let of = |server: &Postgres, rest: &str| {
        let url = format!("postgres://postgres@localhost:{}/keys?{rest}", server.port());
        PostgresKeyStore::new(PostgresOptions::new(url).password(PASSWORD)).unwrap()
    };
    let trusting = format!("sslmode=verify-full&sslrootcert={}", ca.display());
    for shown in [Certificate::OtherName, Certificate::OtherAuthority, Certificate::Expired] {
        let server = Postgres::with_tls(&authority, shown);
        let error = of(&server, &trusting).migrate().await.unwrap_err();
        assert_eq!(error.class(), Misconfigured, "{shown:?}: {error}");
        assert!(error.to_string().contains("TLS"), "{shown:?}: {error}");
        // The certificate was all that was wrong.
        of(&server, "sslmode=require").migrate().await.unwrap();
    }
    let server = Postgres::with_tls(&authority, Certificate::Right);
    let store = of(&server, &trusting);
    store.migrate().await.unwrap();
    let row = dek();
    assert_eq!(store.insert(&row).await.unwrap(), Insertion::Inserted);
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'waxseal'";
    assert_eq!(server.sql(encrypted), "t");
    assert_eq!(of(&server, &trusting).get(row.id()).await.unwrap(), Some(row.clone()));
    let error = of(&server, "sslmode=verify-full").get(row.id()).await.unwrap_err();
    assert_eq!(error.class(), Misconfigured, "the authority is none of Mozilla's: {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_uri_says_what_the_options_say() {
    let server = Postgres::start();
    migrated(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, PASSWORD).unwrap();
    let uri = |more: &str| {
        format!("{}?password-file={}{more}", server.url("postgres"), password.display())
    };
    let store = PostgresKeyStore::from_uri(uri("&store-name=keys&schema=public")).await.unwrap();
    store.health().await.unwrap();
    assert_eq!(store.name(), "keys");
    let elsewhere = PostgresKeyStore::from_uri(uri("&schema=elsewhere")).await.unwrap();
    elsewhere.health().await.unwrap_err();
    let error = PostgresKeyStore::from_uri(uri("&shcema=x")).await.unwrap_err();
    assert!(error.to_string().contains("does not know"), "{error}");
}
