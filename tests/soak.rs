//! Everything at once for a while: eight workers, three key services with seeded faults, an
//! operator who revokes and clears, an observer that panics, runtimes that come and end with
//! callers in them, callers without patience, rows with an entry that somebody added. No wrong
//! byte, flat memory, no task or thread left behind.
//!
//! Ten seconds, or `WAXSEAL_SOAK_SECONDS`; the seed is printed, and `WAXSEAL_SOAK_SEED` repeats
//! one.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use waxseal_testing::support;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use support::context;
use support::stage::{entries_of, with_entries};
use waxseal::kek::KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};
use waxseal::kek::scripted::{Act, ScriptedKek};
use waxseal::{
    Aad, CallPolicy, EncryptionContext, Envelope, ErrorKind, Event, KekId, Limits, Observer,
    WrappedDek,
};

const WORKERS: u64 = 8;
const TENANTS: usize = 40;
const STORED: usize = 2000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// Of what the process has allocated. Pages of files, its own code among them, come and go as the
/// system likes.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// But those of the process that stay.
fn threads() -> usize {
    let stays = |task: &std::io::Result<fs::DirEntry>| {
        let name =
            fs::read_to_string(task.as_ref().unwrap().path().join("comm")).unwrap_or_default();
        matches!(name.trim(), "waxseal-wiper" | "waxseal-timer")
    };
    fs::read_dir("/proc/self/task").unwrap().filter(|task| !stays(task)).count()
}

/// Panics now and then, as observers do.
#[derive(Debug, Default)]
struct Fragile(AtomicU64);

impl Observer for Fragile {
    fn event(&self, _: &Event<'_>) {
        if self.0.fetch_add(1, Ordering::Relaxed) % 97 == 96 {
            panic!("by script");
        }
    }
}

/// The same message with one entry more, which somebody added who can write to the table.
fn with_junk(sealed: &[u8]) -> Vec<u8> {
    let junk = WrappedDek::new(KekId::new("local:somebody").unwrap(), vec![7; 76]).unwrap();
    let mut entries = entries_of(sealed);
    entries.retain(|entry| entry.kek_id() != junk.kek_id());
    entries.push(junk);
    with_entries(sealed, entries)
}

#[derive(Clone)]
struct Stored {
    tenant: usize,
    aad: Vec<u8>,
    plaintext: Vec<u8>,
    sealed: Vec<u8>,
}

struct World {
    envelope: Envelope,
    contexts: Vec<EncryptionContext>,
    stored: Mutex<Vec<Stored>>,
    over: AtomicBool,
    succeeded: AtomicU64,
    failed: Mutex<BTreeMap<&'static str, u64>>,
}

impl World {
    fn failed(&self, kind: ErrorKind, allowed: &[ErrorKind]) {
        assert!(allowed.contains(&kind), "{kind:?} is no answer to this");
        *self.failed.lock().unwrap().entry(kind.as_str()).or_default() += 1;
    }

