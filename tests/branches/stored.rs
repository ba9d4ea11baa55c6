//! The key store of an envelope: wrapped keys of compact messages, durable before a message is
//! released.

use waxseal::kek::KekErrorClass::Denied;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::store::StoreErrorClass::{self, Unavailable};
use waxseal::store::scripted::{Act, ScriptedStore};
use waxseal::store::{KeyRow, RewrapOptions, StoredRow};
use waxseal::{Aad, EncryptionContext, Envelope, Error, ErrorKind, ManualClock};
use waxseal_testing::support::stage::{entries_of, with_entries};
use waxseal_testing::support::{block_on, context};

use super::ground::{Fleet, kind, rows_of, secs, table};

/// Envelopes over one KEK and one store, without branch keys.
pub(super) struct Shared {
    pub(super) kek: ScriptedKek,
    pub(super) store: ScriptedStore,
    pub(super) clock: ManualClock,
}

impl Shared {
    pub(super) fn new() -> Self {
        let kek = ScriptedKek::new("kek").unwrap();
        Self { kek, store: ScriptedStore::in_memory(), clock: ManualClock::new() }
    }

    pub(super) fn envelope(&self) -> Envelope {
        Envelope::builder()
            .wrap_with(self.kek.clone())
            .key_store(self.store.clone())
            .clock(self.clock.clone())
            .build()
            .unwrap()
    }
}

pub(super) fn compact(envelope: &Envelope, context: &EncryptionContext) -> Result<Vec<u8>, Error> {
    let sealed = block_on(envelope.encrypt_compact(context, Aad::empty(), b"payload"))?;
    Ok(sealed.into_parts().0)
}

pub(super) fn open(
    envelope: &Envelope,
    context: &EncryptionContext,
    sealed: &[u8],
) -> Result<(), Error> {
    block_on(envelope.decrypt(context, Aad::empty(), sealed))
        .map(|plaintext| assert_eq!(&*plaintext, b"payload"))
}

#[test]
fn a_compact_message_is_found_by_itself_elsewhere() {
    let shared = Shared::new();
    let alice = context("alice");
    let writer = shared.envelope();
    let sealed: Vec<_> = (0..10).map(|_| compact(&writer, &alice).unwrap()).collect();
    assert_eq!(rows_of(&**shared.store.store()).len(), 1, "one row for a DEK");
    let reader = shared.envelope();
    for sealed in &sealed {
        open(&reader, &alice, sealed).unwrap();
    }
    assert_eq!((shared.kek.calls().unwraps, shared.store.calls().gets), (1, 1));
    let opening = block_on(shared.envelope().decryptor(&alice, &sealed[0])).unwrap();
    assert_eq!(&*opening.decrypt(Aad::empty(), &sealed[0]).unwrap(), b"payload");
    assert_eq!(kind(open(&shared.envelope(), &context("bob"), &sealed[0])), ErrorKind::Invalid);
    // It is renewed like any other.
    shared.clock.advance(secs(301));
    open(&reader, &alice, &sealed[0]).unwrap();
    assert_eq!(shared.store.calls().gets, 4);
}

#[test]
fn with_branch_keys_too_a_thousand_compact_deks_cost_one_unwrap() {
    let fleet = Fleet::new();
    let dek_rows = ScriptedStore::in_memory();
    let process = || fleet.process_with(|b| b, |e| e.key_store(dek_rows.clone()));
    let writer = process();
    let sealed: Vec<_> =
        (0..1000).map(|at| compact(&writer.envelope, &table("acme", at)).unwrap()).collect();
    let calls = fleet.calls().1;
    let reader = process();
    for (at, sealed) in sealed.iter().enumerate() {
        open(&reader.envelope, &table("acme", at), sealed).unwrap();
    }
    assert_eq!(fleet.calls().1, calls + 1);
    assert_eq!(dek_rows.calls().gets, 1000, "one read of the store for each DEK");
    // Both kinds of rows in one store.
    let one = fleet.process_with(|b| b, |e| e.key_store(fleet.store.clone()));
    let sealed = compact(&one.envelope, &context("bob")).unwrap();
    let other = fleet.process_with(|b| b, |e| e.key_store(fleet.store.clone()));
    open(&other.envelope, &context("bob"), &sealed).unwrap();
    block_on(one.kek.erase([("tenant", "bob")])).unwrap();
    assert_eq!(kind(open(&one.envelope, &context("bob"), &sealed)), ErrorKind::Denied);
}

