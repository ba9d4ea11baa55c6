//! Policies that change while they are used.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use waxseal::policy::Policy;
use waxseal_policy::{RegoPolicy, RegoSources};

use super::{HEAD, caller, encrypt, envelope, reasons};

fn write(directory: &Path, service: &str) {
    let text = format!("{HEAD}allow if input.caller.service == \"{service}\"\n");
    fs::write(directory.join("policy.rego"), text).unwrap();
}

#[test]
fn a_reload_drops_decisions_and_a_bad_one_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "billing");
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    let policy = RegoPolicy::builder(RegoSources::new().directory(directory.path()))
        .watch(None)
        .on_reload(move |result| tell.lock().unwrap().push(result.is_ok()))
        .build()
        .unwrap();
    let (first, generation) = (policy.status().revision, policy.generation());
    let envelope = envelope(policy.clone());
    let (billing, other) = (caller("billing"), caller("other"));
    assert!(encrypt(&envelope, &billing).is_ok() && encrypt(&envelope, &other).is_err());
    let handle =
        pollster::block_on(envelope.acting_for(&billing).encryptor(&super::context("acme")))
            .unwrap();
    assert!(handle.encrypt(waxseal::Aad::empty(), b"x").is_ok());

    // Unchanged sources are not a new policy.
    assert!(!policy.reload().unwrap());
    assert_eq!(policy.generation(), generation);

    for bad in ["package waxseal\n\nallow {\n\ttrue\n}\n", "", "package other\n"] {
        fs::write(directory.path().join("policy.rego"), bad).unwrap();
        let error = policy.reload().unwrap_err();
        assert!(error.to_string().contains("policy"), "{error}");
        let status = policy.status();
        assert_eq!(status.trouble.unwrap().to_string(), error.to_string());
        assert_eq!((status.revision, policy.generation()), (first.clone(), generation));
        assert!(encrypt(&envelope, &billing).is_ok() && encrypt(&envelope, &other).is_err());
    }
    fs::remove_file(directory.path().join("policy.rego")).unwrap();
    assert!(policy.reload().is_err());
    assert!(encrypt(&envelope, &billing).is_ok());

    write(directory.path(), "other");
    assert!(policy.reload().unwrap());
    assert!(policy.status().trouble.is_none() && policy.status().revision != first);
    assert_ne!(policy.generation(), generation);
    assert!(encrypt(&envelope, &other).is_ok());
    assert_eq!(reasons(encrypt(&envelope, &billing)), Vec::<String>::new());
    assert!(handle.encrypt(waxseal::Aad::empty(), b"x").is_err(), "the handle goes on");
    assert_eq!(*told.lock().unwrap(), [false, false, false, false, true]);
}

#[test]
fn files_are_watched() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "billing");
    let policy = RegoPolicy::builder(RegoSources::new().directory(directory.path()))
        .watch(Some(Duration::from_millis(10)))
        .on_reload(|_| panic!("a panic of what is told does not end the watch"))
        .build()
        .unwrap();
    let envelope = envelope(policy.clone());
    let wait = |what: &str, is_so: &dyn Fn() -> bool| {
        let begin = Instant::now();
        while !is_so() {
            assert!(begin.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    assert!(encrypt(&envelope, &caller("billing")).is_ok());
    write(directory.path(), "reporting");
    wait("a changed file", &|| encrypt(&envelope, &caller("reporting")).is_ok());
    assert!(encrypt(&envelope, &caller("billing")).is_err());

    fs::write(directory.path().join("policy.rego"), "package waxseal\n\nallow {").unwrap();
    wait("a bad file", &|| policy.status().trouble.is_some());
    assert!(encrypt(&envelope, &caller("reporting")).is_ok());

    write(directory.path(), "support");
    wait("a good file after it", &|| encrypt(&envelope, &caller("support")).is_ok());
    assert!(policy.status().trouble.is_none());

    // Data beside it, in a directory that was not there.
    fs::create_dir(directory.path().join("more")).unwrap();
    let revision = policy.status().revision;
    fs::write(directory.path().join("more/data.json"), r#"{"a": 1}"#).unwrap();
    wait("data in a new directory", &|| policy.status().revision != revision);
}

#[test]
fn data_stand_where_their_directory_is() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("orders/eu")).unwrap();
    let text = format!("{HEAD}allow if input.caller.service in data.orders.eu.services\n");
    fs::write(directory.path().join("policy.rego"), text).unwrap();
    let data = directory.path().join("orders/eu/data.json");
    fs::write(&data, r#"{"services": ["billing"]}"#).unwrap();
    let sources = || RegoSources::new().directory(directory.path());
    let policy = RegoPolicy::builder(sources()).watch(None).build().unwrap();
    let envelope = envelope(policy.clone());
    assert!(encrypt(&envelope, &caller("billing")).is_ok());
    fs::write(&data, r#"{"services": []}"#).unwrap();
    assert!(policy.reload().unwrap());
    assert!(encrypt(&envelope, &caller("billing")).is_err());
    fs::write(directory.path().join("orders/data.yaml"), "a: 1").unwrap();
    assert!(policy.reload().unwrap_err().to_string().contains("YAML"));
}
