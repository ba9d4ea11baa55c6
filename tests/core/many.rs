//! Many values in one call: the same bytes as one by one, counted together, all or nothing.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use support::{SUITES, block_on, context, envelope, local};
use waxseal::kek::BoxFuture;
use waxseal::kek::scripted::{Act, ScriptedKek};
use waxseal::policy::{Decision, Policy, PolicyOptions, Question};
use waxseal::{
    Aad, Access, Backend, Caller, Envelope, Error, ErrorKind, Event, Limits, ManualClock, Nonces,
    Observer, Sealed, Values, inspect,
};
use waxseal_testing::support;

/// Values with their AADs, of different lengths.
pub(super) fn rows(count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    (0..count)
        .map(|n| (n.to_be_bytes().to_vec(), vec![u8::try_from(n % 251).unwrap(); n % 40]))
        .collect()
}

pub(super) type Pair<'r> = (Aad<'r>, &'r [u8]);

pub(super) fn items(rows: &[(Vec<u8>, Vec<u8>)]) -> impl Iterator<Item = Pair<'_>> + Clone {
    rows.iter().map(|(aad, value)| (Aad::from(aad), &value[..]))
}

/// Each sealed value with its AAD.
pub(super) fn sealed<'r>(
    rows: &'r [(Vec<u8>, Vec<u8>)],
    values: &'r Values,
) -> impl Iterator<Item = Pair<'r>> + Clone {
    rows.iter().zip(values).map(|((aad, _), sealed)| (Aad::from(aad), sealed))
}

pub(super) fn assert_are(values: &Values, rows: &[(Vec<u8>, Vec<u8>)]) {
    assert_eq!((values.len(), values.is_empty()), (rows.len(), rows.is_empty()));
    assert!(values.iter().eq(rows.iter().map(|(_, value)| &value[..])));
    assert_eq!(values.offsets().len(), rows.len() + 1);
    assert_eq!(
        values.as_bytes(),
        rows.iter().flat_map(|(_, value)| value.clone()).collect::<Vec<_>>()
    );
    assert_eq!(values.get(rows.len()), None);
}

#[test]
fn what_is_encrypted_together_is_decrypted_one_by_one_and_the_other_way_round() {
    for backend in Backend::all() {
        for (suite, nonces) in
            SUITES.into_iter().flat_map(|s| [(s, Nonces::Thread), (s, Nonces::System)])
        {
            let (kek, alice) = (local("kek"), context("alice"));
            let builder = Envelope::builder().wrap_with(kek.clone()).backend(*backend);
            let writer = builder.suite(suite).nonces(nonces).build().unwrap();
            // Around the size of a block.
            for count in [0, 1, 2, 63, 64, 65, 128, 200] {
                let rows = rows(count);
                let together = block_on(writer.encrypt_many(&alice, items(&rows))).unwrap();
                let handle = block_on(writer.encryptor(&alice)).unwrap();
                let by_handle = handle.encrypt_many(items(&rows)).unwrap();
                assert_eq!(together.len(), count);
                let reader = envelope(&kek);
                for values in [&together, &by_handle] {
                    for ((aad, value), sealed) in rows.iter().zip(values) {
                        let opened = block_on(reader.decrypt(&alice, Aad::from(aad), sealed));
                        assert_eq!(&*opened.unwrap(), value);
                    }
                    let opened =
                        block_on(reader.decrypt_many(&alice, sealed(&rows, values))).unwrap();
                    assert_are(&opened, &rows);
                    if let Some(first) = values.get(0) {
                        let handle = block_on(reader.decryptor(&alice, first)).unwrap();
                        assert_are(&handle.decrypt_many(sealed(&rows, values)).unwrap(), &rows);
                    }
                }
                let nonces: HashSet<_> = together
                    .iter()
                    .chain(&by_handle)
                    .map(|sealed| sealed[40..40 + suite.nonce_len()].to_vec())
                    .collect();
                assert_eq!(nonces.len(), 2 * count);

                let compact = handle.compact();
                let values = compact.encrypt_many(items(&rows)).unwrap();
                let keys = compact.wrapped_keys();
                let with_keys = || {
                    sealed(&rows, &values).map(|(aad, sealed)| (aad, Sealed::compact(sealed, keys)))
                };
                assert_eq!(
                    values.as_bytes().len(),
                    rows.iter()
                        .map(|(_, value)| value.len() + compact.prefix_len() + 16)
                        .sum::<usize>()
                );
                assert_are(&block_on(reader.decrypt_many(&alice, with_keys())).unwrap(), &rows);

                let singly: Vec<_> = items(&rows)
                    .map(|(aad, value)| block_on(writer.encrypt(&alice, aad, value)).unwrap())
                    .collect();
                let items =
                    rows.iter().zip(&singly).map(|((aad, _), sealed)| (Aad::from(aad), sealed));
                let (bytes, offsets) =
                    block_on(reader.decrypt_many(&alice, items)).unwrap().into_parts();
                assert_eq!(
                    (bytes.len(), offsets.len()),
                    (rows.iter().map(|(_, value)| value.len()).sum::<usize>(), count + 1)
                );
            }
        }
    }
}