    async fn work(self: Arc<Self>, mut rng: StdRng) {
        // What the faults can do to a rightful call. "Expired": revocations came faster than the
        // work.
        let faults = [
            ErrorKind::Unavailable,
            ErrorKind::Throttled,
            ErrorKind::Denied,
            ErrorKind::Invalid,
            ErrorKind::Misconfigured,
            ErrorKind::Expired,
        ];
        while !self.over.load(Ordering::Relaxed) {
            let tenant = rng.random_range(0..TENANTS);
            let context = &self.contexts[tenant];
            let stored = {
                let stored = self.stored.lock().unwrap();
                (!stored.is_empty()).then(|| stored[rng.random_range(0..stored.len())].clone())
            };
            match (rng.random_range(0..100), stored) {
                (0..30, _) | (_, None) => {
                    let plaintext = vec![rng.random::<u8>(); rng.random_range(0..3000)];
                    let aad = rng.random::<u64>().to_be_bytes().to_vec();
                    match self.envelope.encrypt(context, Aad::from(&aad), &plaintext).await {
                        Ok(sealed) => {
                            let mut stored = self.stored.lock().unwrap();
                            let new = Stored { tenant, aad, plaintext, sealed };
                            if stored.len() < STORED {
                                stored.push(new);
                            } else {
                                let at = rng.random_range(0..STORED);
                                stored[at] = new;
                            }
                            self.succeeded.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => self.failed(error.kind(), &faults),
                    }
                }
                (30..80, Some(it)) => {
                    let context = &self.contexts[it.tenant];
                    let sealed = if rng.random_ratio(1, 5) {
                        with_junk(&it.sealed)
                    } else {
                        it.sealed.clone()
                    };
                    let open = self.envelope.decrypt(context, Aad::from(&it.aad), &sealed);
                    // Some callers do not wait.
                    let patience = if rng.random_ratio(1, 10) { 1 } else { 10_000 };
                    match tokio::time::timeout(Duration::from_millis(patience), open).await {
                        Ok(Ok(plaintext)) => {
                            assert_eq!(*plaintext, *it.plaintext, "a wrong byte");
                            self.succeeded.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(Err(error)) => self.failed(error.kind(), &faults),
                        Err(_) => {}
                    }
                }
                (80..85, Some(it)) => {
                    match self.envelope.decryptor(&self.contexts[it.tenant], &it.sealed).await {
                        Ok(key) => match key.decrypt(Aad::from(&it.aad), &it.sealed) {
                            Ok(plaintext) => assert_eq!(*plaintext, *it.plaintext, "a wrong byte"),
                            Err(error) => self.failed(error.kind(), &[ErrorKind::Expired]),
                        },
                        Err(error) => self.failed(error.kind(), &faults),
                    }
                }
                (85..90, Some(it)) => {
                    let other = (it.tenant + 1 + rng.random_range(0..TENANTS - 1)) % TENANTS;
                    let answer = self
                        .envelope
                        .decrypt(&self.contexts[other], Aad::from(&it.aad), &it.sealed)
                        .await;
                    self.failed(answer.map(|_| ()).unwrap_err().kind(), &faults);
                }
                (90..95, Some(mut it)) => {
                    let at = rng.random_range(0..it.sealed.len());
                    it.sealed[at] ^= 1 << rng.random_range(0..8);
                    match self
                        .envelope
                        .decrypt(&self.contexts[it.tenant], Aad::from(&it.aad), &it.sealed)
                        .await
                    {
                        // A bit of one wrapped key: another one opens it.
                        Ok(plaintext) => assert_eq!(*plaintext, *it.plaintext, "a wrong byte"),
                        Err(error) => {
                            *self
                                .failed
                                .lock()
                                .unwrap()
                                .entry(error.kind().as_str())
                                .or_default() += 1;
                        }
                    }
                }
                (_, Some(it)) => {
                    match self.envelope.rewrap(&self.contexts[it.tenant], &it.sealed).await {
                        Ok(sealed) => self.stored.lock().unwrap().push(Stored { sealed, ..it }),
                        Err(error) => self.failed(error.kind(), &faults),
                    }
                }
            }
            self.stored.lock().unwrap().truncate(STORED);
            if rng.random_ratio(1, 20) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

/// Runtimes that end while their callers share calls with everybody else.
fn come_and_go(world: &World, mut rng: StdRng) {
    while !world.over.load(Ordering::Relaxed) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap();
        for _ in 0..10 {
            let stored = world.stored.lock().unwrap();
            let Some(it) =
                (!stored.is_empty()).then(|| stored[rng.random_range(0..stored.len())].clone())
            else {
                break;
            };
            drop(stored);
            let (envelope, context) = (world.envelope.clone(), world.contexts[it.tenant].clone());
            runtime.spawn(async move {
                if let Ok(plaintext) =
                    envelope.decrypt(&context, Aad::from(&it.aad), &it.sealed).await
                {
                    assert_eq!(*plaintext, *it.plaintext, "a wrong byte");
                }
            });
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..20)));
        runtime.shutdown_background();
        std::thread::sleep(Duration::from_millis(rng.random_range(0..100)));
    }
}

/// Breaks and mends the key services, and revokes now and then.
async fn break_things(world: Arc<World>, keks: Vec<ScriptedKek>, mut rng: StdRng) {
    while !world.over.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(rng.random_range(20..200))).await;
        let kek = &keks[rng.random_range(0..keks.len())];
        match rng.random_range(0..13) {
            0..4 => {
                kek.fail_with(None);
                kek.wait_no_more();
            }
            4 => kek.fail_with(Unavailable),
            5 => kek.fail_with(Throttled),
            6 => kek.fail_with([Denied, Invalid, Misconfigured][rng.random_range(0..3)]),
            7 => kek.script([Act::Hang; 5]),
            8 => kek.script([Act::Panic; 3]),
            9 => {
                let wait = Duration::from_millis(rng.random_range(1..250));
                kek.wait_for(move || Box::pin(tokio::time::sleep(wait)));
            }
            10 => {
                let id = waxseal::kek::KekProvider::id(kek).clone();
                world.envelope.revoke_kek(&id);
                tokio::time::sleep(Duration::from_millis(5)).await;
                world.envelope.reinstate_kek(&id);
            }
            11 => world.envelope.evict_context(&world.contexts[rng.random_range(0..TENANTS)]),
            _ => world.envelope.evict_all(),
        }
    }
}

