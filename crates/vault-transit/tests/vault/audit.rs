//! Records of an audit trail and the server's own audit log of the same requests.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use waxseal::audit::{AuditTrail, Disclosure, Record, TrailDirectory, Verifier};
use waxseal::{Aad, DekOrigin, Envelope, ErrorKind};
use waxseal_testing::openbao::{OpenBao, Options};
use waxseal_testing::support::context;
use waxseal_vault_transit::{VaultAuth, VaultTransitKek};

fn records(path: &Path) -> Vec<Record> {
    let mut records = Vec::new();
    let found = Verifier::new().verify_each(path, |record| records.push(record.clone())).unwrap();
    assert_eq!(found.fault, None);
    records
}

/// The path that the server was asked at, behind a record.
fn expected_verbs(record: &Record) -> &'static [&'static str] {
    match (&*record.activity, record.operation.as_deref()) {
        ("dek_wrapped", _) => &["encrypt", "datakey/plaintext", "rewrap"],
        ("dek_unwrapped", _) | ("kek_called", Some("unwrap")) => &["decrypt"],
        ("kek_called", Some("wrap")) => &["encrypt"],
        ("kek_called", Some("generate")) => &["datakey/plaintext"],
        ("kek_called", Some("rewrap")) => &["rewrap"],
        other => panic!("{other:?} has a request id"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_id_of_a_record_is_that_of_the_servers_log_and_what_has_none_is_somebody_else()
{
    let server = OpenBao::with(Options { durable: true, audit: true, ..Options::default() }).await;
    server.create_key("orders", true).await;
    server.policy("orders", "orders").await;
    let token = server.token(json!({ "policies": ["orders"] })).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit");
    let trail = AuditTrail::builder()
        .directory(TrailDirectory::new(&path))
        .other_context_values(Disclosure::Clear)
        .start()
        .unwrap();
    let kek = VaultTransitKek::builder("test", "orders").address(server.address());
    let kek = kek.auth(VaultAuth::token(&*token)).build().unwrap();
    let build =
        |builder: waxseal::EnvelopeBuilder| builder.observer(trail.clone()).build().unwrap();
    let (alice, mut sealed) = (context("alice"), Vec::new());
    for origin in [DekOrigin::Local, DekOrigin::KeyService, DekOrigin::Local] {
        let writer = build(Envelope::builder().wrap_with(kek.clone()).dek_origin(origin));
        sealed.push(writer.encrypt(&alice, Aad::empty(), b"row").await.unwrap());
        writer.close().await;
    }
    // One by one, and all in one request.
    let reader = build(Envelope::builder().wrap_with(kek.clone()));
    reader.decrypt(&alice, Aad::empty(), &sealed[0]).await.unwrap();
    reader.close().await;
    let reader = build(Envelope::builder().wrap_with(kek.clone()));
    let prepared = reader.prepare(sealed.iter().map(|message| (&alice, &message[..]))).await;
    assert!(prepared.iter().all(Result::is_ok));
    server.rotate("orders").await;
    reader.rewrap(&alice, &sealed[0]).await.unwrap();
    reader.close().await;
    // With the rights of another, past the library.
    let body = json!({ "plaintext": "c3RvbGVu", "context": "AAAA" });
    server.put("transit/encrypt/orders", body).await;
    server.ask("DELETE", "sys/policies/acl/orders", json!(null)).await;
    let late = build(Envelope::builder().wrap_with(kek));
    let denied = late.decrypt(&alice, Aad::empty(), &sealed[1]).await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::Denied);
    late.close().await;
    assert!(trail.close());

    let text = std::fs::read_to_string(server.audit_file()).unwrap();
    let log: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let verb = |entry: &Value| {
        let path = entry["request"]["path"].as_str().unwrap_or_default();
        path.strip_prefix("transit/")?.strip_suffix("/orders").map(str::to_owned)
    };
    let answers: BTreeMap<&str, &Value> = log
        .iter()
        .filter(|entry| entry["type"] == "response")
        .map(|entry| (entry["request"]["id"].as_str().unwrap(), entry))
        .collect();
    let records = records(&path);
    let mut joined = BTreeMap::<&str, Vec<&str>>::new();
    for record in records.iter().filter(|record| record.request_id.is_some()) {
        let id = record.request_id.as_deref().unwrap();
        let entry = answers.get(id).unwrap_or_else(|| panic!("the server's log has no {id}"));
        let verb = verb(entry).unwrap();
        assert!(expected_verbs(record).contains(&&*verb), "{record:?} {entry}");
        assert_eq!(entry["auth"]["policies"], json!(["default", "orders"]));
        joined.entry(id).or_default().push(&record.activity);
    }
    let of_the_trail = |activity: &str| {
        let of = |record: &&Record| record.activity == activity && record.request_id.is_some();
        records.iter().filter(of).count()
    };
    assert!(of_the_trail("dek_wrapped") >= 3 && of_the_trail("dek_unwrapped") >= 4);
    // A batch is one request, and each of its DEKs is a record with its id.
    let unwrapped = |activities: &Vec<&str>| {
        activities.iter().filter(|activity| **activity == "dek_unwrapped").count()
    };
    assert_eq!(joined.values().map(unwrapped).max(), Some(3));
    // A use of the key that is in no trail and was not refused did not go through the library.
    let foreign: Vec<_> = answers
        .iter()
        .filter(|(id, entry)| {
            let uses_the_key = verb(entry).is_some_and(|verb| verb != "keys");
            uses_the_key && entry["error"].is_null() && !joined.contains_key(**id)
        })
        .map(|(_, entry)| (verb(entry).unwrap(), entry["auth"]["policies"].clone()))
        .collect();
    assert_eq!(foreign, [("encrypt".to_owned(), json!(["root"]))]);
    // The server returns no id for a request that it refuses. The record has key, operation and
    // time.
    let refused = |record: &&Record| record.error_type.as_deref() == Some("denied");
    assert!(records.iter().filter(refused).all(|record| record.request_id.is_none()));
    let refused = records.iter().find(|record| {
        record.activity == "kek_called" && record.error_type.as_deref() == Some("denied")
    });
    assert_eq!(refused.unwrap().kek_id.as_deref(), Some("vault:test/transit/orders"));
}
