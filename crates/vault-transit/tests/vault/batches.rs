//! Many DEKs at once, from a real server.

use serde_json::{Value, json};
use waxseal::branch::BranchKek;
use waxseal::kek::KekProvider;
use waxseal::store::{MemoryStore, RewrapOptions};
use waxseal::{Aad, EncryptionContext, Envelope, ErrorKind};
use waxseal_testing::openbao::{OpenBao, Options};
use waxseal_testing::support::context;
use waxseal_vault_transit::{VaultAuth, VaultTransitKek};

fn kek(server: &OpenBao, key: &str) -> VaultTransitKek {
    let builder = VaultTransitKek::builder("test", key).address(server.address());
    builder.auth(VaultAuth::token(server.root_token())).build().unwrap()
}

/// A server that writes down what it is asked.
async fn audited(key: &str) -> OpenBao {
    let server = OpenBao::with(Options { durable: true, audit: true, ..Options::default() }).await;
    server.create_key(key, true).await;
    server
}

/// How many items each batch had that the server was asked by its own account, ascending: batches
/// run side by side.
fn batches(server: &OpenBao, verb: &str, key: &str) -> Vec<usize> {
    let log = std::fs::read_to_string(server.audit_file()).unwrap();
    let entries = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let path = format!("transit/{verb}/{key}");
    let mut batches: Vec<_> = entries
        .filter(|entry| entry["type"] == "request" && entry["request"]["path"] == *path)
        .filter_map(|entry| entry["request"]["data"]["batch_input"].as_array().map(Vec::len))
        .collect();
    batches.sort_unstable();
    batches
}