/// Where all values of a block have one length, the parts of the messages that are alike are used
/// again.
#[test]
fn values_of_one_length_and_of_others_come_back_in_any_order() {
    let lens = [(16, 130), (24, 64), (16, 64), (0, 64), (16, 64), (150, 70), (16, 20), (17, 3)];
    let mixed = rows(64).into_iter().map(|(_, value)| value);
    let values = lens.iter().flat_map(|(len, count)| {
        (0..*count).map(move |n: u8| vec![n ^ 0x5A; *len]).collect::<Vec<_>>()
    });
    let values = values.clone().chain(mixed).chain(values);
    let rows: Vec<_> = values.enumerate().map(|(n, v)| (n.to_be_bytes().to_vec(), v)).collect();
    for (suite, backend) in SUITES.iter().flat_map(|s| Backend::all().iter().map(move |b| (*s, *b)))
    {
        let builder = Envelope::builder().wrap_with(local("kek")).suite(suite).backend(backend);
        let envelope = builder.build().unwrap();
        let alice = context("alice");
        let handle = block_on(envelope.encryptor(&alice)).unwrap();
        let opening = handle.encrypt(Aad::empty(), b"").unwrap();
        let opening = block_on(envelope.decryptor(&alice, &opening)).unwrap();
        let compact = handle.clone().compact();
        let single = compact.encrypt(Aad::empty(), b"").unwrap();
        let single = single.as_bytes();
        for (values, prefix) in [
            (handle.encrypt_many(items(&rows)).unwrap(), handle.prefix_len()),
            (compact.encrypt_many(items(&rows)).unwrap(), compact.prefix_len()),
        ] {
            assert_are(&opening.decrypt_many(sealed(&rows, &values)).unwrap(), &rows);
            let nonce_len = suite.nonce_len();
            let mut nonces = HashSet::new();
            for ((_, value), sealed) in rows.iter().zip(&values) {
                assert_eq!(sealed.len(), prefix + value.len() + handle.tag_len());
                assert_eq!(sealed[8..40], single[8..40], "the DEK's id");
                assert!(nonces.insert(sealed[40..40 + nonce_len].to_vec()));
            }
            let wrapped: HashSet<_> = values.iter().map(|of| &of[40 + nonce_len..prefix]).collect();
            assert_eq!(wrapped.len(), 1, "the wrapped keys");
        }
    }
}

#[test]
fn a_few_large_values_among_small_ones_come_back() {
    let (kek, alice) = (local("kek"), context("alice"));
    let writer = envelope(&kek);
    let mut rows = rows(150);
    for (at, len) in [(0, 300_000), (70, 1 << 20), (149, 262_144)] {
        rows[at].1 = vec![9; len];
    }
    let values = block_on(writer.encrypt_many(&alice, items(&rows))).unwrap();
    assert_are(
        &block_on(envelope(&kek).decrypt_many(&alice, sealed(&rows, &values))).unwrap(),
        &rows,
    );
    let handle = block_on(envelope(&kek).decryptor(&alice, values.get(0).unwrap())).unwrap();
    assert_are(&handle.decrypt_many(sealed(&rows, &values)).unwrap(), &rows);
}

