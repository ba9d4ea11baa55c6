//! Branch keys over a real PostgreSQL: processes that start together, roles, an outage of the
//! store, and processes that are killed between any two steps.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use waxseal::branch::{BranchKek, BranchKekBuilder};
use waxseal::kek::local::LocalKek;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::store::{KeyStore, RewrapOptions, RowId};
use waxseal::{Aad, CallPolicy, EncryptionContext, Envelope, ErrorKind, Limits};
use waxseal_sqlx::{PostgresKeyStore, PostgresOptions, PostgresRole};
use waxseal_testing::postgres::{PASSWORD, Postgres};
use waxseal_testing::support::rivals::Rivals;

fn options(server: &Postgres, user: &str) -> PostgresOptions {
    PostgresOptions::new(server.url(user)).password(PASSWORD).timeout(Duration::from_secs(20))
}

async fn migrated(server: &Postgres) -> PostgresKeyStore {
    let store = PostgresKeyStore::new(options(server, "postgres")).unwrap();
    store.migrate().await.unwrap();
    store
}

fn per_tenant(builder: BranchKekBuilder) -> BranchKek {
    builder.name("orders").per(["tenant"]).build().unwrap()
}

fn envelope(kek: &BranchKek) -> Envelope {
    Envelope::builder().wrap_with(kek.clone()).build().unwrap()
}

