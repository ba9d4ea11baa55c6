//! The process's own memory, searched for keys: found while they may be used, and nowhere after.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};
use waxseal_testing::{scan, support};

use scan::{Keys, Needle, Spy, in_own_memory, of_stream, on_a_stack_of_its_own};
use support::{SUITES, block_on, context};
use waxseal::branch::BranchKek;
use waxseal::kek::BoxFuture;
use waxseal::store::MemoryStore;
use waxseal::{
    Aad, Backend, EncryptionContext, Envelope, ErrorKind, Event, KekId, Limits, ManualClock,
    Observer, StreamHead, StreamWriter, Suite, inspect,
};

/// Set in a process that runs one test, by its name.
const ALONE: &str = "WAXSEAL_TEST_ALONE";

/// The rest of a test runs in a process of its own: nothing of another test is in the memory that
/// it searches, and nobody else writes over what stays on a stack. Most of the time the tests wait
/// for deadlines, which they do beside each other.
macro_rules! alone {
    () => {{
        fn here() {}
        if passed_alone(std::any::type_name_of_val(&here)) {
            return;
        }
    }};
}

/// Runs the test in a process of its own, and fails as it does. False where this is that process.
fn passed_alone(path: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return false;
    }
    let name = path.trim_end_matches("::here").rsplit("::").next().unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(ALONE, name)
        .output()
        .unwrap();
    let [said, complaint] =
        [&output.stdout, &output.stderr].map(|out| String::from_utf8_lossy(out));
    // A name that is no test's would be no failure.
    let ran = said.contains("test result: ok. 1 passed;");
    assert!(output.status.success() && ran, "{}\n{said}\n{complaint}", output.status);
    true
}

/// DEK, HMAC's states of it (inner, outer), message key, schedule.
const NOTHING: [usize; 5] = [0; 5];

/// A way for DEKs to end.
type End = fn(Envelope, &EncryptionContext);

/// Those of the build, and the choice among them, which may expand the key in two.
fn backends() -> impl Iterator<Item = &'static Backend> {
    Backend::all().iter().chain(&[Backend::Fastest])
}

/// Seals one message and gives the keys that did it.
fn set_up(
    backend: Backend,
    suite: Suite,
    limits: Limits,
) -> (Envelope, EncryptionContext, Vec<u8>, Keys) {
    let (spy, seen) = Spy::that_remembers(support::local("kek"));
    let envelope = Envelope::builder()
        .wrap_with(spy)
        .backend(backend)
        .suite(suite)
        .limits(limits)
        .build()
        .unwrap();
    let alice = context("alice");
    let sealed = block_on(envelope.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    assert!(inspect(&sealed).is_ok());
    let dek = seen.lock().unwrap().take().unwrap();
    let keys = Keys::new(dek, &alice, suite);
    (envelope, alice, sealed, keys)
}

/// Leaves whatever wipes in another thread a generous time for it.
fn gone_soon(keys: &Keys) -> [usize; 5] {
    let start = Instant::now();
    while keys.occurrences() != NOTHING && start.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(50));
    }
    keys.occurrences()
}

#[test]
fn no_key_outlives_its_deadline_in_an_idle_process() {
    alone!();
    let limits = Limits::default().max_age(Duration::from_secs(4));
    let began = Instant::now();
    let all: Vec<_> = backends()
        .flat_map(|backend| SUITES.map(|suite| (*backend, suite)))
        .map(|(backend, suite)| {
            let scene = on_a_stack_of_its_own(|| set_up(backend, suite, limits));
            let (envelope, alice, sealed, keys) = &scene;
            assert!(
                keys.schedule.occurrences() >= 1,
                "{backend:?} {suite:?}: the control: the expanded key is there while it serves"
            );
            assert!(envelope.decrypt_cached(alice, Aad::empty(), sealed).unwrap().is_some());
            (backend, suite, scene, began.elapsed())
        })
        .collect();
    for (backend, suite, (.., keys), made) in &all {
        let deadline = *made + Duration::from_millis(5500);
        std::thread::sleep(deadline.saturating_sub(began.elapsed()));
        assert_eq!(keys.occurrences(), NOTHING, "{backend:?} {suite:?}");
    }
}