/// An envelope whose DEKs have these caps, without a renewal ahead of time.
/// Blocks of few bytes are worked on in another way than others.
#[test]
fn blocks_on_either_side_of_16_kib_come_back_and_a_wrong_message_is_found_in_both() {
    for backend in Backend::all() {
        let (kek, alice) = (local("kek"), context("alice"));
        let envelope = Envelope::builder().wrap_with(kek).backend(*backend).build().unwrap();
        let handle = block_on(envelope.encryptor(&alice)).unwrap();
        let of_len = |(n, len): (usize, usize)| {
            (n.to_be_bytes().to_vec(), vec![u8::try_from(n % 251).unwrap(); len])
        };
        // 64 values have 16 KiB of plaintext, or of compact messages, or a byte less or more.
        for (len, more) in [(256, 0), (256, 1), (255, 63), (188, 0), (188, 1), (187, 63)] {
            let lens = (0..130).map(|n| if n == 7 { len + more } else { len });
            let rows: Vec<_> = lens.enumerate().map(of_len).collect();
            let compact = handle.clone().compact().encrypt_many(items(&rows)).unwrap();
            let embedded = handle.encrypt_many(items(&rows)).unwrap();
            let reader = block_on(envelope.decryptor(&alice, embedded.get(0).unwrap())).unwrap();
            for values in [&compact, &embedded] {
                assert_are(&reader.decrypt_many(sealed(&rows, values)).unwrap(), &rows);
                for ((aad, value), sealed) in rows.iter().zip(values) {
                    assert_eq!(&*reader.decrypt(Aad::from(aad), sealed).unwrap(), value);
                }
                for wrong in [0, 7, 63, 64, 129] {
                    let mut copies: Vec<_> = values.iter().map(<[u8]>::to_vec).collect();
                    *copies[wrong].last_mut().unwrap() ^= 1;
                    let pairs =
                        || rows.iter().zip(&copies).map(|((aad, _), it)| (Aad::from(aad), it));
                    let error = reader.decrypt_many(pairs()).unwrap_err();
                    assert_eq!((error.kind(), error.item()), (ErrorKind::Invalid, Some(wrong)));
                }
            }
        }
    }
}

fn capped(messages: u64, bytes: u64) -> Envelope {
    let limits = Limits::default().max_messages(messages).max_bytes(bytes);
    Envelope::builder().wrap_with(local("kek")).limits(limits).build().unwrap()
}

#[test]
fn a_call_is_counted_as_a_whole_or_not_at_all() {
    let alice = context("alice");
    let one = |count| std::iter::repeat_n((Aad::empty(), "x"), count);
    for many_bytes in [false, true] {
        let envelope = if many_bytes { capped(1 << 20, 100) } else { capped(100, 1 << 20) };
        let handle = || block_on(envelope.encryptor(&alice)).unwrap();
        // More than any DEK may encrypt: no DEK is used up by it.
        let first = handle();
        assert_eq!(first.encrypt_many(one(101)).unwrap_err().kind(), ErrorKind::TooLarge);
        let error = block_on(envelope.encrypt_many(&alice, one(101))).unwrap_err();
        assert_eq!((error.kind(), error.item()), (ErrorKind::TooLarge, None));
        assert_eq!(handle().dek_id(), first.dek_id());
        // Exactly all.
        assert_eq!(first.encrypt_many(one(100)).unwrap().len(), 100);
        assert_eq!(first.encrypt(Aad::empty(), b"x").unwrap_err().kind(), ErrorKind::Exhausted);

        // One more than what is left: nothing of it is counted.
        let second = handle();
        assert_ne!(second.dek_id(), first.dek_id());
        second.encrypt_many(one(90)).unwrap();
        assert_eq!(second.encrypt_many(one(11)).unwrap_err().kind(), ErrorKind::Exhausted);
        for _ in 0..10 {
            second.encrypt(Aad::empty(), b"x").unwrap();
        }
        assert_eq!(second.encrypt(Aad::empty(), b"x").unwrap_err().kind(), ErrorKind::Exhausted);

        // The envelope takes the next DEK, for all of them.
        let third = handle();
        third.encrypt_many(one(90)).unwrap();
        let values = block_on(envelope.encrypt_many(&alice, one(11))).unwrap();
        let ids: HashSet<_> = values.iter().map(|sealed| inspect(sealed).unwrap().dek_id).collect();
        assert!(ids.len() == 1 && !ids.contains(&third.dek_id()));
    }
}

