//! A cold read with its row in PostgreSQL on loopback, while the root KEK takes 100 ms and its
//! branch key is cached:
//!
//! ```sh
//! cargo bench -p waxseal-sqlx --features postgres --bench cold_read
//! ```
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::{Duration, Instant};

use waxseal::branch::BranchKek;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::{Aad, EncryptionContext, Envelope};
use waxseal_sqlx::{PostgresKeyStore, PostgresOptions};
use waxseal_testing::postgres::{PASSWORD, Postgres};

const ROWS: usize = 2_000;

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let server = Postgres::start();
        let options = PostgresOptions::new(server.url("postgres")).password(PASSWORD);
        let store = PostgresKeyStore::new(options).unwrap();
        store.migrate().await.unwrap();
        let root = ScriptedKek::new("root").unwrap();
        let kek = BranchKek::builder(root.clone()).name("orders").store(store.clone());
        let kek = kek.build().unwrap();
        let envelope = || {
            let builder = Envelope::builder().wrap_with(kek.clone()).key_store(store.clone());
            builder.build().unwrap()
        };
        let context = EncryptionContext::new([("tenant", "acme")]).unwrap();
        let mut rows = Vec::new();
        for _ in 0..ROWS {
            let compact = envelope().encrypt_compact(&context, Aad::empty(), b"row").await.unwrap();
            rows.push(compact.into_parts().0);
        }
        root.wait_for(|| Box::pin(tokio::time::sleep(Duration::from_millis(100))));
        let reader = envelope();
        let mut times: Vec<_> = Vec::with_capacity(ROWS);
        for row in &rows {
            let begun = Instant::now();
            reader.decrypt(&context, Aad::empty(), row).await.unwrap();
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        println!(
            "{ROWS} cold reads of compact messages, rows in PostgreSQL: median {:?}, 99 in 100 take \
             less than {:?}",
            times[ROWS / 2],
            times[ROWS * 99 / 100]
        );
    });
}
