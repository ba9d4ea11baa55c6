//! The store in memory, in local files, and on S3 as SeaweedFS, moto and ministack serve it.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod conformance;
mod failures;
mod s3;

use std::time::Duration;

use waxseal::store::{BranchId, BranchPlace, KeyKind, KeyRow, StoredRow};
use waxseal::{DekId, EncryptionContext, KekId, WrappedDek, WrappedKeys};
use waxseal_object_store::{ObjectKeyStore, ObjectKeyStoreBuilder};
use waxseal_testing::seaweedfs::{ACCESS_KEY, SECRET_KEY as SECRET};

fn s3_builder(url: &str, bucket: &str) -> ObjectKeyStoreBuilder {
    ObjectKeyStore::builder(format!("s3://{bucket}/some/prefix"))
        .option("aws_endpoint", url)
        .option("aws_allow_http", "true")
        .option("aws_region", "us-east-1")
        .option("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .option("aws_secret_access_key", SECRET)
}

/// A store with its own connections.
fn s3(url: &str, bucket: &str, timeout: Duration) -> ObjectKeyStore {
    s3_builder(url, bucket).timeout(timeout).build().unwrap()
}

fn local(folder: &std::path::Path) -> ObjectKeyStore {
    let url = format!("file://{}", folder.display());
    ObjectKeyStore::builder(url).timeout(Duration::from_secs(60)).build().unwrap()
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
