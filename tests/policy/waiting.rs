//! Rules that change, and decisions that end, while an operation waits for the key service.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use waxseal::kek::scripted::ScriptedKek;
use waxseal::policy::{BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{Aad, Envelope, Error, ManualClock, StreamHead, StreamOptions};
use waxseal_testing::support::block_on;

use crate::ground::{Rules, context, denied};

/// An envelope whose next call to the key service changes the rules.
struct Ground {
    envelope: Envelope,
    kek: ScriptedKek,
    rules: Rules,
    clock: ManualClock,
}

impl Ground {
    fn new() -> Self {
        Self::with(PolicyOptions::default())
    }

    fn with(options: PolicyOptions) -> Self {
        let (kek, rules) = (ScriptedKek::new("kek").unwrap(), Rules::open());
        let clock = ManualClock::new();
        let envelope = Envelope::builder()
            .wrap_with(kek.clone())
            .clock(clock.clone())
            .policy(rules.clone(), options)
            .build()
            .unwrap();
        Self { envelope, kek, rules, clock }
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

    /// Nothing is cached, everybody is allowed, and the key service takes so long for each call. A
    /// second question to the policy is denied.
    fn slowly(&self, passes: Duration) {
        self.meanwhile(|_| ());
        let (rules, clock) = (self.rules.clone(), self.clock.clone());
        self.kek.wait_for(move || {
            rules.answer(|_| Ok(Decision::deny(["no longer"])));
            clock.advance(passes);
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
    let stream = block_on(envelope.encrypt_stream(&context("acme"), aad, Vec::new())).unwrap();
    let head = StreamHead::from_prefix(&stream.finish().unwrap()).unwrap();
    let read = head.clone();
    vec![
        (
            "stream_encryptor",
            Box::new(move || {
                let options = StreamOptions::default();
                block_on(envelope.stream_encryptor(&context("acme"), aad, options)).map(drop)
            }),
        ),
        (
            "stream_decryptor",
            Box::new(move || {
                block_on(envelope.stream_decryptor(&context("acme"), aad, &read)).map(drop)
            }),
        ),
        (
            "rewrap_head",
            Box::new(move || block_on(envelope.rewrap_head(&context("acme"), &head)).map(drop)),
        ),
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
fn an_operation_that_outlasts_its_decision_is_decided_again() {
    let ground = Ground::new();
    let sealed = ground.sealed();
    for (name, operation) in operations(&ground, &sealed) {
        ground.kek.local().rotate().unwrap();
        // A decision serves for 30 s.
        ground.slowly(Duration::from_secs(31));
        assert_eq!(denied(operation()), ["no longer"], "{name}");
        assert_eq!(ground.rules.count(), 2, "{name}");
        // One that still serves when the key service answers is enough.
        ground.slowly(Duration::from_secs(1));
        operation().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(ground.rules.count(), 1, "{name}");
    }
}

#[test]
fn of_many_decisions_the_first_that_ends_counts() {
    let ground = Ground::new();
    let sealed = ground.sealed();
    let other = block_on(ground.envelope.encrypt(&context("other"), Aad::empty(), b"x")).unwrap();
    for brief in ["acme", "other"] {
        ground.slowly(Duration::from_secs(3));
        ground.rules.answer(move |question| {
            let is_brief = question.context.get("tenant") == Some(brief);
            let valid_for = Duration::from_secs(if is_brief { 2 } else { 20 });
            Ok(Decision::allow().valid_for(valid_for))
        });
        let (acme, others) = (context("acme"), context("other"));
        let rows = [(&acme, &*sealed), (&others, &*other)];
        let rewrapped = block_on(ground.envelope.rewrap_all(rows));
        for ((context, _), result) in rows.iter().zip(rewrapped) {
            let tenant = context.get("tenant").unwrap();
            match tenant == brief {
                true => assert_eq!(denied(result), ["no longer"], "{tenant}"),
                // Its own decision serves.
                false => assert!(result.is_ok(), "{tenant}"),
            }
        }
    }
}

#[test]
fn a_decision_for_one_operation_lasts_as_long_as_that() {
    let ground = Ground::with(PolicyOptions::default().cache_for(Duration::ZERO));
    let sealed = ground.sealed();
    ground.slowly(Duration::from_secs(31));
    let opened = block_on(ground.envelope.decrypt(&context("acme"), Aad::empty(), &sealed));
    assert_eq!(&*opened.unwrap(), b"secret");
    assert_eq!(ground.rules.count(), 1);
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