#[test]
fn no_key_survives_a_revocation_a_clearing_an_eviction_or_the_drop_of_its_envelope() {
    alone!();
    for backend in backends() {
        let ways: [(&str, End); 4] = [
            ("evict_context", |envelope, alice| envelope.evict_context(alice)),
            ("evict_all", |envelope, _| envelope.evict_all()),
            ("eviction", |envelope, _| {
                for tenant in 0..10 {
                    block_on(envelope.encrypt(&context(&format!("{tenant}")), Aad::empty(), b"x"))
                        .unwrap();
                }
            }),
            ("drop", |envelope, _| drop(envelope)),
        ];
        for (name, end) in ways {
            let limits = Limits::default().max_entries(1);
            let (envelope, alice, _, keys) =
                on_a_stack_of_its_own(|| set_up(*backend, Suite::default(), limits));
            assert!(keys.schedule.occurrences() >= 1, "{backend:?} {name}: the control");
            // A handle and another clone have no say in it, except that they keep the envelope from
            // being dropped.
            let clone = (name != "drop").then(|| envelope.clone());
            on_a_stack_of_its_own(|| end(envelope, &alice));
            assert_eq!(gone_soon(&keys), NOTHING, "{backend:?} {name}");
            drop(clone);
        }
    }
}

#[test]
fn no_key_of_a_stream_survives_its_stream_its_time_or_its_dek() {
    type EndOfStream = fn(&Envelope, &EncryptionContext, &mut Option<StreamWriter<Vec<u8>>>);
    alone!();
    let ends: [(&str, EndOfStream); 4] = [
        ("finish", |_, _, writer| drop(writer.take().unwrap().finish().unwrap())),
        ("drop", |_, _, writer| drop(writer.take())),
        ("evict_context", |envelope, alice, _| envelope.evict_context(alice)),
        ("max_stream_age", |_, _, _| ()),
    ];
    for backend in backends() {
        for (name, end) in ends {
            let limits = Limits::default().max_stream_age(Duration::from_secs(3));
            let (envelope, alice, _, keys) =
                on_a_stack_of_its_own(|| set_up(*backend, Suite::default(), limits));
            let begun = on_a_stack_of_its_own(|| {
                let writer = block_on(envelope.encrypt_stream(&alice, Aad::empty(), Vec::new()));
                let mut writer = writer.unwrap();
                writer.write_all(&[7; 100_000]).unwrap();
                writer
            });
            let head = StreamHead::from_prefix(begun.get_ref()).unwrap();
            let salt = &head.as_bytes()[head.len() - 56..head.len() - 32];
            let [root, key, schedule] = of_stream(&keys.dek, &alice, (salt, 16, b""));
            let mut writer = Some(begun);
            assert!(schedule.occurrences() >= 1, "{backend:?} {name}: the control");
            assert_eq!(root.occurrences(), 1, "{backend:?} {name}: in the DEK alone");
            on_a_stack_of_its_own(|| end(&envelope, &alice, &mut writer));
            let patience = Duration::from_secs(if name == "max_stream_age" { 5 } else { 3 });
            let start = Instant::now();
            while in_own_memory([&key, &schedule]) != [0; 2] && start.elapsed() < patience {
                std::thread::sleep(Duration::from_millis(50));
            }
            assert_eq!(in_own_memory([&key, &schedule]), [0; 2], "{backend:?} {name}");
            envelope.evict_all();
            assert_eq!(root.occurrences(), 0, "{backend:?} {name}");
            drop(writer);
        }
    }
}

