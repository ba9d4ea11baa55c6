//! Many messages at once: their DEKs are cached in as few calls as the key service allows.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use waxseal::kek::KekErrorClass;
use waxseal::kek::local::LocalKek;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::store::MemoryStore;
use waxseal::{
    Aad, EncryptionContext, Envelope, Error, ErrorKind, Event, ManualClock, Observer, Sealed,
};
use waxseal_testing::support::{self, block_on, context};

/// A KEK whose service takes ten DEKs in a call.
fn batching(kek: LocalKek) -> ScriptedKek {
    let kek = ScriptedKek::over(kek);
    kek.take_batches_of(10);
    kek
}

fn kind<T>(result: Result<T, Error>) -> ErrorKind {
    result.err().unwrap().kind()
}

/// Rows of many DEKs: each envelope makes its own.
fn rows(kek: &LocalKek, tenant: &str, deks: usize, rows_of_each: usize) -> Vec<Vec<u8>> {
    let alice = context(tenant);
    let mut rows = Vec::new();
    for _ in 0..deks {
        let writer = support::envelope(kek);
        for _ in 0..rows_of_each {
            rows.push(block_on(writer.encrypt(&alice, Aad::empty(), b"row")).unwrap());
        }
    }
    rows
}

#[test]
fn a_page_of_many_deks_costs_a_call_for_each_batch_and_then_none() {
    let (local, alice) = (support::local("kek"), context("alice"));
    let page = rows(&local, "alice", 25, 40);
    let kek = batching(local);
    let reader = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    for _ in 0..2 {
        let prepared = block_on(reader.prepare(page.iter().map(|row| (&alice, row))));
        assert_eq!(prepared.len(), 1000);
        assert!(prepared.iter().all(Result::is_ok));
        assert_eq!(kek.calls().unwraps, 3);
    }
    for row in &page {
        let opened = reader.decrypt_cached(&alice, Aad::empty(), row).unwrap().unwrap();
        assert_eq!(*opened, *b"row");
    }
    assert_eq!(kek.calls().unwraps, 3);
    assert!(block_on(reader.prepare(Vec::<(&EncryptionContext, &[u8])>::new())).is_empty());
}

#[test]
fn without_batches_each_dek_costs_one_call_and_a_compact_message_counts_with_its_keys() {
    let (local, alice) = (support::local("kek"), context("alice"));
    let page = rows(&local, "alice", 7, 3);
    let writer = support::envelope(&local);
    let compact = block_on(writer.encrypt_compact(&alice, Aad::empty(), b"row")).unwrap();
    let reader = support::envelope(&local);
    let sealed = page.iter().map(Sealed::from).chain([Sealed::from(&compact)]);
    let prepared = block_on(reader.prepare(sealed.map(|sealed| (&alice, sealed))));
    assert!(prepared.len() == 22 && prepared.iter().all(Result::is_ok));
    assert_eq!(reader.statistics().keks[0].calls, 8);
    assert!(reader.decrypt_cached(&alice, Aad::empty(), &compact).unwrap().is_some());
}

#[test]
fn a_message_that_fails_fails_alone() {
    let (local, alice, bob) = (support::local("kek"), context("alice"), context("bob"));
    let page = rows(&local, "alice", 12, 1);
    let foreign = rows(&support::local("another"), "alice", 1, 1).remove(0);
    let mut damaged = rows(&local, "alice", 1, 1).remove(0);
    let kek = batching(local);
    let reader = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    damaged[100] ^= 1;
    let mut messages: Vec<(&EncryptionContext, &[u8])> =
        page.iter().map(|row| (&alice, &**row)).collect();
    messages.extend([
        (&bob, &*page[0]),
        (&alice, &b"not a message"[..]),
        (&alice, &*foreign),
        (&alice, &*damaged),
    ]);
    let prepared = block_on(reader.prepare(messages));
    assert!(prepared[..12].iter().all(Result::is_ok));
    let kinds: Vec<_> = prepared.into_iter().skip(12).map(kind).collect();
    let (invalid, unknown) = (ErrorKind::Invalid, ErrorKind::UnknownKek);
    assert_eq!(kinds, [invalid, ErrorKind::NotSealed, unknown, invalid]);
    // Two batches, and the damaged one again. The DEK of the first is known to be alice's.
    assert_eq!(kek.calls().unwraps, 3);
}