fn context(tenant: &str) -> EncryptionContext {
    EncryptionContext::new([("tenant", tenant), ("table", "cards")]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_processes_that_start_together_end_with_one_branch_key() {
    let server = Postgres::start();
    migrated(&server).await;
    let root = ScriptedKek::new("root").unwrap();
    // Pools of their own, as many processes have. A server takes a hundred connections.
    let stores = [(); 8].map(|()| {
        let options = options(&server, "postgres").max_connections(8);
        PostgresKeyStore::new(options.timeout(Duration::from_secs(60))).unwrap()
    });
    let acme = context("acme");
    let starting: Vec<_> = (0..1000)
        .map(|n| {
            let store = stores[n % stores.len()].clone();
            // Each waits as long as it takes: what is counted here is keys.
            let policy = CallPolicy::default().deadline(Duration::from_secs(60));
            let kek = BranchKek::builder(root.clone()).store(store).call_policy(policy);
            let (kek, acme) = (per_tenant(kek), acme.clone());
            tokio::spawn(async move {
                envelope(&kek).encrypt(&acme, Aad::empty(), b"row").await.unwrap()
            })
        })
        .collect();
    let mut sealed = Vec::new();
    for one in starting {
        sealed.push(one.await.unwrap());
    }
    assert_eq!(server.sql_in_keys("SELECT count(*) FROM waxseal_keys"), "1");
    let calls = root.calls();
    println!("{calls:?}");
    assert!(calls.wraps <= 1000, "{calls:?}");
    let reader = BranchKek::builder(root.clone()).store(stores[0].clone());
    let (reader, before) = (envelope(&per_tenant(reader)), calls.unwraps);
    for message in &sealed {
        reader.decrypt(&acme, Aad::empty(), message).await.unwrap();
    }
    assert_eq!(root.calls().unwraps - before, 1, "a thousand DEKs, one branch key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_does_what_it_is_for_and_is_told_what_it_may_not() {
    let server = Postgres::start();
    migrated(&server).await;
    let root = LocalKek::in_memory("root").unwrap();
    let as_role = |name: &str, role: PostgresRole| {
        server.role(name);
        server.sql_in_keys(&role.grants("public", name).unwrap());
        let store = PostgresKeyStore::new(options(&server, name)).unwrap();
        per_tenant(BranchKek::builder(root.clone()).store(store))
    };
    let reader = as_role("reader", PostgresRole::Reader);
    let writer = as_role("writer", PostgresRole::Writer);
    let rewrapper = as_role("rewrapper", PostgresRole::Rewrapper);
    let eraser = as_role("eraser", PostgresRole::Eraser);
    let acme = context("acme");

    let sealed = envelope(&writer).encrypt(&acme, Aad::empty(), b"row").await.unwrap();
    envelope(&reader).decrypt(&acme, Aad::empty(), &sealed).await.unwrap();
    // A reader writes under the branch key that is there, and makes none.
    envelope(&reader).encrypt(&acme, Aad::empty(), b"row").await.unwrap();
    let error = envelope(&reader).encrypt(&context("new"), Aad::empty(), b"row").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error}");
    assert!(error.to_string().contains("postgres"), "{error}");

    root.rotate().unwrap();
    for (kek, rewraps) in [(&writer, false), (&reader, false), (&rewrapper, true)] {
        let done = kek.rewrap_branch_keys(RewrapOptions::default(), |_| {}).await.unwrap();
        let expected = if rewraps { (1, 0) } else { (0, 1) };
        assert_eq!((done.rewrapped, done.failed), expected, "{:?}", done.first_failure);
    }
    envelope(&reader).decrypt(&acme, Aad::empty(), &sealed).await.unwrap();

    for kek in [&reader, &writer] {
        let error = kek.erase([("tenant", "acme")]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misconfigured, "{error}");
    }
    assert_eq!(eraser.erase([("tenant", "acme")]).await.unwrap().erased, 1);
    let cold = per_tenant(
        BranchKek::builder(root.clone())
            .store(PostgresKeyStore::new(options(&server, "reader")).unwrap()),
    );
    let error = envelope(&cold).decrypt(&acme, Aad::empty(), &sealed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn branch_keys_in_memory_outlast_a_store_that_is_down_and_others_name_it() {
    let mut server = Postgres::start();
    migrated(&server).await;
    let root = LocalKek::in_memory("root").unwrap();
    let store = || {
        let options = options(&server, "postgres").timeout(Duration::from_secs(5));
        PostgresKeyStore::new(options).unwrap()
    };
    let (here, elsewhere) = (store(), store());
    let warm = per_tenant(BranchKek::builder(root.clone()).store(here));
    let cold = per_tenant(BranchKek::builder(root.clone()).store(elsewhere));
    let acme = context("acme");
    let sealed = envelope(&warm).encrypt(&acme, Aad::empty(), b"row").await.unwrap();
    server.kill();
    // Another envelope, so that nothing but the branch key is cached.
    envelope(&warm).decrypt(&acme, Aad::empty(), &sealed).await.unwrap();
    envelope(&warm).encrypt(&acme, Aad::empty(), b"row").await.unwrap();
    let begun = Instant::now();
    let error = envelope(&cold).decrypt(&acme, Aad::empty(), &sealed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("key store"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    server.restart();
    envelope(&cold).decrypt(&acme, Aad::empty(), &sealed).await.unwrap();
}

/// A rotation day: two KEKs, a job that rewraps, one that erases, and a store that is down in
/// between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_of_compact_messages_move_to_another_kek_though_the_store_goes_away_in_between() {
    let mut server = Postgres::start();
    migrated(&server).await;
    let (old, new) = (LocalKek::in_memory("old").unwrap(), ScriptedKek::new("new").unwrap());
    new.take_batches_of(64);
    let as_role = |name: &str, role: PostgresRole| {
        server.role(name);
        server.sql_in_keys(&role.grants("public", name).unwrap());
        PostgresKeyStore::new(options(&server, name)).unwrap()
    };
    let writing = as_role("writer", PostgresRole::Writer);
    let rewrapping = as_role("rewrapper", PostgresRole::Rewrapper);
    let erasing = as_role("eraser", PostgresRole::Eraser);
    let writer = Envelope::builder().wrap_with(old.clone()).key_store(writing.clone());
    let (writer, mut messages) = (writer.build().unwrap(), Vec::new());
    for n in 0..300 {
        let context = context(&format!("tenant {n}"));
        let sealed = writer.encrypt_compact(&context, Aad::empty(), b"row").await.unwrap();
        messages.push((context, sealed.into_parts().0));
    }
    let both = |store: &PostgresKeyStore| {
        // As long as it takes on a busy machine.
        let policy = CallPolicy::default().deadline(Duration::from_secs(60));
        let builder = Envelope::builder().wrap_with(new.clone()).unwrap_with(old.clone());
        builder.key_store(store.clone()).call_policy(policy).build().unwrap()
    };
    // A writer may not replace rows. It says so, and the rows stay.
    let few = RewrapOptions::default().page(100);
    let done = both(&writing).rewrap_stored(few.clone(), |_| {}).await.unwrap();
    assert_eq!((done.rewrapped, done.failed, done.next), (0, 300, None));
    let failure = done.first_failure.unwrap();
    assert_eq!(failure.kind(), ErrorKind::Misconfigured, "{failure}");

    // The server is gone after the first page.
    let (job, mut cursor, mut rewrapped) = (both(&rewrapping), None, 0);
    let stopped = job.rewrap_stored(few.clone(), |so_far| {
        (cursor, rewrapped) = (so_far.next.clone(), so_far.rewrapped);
        server.kill();
    });
    let error = stopped.await.unwrap_err();
    assert_eq!((error.kind(), rewrapped), (ErrorKind::Unavailable, 100), "{error}");
    server.restart();
    // Someone erases a key of the rest before the job goes on, and one while it does. What finds a
    // connection from before the restart is done again.
    let erase = async |n: usize| {
        let id = RowId::from_bytes(messages[n].1[8..24].try_into().unwrap());
        loop {
            let Ok(row) = erasing.get(&id).await else { continue };
            let row = row.unwrap();
            if row.is_tombstone()
                || matches!(erasing.replace(&row, &row.tombstone()).await, Ok(true))
            {
                break;
            }
        }
    };
    let going_on = async || {
        loop {
            let options = few.clone().after(cursor.clone().unwrap());
            match job.rewrap_stored(options, |_| {}).await {
                Ok(done) => break done,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
    };
    erase(299).await;
    let (done, ()) = tokio::join!(going_on(), erase(298));
    assert_eq!((done.failed, done.unknown, done.next), (0, 0, None), "{:?}", done.first_failure);
    let again = job.rewrap_stored(few.clone(), |_| {}).await.unwrap();
    assert_eq!((again.rewrapped, again.current, again.skipped), (0, 298, 2));

    // The old KEK is gone.
    let reader = Envelope::builder().unwrap_with(new.clone()).key_store(rewrapping.clone());
    let reader = reader.build().unwrap();
    for (n, (context, sealed)) in messages.iter().enumerate() {
        match reader.decrypt(context, Aad::empty(), sealed).await {
            Ok(opened) => assert_eq!((&*opened, n < 298), (&b"row"[..], true), "{n}"),
            Err(error) => assert_eq!((error.kind(), n >= 298), (ErrorKind::Denied, true), "{n}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_rewrappers_erasers_and_who_revokes_lose_nothing_and_revive_nothing() {
    let server = Postgres::start();
    migrated(&server).await;
    let mut all = (0, 0);
    for seed in 1..=3 {
        server.sql_in_keys(
            "ALTER TABLE waxseal_keys DISABLE TRIGGER ALL; DELETE FROM waxseal_keys; \
             ALTER TABLE waxseal_keys ENABLE TRIGGER ALL",
        );
        let stores = [(); 4].map(|()| -> Arc<dyn KeyStore> {
            Arc::new(PostgresKeyStore::new(options(&server, "postgres")).unwrap())
        });
        let rivals = Rivals::new(stores.into(), seed, 40);
        let tasks: Vec<_> = rivals.tasks().into_iter().map(tokio::spawn).collect();
        for task in tasks {
            task.await.unwrap();
        }
        let (opened, refused) = rivals.check().await;
        all = (all.0 + opened, all.1 + refused);
        let unreadable = "SELECT count(*) FROM waxseal_keys WHERE 'unknown' IN (kind, state)";
        assert_eq!(server.sql_in_keys(unreadable), "0");
    }
    assert!(all.0 > 0 && all.1 > 0, "{all:?}");
}

/// What the children below need.
const URL: &str = "WAXSEAL_TEST_BRANCHES_URL";
const KEY_FILE: &str = "WAXSEAL_TEST_BRANCHES_KEY";
const SEED: &str = "WAXSEAL_TEST_BRANCHES_SEED";

fn kek_of_a_child(url: &str, key_file: &Path) -> BranchKek {
    let root = LocalKek::open_or_create(key_file, "root").unwrap();
    let options = PostgresOptions::new(url).password(PASSWORD);
    let store = PostgresKeyStore::new(options.timeout(Duration::from_secs(20))).unwrap();
    let limits = Limits::default().max_age(Duration::from_secs(60));
    per_tenant(BranchKek::builder(root).store(store).limits(limits))
}

/// Not a test by itself: makes branch keys, rewraps and erases until it is killed, and says what it
/// has released.
#[tokio::test]
async fn a_child_that_is_killed() {
    let (Ok(url), Ok(key_file), Ok(seed)) =
        (std::env::var(URL), std::env::var(KEY_FILE), std::env::var(SEED))
    else {
        return;
    };
    let kek = kek_of_a_child(&url, Path::new(&key_file));
    for n in 0_u32.. {
        let tenant = format!("{seed}-{n}");
        let context = context(&tenant);
        let sealed = envelope(&kek).encrypt(&context, Aad::empty(), b"row").await.unwrap();
        let hex: String = sealed.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("\nkept {tenant} {hex}");
        if n % 5 == 4 {
            LocalKek::open(&key_file).unwrap().rotate().unwrap();
            kek.rewrap_branch_keys(RewrapOptions::default(), |_| {}).await.unwrap();
        }
        if n % 3 == 2 {
            let erased = format!("{seed}-{}", n - 1);
            println!("\nerasing {erased}");
            kek.erase([("tenant", &erased)]).await.unwrap();
            println!("\nerased {erased}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_and_nothing_half_done_by_processes_that_are_killed() {
    let server = Postgres::start();
    migrated(&server).await;
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("root.kek");
    drop(LocalKek::open_or_create(&key_file, "root").unwrap());
    let url = server.url("postgres");
    let (mut kept, mut erasing, mut erased) = (Vec::new(), Vec::new(), Vec::new());
    for seed in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_child_that_is_killed", "--nocapture"])
            .env(URL, &url)
            .env(KEY_FILE, &key_file)
            .env(SEED, format!("s{seed}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let rows = Arc::new(AtomicU64::new(0));
        let lines = std::thread::spawn({
            let rows = Arc::clone(&rows);
            move || {
                let lines = output.lines().map_while(Result::ok);
                let count = |line: &String| {
                    rows.fetch_add(u64::from(line.starts_with("kept ")), Ordering::Relaxed);
                };
                lines.inspect(count).collect::<Vec<String>>()
            }
        });
        // However slow the machine is, half of them get to an erasure and a rewrap.
        let deadline = Instant::now() + Duration::from_secs(60);
        while rows.load(Ordering::Relaxed) < seed && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(37 * (seed % 4)));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.join().unwrap() {
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["kept", tenant, hex] if hex.len() % 2 == 0 => {
                    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
                    let sealed: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
                    kept.push((tenant.to_owned(), sealed));
                }
                ["erasing", tenant] => erasing.push(tenant.to_owned()),
                ["erased", tenant] => erased.push(tenant.to_owned()),
                _ => {}
            }
        }
    }
    assert!(kept.len() > 12 && !erased.is_empty(), "{} {}", kept.len(), erased.len());
    let kek = kek_of_a_child(&url, &key_file);
    let reader = envelope(&kek);
    let (mut readable, mut refused) = (0, 0);
    for (tenant, sealed) in &kept {
        match reader.decrypt(&context(tenant), Aad::empty(), sealed).await {
            Ok(_) => {
                assert!(!erased.contains(tenant), "{tenant} was erased");
                readable += 1;
            }
            Err(error) => {
                assert!(erasing.contains(tenant), "{tenant}: {error}");
                assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
                refused += 1;
            }
        }
    }
    println!("{readable} readable, {refused} erased");
    // What was interrupted is completed by doing it again.
    let done = kek.rewrap_branch_keys(RewrapOptions::default(), |_| {}).await.unwrap();
    assert_eq!(done.failed, 0, "{:?}", done.first_failure);
    for tenant in &erasing {
        kek.erase([("tenant", tenant)]).await.unwrap();
    }
    for (tenant, sealed) in &kept {
        let opened = reader.decrypt(&context(tenant), Aad::empty(), sealed).await;
        assert_eq!(opened.is_ok(), !erasing.contains(tenant), "{tenant}");
    }
}
