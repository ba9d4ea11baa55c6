//! Rules that change while an operation waits for the key service.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};

use waxseal::kek::scripted::ScriptedKek;
use waxseal::policy::{BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{Aad, Envelope, Error, ManualClock};
use waxseal_testing::support::block_on;

use crate::ground::{Rules, context, denied};

/// An envelope whose next call to the key service changes the rules.
struct Ground {
    envelope: Envelope,
    kek: ScriptedKek,
    rules: Rules,
}

impl Ground {
    fn new() -> Self {
        let (kek, rules) = (ScriptedKek::new("kek").unwrap(), Rules::open());
        let envelope = Envelope::builder()
            .wrap_with(kek.clone())
            .clock(ManualClock::new())
            .policy(rules.clone(), PolicyOptions::default())
            .build()
            .unwrap();
        Self { envelope, kek, rules }
    }

    /// Nothing is cached, everybody is allowed, and the next call does this.
    fn meanwhile(&self, what: impl Fn(&Rules) + Send + Sync + 'static) {
        self.rules.answer(|_| Ok(Decision::allow()));
        self.envelope.evict_all();
        self.rules.asked();
        let rules = self.rules.clone();
        self.kek.wait_for(move || {
            what(&rules);
            Box::pin(std::future::ready(()))
        });
    }

    fn sealed(&self) -> Vec<u8> {
        block_on(self.envelope.encrypt(&context("acme"), Aad::empty(), b"secret")).unwrap()
    }
}

fn revoke(rules: &Rules) {
    rules.answer(|_| Ok(Decision::deny(["revoked"])));
    rules.reload();
}

type Operation<'a> = (&'a str, Box<dyn Fn() -> Result<(), Error> + 'a>);

/// Every operation that gives something out after it waited.
fn operations<'a>(ground: &'a Ground, sealed: &'a [u8]) -> Vec<Operation<'a>> {
    let (envelope, aad) = (&ground.envelope, Aad::empty());
    let handle = block_on(envelope.encryptor(&context("acme"))).unwrap();
    let (id, keys) = (handle.dek_id(), handle.wrapped_keys().clone());
    vec![
        (
            "encrypt",
            Box::new(move || block_on(envelope.encrypt(&context("acme"), aad, b"x")).map(drop)),
        ),
        (
            "encrypt_compact",
            Box::new(move || {
                block_on(envelope.encrypt_compact(&context("acme"), aad, b"x")).map(drop)
            }),
        ),
        (
            "decrypt",
            Box::new(move || block_on(envelope.decrypt(&context("acme"), aad, sealed)).map(drop)),
        ),
        ("rewrap", Box::new(move || block_on(envelope.rewrap(&context("acme"), sealed)).map(drop))),
        (
            "rewrap_unverified",
            Box::new(move || {
                block_on(envelope.rewrap_unverified(&context("acme"), sealed)).map(drop)
            }),
        ),
        (
            "rewrap_all",
            Box::new(move || {
                block_on(envelope.rewrap_all([(&context("acme"), sealed)])).remove(0).map(drop)
            }),
        ),
        (
            "rewrap_wrapped_keys",
            Box::new(move || {
                block_on(envelope.rewrap_wrapped_keys(&context("acme"), &id, &keys)).map(drop)
            }),
        ),
    ]
}

#[test]
fn a_revocation_during_the_call_ends_the_operation() {
    let ground = Ground::new();
    let sealed = ground.sealed();
    for (name, operation) in operations(&ground, &sealed) {
        ground.kek.local().rotate().unwrap();
        ground.meanwhile(revoke);
        assert_eq!(denied(operation()), ["revoked"], "{name}");
        assert_eq!(ground.rules.count(), 2, "{name}");
    }
}

#[test]
fn a_reload_that_changes_nothing_for_the_caller_ends_nothing() {
    let ground = Ground::new();
    let sealed = ground.sealed();
    for (name, operation) in operations(&ground, &sealed) {
        ground.kek.local().rotate().unwrap();
        ground.meanwhile(Rules::reload);
        operation().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(ground.rules.count() >= 2, "{name}");
        // Without a reload it is asked once.
        ground.meanwhile(|_| ());
        operation().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(ground.rules.count(), 1, "{name}");
    }
}

#[test]
fn plaintext_that_is_not_to_be_had_any_more_is_wiped_from_the_buffer() {
    let ground = Ground::new();
    let sealed = ground.sealed();
    ground.meanwhile(revoke);
    let mut buffer = sealed.clone();
    let (acme, aad) = (context("acme"), Aad::empty());
    let result = block_on(ground.envelope.decrypt_in_place(&acme, aad, &mut buffer));
    assert_eq!(denied(result.map(|_| ())), ["revoked"]);
    let at = sealed.len() - 16 - b"secret".len();
    assert_eq!(buffer[at..at + 6], [0; 6]);
    assert_eq!(buffer[..at], sealed[..at]);
    // The control.
    ground.meanwhile(Rules::reload);
    let mut buffer = sealed.clone();
    let opened = block_on(ground.envelope.decrypt_in_place(&acme, aad, &mut buffer)).unwrap();
    assert_eq!(opened, b"secret");
}

/// Answers the first question at once, and no other.
#[derive(Debug)]
struct Once(Arc<AtomicBool>, Rules);

impl Policy for Once {
    fn decide<'a>(&'a self, _: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        match self.0.swap(true, Ordering::SeqCst) {
            false => Box::pin(async { Ok(Decision::allow()) }),
            true => Box::pin(std::future::pending()),
        }
    }

    fn generation(&self) -> u64 {
        self.1.generation()
    }
}

#[test]
fn so_it_is_where_the_caller_gives_up_before_the_second_answer() {
    let ground = Ground::new();
    let (sealed, acme) = (ground.sealed(), context("acme"));
    let rules = ground.rules.clone();
    ground.kek.wait_for(move || {
        rules.reload();
        Box::pin(std::future::ready(()))
    });
    let policy = Once(Arc::default(), ground.rules.clone());
    let envelope = Envelope::builder()
        .wrap_with(ground.kek.clone())
        .policy(policy, PolicyOptions::default())
        .build()
        .unwrap();
    let mut buffer = sealed.clone();
    {
        let mut call = Box::pin(envelope.decrypt_in_place(&acme, Aad::empty(), &mut buffer));
        assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let at = sealed.len() - 16 - b"secret".len();
    assert_eq!(buffer[at..at + 6], [0; 6]);
}

#[test]
fn a_handle_that_was_waited_for_is_checked_at_its_use() {
    let ground = Ground::new();
    let sealed = ground.sealed();
    let (acme, aad) = (context("acme"), Aad::empty());
    ground.meanwhile(revoke);
    let encryptor = block_on(ground.envelope.encryptor(&acme)).unwrap();
    assert!(encryptor.encrypt(aad, b"x").is_err());
    ground.meanwhile(revoke);
    let decryptor = block_on(ground.envelope.decryptor(&acme, &sealed)).unwrap();
    assert!(decryptor.decrypt(aad, &sealed).is_err());
}