#[test]
fn no_message_is_released_before_its_row_is_durable() {
    for (class, expected) in [
        (StoreErrorClass::Unavailable, ErrorKind::Unavailable),
        (StoreErrorClass::Throttled, ErrorKind::Throttled),
        (StoreErrorClass::Misconfigured, ErrorKind::Misconfigured),
    ] {
        let shared = Shared::new();
        let (envelope, alice) = (shared.envelope(), context("alice"));
        shared.store.script([Act::Fail(class)]);
        let error = compact(&envelope, &alice).unwrap_err();
        assert_eq!(error.kind(), expected);
        assert!(error.to_string().contains("key store"), "{error}");
        shared.store.script([Act::Fail(class)]);
        let result = block_on(envelope.encrypt(&alice, Aad::empty(), b"x"));
        assert_eq!(kind(result), expected, "the embedded form shares the DEK");
        shared.store.script([Act::LoseAnswer(class)]);
        assert_eq!(kind(block_on(envelope.encryptor(&alice))), expected);
        let sealed = compact(&envelope, &alice).unwrap();
        open(&shared.envelope(), &alice, &sealed).unwrap();
    }
}

/// The client of a store does it again when the first answer is lost.
#[test]
fn a_row_that_its_own_first_try_left_is_no_stranger_s_though_it_was_rewrapped_since() {
    let shared = Shared::new();
    let alice = context("alice");
    shared.store.script([Act::Repeat]);
    let sealed = compact(&shared.envelope(), &alice).unwrap();
    open(&shared.envelope(), &alice, &sealed).unwrap();
    // A job rewraps the row before the second try.
    let tries = std::sync::atomic::AtomicU64::new(0);
    let (kek, rows) = (shared.kek.local().clone(), shared.store.store().clone());
    shared.store.script([Act::Repeat]);
    shared.store.wait_for(move || {
        if tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 1 {
            kek.rotate().unwrap();
            let job = Envelope::builder().wrap_with(kek.clone()).key_store(rows.clone());
            let walk = job.build().unwrap();
            let done = block_on(walk.rewrap_stored(RewrapOptions::default(), |_| {})).unwrap();
            assert_eq!((done.rewrapped, done.failed), (2, 0));
        }
        Box::pin(async {})
    });
    let bob = context("bob");
    let sealed = compact(&shared.envelope(), &bob).unwrap();
    shared.store.wait_no_more();
    open(&shared.envelope(), &bob, &sealed).unwrap();
}

#[test]
fn a_message_is_not_released_while_the_store_has_not_answered() {
    let shared = Shared::new();
    let (envelope, alice) = (shared.envelope(), context("alice"));
    shared.store.script([Act::Hang]);
    {
        let encrypting = envelope.encrypt_compact(&alice, Aad::empty(), b"x");
        let mut encrypting = std::pin::pin!(encrypting);
        let mut task = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(encrypting.as_mut().poll(&mut task).is_pending());
        assert_eq!(rows_of(&**shared.store.store()).len(), 0);
    }
    compact(&envelope, &alice).unwrap();
}

fn erase(shared: &Shared, at: usize) {
    let row = rows_of(&**shared.store.store()).remove(at);
    assert!(block_on(shared.store.store().replace(&row, &row.tombstone())).unwrap());
}

#[test]
fn an_erased_dek_is_refused_in_both_forms_within_max_age() {
    let shared = Shared::new();
    let alice = context("alice");
    let (writer, reader) = (shared.envelope(), shared.envelope());
    let short = compact(&writer, &alice).unwrap();
    let long = block_on(writer.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    open(&reader, &alice, &short).unwrap();
    let opening = block_on(reader.decryptor(&alice, &long)).unwrap();
    erase(&shared, 0);
    for form in [&short, &long] {
        let error = open(&shared.envelope(), &alice, form).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(error.to_string().contains("erased"), "{error}");
    }
    shared.clock.advance(secs(301));
    for envelope in [&writer, &reader] {
        for form in [&short, &long] {
            assert_eq!(kind(open(envelope, &alice, form)), ErrorKind::Denied);
        }
    }
    assert_eq!(kind(opening.decrypt(Aad::empty(), &long)), ErrorKind::Expired);
    // A later write has another DEK.
    let later = compact(&writer, &alice).unwrap();
    open(&shared.envelope(), &alice, &later).unwrap();
}

#[test]
fn one_renewal_that_finds_the_tombstone_ends_the_dek_in_both_forms() {
    let shared = Shared::new();
    let alice = context("alice");
    let writer = shared.envelope();
    let short = compact(&writer, &alice).unwrap();
    let long = block_on(writer.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    for (first, second) in [(&short, &long), (&long, &short)] {
        let reader = shared.envelope();
        open(&reader, &alice, first).unwrap();
        erase_for(&shared, |_| {
            shared.clock.advance(secs(250));
            assert_eq!(kind(open(&reader, &alice, first)), ErrorKind::Denied);
            let cached = reader.decrypt_cached(&alice, Aad::empty(), &second[..]);
            assert!(cached.is_ok_and(|plaintext| plaintext.is_none()));
        });
    }
}

/// Shows a tombstone while `work` runs.
fn erase_for(shared: &Shared, work: impl FnOnce(&Shared)) {
    shared.store.lie(|rows| rows.iter().map(StoredRow::tombstone).collect());
    work(shared);
    shared.store.tell_the_truth();
}

#[test]
fn a_store_that_is_down_is_said_as_such_and_cached_deks_go_on() {
    let shared = Shared::new();
    let alice = context("alice");
    let writer = shared.envelope();
    let short = compact(&writer, &alice).unwrap();
    let reader = shared.envelope();
    open(&reader, &alice, &short).unwrap();
    shared.store.fail_with(Unavailable);
    shared.clock.advance(secs(200));
    open(&reader, &alice, &short).unwrap();
    compact(&writer, &alice).unwrap();
    shared.clock.advance(secs(101));
    for result in [open(&reader, &alice, &short), compact(&writer, &alice).map(drop)] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("key store memory"), "{error}");
    }
    shared.store.fail_with(None);
    open(&reader, &alice, &short).unwrap();
    compact(&writer, &alice).unwrap();
}