#[test]
fn one_wrong_message_of_many_is_named_and_nothing_is_released() {
    let (kek, alice) = (local("kek"), context("alice"));
    let (writer, rows) = (envelope(&kek), rows(130));
    let values = block_on(writer.encrypt_many(&alice, items(&rows))).unwrap();
    let handle = block_on(writer.decryptor(&alice, values.get(0).unwrap())).unwrap();
    for wrong in [0, 1, 63, 64, 65, 129] {
        let mut messages: Vec<_> = values.iter().map(<[u8]>::to_vec).collect();
        let check = |messages: &[Vec<u8>], kind: ErrorKind| {
            let items =
                || rows.iter().zip(messages).map(|((aad, _), sealed)| (Aad::from(aad), sealed));
            for error in [
                handle.decrypt_many(items()).unwrap_err(),
                block_on(writer.decrypt_many(&alice, items())).unwrap_err(),
                block_on(envelope(&kek).decrypt_many(&alice, items())).unwrap_err(),
            ] {
                assert_eq!((error.kind(), error.item()), (kind, Some(wrong)));
                assert!(error.to_string().contains(&format!("item {wrong}")), "{error}");
            }
        };
        *messages[wrong].last_mut().unwrap() ^= 1;
        check(&messages, ErrorKind::Invalid);
        messages[wrong].truncate(70);
        check(&messages, ErrorKind::Malformed);
        messages[wrong] = b"not sealed".to_vec();
        check(&messages, ErrorKind::NotSealed);
    }
    // Of another DEK: an error for the handle only.
    let other = block_on(envelope(&kek).encrypt(&alice, Aad::empty(), b"other")).unwrap();
    let items = [(Aad::from(&rows[0].0), values.get(0).unwrap()), (Aad::empty(), &other)];
    let error = handle.decrypt_many(items).unwrap_err();
    assert_eq!((error.kind(), error.item()), (ErrorKind::OtherDek, Some(1)));
    assert_eq!(block_on(writer.decrypt_many(&alice, items)).unwrap().get(1), Some(&b"other"[..]));
}

