//! The store against two stand-ins for DynamoDB that others wrote: moto and ministack.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod conformance;
mod failures;
mod table;

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use waxseal::store::{BranchId, BranchPlace, KeyKind, KeyRow, StoredRow};
use waxseal::{DekId, EncryptionContext, KekId, WrappedDek, WrappedKeys};
use waxseal_dynamodb::DynamoDbKeyStore;

/// A client with its own connections.
fn client(url: &str) -> Client {
    let login = Credentials::new("AKIATEST", "test", None, None, "test");
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .endpoint_url(url)
        .credentials_provider(login)
        .build();
    Client::from_conf(config)
}

async fn store_at(url: &str, table: &str, timeout: Duration) -> DynamoDbKeyStore {
    DynamoDbKeyStore::builder()
        .table(table)
        .client(client(url))
        .timeout(timeout)
        .build()
        .await
        .unwrap()
}

/// A store with its table.
async fn new_store(url: &str, table: &str) -> DynamoDbKeyStore {
    let store = store_at(url, table, Duration::from_secs(60)).await;
    store.create_table().await.unwrap();
    store
}

/// The row of a branch key, each with its own id.
fn row(branch: u8, period: i64, number: u32) -> StoredRow {
    let entry = WrappedDek::new(KekId::new("local:root").unwrap(), vec![7; 76]).unwrap();
    let keys = WrappedKeys::new([entry]).unwrap();
    let mut id = [branch; 32];
    id[..4].copy_from_slice(&number.to_be_bytes());
    id[4..12].copy_from_slice(&period.to_be_bytes());
    let row =
        KeyRow::live(KeyKind::Branch, DekId::from_bytes(id), EncryptionContext::empty(), keys);
    let branch = BranchId::from_bytes([branch; 32]);
    StoredRow::new(&row, Some(BranchPlace { branch, period, epoch: 0 }))
}
