//! What an operator revokes: what it names ends, whichever name it has, and nothing else is
//! touched.
#![allow(missing_docs, unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use waxseal_testing::support;

use support::stage::{Stage, entries_of, kind, secs, with_entries};
use support::{block_on, context};
use waxseal::kek::local::LocalKek;
use waxseal::kek::{BoxFuture, Health, KekError, KekProvider, UnwrappedDek};
use waxseal::{Aad, Dek, EncryptionContext, Envelope, ErrorKind, KekId, Limits, WrappedDek};

/// A provider that unwraps, under its own KEK, entries with a related KEK's id.
#[derive(Debug, Clone)]
struct Related {
    own: LocalKek,
    related: KekId,
    unwraps: Arc<AtomicU64>,
}

impl Related {
    fn new() -> Self {
        Self {
            own: support::local("eu"),
            related: KekId::new("local:us").unwrap(),
            unwraps: Arc::default(),
        }
    }

    /// A message whose DEK is under the related id.
    fn message(&self, alice: &EncryptionContext) -> Vec<u8> {
        let sealed =
            block_on(support::envelope(&self.own).encrypt(alice, Aad::empty(), b"payload"))
                .unwrap();
        let renamed =
            |entry: WrappedDek| WrappedDek::new(self.related.clone(), entry.wrapped()).unwrap();
        with_entries(&sealed, entries_of(&sealed).into_iter().map(renamed))
    }
}

impl KekProvider for Related {
    fn id(&self) -> &KekId {
        self.own.id()
    }

    fn recognises(&self, kek_id: &KekId) -> bool {
        kek_id == self.id() || *kek_id == self.related
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        self.own.wrap(context, dek)
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        self.unwraps.fetch_add(1, SeqCst);
        Box::pin(async move {
            let own = WrappedDek::new(self.own.id().clone(), wrapped.wrapped()).unwrap();
            self.own.unwrap(context, &own).await
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.own.health()
    }
}

#[test]
fn a_kek_is_revoked_by_its_own_id_and_by_the_one_that_stands_in_messages() {
    for by_own_id in [true, false] {
        let (kek, alice) = (Related::new(), context("alice"));
        let sealed = kek.message(&alice);
        let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
        let read = || block_on(envelope.decrypt(&alice, Aad::empty(), &sealed)).map(drop);
        read().unwrap();
        let key = block_on(envelope.decryptor(&alice, &sealed)).unwrap();
        let calls = kek.unwraps.load(SeqCst);
        envelope.revoke_kek(if by_own_id { kek.id() } else { &kek.related });
        assert!(envelope.decrypt_cached(&alice, Aad::empty(), &sealed).unwrap().is_none());
        assert_eq!(kind(key.decrypt(Aad::empty(), &sealed)), ErrorKind::Expired);
        assert_eq!(kind(read()), ErrorKind::Denied);
        assert_eq!(kind(block_on(envelope.rewrap(&alice, &sealed))), ErrorKind::Denied);
        envelope.evict_all();
        assert_eq!(kind(read()), ErrorKind::Denied);
        assert_eq!(kek.unwraps.load(SeqCst), calls, "a revoked key makes no call");
        envelope.reinstate_kek(if by_own_id { kek.id() } else { &kek.related });
        read().unwrap();
    }
}

#[test]
fn a_revocation_in_a_loop_touches_no_answer_about_others() {
    let stage = Stage::new(Limits::default());
    let (envelope, bob) = (stage.envelope.clone(), context("bob"));
    let other = KekId::new("local:other").unwrap();
    // Whenever the key service is asked, somebody is revoked before it answers.
    stage.kek.wait_for(move || {
        let (envelope, bob, other) = (envelope.clone(), bob.clone(), other.clone());
        Box::pin(async move {
            envelope.evict_context(&bob);
            envelope.revoke_kek(&other);
        })
    });
    for round in 1..5 {
        stage.read().unwrap();
        stage.write().unwrap();
        assert_eq!(stage.calls(), (round, round));
        stage.clock.advance(secs(101));
    }
}

#[test]
fn an_answer_about_what_was_revoked_meanwhile_does_not_count() {
    for which in 0..3 {
        let stage = Stage::new(Limits::default());
        let (envelope, alice, kek_id) =
            (stage.envelope.clone(), stage.alice.clone(), stage.kek.id().clone());
        let once = Arc::new(AtomicU64::new(0));
        let count = once.clone();
        stage.kek.wait_for(move || {
            let (envelope, alice, kek_id) = (envelope.clone(), alice.clone(), kek_id.clone());
            let first = count.fetch_add(1, SeqCst) == 0;
            Box::pin(async move {
                match which {
                    _ if !first => {}
                    0 => envelope.evict_context(&alice),
                    1 => envelope.evict_all(),
                    _ => envelope.revoke_kek(&kek_id),
                }
            })
        });
        let result = stage.read();
        match which {
            2 => assert_eq!(kind(result), ErrorKind::Denied),
            _ => assert_eq!((result.is_ok(), stage.calls().0), (true, 2), "asked again"),
        }
    }
}

#[test]
fn a_rewrap_on_its_way_obeys_what_is_revoked_and_a_shut_down() {
    for (name, expected) in [
        ("shut_down", Err(ErrorKind::ShutDown)),
        ("revoke_kek", Err(ErrorKind::Denied)),
        ("evict_context", Ok(())),
        ("clear", Ok(())),
    ] {
        let stage = Stage::new(Limits::default());
        stage.kek.local().rotate().unwrap();
        let (envelope, alice, kek_id) =
            (stage.envelope.clone(), stage.alice.clone(), stage.kek.id().clone());
        let count = Arc::new(AtomicU64::new(0));
        let calls = count.clone();
        stage.kek.wait_for(move || {
            let (envelope, alice, kek_id) = (envelope.clone(), alice.clone(), kek_id.clone());
            let first = calls.fetch_add(1, SeqCst) == 0;
            Box::pin(async move {
                match name {
                    _ if !first => {}
                    "shut_down" => envelope.shut_down(),
                    "revoke_kek" => envelope.revoke_kek(&kek_id),
                    "evict_context" => envelope.evict_context(&alice),
                    _ => envelope.evict_all(),
                }
            })
        });
        let result = block_on(stage.envelope.rewrap(&stage.alice, &stage.sealed));
        assert_eq!(result.map(drop).map_err(|error| error.kind()), expected, "{name}");
        // A rewrap unwraps what it made: twice that, since it began again.
        assert!(expected.is_err() || count.load(SeqCst) >= 3, "{name}: the old answer counted");
    }
    // One that hangs is ended by a shut-down.
    let stage = Stage::new(Limits::default());
    stage.kek.local().rotate().unwrap();
    stage.kek.wait_for(|| Box::pin(std::future::pending()));
    let envelope = stage.envelope.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        envelope.shut_down();
    });
    assert_eq!(
        kind(block_on(stage.envelope.rewrap(&stage.alice, &stage.sealed))),
        ErrorKind::ShutDown
    );
    thread.join().unwrap();
}
