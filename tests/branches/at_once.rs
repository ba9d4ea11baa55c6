//! DEKs that are derived from a cached branch key on the caller's thread, without a call.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

use waxseal::kek::KekErrorClass;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::{Aad, EncryptionContext, Envelope, ErrorKind, Limits};
use waxseal_testing::support::HookedKek;
use waxseal_testing::support::stage::{Log, entries_of, with_entries};
use waxseal_testing::support::{block_on, context};

use super::ground::{DAY, Fleet, Process, kek_id, kind, secs, table};

/// A process whose branch key is obtained by a call for each DEK, as before DEKs were derived at
/// once. Counts these calls.
fn asking(fleet: &Fleet, kek: &Process, log: &Log) -> (Envelope, Arc<AtomicU64>) {
    let calls = Arc::new(AtomicU64::new(0));
    let counter = calls.clone();
    let hooked = HookedKek::around(kek.kek.clone()).on_unwrap(move |kek, context, wrapped| {
        counter.fetch_add(1, Ordering::SeqCst);
        kek.unwrap(context, wrapped)
    });
    let builder = Envelope::builder().wrap_with(hooked).clock(fleet.clock.clone());
    (builder.observer(log.clone()).build().unwrap(), calls)
}

/// What the same steps do in two processes: each result, and the events and counters after it.
type Told = Vec<(String, Option<ErrorKind>, Vec<String>, Vec<String>)>;

fn told(at_once: bool) -> Told {
    let fleet = Fleet::new();
    let writer = fleet.process();
    let rows: Vec<_> = (0..4).map(|at| writer.seal_for(&table("acme", at)).unwrap()).collect();
    // Wrapped by the branch key, and not derived from it.
    let other = fleet.process_with(|b| b.name("other"), |e| e);
    let both = fleet.envelope(&other.kek).wrap_with(writer.kek.clone()).build().unwrap();
    let wrapped = block_on(both.encrypt(&table("acme", "w"), Aad::empty(), b"payload")).unwrap();
    let own = entries_of(&wrapped).into_iter().find(|e| e.kek_id().as_str() == "branch:orders");
    let wrapped = with_entries(&wrapped, own);
    // Names the branch key, and another DEK than the message does.
    let forged = with_entries(&rows[0], entries_of(&rows[1]));

    let log = Log::default();
    let process = fleet.process();
    let envelope = match at_once {
        true => fleet.envelope(&process.kek).observer(log.clone()).build().unwrap(),
        false => asking(&fleet, &process, &log).0,
    };
    let mut told = Told::new();
    let mut step = |name: &str, context: &EncryptionContext, sealed: &[u8]| {
        let opened = block_on(envelope.decrypt(context, Aad::empty(), sealed));
        let kind = opened.err().map(|error| error.kind());
        // Another thread reports the end of a DEK, a little later.
        let heard =
            |log: &Log| log.take().into_iter().filter(|event| event != "Wiped").collect::<Vec<_>>();
        told.push((name.to_owned(), kind, heard(&log), heard(&process.branch_log)));
    };
    let [first, second] = [0, 1].map(|at| table("acme", at));
    step("no branch key is cached", &first, &rows[0]);
    step("it is cached", &second, &rows[1]);
    step("the DEK is cached too", &second, &rows[1]);
    step("a DEK that it wraps", &table("acme", "w"), &wrapped);
    step("in another context", &table("acme", 7), &rows[2]);
    step("of another tenant", &table("bob", 2), &rows[2]);
    step("without the pair", &EncryptionContext::empty(), &rows[2]);
    step("with another's entry", &first, &forged);
    envelope.evict_all();
    step("with another's entry, and nothing cached", &first, &forged);
    step("again", &first, &forged);
    step("the rightful one", &first, &rows[0]);
    envelope.revoke_kek(&kek_id("branch:orders"));
    step("the branch is revoked", &first, &rows[0]);
    envelope.reinstate_kek(&kek_id("branch:orders"));
    step("and reinstated", &first, &rows[0]);
    envelope.revoke_kek(&kek_id("local:root"));
    step("the root is revoked", &first, &rows[0]);
    envelope.reinstate_kek(&kek_id("local:root"));
    fleet.clock.advance(secs(250));
    step("the branch key is due", &first, &rows[0]);
    envelope.evict_all();
    fleet.root.fail_with(KekErrorClass::Unavailable);
    step("the root is down", &first, &rows[0]);
    fleet.clock.advance(secs(301));
    step("the branch key ended", &first, &rows[0]);
    fleet.root.fail_with(None);
    step("the root is back", &first, &rows[0]);
    envelope.evict_all();
    fleet.root.fail_with(KekErrorClass::Denied);
    fleet.clock.advance(secs(250));
    step("the root denies", &first, &rows[0]);
    fleet.root.fail_with(None);
    fleet.clock.advance(DAY);
    step("a day later", &first, &rows[0]);
    process.kek.erase_all("acme");
    step("erased", &second, &rows[1]);
    envelope.shut_down();
    step("shut down", &first, &rows[0]);
    let (mine, of_branch) = (envelope.statistics(), process.kek.statistics());
    let counted = |all: &waxseal::Statistics| {
        format!("{} {} {}", all.reading_misses, all.reading_hits, all.reading_deks)
    };
    // A message that fails looks for its branch key twice.
    let of_branch = format!("{} {}", of_branch.reading_misses, of_branch.reading_deks);
    told.push((counted(&mine), None, vec![of_branch], Vec::new()));
    told
}