/// A thread that used a key and then waits still has the stack on which the AEAD worked. Processors
/// with 512-bit registers make more of it than others.
#[test]
fn no_key_stays_on_the_stack_of_a_thread_that_used_it() {
    alone!();
    for (backend, suite) in backends().flat_map(|backend| SUITES.map(|s| (*backend, s))) {
        let (used, wait) = (std::sync::mpsc::channel(), std::sync::mpsc::channel::<()>());
        let thread = std::thread::spawn(move || {
            let (envelope, alice, sealed, keys) = set_up(backend, suite, Limits::default());
            block_on(envelope.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
            used.0.send((envelope, keys)).unwrap();
            let _ = wait.1.recv();
        });
        let (envelope, keys) = used.1.recv().unwrap();
        assert!(keys.schedule.occurrences() >= 1, "{backend:?} {suite:?}: the control");
        envelope.evict_all();
        assert_eq!(gone_soon(&keys), NOTHING, "{backend:?} {suite:?}");
        drop(wait.0);
        thread.join().unwrap();
    }
}

#[test]
fn no_key_outlives_the_last_lease_of_a_renewed_dek_and_none_of_an_unused_renewal_stays() {
    alone!();
    let secs = Duration::from_secs;
    for (backend, evicts) in
        Backend::all().iter().flat_map(|backend| [(backend, false), (backend, true)])
    {
        let (clock, alice) = (ManualClock::new(), context("alice"));
        let (spy, seen) = Spy::that_remembers(support::local("kek"));
        let envelope = Envelope::builder()
            .wrap_with(spy)
            .backend(*backend)
            .limits(Limits::default().max_age(secs(100)))
            .clock(clock.clone())
            .build()
            .unwrap();
        let (leases, [keys, unused]) = on_a_stack_of_its_own(|| {
            let lease = || {
                let lease = block_on(envelope.encryptor(&alice)).unwrap();
                let dek = seen.lock().unwrap().take().unwrap();
                (lease, Keys::new(dek, &alice, Suite::default()))
            };
            let (first, keys) = lease();
            clock.advance(secs(81));
            let (second, unused) = lease();
            assert_eq!(first.dek_id(), second.dek_id());
            ([first, second], [keys, unused])
        });
        assert_eq!(unused.occurrences(), NOTHING, "{backend:?}: made by the renewal");
        assert!(keys.schedule.occurrences() >= 1, "{backend:?}: the control");
        let left = if evicts {
            envelope.evict_context(&alice);
            keys.occurrences()
        } else {
            // The first lease ends, and the one for reading.
            clock.advance(secs(19));
            std::thread::sleep(Duration::from_millis(1500));
            assert!(keys.schedule.occurrences() >= 1, "{backend:?}: the second lease serves");
            clock.advance(secs(81));
            gone_soon(&keys)
        };
        assert_eq!(left, NOTHING, "{backend:?} evicted: {evicts}");
        drop(leases);
    }
}

#[test]
fn no_plaintext_of_a_call_for_many_stays_if_one_message_fails_or_its_results_are_dropped() {
    alone!();
    for backend in Backend::all() {
        let (envelope, alice, ..) =
            on_a_stack_of_its_own(|| set_up(*backend, Suite::default(), Limits::default()));
        // The plaintext is in memory as its complement only.
        let needle = Needle::of(&[0x5A; 48]);
        let seal = || {
            let plaintext = needle.bytes();
            let items = std::iter::repeat_n((Aad::empty(), &plaintext), 5000);
            let sealed = block_on(envelope.encrypt_many(&alice, items)).unwrap();
            let (mut plaintext, (bytes, offsets)) = (plaintext, sealed.into_parts());
            zeroize::Zeroize::zeroize(&mut plaintext);
            (bytes, offsets)
        };
        let (mut bytes, offsets) = on_a_stack_of_its_own(seal);
        let items = |bytes: &[u8]| -> Vec<Vec<u8>> {
            offsets.windows(2).map(|at| bytes[at[0]..at[1]].to_vec()).collect()
        };
        let good = items(&bytes);
        let with_aad = |messages: &[Vec<u8>]| -> Vec<(Aad<'static>, Vec<u8>)> {
            messages.iter().map(|message| (Aad::empty(), message.clone())).collect()
        };
        let messages = with_aad(&good);
        let pairs = messages.iter().map(|(aad, sealed)| (*aad, sealed));
        let opened = block_on(envelope.decrypt_many(&alice, pairs.clone())).unwrap();
        assert!(needle.occurrences() >= 5000, "{backend:?}: the control");
        drop(opened);
        assert_eq!(needle.occurrences(), 0, "{backend:?}: dropped");
        // By a handle, in a buffer that it outgrows again and again.
        let handle = block_on(envelope.decryptor(&alice, &good[0])).unwrap();
        let hintless = pairs.filter(|_| true);
        drop(handle.decrypt_many(hintless).unwrap());
        assert_eq!(needle.occurrences(), 0, "{backend:?}: outgrown");
        *bytes.last_mut().unwrap() ^= 1;
        let messages = with_aad(&items(&bytes));
        let pairs = || messages.iter().map(|(aad, sealed)| (*aad, sealed));
        for error in [
            block_on(envelope.decrypt_many(&alice, pairs())).unwrap_err(),
            handle.decrypt_many(pairs().filter(|_| true)).unwrap_err(),
        ] {
            assert_eq!((error.kind(), error.item()), (ErrorKind::Invalid, Some(4999)));
        }
        assert_eq!(needle.occurrences(), 0, "{backend:?}: failed");
    }
}

/// Runs what panics, on a stack of its own, and quietly: the text of a backtrace would take a
/// hundred megabytes that are then searched.
fn panics(work: impl FnOnce() + Send) {
    assert!(quietly(|| catch_unwind(AssertUnwindSafe(work)).is_err()), "it did not panic");
}

fn quietly<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = on_a_stack_of_its_own(work);
    std::panic::set_hook(hook);
    result
}

