//! The key store in SQLite: the conformance suite, several processes, `kill -9`, the schema.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod common;

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{at, changed, class, dek, nanos, new_branch, spawn_all};
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;
use waxseal::ErrorKind;
use waxseal::store::conformance::{self, Outcome, Step, Subject};
use waxseal::store::{BoxFuture, BranchId, Insertion, KeyStore, RowId, StoreErrorClass, StoredRow};
use waxseal_sqlx::{SqliteKeyStore, SqliteOptions};

struct InAFile {
    path: PathBuf,
    stores: Mutex<[SqliteKeyStore; 2]>,
}

impl Subject for InAFile {
    fn store(&self) -> Arc<dyn KeyStore> {
        Arc::new(self.stores.lock().unwrap()[0].clone())
    }

    fn another(&self) -> Arc<dyn KeyStore> {
        Arc::new(self.stores.lock().unwrap()[1].clone())
    }

    fn run_at_once(&self, tasks: Vec<BoxFuture<'static, ()>>) -> BoxFuture<'_, ()> {
        spawn_all(tasks)
    }

    /// What a crash leaves is tested by a process that is killed. Here the file is opened again.
    fn crash(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            let opened = [open(&self.path).await, open(&self.path).await];
            *self.stores.lock().unwrap() = opened;
            Step::Done
        })
    }
}

async fn open(path: &Path) -> SqliteKeyStore {
    SqliteKeyStore::open(path).await.unwrap()
}

fn temporary() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.db");
    (directory, path)
}

async fn connect(path: &Path) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_in_a_file_conforms() {
    let (_directory, path) = temporary();
    let stores = Mutex::new([open(&path).await, open(&path).await]);
    let subject = InAFile { path, stores };
    let report = conformance::run(&subject).await;
    assert!(report.is_conformant(), "{report}");
    let not_applicable: Vec<_> = report
        .checks()
        .filter(|(_, outcome)| **outcome == Outcome::NotApplicable)
        .map(|(name, _)| name)
        .collect();
    assert_eq!(not_applicable, ["is_unavailable_while_it_is_away_and_recovers"]);
}

#[tokio::test]
async fn a_store_in_memory_conforms() {
    struct InMemory(SqliteKeyStore);
    impl Subject for InMemory {
        fn store(&self) -> Arc<dyn KeyStore> {
            Arc::new(self.0.clone())
        }
    }
    let store = SqliteKeyStore::in_memory().await.unwrap();
    let report = conformance::run(&InMemory(store)).await;
    assert!(report.is_conformant(), "{report}");
}

#[tokio::test]
async fn two_stores_in_memory_are_two_stores() {
    let (one, other) =
        (SqliteKeyStore::in_memory().await.unwrap(), SqliteKeyStore::in_memory().await.unwrap());
    let row = dek();
    one.insert(&row).await.unwrap();
    assert_eq!(other.get(row.id()).await.unwrap(), None);
}

#[tokio::test]
async fn an_operator_can_read_the_table() {
    let (_directory, path) = temporary();
    let (store, branch) = (open(&path).await, new_branch());
    let (live, erased, lone) = (at(branch, 1_798_761_600), at(new_branch(), 0), dek());
    for row in [&live, &erased, &lone] {
        store.insert(row).await.unwrap();
    }
    store.erase_branch(&erased.place().unwrap().branch).await.unwrap();
    store.insert(&dek().tombstone()).await.unwrap();
    store.replace(&lone, &changed(&lone)).await.unwrap();

    type Shown = (String, String, Option<String>, bool, bool);
    let shown: Vec<Shown> = sqlx::query_as(
        "SELECT kind, state, period_start, changed_at IS NOT NULL, erased_at IS NOT NULL \
         FROM waxseal_keys ORDER BY kind, state, period_start",
    )
    .fetch_all(&mut connect(&path).await)
    .await
    .unwrap();
    let row = |kind: &str, state: &str, start: Option<&str>, changed, erased| -> Shown {
        (kind.to_owned(), state.to_owned(), start.map(str::to_owned), changed, erased)
    };
    assert_eq!(
        shown,
        [
            row("branch", "live", Some("2027-01-01T00:00:00Z"), false, false),
            row("branch", "tombstone", Some("1970-01-01T00:00:00Z"), true, true),
            row("dek", "live", None, true, false),
            row("dek", "tombstone", None, false, true),
        ]
    );
    let mut connection = connect(&path).await;
    let mode: String =
        sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut connection).await.unwrap();
    assert_eq!(mode, "wal");
}