#[test]
fn everything_is_read_before_a_key_service_is_asked() {
    let (kek, alice) = (ScriptedKek::new("kek").unwrap(), context("alice"));
    let envelope = || Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let good = block_on(envelope().encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let before = kek.calls().total();
    let items = [&good[..], b"bad"].map(|sealed| (Aad::empty(), sealed));
    assert_eq!(block_on(envelope().decrypt_many(&alice, items)).unwrap_err().item(), Some(1));
    let none: [Pair<'_>; 0] = [];
    assert!(block_on(envelope().encrypt_many(&alice, none)).unwrap().is_empty());
    assert_eq!(kek.calls().total(), before);
}

#[test]
fn messages_of_many_deks_come_back_in_order_with_one_call_for_each_dek() {
    let (kek, alice) = (ScriptedKek::new("kek").unwrap(), context("alice"));
    let envelope = || Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let rows = rows(60);
    let writers: Vec<_> = (0..5).map(|_| envelope()).collect();
    // Runs of one DEK, and DEKs in turn.
    let of = |n: usize| if n < 30 { n / 10 } else { n % 5 };
    let messages: Vec<_> = items(&rows)
        .enumerate()
        .map(|(n, (aad, value))| block_on(writers[of(n)].encrypt(&alice, aad, value)).unwrap())
        .collect();
    let items = || rows.iter().zip(&messages).map(|((aad, _), sealed)| (Aad::from(aad), sealed));
    let before = kek.calls().unwraps;
    let reader = envelope();
    assert_are(&block_on(reader.decrypt_many(&alice, items())).unwrap(), &rows);
    assert_eq!(kek.calls().unwraps - before, 5);
    // Of fewer uses than messages, a DEK is unwrapped again on the way.
    let limits = Limits::default().max_uses(7);
    let reader = Envelope::builder().wrap_with(kek.clone()).limits(limits).build().unwrap();
    assert_are(&block_on(reader.decrypt_many(&alice, items())).unwrap(), &rows);
    let handle = block_on(reader.decryptor(&alice, &messages[0])).unwrap();
    let same = |count| std::iter::repeat_n((Aad::from(&rows[0].0), &messages[0]), count);
    assert_eq!(handle.decrypt_many(same(100)).unwrap_err().kind(), ErrorKind::Exhausted);
}

/// A cache that has no place for the DEKs of one call costs no second call for any of them.
#[test]
fn a_dek_is_unwrapped_once_in_a_call_however_few_the_cache_holds() {
    let (kek, alice) = (ScriptedKek::new("kek").unwrap(), context("alice"));
    let rows = rows(120);
    let writers: Vec<_> =
        (0..40).map(|_| Envelope::builder().wrap_with(kek.clone()).build().unwrap()).collect();
    let messages: Vec<_> = items(&rows)
        .enumerate()
        .map(|(n, (aad, value))| block_on(writers[n % 40].encrypt(&alice, aad, value)).unwrap())
        .collect();
    let items = || rows.iter().zip(&messages).map(|((aad, _), sealed)| (Aad::from(aad), sealed));
    for (batch, calls) in [(1, 39), (7, 6), (40, 1)] {
        kek.take_batches_of(batch);
        let limits = Limits::default().max_entries(4);
        let reader = Envelope::builder().wrap_with(kek.clone()).limits(limits).build().unwrap();
        // One of them is cached before, and is not lost to the others either.
        block_on(reader.decrypt(&alice, Aad::from(&rows[3].0), &messages[3])).unwrap();
        let before = kek.calls().unwraps;
        assert_are(&block_on(reader.decrypt_many(&alice, items())).unwrap(), &rows);
        assert_eq!(kek.calls().unwraps - before, calls, "batches of {batch}");
        // Afterwards the cache holds what it may.
        assert!(reader.statistics().reading_deks <= 4);
    }
}

/// Whose results have no place in memory leaves the DEK as it was.
#[test]
fn a_call_without_memory_for_its_results_is_not_counted() {
    let alice = context("alice");
    let bytes = 1_u64 << 50;
    let limits = Limits::default().max_messages(1 << 32).max_bytes(bytes);
    let envelope = Envelope::builder().wrap_with(local("kek")).limits(limits).build().unwrap();
    // It is in memory once, if at all: nothing reads it.
    let block = vec![0; 1 << 32];
    let most = usize::try_from(bytes >> 32).unwrap() - 1;
    let handle = block_on(envelope.encryptor(&alice)).unwrap();
    for _ in 0..3 {
        let items = || std::iter::repeat_n((Aad::empty(), &block), most);
        for error in [
            handle.encrypt_many(items()).unwrap_err(),
            block_on(envelope.encrypt_many(&alice, items())).unwrap_err(),
        ] {
            assert_eq!((error.kind(), error.item()), (ErrorKind::TooLarge, None));
            assert!(error.to_string().contains("no memory"), "{error}");
        }
    }
    assert!(handle.encrypt(Aad::empty(), &[0; 1 << 20]).is_ok());
    assert_eq!(block_on(envelope.encryptor(&alice)).unwrap().dek_id(), handle.dek_id());
}

#[test]
fn an_item_that_is_too_large_by_itself_is_named() {
    let (alice, envelope) = (context("alice"), capped(1 << 20, 100));
    let texts = ["a", "b", &"c".repeat(101), "d"];
    let items = || texts.iter().map(|text| (Aad::empty(), *text));
    let handle = block_on(envelope.encryptor(&alice)).unwrap();
    for error in [
        handle.encrypt_many(items()).unwrap_err(),
        block_on(envelope.encrypt_many(&alice, items())).unwrap_err(),
        block_on(envelope.encryptor(&alice)).unwrap().encrypt_many(items()).unwrap_err(),
    ] {
        assert_eq!((error.kind(), error.item()), (ErrorKind::TooLarge, Some(2)), "{error}");
    }
    assert_eq!(handle.encrypt_many(items().take(2)).unwrap().len(), 2);
}

/// What was decrypted before a failure is counted as a use, and so for its caller.
#[test]
fn a_call_that_fails_on_the_way_is_counted_the_same_in_all_and_by_caller() {
    let (uses, alice) = (Uses::default(), context("alice"));
    let kek = ScriptedKek::new("kek").unwrap();
    let envelope = Envelope::builder().wrap_with(kek.clone()).observer(uses.clone());
    let envelope = envelope.build().unwrap();
    let rows = rows(200);
    let values = block_on(envelope.encrypt_many(&alice, items(&rows))).unwrap();
    let mut messages: Vec<_> = values.iter().map(<[u8]>::to_vec).collect();
    *messages[150].last_mut().unwrap() ^= 1;
    let items = || rows.iter().zip(&messages).map(|((aad, _), sealed)| (Aad::from(aad), sealed));
    let clerk = Caller::builder().service("clerk").build().unwrap();
    let acting = envelope.acting_for(&clerk);
    assert_eq!(block_on(acting.decrypt_many(&alice, items())).unwrap_err().item(), Some(150));
    let handle = block_on(acting.decryptor(&alice, &messages[0])).unwrap();
    assert_eq!(handle.decrypt_many(items()).unwrap_err().item(), Some(150));
    // Given up while a DEK that was used up is waited for.
    let limits = Limits::default().max_uses(60);
    let few = Envelope::builder().wrap_with(kek.clone()).limits(limits).observer(uses.clone());
    let few = few.build().unwrap();
    let acting = few.acting_for(&clerk);
    block_on(acting.decrypt(&alice, Aad::from(&rows[0].0), &messages[0])).unwrap();
    kek.script([Act::Hang]);
    let mut call = Box::pin(acting.decrypt_many(&alice, items().take(100)));
    let waker = std::task::Waker::noop();
    assert!(call.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
    drop(call);
    envelope.evict_all();
    few.evict_all();
    let uses = uses.0.lock().unwrap();
    assert_eq!(uses[&(true, "decrypt")], 150 + 150 + 1 + 59);
    assert_eq!(uses[&(false, "decrypt")], uses[&(true, "decrypt")]);
}

#[test]
fn what_is_not_authentic_uses_up_nothing_in_a_call_for_many() {
    let (kek, alice) = (local("kek"), context("alice"));
    let good = block_on(envelope(&kek).encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    let limits = Limits::default().max_uses(70);
    let reader = Envelope::builder().wrap_with(kek).limits(limits).build().unwrap();
    let handle = block_on(reader.decryptor(&alice, &good)).unwrap();
    for _ in 0..50 {
        let items = [&bad, &good, &good].map(|sealed| (Aad::empty(), sealed));
        assert_eq!(handle.decrypt_many(items).unwrap_err().item(), Some(0));
    }
    assert_eq!(handle.decrypt_many(vec![(Aad::empty(), &good); 70]).unwrap().len(), 70);
    assert_eq!(handle.decrypt(Aad::empty(), &good).unwrap_err().kind(), ErrorKind::Exhausted);
}

/// Gives other items when it is gone through again.
#[derive(Clone)]
struct Fickle<'c> {
    clones: &'c Cell<u32>,
    lens: [&'c [usize]; 2],
}

impl<'c> IntoIterator for Fickle<'c> {
    type Item = (Aad<'static>, &'static [u8]);
    type IntoIter = FickleIter<'c>;

    fn into_iter(self) -> FickleIter<'c> {
        FickleIter { of: self, at: 0, second: false }
    }
}

struct FickleIter<'c> {
    of: Fickle<'c>,
    at: usize,
    second: bool,
}

impl Clone for FickleIter<'_> {
    fn clone(&self) -> Self {
        let second = self.of.clones.replace(self.of.clones.get() + 1) > 0;
        Self { of: self.of.clone(), at: 0, second }
    }
}

impl Iterator for FickleIter<'_> {
    type Item = (Aad<'static>, &'static [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        static BYTES: [u8; 100] = [7; 100];
        let lens = self.of.lens[usize::from(self.second || self.of.clones.get() > 1)];
        let len = *lens.get(self.at)?;
        self.at += 1;
        Some((Aad::empty(), &BYTES[..len]))
    }
}

#[test]
fn items_that_change_when_they_are_gone_through_again_are_refused_and_exceed_no_cap() {
    let alice = context("alice");
    let envelope = capped(1 << 20, 1 << 20);
    for second in [&[1, 2, 3, 1][..], &[1, 2], &[], &[1, 2, 4], &[1, 2, 2]] {
        let clones = Cell::new(0);
        let fickle = Fickle { clones: &clones, lens: [&[1, 2, 3], second] };
        // The envelope clones for each look.
        let error = block_on(envelope.encrypt_many(&alice, fickle)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{second:?}");
    }
    // A hint that lies is not believed.
    let (rows, kek) = (rows(300), local("kek"));
    let writer = support::envelope(&kek);
    let values = block_on(writer.encrypt_many(&alice, items(&rows))).unwrap();
    let handle = block_on(writer.decryptor(&alice, values.get(0).unwrap())).unwrap();
    struct Lying<I>(I, usize);
    impl<I: Iterator> Iterator for Lying<I> {
        type Item = I::Item;
        fn next(&mut self) -> Option<I::Item> {
            self.0.next()
        }
        fn size_hint(&self) -> (usize, Option<usize>) {
            (self.1, None)
        }
    }
    for hint in [0, 5, usize::MAX] {
        let opened = handle.decrypt_many(Lying(sealed(&rows, &values), hint)).unwrap();
        assert_are(&opened, &rows);
    }
}

#[test]
fn a_handle_that_ends_in_the_middle_of_a_call_releases_nothing() {
    let (kek, alice, clock) = (local("kek"), context("alice"), ManualClock::new());
    let envelope = Envelope::builder().wrap_with(kek).clock(clock.clone()).build().unwrap();
    let rows = rows(200);
    let values = block_on(envelope.encrypt_many(&alice, items(&rows))).unwrap();
    let ends: [(&str, &dyn Fn()); 3] = [
        ("max_age", &|| clock.advance(Duration::from_secs(3600))),
        ("evict_context", &|| envelope.evict_context(&alice)),
        ("shut_down", &|| envelope.shut_down()),
    ];
    for (name, end) in ends {
        let sealing = block_on(envelope.encryptor(&alice)).unwrap();
        let opening = block_on(envelope.decryptor(&alice, values.get(0).unwrap())).unwrap();
        let in_the_middle = |n: usize| {
            if n == 100 {
                end()
            }
        };
        let items = sealed(&rows, &values).enumerate().inspect(|(n, _)| in_the_middle(*n));
        let error = opening.decrypt_many(items.map(|(_, item)| item)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Expired, "{name}");
        if name == "shut_down" {
            break;
        }
        drop(sealing);
        let sealing = block_on(envelope.encryptor(&alice)).unwrap();
        let seen = Cell::new(0);
        // The second time, when they are encrypted.
        let items = items_of(&rows, || {
            seen.set(seen.get() + 1);
            in_the_middle(seen.get() - rows.len().min(seen.get()));
        });
        let error = sealing.encrypt_many(items).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Expired, "{name}");
    }
}

fn items_of<'r>(
    rows: &'r [(Vec<u8>, Vec<u8>)],
    each: impl Fn() + Clone,
) -> impl Iterator<Item = Pair<'r>> + Clone {
    items(rows).inspect(move |_| each())
}