#[test]
fn no_key_survives_a_panic_of_the_code_that_uses_it() {
    alone!();
    for backend in Backend::all() {
        let mut left = None;
        panics(|| {
            let (envelope, alice, sealed, keys) =
                set_up(*backend, Suite::default(), Limits::default());
            let sealing = block_on(envelope.encryptor(&alice)).unwrap();
            let opening = block_on(envelope.decryptor(&alice, &sealed)).unwrap();
            let plaintext = opening.decrypt(Aad::empty(), &sealed).unwrap();
            left = Some((keys.schedule.occurrences(), keys));
            panic!(
                "with {} bytes of plaintext and {} bytes of a tag",
                plaintext.len(),
                sealing.tag_len()
            );
        });
        let (before, keys) = left.unwrap();
        assert!(before >= 1, "{backend:?}: the control");
        assert_eq!(gone_soon(&keys), NOTHING, "{backend:?}");
    }
}

type Which = fn(&Event<'_>) -> bool;
type Found = Arc<Mutex<Option<([usize; 5], Keys)>>>;

/// Looks for the keys at one event, in the middle of the library's work, and panics.
struct PanicAt {
    at: Which,
    dek: Arc<Mutex<Option<Needle>>>,
    found: Found,
}

impl std::fmt::Debug for PanicAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PanicAt")
    }
}

impl Observer for PanicAt {
    fn event(&self, event: &Event<'_>) {
        if (self.at)(event) {
            let keys = Keys::new(
                self.dek.lock().unwrap().take().unwrap(),
                &context("alice"),
                Suite::default(),
            );
            *self.found.lock().unwrap() = Some((keys.occurrences(), keys));
            panic!("in the observer");
        }
    }
}

#[test]
fn no_key_survives_a_panic_of_an_observer() {
    alone!();
    for backend in Backend::all() {
        let (alice, kek) = (context("alice"), support::local("kek"));
        let sealed = on_a_stack_of_its_own(|| {
            let envelope = support::envelope(&kek);
            block_on(envelope.encrypt(&alice, Aad::empty(), b"payload")).unwrap()
        });
        let events: [(&str, Which); 2] = [
            ("Made", |event| matches!(event, Event::Made { .. })),
            ("Unwrapped", |event| matches!(event, Event::Unwrapped { .. })),
        ];
        for (name, at) in events {
            let (spy, dek) = Spy::that_remembers(kek.clone());
            let found = Found::default();
            let observer = PanicAt { at, dek, found: found.clone() };
            let envelope = Envelope::builder()
                .wrap_with(spy)
                .backend(*backend)
                .observer(observer)
                .build()
                .unwrap();
            // The panic changes nothing: the call succeeds, and its DEK is cached and wiped as any
            // other.
            quietly(|| match name {
                "Made" => drop(block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap()),
                _ => drop(block_on(envelope.decrypt(&alice, Aad::empty(), &sealed)).unwrap()),
            });
            let (before, keys) = found.lock().unwrap().take().unwrap();
            assert!(before.iter().sum::<usize>() >= 1, "{backend:?} {name}: the control");
            on_a_stack_of_its_own(|| envelope.evict_all());
            assert_eq!(gone_soon(&keys), NOTHING, "{backend:?} {name}");
        }
    }
}