#[test]
fn hours_of_trouble_leave_no_wrong_byte_and_nothing_behind() {
    let seconds = number("WAXSEAL_SOAK_SECONDS").unwrap_or(10);
    let seed = number("WAXSEAL_SOAK_SEED").unwrap_or_else(|| rand::rng().random());
    println!("WAXSEAL_SOAK_SEED={seed}");
    // What panics by script is not told. Whatever else does, as timers of a runtime that ends do,
    // is told without a backtrace: the symbols that one loads stay, 20 MB and more.
    std::panic::set_hook(Box::new(|info| {
        if info.payload_as_str() != Some("by script") {
            eprintln!("{info}");
        }
    }));

    let keks: Vec<_> = ["a", "b", "c"].iter().map(|name| ScriptedKek::new(name).unwrap()).collect();
    // The wiping thread is one per process and stays.
    let warm = support::envelope(keks[0].local());
    support::block_on(warm.encrypt(&context("warm"), Aad::empty(), b"")).unwrap();
    drop(warm);
    let threads_before = threads();

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    let limits = Limits::default()
        .max_age(Duration::from_millis(400))
        .stale_if_error_reading(Duration::from_millis(300))
        .stale_if_error_writing(Duration::from_millis(100))
        .denial_ttl(Duration::from_millis(50))
        .max_messages(200)
        .max_uses(1000)
        .max_entries(64);
    let policy = CallPolicy::default()
        .timeout(Duration::from_millis(200))
        .deadline(Duration::from_millis(600))
        .backoff(Duration::from_millis(5))
        .breaker_probe(Duration::from_millis(50));
    let envelope = {
        let _inside = runtime.enter();
        let builder = Envelope::builder()
            .wrap_with(keks[0].clone())
            .wrap_with(keks[1].clone())
            .unwrap_with(keks[2].clone());
        builder.limits(limits).call_policy(policy).observer(Fragile::default()).build().unwrap()
    };
    let world = Arc::new(World {
        envelope,
        contexts: (0..TENANTS).map(|n| context(&n.to_string())).collect(),
        stored: Mutex::default(),
        over: AtomicBool::new(false),
        succeeded: AtomicU64::new(0),
        failed: Mutex::default(),
    });
    let mut rng = StdRng::seed_from_u64(seed);
    let mut tasks: Vec<_> = (0..WORKERS)
        .map(|_| runtime.spawn(world.clone().work(StdRng::seed_from_u64(rng.random()))))
        .collect();
    tasks.push(runtime.spawn(break_things(
        world.clone(),
        keks.clone(),
        StdRng::seed_from_u64(rng.random()),
    )));

    let (goes, seed) = (world.clone(), rng.random());
    let coming_and_going =
        std::thread::spawn(move || come_and_go(&goes, StdRng::seed_from_u64(seed)));

    // A third of the time for everything to reach its size.
    let start = Instant::now();
    let mut sizes = Vec::new();
    while start.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(200));
        if start.elapsed() > Duration::from_secs(seconds) / 3 {
            sizes.push(resident_kib());
        }
        assert!(!tasks.iter().any(tokio::task::JoinHandle::is_finished), "a worker gave up");
    }
    world.over.store(true, Ordering::Relaxed);
    coming_and_going.join().unwrap();
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });

    // Mended, everything that was ever sealed opens.
    for kek in &keks {
        kek.fail_with(None);
        kek.wait_no_more();
    }
    runtime.block_on(async {
        // What the script still holds for the next calls is used up, and breakers close.
        let deadline = Instant::now() + Duration::from_secs(30);
        let stored = world.stored.lock().unwrap().clone();
        for it in &stored {
            loop {
                match world
                    .envelope
                    .decrypt(&world.contexts[it.tenant], Aad::from(&it.aad), &it.sealed)
                    .await
                {
                    Ok(plaintext) => break assert_eq!(*plaintext, *it.plaintext, "a wrong byte"),
                    Err(error) => assert!(Instant::now() < deadline, "{error}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        assert!(stored.len() > 100);
        assert!(world.envelope.statistics().observer_panics > 0);
        world.envelope.shut_down();
        let deadline = Instant::now() + Duration::from_secs(10);
        while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
            assert!(Instant::now() < deadline, "a task is left behind");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    drop(runtime);
    let deadline = Instant::now() + Duration::from_secs(10);
    // Those that told the last events, and those of the runtimes that ended.
    while threads() > threads_before {
        assert!(Instant::now() < deadline, "a thread is left behind");
        std::thread::sleep(Duration::from_millis(10));
    }

    let (first, last) = sizes.split_at(sizes.len() / 2);
    let median = |sizes: &[u64]| {
        let mut sizes = sizes.to_vec();
        sizes.sort_unstable();
        sizes[sizes.len() / 2]
    };
    let (before, after) = (median(first), median(last));
    println!(
        "{} operations succeeded; failures: {:?}; resident {before} KiB, then {after} KiB",
        world.succeeded.load(Ordering::Relaxed),
        world.failed.lock().unwrap(),
    );
    // Ten seconds are hardly enough to reach it.
    assert!(after < before + before / 5 + 4096, "memory grows: {before} KiB, then {after} KiB");
}