#[tokio::test]
async fn what_would_undo_an_erasure_or_lose_a_row_is_refused() {
    let (_directory, path) = temporary();
    let (store, branch) = (open(&path).await, new_branch());
    store.insert(&at(branch, 0)).await.unwrap();
    store.insert(&dek()).await.unwrap();
    store.erase_branch(&branch).await.unwrap();
    let mut connection = connect(&path).await;
    for (sql, why) in [
        ("DELETE FROM waxseal_keys", "never deleted"),
        ("DELETE FROM waxseal_keys WHERE state = 'tombstone'", "never deleted"),
        ("UPDATE waxseal_keys SET row = x'00' WHERE state = 'tombstone'", "never changed"),
        ("UPDATE waxseal_keys SET period = 7 WHERE state = 'live'", "its place"),
        ("UPDATE waxseal_keys SET row_id = zeroblob(16) WHERE state = 'live'", "its place"),
        ("UPDATE waxseal_keys SET erased_at = 'now' WHERE state = 'live'", "CHECK"),
    ] {
        let error = sqlx::raw_sql(sql).execute(&mut connection).await.unwrap_err().to_string();
        assert!(error.contains(why), "{sql}: {error}");
    }
}

#[tokio::test]
async fn a_file_that_is_no_store_of_this_version_is_refused() {
    let (directory, path) = temporary();
    drop(open(&path).await);
    sqlx::raw_sql("INSERT INTO waxseal_schema (version) VALUES (2)")
        .execute(&mut connect(&path).await)
        .await
        .unwrap();
    let error = SqliteKeyStore::open(&path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    assert!(error.to_string().contains("version 2"), "{error}");

    let noise = directory.path().join("noise");
    std::fs::write(&noise, [7; 8192]).unwrap();
    let nowhere = directory.path().join("no/such/directory/keys.db");
    for (file, why) in [
        (&noise, "noise: SQLite: file is not a database"),
        (&nowhere, "no/such/directory/keys.db: its directory is missing: SQLite: unable to open"),
    ] {
        let error = SqliteKeyStore::open(file).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misconfigured);
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn a_table_that_is_gone_is_misconfigured() {
    let (_directory, path) = temporary();
    let store = open(&path).await;
    sqlx::raw_sql("DROP TABLE waxseal_keys").execute(&mut connect(&path).await).await.unwrap();
    assert_eq!(class(store.get(dek().id()).await), StoreErrorClass::Misconfigured);
    assert_eq!(class(store.health().await), StoreErrorClass::Misconfigured);
}

#[tokio::test]
async fn a_file_that_another_keeps_locked_is_unavailable_within_the_bound() {
    let (_directory, path) = temporary();
    let options = SqliteOptions::new().busy_timeout(Duration::from_millis(200)).name("keys");
    let store = SqliteKeyStore::open_with(&path, options).await.unwrap();
    assert_eq!(store.name(), "keys");
    let (row, mut other) = (dek(), connect(&path).await);
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let began = Instant::now();
    assert_eq!(class(store.insert(&row).await), StoreErrorClass::Unavailable);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(store.get(row.id()).await.unwrap(), None, "readers do not wait");
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    assert_eq!(store.insert(&row).await.unwrap(), Insertion::Inserted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_that_open_a_new_file_at_once_make_one_schema() {
    let (_directory, path) = temporary();
    let opening: Vec<_> = (0..20)
        .map(|_| {
            let path = path.clone();
            tokio::spawn(async move { SqliteKeyStore::open(path).await.map(drop) })
        })
        .collect();
    for one in opening {
        one.await.unwrap().unwrap();
    }
    let versions: Vec<i64> = sqlx::query_scalar("SELECT version FROM waxseal_schema")
        .fetch_all(&mut connect(&path).await)
        .await
        .unwrap();
    assert_eq!(versions, [1]);
}

#[test]
fn a_store_is_made_within_a_runtime_and_used_by_any_executor() {
    let mut outside = Box::pin(SqliteKeyStore::in_memory());
    let waker = std::task::Waker::noop();
    let polled = outside.as_mut().poll(&mut std::task::Context::from_waker(waker));
    let std::task::Poll::Ready(Err(error)) = polled else { panic!("it found a runtime") };
    assert_eq!(error.kind(), ErrorKind::InvalidOption);

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let store = runtime.block_on(SqliteKeyStore::in_memory()).unwrap();
    let row = dek();
    waxseal_testing::support::block_on(store.insert(&row)).unwrap();
    assert_eq!(waxseal_testing::support::block_on(store.get(row.id())).unwrap(), Some(row));
}

const CHILD_FILE: &str = "WAXSEAL_SQLITE_CHILD";
const PLACES: i64 = 40;

/// The places that processes compete for.
fn contested() -> BranchId {
    BranchId::from_bytes([0xC0; 32])
}

/// No test by itself: what a child process does, until it is killed.
#[tokio::test]
async fn child_that_writes() {
    let Some(path) = std::env::var_os(CHILD_FILE) else { return };
    let store = open(Path::new(&path)).await;
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}").unwrap();
        out.flush().unwrap();
    };
    for period in 0..PLACES {
        if store.insert(&at(contested(), period)).await.unwrap() == Insertion::Inserted {
            say(format!("\nwon {period}"));
        }
    }
    say("\nraced".to_owned());
    loop {
        let branch = new_branch();
        for period in 0..6 {
            let row = at(branch, period);
            store.insert(&row).await.unwrap();
            say(format!("\ninserted {}", row.id()));
        }
        store.erase_branch(&branch).await.unwrap();
        say(format!("\nerased {branch}"));
    }
}

fn child(path: &Path) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_writes", "--nocapture", "--test-threads=1"])
        .env(CHILD_FILE, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

#[tokio::test]
async fn of_several_processes_one_gets_each_place() {
    let (_directory, path) = temporary();
    let children: Vec<_> = (0..3).map(|_| child(&path)).collect();
    let mut won = Vec::new();
    for (mut child, lines) in children {
        for line in lines.lines().map(Result::unwrap) {
            match line.split_once(' ') {
                Some(("won", period)) => won.push(period.parse::<i64>().unwrap()),
                _ if line == "raced" => break,
                _ => {}
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    won.sort_unstable();
    assert_eq!(won, (0..PLACES).collect::<Vec<_>>());
    let rows = open(&path).await.branch(&contested(), 0).await.unwrap();
    assert_eq!(rows.len(), won.len());
}

async fn all_rows(store: &SqliteKeyStore) -> Vec<StoredRow> {
    let (mut rows, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.scan(cursor.as_ref(), 100).await.unwrap();
        rows.extend(page.rows);
        cursor = page.next;
        if cursor.is_none() {
            return rows;
        }
    }
}

#[tokio::test]
async fn a_process_that_is_killed_loses_nothing_that_returned_and_leaves_nothing_half() {
    let (_directory, path) = temporary();
    let (mut inserted, mut erased) = (HashSet::new(), HashSet::new());
    let mut rounds = 0;
    // However slow the machine is, enough of them get on far enough.
    while rounds < 8 || inserted.len() <= 50 || erased.len() <= 8 {
        rounds += 1;
        assert!(rounds < 200, "{} {}", inserted.len(), erased.len());
        let (mut child, lines) = child(&path);
        let mut lines = lines.lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "raced"));
        std::thread::sleep(Duration::from_millis(30) + Duration::from_nanos(nanos() / 25));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines {
            match line.split_once(' ') {
                Some(("inserted", id)) if id.len() == 2 * RowId::LEN => {
                    inserted.insert(id.to_owned());
                }
                Some(("erased", branch)) if branch.len() == 64 => {
                    erased.insert(branch.to_owned());
                }
                _ => {}
            }
        }
        let store = open(&path).await;
        let rows = all_rows(&store).await;
        let ids: HashSet<_> = rows.iter().map(|row| row.id().to_string()).collect();
        let lost: Vec<_> = inserted.difference(&ids).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
        let mut states: HashMap<BranchId, Vec<bool>> = HashMap::new();
        for row in rows {
            assert!(row.row().is_ok(), "half a row: {row:?}");
            states.entry(row.place().unwrap().branch).or_default().push(row.is_tombstone());
        }
        for (branch, states) in states {
            assert!(states.iter().all(|state| *state == states[0]), "half erased: {states:?}");
            assert!(states[0] || !erased.contains(&branch.to_string()), "{branch} came back");
        }
        let check: String = sqlx::query_scalar("PRAGMA integrity_check")
            .fetch_one(&mut connect(&path).await)
            .await
            .unwrap();
        assert_eq!(check, "ok");
    }
}

#[tokio::test]
async fn a_uri_names_the_file() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("my keys");
    let uri = format!("sqlite:{}", path.display().to_string().replace(' ', "%20"));
    let store = SqliteKeyStore::from_uri(uri.clone()).await.unwrap();
    store.health().await.unwrap();
    assert!(path.exists());
    assert_eq!(store.name(), "sqlite");
    let named = format!("{uri}?store-name=orders&busy-timeout=200ms&max-connections=2");
    let named = SqliteKeyStore::from_uri(named).await.unwrap();
    assert_eq!(named.name(), "orders");
    let mut other = connect(&path).await;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let began = Instant::now();
    assert_eq!(class(named.insert(&dek()).await), StoreErrorClass::Unavailable);
    assert!(began.elapsed() < Duration::from_secs(4), "the default is 5 s");
    drop(other);
    let with_authority = format!("sqlite://{}", path.display().to_string().replace(' ', "%20"));
    SqliteKeyStore::from_uri(with_authority).await.unwrap().health().await.unwrap();
    for (uri, part) in [
        ("sqlite:", "the path is missing"),
        ("sqlite://", "would be a host"),
        ("sqlite://keys.db", "would be a host"),
        ("sqlite:/x?busy-timeout=5", "`busy-timeout` is not a duration"),
        ("sqlite:/x?max-connections=few", "`max-connections` is not a number"),
        ("sqlite:/x?store-nmae=a", "did you mean `store-name`?"),
        ("sqlite:/x?mode=ro", "`mode` is unknown"),
        ("sqlite:/no/such/folder/keys", ""),
    ] {
        let error = SqliteKeyStore::from_uri(uri.to_owned()).await.unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_was_removed_or_replaced_takes_no_row_that_would_be_lost() {
    let directory = tempfile::tempdir().unwrap();
    let (path, aside) = (directory.path().join("keys.db"), directory.path().join("aside.db"));
    let store = SqliteKeyStore::open(&path).await.unwrap();
    let (before, row) = (at(new_branch(), 0), at(new_branch(), 1));
    assert!(matches!(store.insert(&before).await, Ok(Insertion::Inserted)));
    std::fs::rename(&path, &aside).unwrap();
    for replaced in [false, true] {
        if replaced {
            std::fs::copy(&aside, &path).unwrap();
        }
        let refused = store.insert(&row).await.unwrap_err();
        assert_eq!(refused.class(), StoreErrorClass::Misconfigured, "{refused}");
        assert!(refused.to_string().contains("removed or replaced"), "{refused}");
        assert_eq!(store.health().await.unwrap_err().class(), StoreErrorClass::Misconfigured);
        assert!(store.erase_branch(&new_branch()).await.is_err());
        // What is there is read, from the file that is open.
        assert!(store.get(before.id()).await.unwrap().is_some());
        assert_eq!(path.exists(), replaced, "no empty file is made");
    }
    std::fs::rename(&aside, &path).unwrap();
    store.health().await.unwrap();
    assert!(matches!(store.insert(&row).await, Ok(Insertion::Inserted)));
}