/// What a provider does with a DEK in its hands.
struct Trap {
    armed: AtomicBool,
    dek: Mutex<Option<Needle>>,
    /// How often the DEK was in memory at that moment.
    found: AtomicUsize,
}

impl Trap {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            armed: AtomicBool::new(true),
            dek: Mutex::new(None),
            found: AtomicUsize::new(0),
        })
    }

    /// An envelope whose KEK springs the trap, with nothing cached, and a message that it can
    /// decrypt.
    fn envelope(
        self: &Arc<Self>,
        backend: Backend,
        spring: fn() -> BoxFuture<'static, ()>,
    ) -> (Envelope, EncryptionContext, Vec<u8>) {
        let (alice, kek) = (context("alice"), support::local("kek"));
        let sealed =
            block_on(support::envelope(&kek).encrypt(&alice, Aad::empty(), b"payload")).unwrap();
        let trap = self.clone();
        let spy = Spy::new(kek, move |dek| {
            if !trap.armed.load(Ordering::SeqCst) {
                return Box::pin(async {});
            }
            let needle = Needle::of(dek);
            trap.found.store(needle.occurrences(), Ordering::SeqCst);
            *trap.dek.lock().unwrap() = Some(needle);
            spring()
        });
        (Envelope::builder().wrap_with(spy).backend(backend).build().unwrap(), alice, sealed)
    }

    fn keys(&self, alice: &EncryptionContext) -> Keys {
        Keys::new(self.dek.lock().unwrap().take().unwrap(), alice, Suite::default())
    }
}

#[test]
fn no_key_survives_a_panic_of_a_provider() {
    alone!();
    for backend in Backend::all() {
        for name in ["wrapping", "unwrapping"] {
            let trap = Trap::new();
            let (envelope, alice, sealed) =
                on_a_stack_of_its_own(|| trap.envelope(*backend, || panic!("in the provider")));
            let call = || match name {
                "wrapping" => block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).map(drop),
                _ => block_on(envelope.decrypt(&alice, Aad::empty(), &sealed)).map(drop),
            };
            // A waiting caller gets it like any failure.
            assert_eq!(quietly(call).unwrap_err().kind(), ErrorKind::Unavailable);
            assert!(trap.found.load(Ordering::SeqCst) >= 1, "{backend:?} {name}: the control");
            assert_eq!(gone_soon(&trap.keys(&alice)), NOTHING, "{backend:?} {name}");
            // Nothing of it stands in the way of the next call.
            trap.armed.store(false, Ordering::SeqCst);
            on_a_stack_of_its_own(|| call().unwrap());
        }
    }
}

#[test]
fn no_key_survives_the_last_caller_that_waits_for_a_provider_that_hangs() {
    alone!();
    for backend in Backend::all() {
        for name in ["wrapping", "unwrapping"] {
            let trap = Trap::new();
            let (envelope, alice, sealed) = on_a_stack_of_its_own(|| {
                trap.envelope(*backend, || Box::pin(std::future::pending()))
            });
            let wait = || -> BoxFuture<'_, ()> {
                let mut call: BoxFuture<'_, ()> = match name {
                    "wrapping" => {
                        Box::pin(async { drop(envelope.encrypt(&alice, Aad::empty(), b"x").await) })
                    }
                    _ => Box::pin(async {
                        drop(envelope.decrypt(&alice, Aad::empty(), &sealed).await)
                    }),
                };
                assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                call
            };
            let (first, last) = on_a_stack_of_its_own(|| (wait(), wait()));
            let keys = trap.keys(&alice);
            assert!(
                keys.dek.occurrences() >= 1,
                "{backend:?} {name}: the control, while they wait"
            );
            drop(first);
            assert!(
                keys.dek.occurrences() >= 1,
                "{backend:?} {name}: the control, while one waits"
            );
            drop(last);
            assert_eq!(keys.occurrences(), NOTHING, "{backend:?} {name}");
        }
    }
}

