//! The suite for key stores, and races of separate clients.

use std::sync::Arc;
use std::time::Duration;

use waxseal::store::conformance::{self, Outcome, Step, Subject};
use waxseal::store::{BoxFuture, Insertion, KeyStore};
use waxseal_object_store::ObjectKeyStore;
use waxseal_testing::seaweedfs::SeaweedFs;
use waxseal_testing::stand_in::{Line, Relay};

use crate::s3::{BUCKET, S3};
use crate::{local, row, s3};

struct Stores {
    store: ObjectKeyStore,
    another: ObjectKeyStore,
    relay: Option<Relay>,
}

impl Subject for Stores {
    fn store(&self) -> Arc<dyn KeyStore> {
        Arc::new(self.store.clone())
    }

    fn another(&self) -> Arc<dyn KeyStore> {
        Arc::new(self.another.clone())
    }

    fn run_at_once(&self, tasks: Vec<BoxFuture<'static, ()>>) -> BoxFuture<'_, ()> {
        Box::pin(async {
            for task in tasks.into_iter().map(tokio::spawn).collect::<Vec<_>>() {
                task.await.unwrap();
            }
        })
    }

    fn take_away(&self) -> BoxFuture<'_, Step> {
        Box::pin(async { self.set(Line::Cut) })
    }

    fn give_back(&self) -> BoxFuture<'_, Step> {
        Box::pin(async { self.set(Line::Open) })
    }

    fn answers_within(&self) -> Duration {
        Duration::from_secs(70)
    }
}

impl Stores {
    fn set(&self, line: Line) -> Step {
        match &self.relay {
            Some(relay) => {
                relay.set(line);
                Step::Done
            }
            None => Step::NotApplicable,
        }
    }
}

async fn conforms(subject: Stores, not_applicable: &[&str]) {
    let report = conformance::run(&subject).await;
    assert!(report.is_conformant(), "{report}");
    let others: Vec<_> = report
        .checks()
        .filter(|(_, outcome)| **outcome != Outcome::Passed)
        .map(|(name, _)| name)
        .collect();
    assert_eq!(others, not_applicable, "{report}");
}

const CRASH: &str = "keeps_over_a_crash_what_has_returned";
const AWAY: &str = "is_unavailable_while_it_is_away_and_recovers";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms_in_memory() {
    let store = ObjectKeyStore::builder("memory:///").build().unwrap();
    conforms(Stores { another: store.clone(), store, relay: None }, &[CRASH, AWAY]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms_in_local_files() {
    let folder = tempfile::tempdir().unwrap();
    let (store, another) = (local(folder.path()), local(folder.path()));
    conforms(Stores { store, another, relay: None }, &[CRASH, AWAY]).await;
}

/// None of them is ended in the suite: that is `a_crash_of_the_server_loses_nothing`.
async fn conforms_on(server: S3) {
    let relay = Relay::to(server.port());
    let store = || s3(&relay.url(), BUCKET, Duration::from_secs(60));
    conforms(Stores { store: store(), another: store(), relay: Some(relay) }, &[CRASH]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms_on_seaweedfs() {
    conforms_on(S3::seaweedfs()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms_on_moto() {
    conforms_on(S3::moto()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms_on_ministack() {
    conforms_on(S3::ministack()).await;
}

/// Each task has its own store.
async fn races(open: impl Fn() -> ObjectKeyStore) {
    const TASKS: u32 = 32;
    let store = open();
    let mut tasks = Vec::new();
    for number in 0..TASKS {
        let own = open();
        tasks.push(tokio::spawn(async move {
            let wanted = row(1, 0, number);
            (own.insert(&wanted).await.unwrap(), wanted)
        }));
    }
    let (mut winners, mut found) = (Vec::new(), Vec::new());
    for task in tasks {
        match task.await.unwrap() {
            (Insertion::Inserted, wanted) => winners.push(wanted),
            (Insertion::Exists(there), loser) => found.push((there, loser)),
        }
    }
    assert_eq!(winners.len(), 1, "{winners:?}");
    let winner = &winners[0];
    for (there, loser) in &found {
        assert_eq!(there, winner);
        assert_eq!(store.get(loser.id()).await.unwrap(), None, "a loser's row is there");
        assert_eq!(store.insert(loser).await.unwrap(), Insertion::Exists(winner.clone()));
    }
    let branch = winner.place().unwrap().branch;
    assert_eq!(store.branch(&branch, 0).await.unwrap(), winners);
    assert_eq!(store.scan(None, 100).await.unwrap().rows, winners);

    // And replacement of the one row.
    let mut tasks = Vec::new();
    for number in 0..TASKS {
        let (own, old) = (open(), winner.clone());
        tasks.push(tokio::spawn(async move {
            let mut bytes = old.as_bytes().to_vec();
            bytes.extend(number.to_be_bytes());
            let new = waxseal::store::StoredRow::from_parts(*old.id(), old.place().copied(), bytes);
            own.replace(&old, &new).await.unwrap().then_some(new)
        }));
    }
    let mut replaced = Vec::new();
    for task in tasks {
        replaced.extend(task.await.unwrap());
    }
    assert_eq!(replaced.len(), 1);
    assert_eq!(store.branch(&branch, 0).await.unwrap(), replaced);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_32_clients_wins_in_local_files() {
    let folder = tempfile::tempdir().unwrap();
    races(|| local(folder.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_32_clients_wins_on_s3() {
    for server in S3::all() {
        races(|| s3(&server.url(), BUCKET, Duration::from_secs(60))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_server_loses_nothing() {
    let mut server = SeaweedFs::start();
    server.create_bucket(BUCKET);
    let store = s3(&server.url(), BUCKET, Duration::from_secs(60));
    let rows: Vec<_> = (0..20).map(|number| row(1, i64::from(number), number)).collect();
    for row in &rows {
        assert_eq!(store.insert(row).await.unwrap(), Insertion::Inserted);
    }
    let branch = rows[0].place().unwrap().branch;
    assert_eq!(store.branch(&branch, 0).await.unwrap(), rows);
    server.restart();
    let store = s3(&server.url(), BUCKET, Duration::from_secs(60));
    assert_eq!(store.branch(&branch, 0).await.unwrap(), rows);
    assert_eq!(store.scan(None, 100).await.unwrap().rows.len(), rows.len());
    for row in &rows {
        assert_eq!(store.get(row.id()).await.unwrap().as_ref(), Some(row));
        assert_eq!(store.insert(row).await.unwrap(), Insertion::Exists(row.clone()));
    }
    assert_eq!(store.erase_branch(&branch).await.unwrap().erased, 20);
}
