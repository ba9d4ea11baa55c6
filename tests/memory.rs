//! The process's own memory, searched for keys: found while they may be used, and nowhere after.
#![cfg(all(target_os = "linux", feature = "conformance"))]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[path = "support/needle.rs"]
mod needle;
mod support;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hkdf::Hkdf;
use needle::Needle;
use sha2::Sha256;
use support::{block_on, context};
use waxseal::kek::local::LocalKek;
use waxseal::kek::{BoxFuture, Health, KekError, KekProvider, UnwrappedDek};
use waxseal::{Backend, Dek, EncryptionContext, Envelope, KekId, Limits, WrappedDek, inspect};

/// One search at a time, and nothing else of this file beside it: two tests' keys would be in one memory.
static ALONE: Mutex<()> = Mutex::new(());

/// A KEK that shows the test which DEK it wrapped, turned over.
struct Spy {
    kek: LocalKek,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl KekProvider for Spy {
    fn id(&self) -> &KekId {
        self.kek.id()
    }

    fn wrap<'a>(&'a self, context: &'a EncryptionContext, dek: &'a Dek) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        *self.seen.lock().unwrap() = dek.expose().iter().map(|byte| !byte).collect();
        self.kek.wrap(context, dek)
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        self.kek.unwrap(context, wrapped)
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.kek.health()
    }
}

/// The third and fourth round keys of AES-256 (FIPS 197, section 5.2), made in a way of its own: from two neighbours the whole key follows. A
/// single round key does not give it, and compiled AES code leaves one on the stack now and then.
fn round_keys(key: &[u8; 32]) -> [u8; 32] {
    fn multiply(mut a: u8, mut b: u8) -> u8 {
        let mut product = 0;
        while b != 0 {
            if b & 1 == 1 {
                product ^= a;
            }
            a = (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1B };
            b >>= 1;
        }
        product
    }
    fn s_box(byte: u8) -> u8 {
        let inverse = (0..=255).find(|other| multiply(byte, *other) == 1).unwrap_or(0);
        (0..5).fold(0x63, |sum, by| sum ^ inverse.rotate_left(by))
    }
    let mut words: Vec<[u8; 4]> = key.chunks(4).map(|word| word.try_into().unwrap()).collect();
    for i in 8..16 {
        let [a, b, c, d] = words[i - 1];
        let mut word = match i {
            8 => [s_box(b) ^ 1, s_box(c), s_box(d), s_box(a)],
            12 => [s_box(a), s_box(b), s_box(c), s_box(d)],
            _ => [a, b, c, d],
        };
        for (byte, old) in word.iter_mut().zip(words[i - 8]) {
            *byte ^= old;
        }
        words.push(word);
    }
    let round_keys = words[8..].concat().try_into().unwrap();
    words.iter_mut().for_each(|word| word.fill(0));
    std::hint::black_box(words);
    round_keys
}

/// A way for DEKs to end.
type End = fn(Envelope, &EncryptionContext);

struct Keys {
    dek: Needle,
    message_key: Needle,
    schedule: Needle,
}

impl Keys {
    fn occurrences(&self) -> [usize; 3] {
        [self.dek.occurrences(), self.message_key.occurrences(), self.schedule.occurrences()]
    }
}

/// Seals one message and gives the keys that did it.
fn set_up(backend: Backend, limits: Limits) -> (Envelope, EncryptionContext, Vec<u8>, Keys) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let spy = Spy { kek: support::local("kek"), seen: seen.clone() };
    let envelope = Envelope::builder().write_to(spy).backend(backend).limits(limits).build().unwrap();
    let alice = context("alice");
    let sealed = block_on(envelope.encrypt(&alice, b"", b"payload")).unwrap();
    assert!(inspect(&sealed).is_ok());
    let dek = Needle(std::mem::take(&mut *seen.lock().unwrap()));
    let (message_key, schedule) = without_trace(|| {
        let mut key = [0; 32];
        let dek: Vec<u8> = dek.0.iter().map(|byte| !byte).collect();
        let info = [b"waxseal.v1", &[1, 1][..], alice.digest()].concat();
        Hkdf::<Sha256>::from_prk(&dek).unwrap().expand(&info, &mut key).unwrap();
        let needles = (Needle::of(&key), Needle::of(&round_keys(&key)));
        drop(zeroize::Zeroizing::new(dek));
        zeroize::Zeroize::zeroize(&mut key);
        needles
    });
    (envelope, alice, sealed, Keys { dek, message_key, schedule })
}

/// What the test itself computes with keys must not be what it finds.
fn without_trace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    #[inline(never)]
    fn apart<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    #[inline(never)]
    fn overwrite() {
        std::hint::black_box([0_u8; 256 * 1024]);
    }
    on_a_stack_of_its_own(|| {
        let result = apart(work);
        overwrite();
        result
    })
}

/// The library runs here, and what it leaves on the stack stays: threads end, and their stacks are kept for the next.
fn on_a_stack_of_its_own<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

#[test]
fn no_key_outlives_its_deadline_in_an_idle_process() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for backend in Backend::all() {
        let limits = Limits::default().max_age(Duration::from_secs(5));
        let (envelope, alice, sealed, keys) = on_a_stack_of_its_own(|| set_up(*backend, limits));
        assert!(
            keys.schedule.occurrences() >= 1,
            "{backend:?}: the control: the expanded key is there while it serves"
        );
        assert!(envelope.decrypt_cached(&alice, b"", &sealed).unwrap().is_some());
        std::thread::sleep(Duration::from_millis(6500));
        assert_eq!(keys.occurrences(), [0, 0, 0], "{backend:?}: DEK, message key, schedule");
        drop(envelope);
    }
}

#[test]
fn no_key_survives_a_revocation_a_clearing_an_eviction_or_the_drop_of_its_envelope() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for backend in Backend::all() {
        let ways: [(&str, End); 4] = [
            ("revoke_context", |envelope, alice| envelope.revoke_context(alice)),
            ("clear", |envelope, _| envelope.clear()),
            ("eviction", |envelope, _| {
                for tenant in 0..10 {
                    block_on(envelope.encrypt(&context(&format!("{tenant}")), b"", b"x")).unwrap();
                }
            }),
            ("drop", |envelope, _| drop(envelope)),
        ];
        for (name, end) in ways {
            let limits = Limits::default().max_entries(1);
            let (envelope, alice, _, keys) = on_a_stack_of_its_own(|| set_up(*backend, limits));
            assert!(keys.schedule.occurrences() >= 1, "{backend:?} {name}: the control");
            // A handle and another clone have no say in it, except that they keep the envelope from being dropped.
            let clone = (name != "drop").then(|| envelope.clone());
            on_a_stack_of_its_own(|| end(envelope, &alice));
            let start = Instant::now();
            while keys.occurrences() != [0, 0, 0] && start.elapsed() < Duration::from_secs(3) {
                std::thread::sleep(Duration::from_millis(50));
            }
            assert_eq!(keys.occurrences(), [0, 0, 0], "{backend:?} {name}: DEK, message key, schedule");
            drop(clone);
        }
    }
}
