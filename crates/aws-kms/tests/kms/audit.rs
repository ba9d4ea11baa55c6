//! Records of an audit trail and CloudTrail's records of the same requests.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use waxseal::audit::{AuditTrail, Disclosure, Record, TrailDirectory, Verifier};
use waxseal::{Aad, DekOrigin, Envelope, ErrorKind};
use waxseal_aws_kms::AwsKmsKek;
use waxseal_testing::kms_front::{KmsFront, Login, State};
use waxseal_testing::support::context;

const REGION: &str = "eu-west-1";

fn records(path: &Path) -> Vec<Record> {
    let mut records = Vec::new();
    let found = Verifier::new().verify_each(path, |record| records.push(record.clone())).unwrap();
    assert_eq!(found.fault, None);
    records
}

/// The ids that CloudTrail has for the requests of a record.
fn expected_names(record: &Record) -> &'static [&'static str] {
    match (&*record.activity, record.operation.as_deref()) {
        ("dek_wrapped", _) => &["Encrypt", "GenerateDataKey", "ReEncrypt"],
        ("dek_unwrapped", _) | ("kek_called", Some("unwrap")) => &["Decrypt"],
        ("kek_called", Some("wrap")) => &["Encrypt"],
        ("kek_called", Some("generate")) => &["GenerateDataKey"],
        ("kek_called", Some("rewrap")) => &["ReEncrypt"],
        other => panic!("{other:?} has a request id"),
    }
}

fn by_id(log: &[Value]) -> BTreeMap<&str, &Value> {
    log.iter().map(|entry| (entry["requestID"].as_str().unwrap(), entry)).collect()
}

#[tokio::test]
async fn the_request_id_of_a_record_is_that_of_cloudtrail_and_what_has_none_is_somebody_else() {
    let (front, directory) = (KmsFront::start(), tempfile::tempdir().unwrap());
    let (old, new) = (front.create_key(REGION), front.create_key(REGION));
    let may = |actions: &[&str]| {
        vec![json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Action": actions, "Resource": "*" },
        ] })]
    };
    let cards = front.principal(
        "cards",
        may(&[
            "kms:Encrypt",
            "kms:Decrypt",
            "kms:GenerateDataKey",
            "kms:ReEncrypt*",
            "kms:DescribeKey",
        ]),
    );
    let kek = |login: Login, arn: String| {
        let client = front.client(REGION, &login);
        async move { AwsKmsKek::builder(arn).client(client).build().await.unwrap() }
    };
    let path = directory.path().join("audit");
    let trail = AuditTrail::builder()
        .directory(TrailDirectory::new(&path))
        .other_context_values(Disclosure::Clear)
        .start()
        .unwrap();
    let (first, second) = (kek(cards.clone(), old.clone()).await, kek(cards.clone(), new).await);
    let build =
        |builder: waxseal::EnvelopeBuilder| builder.observer(trail.clone()).build().unwrap();
    let alice = context("alice");
    let mut sealed = Vec::new();
    for origin in [DekOrigin::Local, DekOrigin::KeyService] {
        let writer = build(Envelope::builder().wrap_with(first.clone()).dek_origin(origin));
        sealed.push(writer.encrypt(&alice, Aad::empty(), b"row").await.unwrap());
        writer.close().await;
    }
    let reader = build(Envelope::builder().wrap_with(first.clone()));
    for message in &sealed {
        reader.decrypt(&alice, Aad::empty(), message).await.unwrap();
    }
    reader.close().await;
    let mover = build(Envelope::builder().wrap_with(second).unwrap_with(first.clone()));
    let moved = mover.rewrap(&alice, &sealed[0]).await.unwrap();
    mover.decrypt(&alice, Aad::empty(), &moved).await.unwrap();
    mover.close().await;
    front.world().key(&old).state = State::Disabled;
    let late = build(Envelope::builder().wrap_with(first));
    let denied = late.decrypt(&alice, Aad::empty(), &sealed[1]).await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::Denied);
    late.close().await;
    front.world().key(&old).state = State::Enabled;
    // With the service's own credentials, and past the library.
    let theirs = front.client(REGION, &cards);
    let smuggled = theirs
        .encrypt()
        .key_id(&old)
        .plaintext(aws_sdk_kms::primitives::Blob::new(b"stolen"))
        .send()
        .await
        .unwrap();
    assert!(smuggled.ciphertext_blob().is_some());
    assert!(trail.close());

    let (records, log) = (records(&path), front.cloud_trail());
    let entries = by_id(&log);
    let mut joined = BTreeMap::new();
    for record in records.iter().filter(|record| record.request_id.is_some()) {
        let id = record.request_id.as_deref().unwrap();
        let entry = entries.get(id).unwrap_or_else(|| panic!("CloudTrail has no {id}"));
        let name = entry["eventName"].as_str().unwrap();
        assert!(expected_names(record).contains(&name), "{record:?} {entry}");
        assert_eq!(entry["userIdentity"]["arn"].as_str().unwrap().split('/').nth(1), Some("cards"));
        let has_failed = record.error_type.is_some();
        assert_eq!(entry.get("errorCode").is_some(), has_failed, "{record:?} {entry}");
        if let (Some(context), "Encrypt" | "Decrypt") = (&record.context, name) {
            let context = serde_json::to_value(context).unwrap();
            assert_eq!(entry["requestParameters"]["encryptionContext"], context);
        }
        joined.insert(id, name);
    }
    let of_the_trail = |activity: &str| {
        let of = |record: &&Record| record.activity == activity && record.request_id.is_some();
        records.iter().filter(of).count()
    };
    assert!(of_the_trail("dek_wrapped") >= 3 && of_the_trail("dek_unwrapped") >= 3);
    let failed = |record: &&Record| record.error_type.as_deref() == Some("denied");
    let failed = records.iter().filter(failed).find_map(|record| record.request_id.as_deref());
    assert_eq!(entries[failed.unwrap()]["errorCode"], "Disabled");
    // A use of the key that is in no trail did not go through the library.
    let uses_the_key =
        |entry: &&Value| !entry["eventName"].as_str().unwrap().starts_with("Describe");
    let foreign: Vec<_> = log
        .iter()
        .filter(uses_the_key)
        .filter(|entry| !joined.contains_key(entry["requestID"].as_str().unwrap()))
        .collect();
    assert_eq!(foreign.len(), 1, "{foreign:#?}");
    assert_eq!(foreign[0]["eventName"], "Encrypt");
    assert!(foreign[0]["requestParameters"]["encryptionContext"].is_null());
}
