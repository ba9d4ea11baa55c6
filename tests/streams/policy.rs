//! A policy decides when a stream is opened.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::ground::*;
use waxseal::policy::{Action, BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{
    Aad, Access, Caller, Envelope, Error, ErrorKind, Event, Observer, StreamHead, StreamOptions,
};

/// Allows a service to write and another to read.
#[derive(Debug, Clone, Default)]
struct Roles(Arc<AtomicUsize>);

impl Policy for Roles {
    fn decide<'a>(&'a self, question: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let role = if question.operation == Action::Encrypt { "writer" } else { "reader" };
        let may = question.caller.is_some_and(|caller| caller.roles().any(|has| has == role));
        let decision = if may { Decision::allow() } else { Decision::deny(["not yours"]) };
        Box::pin(async { Ok(decision) })
    }
}

#[test]
fn a_stream_is_one_operation_of_its_caller() {
    let policy = Roles::default();
    let options = PolicyOptions::default().cache_for(Duration::ZERO);
    let envelope = Envelope::builder()
        .wrap_with(local("kek"))
        .policy(policy.clone(), options)
        .build()
        .unwrap();
    let alice = context("alice");
    let caller = |role: &str| Caller::builder().role(role).build().unwrap();
    let (writer, reader) = (caller("writer"), caller("reader"));
    let asked = || policy.0.swap(0, Ordering::SeqCst);

    let mut stream = Vec::new();
    let encryptor = |caller| {
        block_on(envelope.acting_for(caller).stream_encryptor(&alice, Aad::from(AAD), small()))
    };
    let threads = std::num::NonZero::new(2).unwrap();
    encryptor(&writer).unwrap().encrypt(threads, &plaintext(50_000)[..], &mut stream).unwrap();
    assert_eq!(asked(), 1);
    let head = StreamHead::from_prefix(&stream).unwrap();
    let denied = |error: Error| assert_eq!(error.kind(), ErrorKind::PolicyDenied);
    denied(encryptor(&reader).unwrap_err());
    denied(block_on(envelope.encrypt_stream(&alice, Aad::from(AAD), Vec::new())).unwrap_err());
    let decryptor = |caller| {
        block_on(envelope.acting_for(caller).stream_decryptor(&alice, Aad::from(AAD), &head))
    };
    denied(decryptor(&writer).unwrap_err());
    denied(block_on(envelope.decrypt_stream(&alice, Aad::from(AAD), &stream[..])).unwrap_err());
    denied(block_on(envelope.open_stream(&alice, Aad::from(AAD), &stream[..])).unwrap_err());
    asked();
    let body = &stream[head.len()..];
    let read = decryptor(&reader).unwrap().decrypt(threads, body, std::io::sink()).unwrap();
    assert_eq!((read, asked()), (50_000, 1));
}

/// Messages by service and access. Those of everybody have no service.
type Counts = BTreeMap<(Option<String>, &'static str), u64>;

#[derive(Debug, Clone, Default)]
struct Uses(Arc<Mutex<Counts>>);

impl Observer for Uses {
    fn event(&self, event: &Event<'_>) {
        let (service, access, messages) = match event {
            Event::Accessed { access, messages, .. } => (None, access, messages),
            Event::AccessedBy { caller, access, messages, .. } => {
                (Some(caller.service().unwrap().to_owned()), access, messages)
            }
            _ => return,
        };
        let access = if *access == Access::Encrypt { "encrypt" } else { "decrypt" };
        *self.0.lock().unwrap().entry((service, access)).or_default() += messages;
    }

    fn access_summaries(&self) -> Option<Duration> {
        Some(Duration::from_secs(3600))
    }
}

#[test]
fn a_stream_is_one_message_of_its_caller_in_the_summaries() {
    let uses = Uses::default();
    let envelope = Envelope::builder().wrap_with(local("kek")).observer(uses.clone()).build();
    let (envelope, alice, aad) = (envelope.unwrap(), context("alice"), Aad::from(AAD));
    let caller = Caller::builder().service("backup").build().unwrap();
    let acting = || envelope.acting_for(&caller);
    let options = StreamOptions::default();
    drop(block_on(envelope.stream_encryptor(&alice, aad, options)).unwrap());
    drop(block_on(acting().stream_encryptor(&alice, aad, options)).unwrap());
    let writer = block_on(acting().encrypt_stream(&alice, aad, Vec::new())).unwrap();
    let stream = writer.finish().unwrap();
    drop(block_on(acting().decrypt_stream(&alice, aad, &stream[..])).unwrap());
    drop(block_on(acting().open_stream(&alice, aad, &stream[..])).unwrap());
    drop(block_on(envelope.decrypt_stream(&alice, aad, &stream[..])).unwrap());
    drop(block_on(acting().decrypt_stream(&alice, Aad::empty(), &stream[..])).unwrap_err());
    envelope.evict_all();
    let service = || Some("backup".to_owned());
    let expected = [
        ((None, "decrypt"), 3),
        ((None, "encrypt"), 3),
        ((service(), "decrypt"), 2),
        ((service(), "encrypt"), 2),
    ];
    assert_eq!(*uses.0.lock().unwrap(), BTreeMap::from(expected));
}