#[test]
fn a_message_that_carries_its_wrapped_keys_needs_no_row_and_lends_nobody_another() {
    let shared = Shared::new();
    let alice = context("alice");
    let elsewhere = Envelope::builder().wrap_with(shared.kek.clone()).build().unwrap();
    let foreign = block_on(elsewhere.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    open(&shared.envelope(), &alice, &foreign).unwrap();
    // Someone else's wrapped keys in a message whose row is in the store.
    let writer = shared.envelope();
    let long = block_on(writer.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    let forged = with_entries(&long, entries_of(&foreign));
    let reader = shared.envelope();
    assert_eq!(kind(open(&reader, &alice, &forged)), ErrorKind::Invalid);
    open(&reader, &alice, &long).unwrap();
}

#[test]
fn a_compact_message_without_a_row_or_with_one_of_another_opens_nothing() {
    let shared = Shared::new();
    let (alice, bob) = (context("alice"), context("bob"));
    let writer = shared.envelope();
    let (of_alice, of_bob) = (compact(&writer, &alice).unwrap(), compact(&writer, &bob).unwrap());
    shared.store.lie(|_| Vec::new());
    let error = open(&shared.envelope(), &alice, &of_alice).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingWrappedKeys);
    shared.store.tell_the_truth();
    let rows = rows_of(&**shared.store.store());
    let bytes = |row: &StoredRow| row.as_bytes().to_vec();
    let (first, second) = (rows[0].clone(), rows[1].clone());
    // Swapped.
    shared.store.lie(move |truth| {
        let swap = |row: StoredRow| {
            let other = if row.id() == first.id() { &second } else { &first };
            StoredRow::from_parts(*row.id(), None, bytes(other))
        };
        truth.into_iter().map(swap).collect()
    });
    for (context, sealed) in [(&alice, &of_alice), (&bob, &of_bob)] {
        assert_eq!(kind(open(&shared.envelope(), context, sealed)), ErrorKind::Misconfigured);
    }
    // Every bit of it.
    let row = rows.iter().find(|row| row.id().as_bytes()[..] == of_alice[8..24]).unwrap();
    for bit in 0..row.as_bytes().len() * 8 {
        let mut damaged = row.as_bytes().to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let lie = StoredRow::from_parts(*row.id(), None, damaged);
        shared.store.lie(move |_| vec![lie.clone()]);
        let error = open(&shared.envelope(), &alice, &of_alice).unwrap_err();
        let allowed = [
            ErrorKind::Misconfigured,
            ErrorKind::Invalid,
            ErrorKind::UnknownKek,
            ErrorKind::Denied,
        ];
        assert!(allowed.contains(&error.kind()), "bit {bit}: {error}");
        let is_live = KeyRow::try_from(
            &block_on(waxseal::store::KeyStore::get(&shared.store, row.id()))
                .unwrap()
                .unwrap()
                .as_bytes()
                .to_vec()[..],
        )
        .is_ok_and(|row| !row.is_tombstone());
        assert!(error.kind() != ErrorKind::Denied || !is_live, "bit {bit}");
    }
    shared.store.tell_the_truth();
    open(&shared.envelope(), &alice, &of_alice).unwrap();
}

#[test]
fn a_denial_is_a_denial_with_a_store_too() {
    let shared = Shared::new();
    let alice = context("alice");
    let writer = shared.envelope();
    let short = compact(&writer, &alice).unwrap();
    let reader = shared.envelope();
    open(&reader, &alice, &short).unwrap();
    let opening = block_on(reader.decryptor(&alice, &short)).unwrap();
    shared.kek.fail_with(Denied);
    shared.clock.advance(secs(250));
    let _ = open(&reader, &alice, &short);
    assert_eq!(kind(opening.decrypt(Aad::empty(), &short)), ErrorKind::Expired);
    assert_eq!(kind(open(&reader, &alice, &short)), ErrorKind::Denied);
}
