//! The table, and erasure in more than one transaction.

use waxseal::store::{Erasure, KeyStore, StoredRow};
use waxseal_testing::stand_in::StandIn;

use crate::{new_store, row};

#[tokio::test]
async fn a_table_is_created_once_and_found_after_that() {
    for server in [StandIn::moto(), StandIn::ministack()] {
        let store = new_store(&server.url(), "keys").await;
        let row = row(1, 0, 0);
        store.insert(&row).await.unwrap();
        store.create_table().await.unwrap();
        assert_eq!(store.get(row.id()).await.unwrap(), Some(row));
        assert_eq!(store.name(), "dynamodb keys");
    }
}

#[tokio::test]
async fn a_branch_of_more_rows_than_a_transaction_takes_is_listed_and_erased() {
    for server in [StandIn::moto(), StandIn::ministack()] {
        let store = new_store(&server.url(), "keys").await;
        let rows: Vec<_> = (0..230).map(|period| row(2, period, 0)).collect();
        for row in &rows {
            store.insert(row).await.unwrap();
        }
        let branch = rows[0].place().unwrap().branch;
        assert_eq!(store.branch(&branch, 0).await.unwrap(), rows);
        assert_eq!(store.branch(&branch, 200).await.unwrap(), rows[200..]);
        let erasure = |erased, already_erased| Erasure { erased, already_erased };
        assert_eq!(store.erase_branch(&branch).await.unwrap(), erasure(230, 0));
        assert_eq!(store.erase_branch(&branch).await.unwrap(), erasure(0, 230));
        let tombstones: Vec<_> = rows.iter().map(StoredRow::tombstone).collect();
        assert_eq!(store.branch(&branch, i64::MIN).await.unwrap(), tombstones);
    }
}

#[tokio::test]
async fn debug_shows_the_table_and_no_credentials() {
    let server = StandIn::moto();
    let store = new_store(&server.url(), "keys").await;
    let shown = format!("{store:?}");
    assert!(shown.contains("keys") && !shown.contains("AKIATEST"), "{shown}");
    let builder = waxseal_dynamodb::DynamoDbKeyStore::builder()
        .table("keys")
        .client(crate::client(&server.url()));
    assert!(!format!("{builder:?}").contains("AKIATEST"));
}
