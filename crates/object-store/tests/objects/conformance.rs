//! The suite for key stores, and races of separate clients.

use std::sync::Arc;
use std::time::Duration;

use waxseal::store::conformance::{self, Outcome, Step, Subject};
use waxseal::store::{BoxFuture, Insertion, KeyStore};
use waxseal_object_store::ObjectKeyStore;
use waxseal_testing::stand_in::{Line, Relay, StandIn};

use crate::{create_bucket, local, row, s3};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms_on_the_s3_of_moto() {
    let server = StandIn::moto();
    create_bucket(&server, "keys");
    let relay = Relay::to(server.port());
    let store = || s3(&relay.url(), "keys", Duration::from_secs(60));
    // moto keeps its buckets in memory.
    conforms(Stores { store: store(), another: store(), relay: Some(relay) }, &[CRASH]).await;
}

/// Each task has a store of its own.
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
async fn one_of_32_clients_wins_on_the_s3_of_moto() {
    let server = StandIn::moto();
    create_bucket(&server, "keys");
    races(|| s3(&server.url(), "keys", Duration::from_secs(60))).await;
}