#[test]
fn an_outage_and_a_denial_are_told_for_each_message() {
    for (class, expected) in [
        (KekErrorClass::Unavailable, ErrorKind::Unavailable),
        (KekErrorClass::Denied, ErrorKind::Denied),
    ] {
        let (local, alice) = (support::local("kek"), context("alice"));
        let page = rows(&local, "alice", 3, 2);
        let kek = batching(local);
        let reader = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
        kek.fail_with(class);
        let prepared = block_on(reader.prepare(page.iter().map(|row| (&alice, row))));
        assert!(prepared.into_iter().all(|result| kind(result) == expected), "{class:?}");
        assert_eq!(reader.statistics().reading_deks, 0);
    }
}

/// Revokes the KEK when the first DEK of a batch is unwrapped.
#[derive(Debug)]
struct RevokeAt(Arc<Mutex<Option<Envelope>>>);

impl Observer for RevokeAt {
    fn event(&self, event: &Event<'_>) {
        if let Event::Unwrapped { kek_id, .. } = event
            && let Some(envelope) = self.0.lock().unwrap().take()
        {
            envelope.revoke_kek(kek_id);
        }
    }
}

#[test]
fn what_is_revoked_while_a_batch_is_in_flight_is_not_cached() {
    let (local, alice) = (support::local("kek"), context("alice"));
    let page = rows(&local, "alice", 5, 1);
    let armed = Arc::new(Mutex::new(None));
    let reader = Envelope::builder()
        .wrap_with(batching(local))
        .observer(RevokeAt(armed.clone()))
        .build()
        .unwrap();
    *armed.lock().unwrap() = Some(reader.clone());
    let prepared = block_on(reader.prepare(page.iter().map(|row| (&alice, row))));
    assert!(prepared.into_iter().all(|result| kind(result) == ErrorKind::Denied));
    assert_eq!(reader.statistics().reading_deks, 0);
}

#[test]
fn what_is_prepared_ends_with_max_age_and_messages_of_a_store_are_prepared_too() {
    let (local, alice, clock) = (support::local("kek"), context("alice"), ManualClock::new());
    let store = MemoryStore::new();
    let envelope = || {
        Envelope::builder()
            .wrap_with(batching(local.clone()))
            .key_store(store.clone())
            .clock(clock.clone())
            .build()
            .unwrap()
    };
    let compact: Vec<_> = (0..20)
        .map(|_| {
            let sealed = block_on(envelope().encrypt_compact(&alice, Aad::empty(), b"row"));
            sealed.unwrap().into_parts().0
        })
        .collect();
    assert_eq!(store.len(), 20);
    let reader = envelope();
    let prepared = block_on(reader.prepare(compact.iter().map(|row| (&alice, row))));
    assert!(prepared.iter().all(Result::is_ok));
    assert_eq!(reader.statistics().keks[0].calls, 2);
    let cached = || reader.decrypt_cached(&alice, Aad::empty(), &compact[7]).unwrap().is_some();
    assert!(cached());
    clock.advance(Duration::from_secs(300));
    assert!(!cached());
}

#[test]
fn a_context_of_the_library_s_own_is_refused_in_batches_too() {
    let (store, root) = (MemoryStore::new(), support::local("root"));
    let branches = waxseal::branch::BranchKek::builder(root.clone()).name("orders");
    let branches = branches.store(store.clone()).build().unwrap();
    let writer = Envelope::builder().wrap_with(branches).build().unwrap();
    block_on(writer.encrypt(&context("alice"), Aad::empty(), b"row")).unwrap();
    // A reader of the store sees the context of a branch key.
    let scan = waxseal::store::KeyStore::scan(&store, None, 10);
    let row = block_on(scan).unwrap().rows[0].row().unwrap();
    let reserved = row.context().unwrap();
    let kek = batching(root.clone());
    let reader = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let page = rows(&root, "alice", 3, 1);
    let prepared = block_on(reader.prepare(page.iter().map(|row| (reserved, row))));
    assert!(prepared.into_iter().all(|result| kind(result) == ErrorKind::InvalidContext));
    assert_eq!(kek.calls().unwraps, 0);
}