/// Allows the caller `clerk`.
#[derive(Debug, Clone, Default)]
struct Clerks(Arc<AtomicUsize>);

impl Policy for Clerks {
    fn decide<'a>(&'a self, question: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let is_clerk = question.caller.and_then(Caller::service) == Some("clerk");
        let decision = if is_clerk { Decision::allow() } else { Decision::deny(["no clerk"]) };
        Box::pin(async { Ok(decision) })
    }
}

#[derive(Debug, Clone, Default)]
struct Uses(Arc<Mutex<BTreeMap<(bool, &'static str), u64>>>);

impl Observer for Uses {
    fn event(&self, event: &Event<'_>) {
        let (by, access, messages) = match event {
            Event::Accessed { access, messages, .. } => (false, access, messages),
            Event::AccessedBy { access, messages, .. } => (true, access, messages),
            _ => return,
        };
        let access = if *access == Access::Encrypt { "encrypt" } else { "decrypt" };
        *self.0.lock().unwrap().entry((by, access)).or_default() += messages;
    }

    fn access_summaries(&self) -> Option<Duration> {
        Some(Duration::from_secs(3600))
    }
}

#[test]
fn the_policy_is_asked_once_and_each_message_is_counted_for_its_caller() {
    let (policy, uses, kek, alice) =
        (Clerks::default(), Uses::default(), local("kek"), context("alice"));
    let envelope = Envelope::builder()
        .wrap_with(kek)
        .observer(uses.clone())
        .policy(policy.clone(), PolicyOptions::default())
        .build()
        .unwrap();
    let [clerk, guest] =
        ["clerk", "guest"].map(|name| Caller::builder().service(name).build().unwrap());
    let rows = rows(100);
    let values = block_on(envelope.acting_for(&clerk).encrypt_many(&alice, items(&rows))).unwrap();
    let asked = || policy.0.swap(0, Ordering::SeqCst);
    assert_eq!(asked(), 1);
    let opened = block_on(envelope.acting_for(&clerk).decrypt_many(&alice, sealed(&rows, &values)));
    assert_are(&opened.unwrap(), &rows);
    assert_eq!(asked(), 1);
    let handle = block_on(envelope.acting_for(&clerk).encryptor(&alice)).unwrap();
    handle.encrypt_many(items(&rows[..30])).unwrap();
    let handle = block_on(envelope.acting_for(&clerk).decryptor(&alice, values.get(0).unwrap()));
    handle.unwrap().decrypt_many(sealed(&rows[..20], &values)).unwrap();

    // A denied caller learns nothing about the messages, not even that they are invalid.
    let denied = |result: Result<usize, Error>| {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::PolicyDenied);
    };
    let guest = envelope.acting_for(&guest);
    denied(block_on(guest.encrypt_many(&alice, items(&rows))).map(|values| values.len()));
    let bad = [(Aad::empty(), b"not sealed")];
    denied(block_on(guest.decrypt_many(&alice, bad)).map(|values| values.len()));
    denied(block_on(envelope.decrypt_many(&alice, bad)).map(|values| values.len()));
    denied(block_on(envelope.encrypt_many(&alice, items(&rows))).map(|values| values.len()));
    envelope.evict_all();
    let expected = [
        ((false, "decrypt"), 120),
        ((false, "encrypt"), 130),
        ((true, "decrypt"), 120),
        ((true, "encrypt"), 130),
    ];
    assert_eq!(*uses.0.lock().unwrap(), BTreeMap::from(expected));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_values_come_back_and_any_change_is_refused(
        rows in prop::collection::vec(
            (
                prop::collection::vec(any::<u8>(), 0..20),
                prop::collection::vec(any::<u8>(), 0..300),
            ),
            1..150,
        ),
        suite in 0..3_usize, at: prop::sample::Index, bit: prop::sample::Index,
    ) {
        let (kek, alice) = (local("kek"), context("alice"));
        let writer = Envelope::builder().wrap_with(kek.clone()).suite(SUITES[suite]).build().unwrap();
        let values = block_on(writer.encrypt_many(&alice, items(&rows))).unwrap();
        assert_are(&block_on(envelope(&kek).decrypt_many(&alice, sealed(&rows, &values))).unwrap(), &rows);
        let mut messages: Vec<_> = values.iter().map(<[u8]>::to_vec).collect();
        let at = at.index(messages.len());
        let bit = bit.index(messages[at].len() * 8);
        messages[at][bit / 8] ^= 1 << (bit % 8);
        let changed = rows.iter().zip(&messages).map(|((aad, _), sealed)| (Aad::from(aad), sealed));
        // A changed list of wrapped keys is not read while the DEK is cached, and changes no
        // payload.
        match block_on(writer.decrypt_many(&alice, changed)) {
            Ok(opened) => {
                let keys = inspect(values.get(at).unwrap()).unwrap();
                let start = 40 + SUITES[suite].nonce_len();
                let len = values.get(at).unwrap().len() - start - 16 - keys.plaintext_len.unwrap();
                prop_assert!((start * 8..(start + len) * 8).contains(&bit), "bit {}", bit);
                assert_are(&opened, &rows);
            }
            Err(error) => prop_assert_eq!(error.item(), Some(at)),
        }
    }
}