trait EraseAll {
    fn erase_all(&self, tenant: &str);
}

impl EraseAll for waxseal::branch::BranchKek {
    fn erase_all(&self, tenant: &str) {
        block_on(self.erase([("tenant", tenant)])).unwrap();
    }
}

#[test]
fn what_is_derived_at_once_differs_in_nothing_from_what_is_asked_for() {
    let (at_once, asked) = (told(true), told(false));
    for (one, other) in at_once.iter().zip(&asked) {
        assert_eq!(one, other);
    }
    assert_eq!(at_once.len(), asked.len());
    let opened = at_once.iter().filter(|(_, kind, ..)| kind.is_none()).count();
    assert!(opened > 8 && at_once.len() - opened > 8, "{at_once:#?}");
}

#[test]
fn nobody_is_asked_for_a_dek_whose_branch_key_is_cached() {
    for self_contained in [false, true] {
        let fleet = Fleet::new();
        let process = if self_contained { fleet.self_contained() } else { fleet.process() };
        let rows: Vec<_> =
            (0..100).map(|at| process.seal_for(&table("acme", at)).unwrap()).collect();
        let log = Log::default();
        let (control, calls) = asking(&fleet, &process, &log);
        let read = |envelope: &Envelope| {
            for (at, sealed) in rows.iter().enumerate() {
                block_on(envelope.decrypt(&table("acme", at), Aad::empty(), sealed)).unwrap();
            }
        };
        read(&control);
        assert_eq!(calls.load(Ordering::SeqCst), 100, "the control");

        let calls = Arc::new(AtomicU64::new(0));
        let watched = Watched { inner: process.kek.clone(), unwraps: calls.clone(), panics: false };
        let before = (fleet.calls(), fleet.store.calls().total());
        let envelope = Envelope::builder().wrap_with(watched).clock(fleet.clock.clone());
        let envelope = envelope.observer(log.clone()).build().unwrap();
        log.take();
        read(&envelope);
        assert_eq!(calls.load(Ordering::SeqCst), 0);
        assert_eq!((fleet.calls(), fleet.store.calls().total()), before);
        assert_eq!(log.count("Unwrapped"), 100);
        let statistics = envelope.statistics();
        assert_eq!((statistics.reading_misses, statistics.reading_deks), (100, 100));
        // For a handle and in place too.
        envelope.evict_all();
        block_on(envelope.decryptor(&table("acme", 0), &rows[0])).unwrap();
        let mut buffer = rows[1].clone();
        block_on(envelope.decrypt_in_place(&table("acme", 1), Aad::empty(), &mut buffer)).unwrap();
        let rest = [(&table("acme", 2), &rows[2])];
        assert!(block_on(envelope.prepare(rest)).iter().all(Result::is_ok));
        assert_eq!(calls.load(Ordering::SeqCst), 0);
    }
}

/// A branch KEK that counts how often it is asked, and panics where it is to answer at once.
#[derive(Debug)]
struct Watched {
    inner: waxseal::branch::BranchKek,
    unwraps: Arc<AtomicU64>,
    panics: bool,
}