#[test]
fn no_key_survives_a_rewrap() {
    alone!();
    let (alice, kek) = (context("alice"), support::local("kek"));
    let sealed = on_a_stack_of_its_own(|| {
        let envelope = support::envelope(&kek);
        block_on(envelope.encrypt(&alice, Aad::empty(), b"payload")).unwrap()
    });
    kek.rotate().unwrap();
    let (dek, found) = (Arc::new(Mutex::new(None)), Arc::new(AtomicUsize::new(0)));
    let (seen, count) = (dek.clone(), found.clone());
    let spy = Spy::new(kek, move |dek| {
        let needle = Needle::of(dek);
        count.store(needle.occurrences(), Ordering::SeqCst);
        *seen.lock().unwrap() = Some(needle);
        Box::pin(async {})
    });
    let rewrapped = on_a_stack_of_its_own(|| {
        let envelope = Envelope::builder().wrap_with(spy).build().unwrap();
        block_on(envelope.rewrap(&alice, &sealed)).unwrap()
    });
    assert_ne!(rewrapped, sealed);
    assert!(found.load(Ordering::SeqCst) >= 1, "the control");
    let keys = Keys::new(dek.lock().unwrap().take().unwrap(), &alice, Suite::default());
    assert_eq!(keys.occurrences(), NOTHING);
}

/// Of two processes that make the branch key of a period at once, one is quicker to store its own.
#[test]
fn no_branch_key_survives_that_another_process_was_quicker_to_store() {
    alone!();
    let (root, store, alice) = (support::local("root"), MemoryStore::new(), context("alice"));
    let process = |spy: Spy| {
        let branch = BranchKek::builder(spy).name("orders").per(["tenant"]).store(store.clone());
        Envelope::builder().wrap_with(branch.build().unwrap()).build().unwrap()
    };
    let (spy, stored) = Spy::that_remembers(root.clone());
    let quick = process(spy);
    let made = Arc::new(Mutex::new(None));
    let (seen, of_quick, for_alice) = (made.clone(), quick.clone(), alice.clone());
    let spy = Spy::new(root, move |key| {
        let mut seen = seen.lock().unwrap();
        if seen.is_none() {
            let needle = Needle::of(key);
            assert!(needle.occurrences() >= 1, "the control: the branch key is there when made");
            *seen = Some(needle);
            block_on(of_quick.encrypt(&for_alice, Aad::empty(), b"x")).unwrap();
        }
        Box::pin(async {})
    });
    let slow = process(spy);
    let sealed = on_a_stack_of_its_own(|| block_on(slow.encrypt(&alice, Aad::empty(), b"x")));
    block_on(quick.decrypt(&alice, Aad::empty(), &sealed.unwrap())).unwrap();
    let [made, stored] = [made, stored].map(|seen| {
        let seen = seen.lock().unwrap().take().unwrap();
        Keys::new(seen, &alice, Suite::default())
    });
    assert!(of_branch_key(&stored)[0] >= 1, "the control: the stored one is in use");
    assert_eq!(of_branch_key(&made), [0; 3]);
}