/// A message of each tenant, and so of as many DEKs.
async fn rows(kek: &VaultTransitKek, deks: usize) -> Vec<(EncryptionContext, Vec<u8>)> {
    let writer = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let mut rows = Vec::new();
    for n in 0..deks {
        let context = context(&format!("tenant {n}"));
        let sealed = writer.encrypt(&context, Aad::empty(), b"row").await.unwrap();
        rows.push((context, sealed));
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_deks_are_prepared_in_three_calls() {
    let server = OpenBao::start().await;
    server.create_key("orders", true).await;
    let kek = kek(&server, "orders");
    let (alice, mut page) = (context("alice"), Vec::new());
    for _ in 0..300 {
        let writer = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
        page.push(writer.encrypt(&alice, Aad::empty(), b"row").await.unwrap());
    }
    let reader = Envelope::builder().wrap_with(kek).build().unwrap();
    let bob = context("bob");
    let foreign = page[0].clone();
    let messages = page.iter().map(|row| (&alice, row)).chain([(&bob, &foreign)]);
    let prepared = reader.prepare(messages).await;
    assert!(prepared[..300].iter().all(Result::is_ok));
    assert!(prepared[300].is_err(), "another tenant's message fails alone");
    // 128 DEKs a call. The foreign one's DEK is known to be of alice by then, so it costs none.
    assert_eq!(reader.statistics().keks[0].calls, 3);
    for row in &page {
        assert!(reader.decrypt_cached(&alice, Aad::empty(), row).unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_deks_are_rewrapped_in_three_requests_and_checked_in_three() {
    let server = audited("orders").await;
    let kek = kek(&server, "orders");
    let rows = rows(&kek, 300).await;
    server.rotate("orders").await;
    kek.read_key().await.unwrap();
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let rewrapped = envelope.rewrap_all(rows.iter().map(|(c, sealed)| (c, &**sealed))).await;
    assert_eq!(batches(&server, "rewrap", "orders"), [44, 128, 128]);
    assert_eq!(batches(&server, "decrypt", "orders"), [44, 128, 128]);
    assert_eq!(envelope.statistics().keks[0].calls, 6);
    // Version 1 is not needed any more.
    server.put("transit/keys/orders/config", json!({ "min_decryption_version": 2 })).await;
    let reader = Envelope::builder().wrap_with(kek).build().unwrap();
    for ((context, _), sealed) in rows.iter().zip(&rewrapped) {
        let opened = reader.decrypt(context, Aad::empty(), sealed.as_ref().unwrap()).await;
        assert_eq!(*opened.unwrap(), *b"row");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_the_server_denies_fails_its_half_of_a_batch_alone() {
    let server = audited("orders").await;
    let kek = kek(&server, "orders");
    let denied = rows(&kek, 40).await;
    server.rotate("orders").await;
    let allowed = rows(&kek, 40).await;
    server.rotate("orders").await;
    server.put("transit/keys/orders/config", json!({ "min_decryption_version": 2 })).await;
    kek.read_key().await.unwrap();
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    // In turns, so that each batch has both.
    let both = denied.iter().zip(&allowed).flat_map(|(denied, allowed)| [denied, allowed]);
    let rewrapped = envelope.rewrap_all(both.map(|(c, sealed)| (c, &**sealed))).await;
    for (n, result) in rewrapped.iter().enumerate() {
        match n % 2 {
            0 => assert_eq!(result.as_ref().unwrap_err().kind(), ErrorKind::Denied),
            _ => assert!(!envelope.needs_rewrap(result.as_ref().unwrap()).unwrap()),
        }
    }
    assert_eq!(batches(&server, "rewrap", "orders"), [80]);
    // The new ones are checked together. The denied ones are tried once more, together and then
    // each.
    assert_eq!(batches(&server, "decrypt", "orders"), [40, 40]);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_takes_over_in_batches_and_the_branch_keys_of_a_store_too() {
    let server = audited("old").await;
    server.create_key("new", true).await;
    let (old, new) = (kek(&server, "old"), kek(&server, "new"));
    let rows = rows(&old, 130).await;
    let mover = Envelope::builder().wrap_with(new.clone()).unwrap_with(old.clone());
    let mover = mover.build().unwrap();
    let moved = mover.rewrap_all(rows.iter().map(|(c, sealed)| (c, &**sealed))).await;
    assert!(moved.iter().all(Result::is_ok));
    for (verb, key) in [("decrypt", "old"), ("encrypt", "new"), ("decrypt", "new")] {
        assert_eq!(batches(&server, verb, key), [2, 128], "{verb} {key}");
    }

    let store = MemoryStore::new();
    let branches = |root: &VaultTransitKek| {
        let builder = BranchKek::builder(root.clone()).name("orders").per(["tenant"]);
        builder.store(store.clone())
    };
    let writer = branches(&old).build().unwrap();
    let writer = Envelope::builder().wrap_with(writer).build().unwrap();
    let mut sealed = Vec::new();
    for n in 0..130 {
        let context = context(&format!("tenant {n}"));
        sealed
            .push((context.clone(), writer.encrypt(&context, Aad::empty(), b"row").await.unwrap()));
    }
    let kek = branches(&new).unwrap_with(old.clone()).build().unwrap();
    let done = kek.rewrap_branch_keys(RewrapOptions::default(), |_| {}).await.unwrap();
    assert_eq!((done.rewrapped, done.failed), (130, 0), "{:?}", done.first_failure);
    for (verb, key) in [("decrypt", "old"), ("encrypt", "new"), ("decrypt", "new")] {
        assert_eq!(batches(&server, verb, key), [2, 2, 128, 128], "{verb} {key}");
    }
    // The old key goes, and all is readable.
    old.close().await;
    server.put("transit/keys/old/config", json!({ "deletion_allowed": true })).await;
    assert_eq!(server.ask("DELETE", "transit/keys/old", json!(null)).await.0, 204);
    let reader = branches(&new).build().unwrap();
    let reader = Envelope::builder().wrap_with(reader).build().unwrap();
    for (context, sealed) in &sealed {
        assert_eq!(*reader.decrypt(context, Aad::empty(), sealed).await.unwrap(), *b"row");
    }
}
