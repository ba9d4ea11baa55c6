//! The suite for key stores, and races of separate clients.

use std::sync::Arc;
use std::time::Duration;

use waxseal::store::conformance::{self, Outcome, Step, Subject};
use waxseal::store::{BoxFuture, Insertion, KeyStore};
use waxseal_dynamodb::DynamoDbKeyStore;
use waxseal_testing::stand_in::{Line, Relay, StandIn};

use crate::{new_store, row, store_at};

struct OnServer {
    relay: Relay,
    store: DynamoDbKeyStore,
    another: DynamoDbKeyStore,
    away: Line,
}

impl Subject for OnServer {
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
        self.relay.set(self.away);
        Box::pin(async { Step::Done })
    }

    fn give_back(&self) -> BoxFuture<'_, Step> {
        self.relay.set(Line::Open);
        Box::pin(async { Step::Done })
    }

    fn answers_within(&self) -> Duration {
        Duration::from_secs(70)
    }
}

async fn conforms(server: &StandIn, away: Line, timeout: Duration) {
    let relay = Relay::to(server.port());
    new_store(&server.url(), "waxseal-keys").await;
    let store = store_at(&relay.url(), "waxseal-keys", timeout).await;
    let another = store_at(&relay.url(), "waxseal-keys", timeout).await;
    let report = conformance::run(&OnServer { relay, store, another, away }).await;
    assert!(report.is_conformant(), "{report}");
    let others: Vec<_> = report
        .checks()
        .filter(|(_, outcome)| **outcome != Outcome::Passed)
        .map(|(name, _)| name)
        .collect();
    // Both keep their tables in memory.
    assert_eq!(others, ["keeps_over_a_crash_what_has_returned"], "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms_on_moto() {
    conforms(&StandIn::moto(), Line::Cut, Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms_on_ministack() {
    conforms(&StandIn::ministack(), Line::Silent, Duration::from_secs(60)).await;
}

/// Each task has a client, and so connections, of its own.
async fn races(server: &StandIn) {
    const TASKS: u32 = 32;
    let url = server.url();
    let store = new_store(&url, "races").await;
    let mut tasks = Vec::new();
    for number in 0..TASKS {
        let own = store_at(&url, "races", Duration::from_secs(60)).await;
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
        assert_eq!(store.get(loser.id()).await.unwrap(), None, "a loser left its row");
        assert_eq!(store.insert(loser).await.unwrap(), Insertion::Exists(winner.clone()));
    }
    let branch = winner.place().unwrap().branch;
    assert_eq!(store.branch(&branch, 0).await.unwrap(), winners);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_32_clients_wins_a_place_on_moto() {
    races(&StandIn::moto()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_32_clients_wins_a_place_on_ministack() {
    races(&StandIn::ministack()).await;
}