mod forwarding {
    use waxseal::kek::{BoxFuture, Health, KekError, KekProvider, UnwrappedDek};
    use waxseal::{Dek, EncryptionContext, KekId, WrappedDek};

    use super::*;

    impl KekProvider for Watched {
        fn id(&self) -> &KekId {
            self.inner.id()
        }

        fn derives_deks(&self) -> bool {
            true
        }

        fn wrap<'a>(
            &'a self,
            context: &'a EncryptionContext,
            dek: &'a Dek,
        ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
            self.inner.wrap(context, dek)
        }

        fn unwrap<'a>(
            &'a self,
            context: &'a EncryptionContext,
            wrapped: &'a WrappedDek,
        ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
            self.unwraps.fetch_add(1, Ordering::SeqCst);
            self.inner.unwrap(context, wrapped)
        }

        fn unwrap_cached(
            &self,
            context: &EncryptionContext,
            wrapped: &WrappedDek,
        ) -> Option<UnwrappedDek> {
            assert!(!self.panics, "by the test");
            self.inner.unwrap_cached(context, wrapped)
        }

        fn generate<'a>(
            &'a self,
            context: &'a EncryptionContext,
        ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
            self.inner.generate(context)
        }

        fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
            self.inner.health()
        }
    }
}

#[test]
fn a_provider_that_panics_at_once_is_asked_by_a_call() {
    let fleet = Fleet::new();
    let process = fleet.process();
    let sealed = process.seal("alice");
    let calls = Arc::new(AtomicU64::new(0));
    let watched = Watched { inner: process.kek.clone(), unwraps: calls.clone(), panics: true };
    let envelope =
        Envelope::builder().clock(fleet.clock.clone()).wrap_with(watched).build().unwrap();
    block_on(envelope.decrypt(&context("alice"), Aad::empty(), &sealed)).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn where_another_kek_comes_first_it_is_asked_first() {
    let fleet = Fleet::new();
    let other = ScriptedKek::new("other").unwrap();
    let process = fleet.process();
    let builder = Envelope::builder().clock(fleet.clock.clone());
    let both = builder.wrap_with(other.clone()).wrap_with(process.kek.clone()).build().unwrap();
    let sealed = block_on(both.encrypt(&context("alice"), Aad::empty(), b"x")).unwrap();
    both.evict_all();
    block_on(both.decrypt(&context("alice"), Aad::empty(), &sealed)).unwrap();
    assert_eq!(other.calls().unwraps, 1);
}

/// An envelope with a store finds its tombstones, also of a message that carries its entry.
#[test]
fn a_tombstone_in_the_store_of_the_envelope_is_found() {
    let fleet = Fleet::new();
    let process = fleet.process_with(|b| b, |e| e.key_store(fleet.store.clone()));
    let sealed = process.seal("alice");
    process.open("alice", &sealed).unwrap();
    let rows = fleet.rows();
    let row = rows.iter().find(|row| row.place().is_none()).unwrap();
    use waxseal::store::KeyStore;
    assert!(block_on(fleet.store.replace(row, &row.tombstone())).unwrap());
    process.envelope.evict_all();
    assert_eq!(kind(process.open("alice", &sealed)), ErrorKind::Denied);
}

#[test]
fn callers_that_derive_the_same_deks_at_once_end_with_one_each() {
    let fleet = Fleet::new();
    let process = fleet.process();
    let rows: Vec<_> = (0..200).map(|at| process.seal_for(&table("acme", at)).unwrap()).collect();
    let reader = fleet.envelope(&process.kek).limits(Limits::default()).build().unwrap();
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (at, sealed) in rows.iter().enumerate() {
                    let context = table("acme", at);
                    barrier.wait();
                    let opened = block_on(reader.decrypt(&context, Aad::empty(), sealed)).unwrap();
                    assert_eq!(&*opened, b"payload");
                }
            });
        }
    });
    assert_eq!(reader.statistics().reading_deks, 200);
    // What ended with one caller is of no consequence for the others.
    for (at, sealed) in rows.iter().enumerate() {
        let opened = reader.decrypt_cached(&table("acme", at), Aad::empty(), sealed).unwrap();
        assert!(opened.is_some(), "{at}");
    }
    process.kek.evict_all();
    assert_eq!(reader.statistics().reading_deks, 0);
}