/// A branch key, a DEK that was derived from it, and what holds them. A second KEK shows the DEK.
fn branch_set_up(limits: Limits) -> (BranchScene, Keys, Keys) {
    let (root, seen_branch) = Spy::that_remembers(support::local("root"));
    let (other, seen_dek) = Spy::that_remembers(support::local("other"));
    let branch = BranchKek::builder(root)
        .name("orders")
        .per(["tenant"])
        .store(MemoryStore::new())
        .limits(limits)
        .build()
        .unwrap();
    let long = Limits::default().max_age(Duration::from_secs(3600));
    let envelope = Envelope::builder()
        .wrap_with(branch.clone())
        .wrap_with(other)
        .limits(long)
        .build()
        .unwrap();
    let alice = context("alice");
    let sealed = block_on(envelope.encrypt(&alice, Aad::empty(), b"payload")).unwrap();
    block_on(envelope.decrypt(&alice, Aad::empty(), &sealed)).unwrap();
    let [of_branch, of_dek] = [seen_branch, seen_dek].map(|seen| {
        let seen = seen.lock().unwrap().take().unwrap();
        Keys::new(seen, &alice, Suite::default())
    });
    (BranchScene { branch, envelope, alice, sealed }, of_branch, of_dek)
}

struct BranchScene {
    branch: BranchKek,
    envelope: Envelope,
    alice: EncryptionContext,
    sealed: Vec<u8>,
}

type EndOfBranch = fn(BranchScene);

/// The raw branch key and the states of HMAC. It is no message key, so nothing else of it exists.
fn of_branch_key(keys: &Keys) -> [usize; 3] {
    let [key, inner, outer, ..] = keys.occurrences();
    [key, inner, outer]
}

#[test]
fn no_branch_key_and_nothing_derived_from_it_outlives_its_deadline_in_an_idle_process() {
    alone!();
    let limits = Limits::default().max_age(Duration::from_secs(4));
    let (scene, branch, dek) = on_a_stack_of_its_own(|| branch_set_up(limits));
    let began = Instant::now();
    assert!(of_branch_key(&branch)[0] >= 1, "the control: the branch key is there while it serves");
    assert!(dek.schedule.occurrences() >= 1, "the control: the message key is there");
    let BranchScene { envelope, alice, sealed, .. } = &scene;
    assert!(envelope.decrypt_cached(alice, Aad::empty(), sealed).unwrap().is_some());
    std::thread::sleep(Duration::from_millis(5500).saturating_sub(began.elapsed()));
    assert_eq!(of_branch_key(&branch), [0; 3]);
    assert_eq!(dek.occurrences(), NOTHING, "its own deadline is an hour away");
}

#[test]
fn no_branch_key_survives_an_erasure_an_eviction_a_revocation_or_its_last_owner() {
    alone!();
    let ways: [(&str, EndOfBranch); 6] = [
        ("erase", |scene| _ = block_on(scene.branch.erase([("tenant", "alice")])).unwrap()),
        ("evict_all", |scene| scene.branch.evict_all()),
        ("revoke_kek", |scene| scene.branch.revoke_kek(&KekId::new("local:root").unwrap())),
        ("eviction", |scene| {
            for tenant in 0..10 {
                let other = context(&format!("{tenant}"));
                block_on(scene.envelope.encrypt(&other, Aad::empty(), b"x")).unwrap();
            }
        }),
        ("drop", drop),
        ("cancelled", |scene| {
            // Callers that go away while the branch key is asked for leave nothing.
            scene.branch.evict_all();
            let mut task = Context::from_waker(Waker::noop());
            let opening = scene.envelope.decrypt(&scene.alice, Aad::empty(), &scene.sealed);
            _ = std::pin::pin!(opening).as_mut().poll(&mut task);
            scene.branch.evict_all();
        }),
    ];
    for (name, end) in ways {
        let limits = Limits::default().max_entries(1);
        let (scene, branch, dek) = on_a_stack_of_its_own(|| branch_set_up(limits));
        assert!(of_branch_key(&branch)[0] >= 1, "{name}: the control");
        // A handle has no say in it, except that it owns what it came from.
        let handle = (name != "drop")
            .then(|| block_on(scene.envelope.decryptor(&scene.alice, &scene.sealed)).unwrap());
        on_a_stack_of_its_own(|| end(scene));
        assert_eq!(gone_soon(&dek), NOTHING, "{name}");
        assert_eq!(of_branch_key(&branch), [0; 3], "{name}");
        drop(handle);
    }
}
