//! The committed vectors of domains (tests/vectors/README.md), through the library and the second
//! reader.

use std::path::PathBuf;
use std::process::Command;

use data_encoding::HEXLOWER;
use serde_json::Value;
use waxseal::branch::BranchKek;
use waxseal::domain::{Branches, DomainConfig, Domains, Schemes};
use waxseal::kek::local::LocalKek;
use waxseal::store::{KeyRow, KeyStore, MemoryStore, StoredRow};
use waxseal::{Aad, EncryptionContext, Envelope, Error, ErrorKind, Sealed, WrappedKeys};
use waxseal_testing::python;
use waxseal_testing::support::block_on;

fn file(path: &str) -> PathBuf {
    waxseal_testing::top().join("tests").join(path)
}

fn vectors() -> Value {
    serde_json::from_slice(&std::fs::read(file("vectors/domains.json")).unwrap()).unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn pairs(value: &Value) -> Vec<(&str, &str)> {
    let pairs = value.as_array().unwrap().iter();
    pairs.map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap())).collect()
}

fn kek(vectors: &Value) -> LocalKek {
    let secret = hex(&vectors["keks"][0]["versions"]["1"]).try_into().unwrap();
    LocalKek::from_secrets("shared", [(1, &secret)]).unwrap()
}

/// The store that a message is read with.
fn store(message: &Value) -> MemoryStore {
    let store = MemoryStore::new();
    for row in message["rows"].as_array().unwrap() {
        let row = KeyRow::try_from(&hex(&row[1])[..]).unwrap();
        block_on(store.insert(&StoredRow::new(&row, None))).unwrap();
    }
    store
}

fn reader(vectors: &Value, message: &Value) -> (Envelope, EncryptionContext) {
    let (kek, store) = (kek(vectors), store(message));
    let Some(domain) = message["domain"].as_str() else {
        let branch = BranchKek::builder(kek.clone()).name("common").per(["tenant"]);
        let branch = branch.store(store).build().unwrap();
        let envelope = Envelope::builder().unwrap_with(branch).unwrap_with(kek).build().unwrap();
        return (envelope, EncryptionContext::new(pairs(&message["context"])).unwrap());
    };
    let schemes = Schemes::default()
        .kek("kek", move |_| {
            let kek = kek.clone();
            async move { Ok(kek) }
        })
        .store("store", move |_| {
            let store = store.clone();
            async move { Ok(store) }
        });
    let config = DomainConfig::default().wrap_with("kek:shared").store("store:shared");
    let config = config.branches(Branches::per(["tenant"]).name("common"));
    let domains = Domains::builder().schemes(schemes).domain(domain, config).build();
    let domain = block_on(domains).unwrap().domain(domain).unwrap();
    (domain.envelope().clone(), domain.context(pairs(&message["context"])).unwrap())
}

fn open(vectors: &Value, message: &Value) -> Result<Vec<u8>, Error> {
    let (envelope, context) = reader(vectors, message);
    let (sealed, aad) = (hex(&message["sealed"]), hex(&message["aad"]));
    let keys = match &message["wrapped_keys"] {
        Value::Null => None,
        keys => Some(WrappedKeys::try_from(&hex(keys)[..])?),
    };
    let sealed = match &keys {
        Some(keys) => Sealed::compact(&sealed, keys),
        None => Sealed::from(&sealed),
    };
    Ok(block_on(envelope.decrypt(&context, Aad::from(&aad), sealed))?.to_vec())
}

#[test]
fn the_library_opens_every_vector_and_refuses_every_negative_one() {
    let vectors = vectors();
    let messages = vectors["messages"].as_array().unwrap();
    assert!(messages.len() >= 40);
    for message in messages {
        let name = message["name"].as_str().unwrap();
        match (open(&vectors, message), message["error"].is_null()) {
            (Ok(plaintext), true) => assert_eq!(plaintext, hex(&message["plaintext"]), "{name}"),
            (Err(error), false) => assert_eq!(error.kind(), ErrorKind::Invalid, "{name}: {error}"),
            (outcome, _) => panic!("{name}: {outcome:?}"),
        }
    }
}

#[test]
fn the_second_reader_agrees() {
    let python = python::second_reader();
    let output = Command::new(python)
        .arg("-B")
        .arg(file("second_reader/vectors.py"))
        .arg(file("vectors/domains.json"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let passed: usize = text.lines().last().unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(passed > vectors()["messages"].as_array().unwrap().len(), "{text}");
}
