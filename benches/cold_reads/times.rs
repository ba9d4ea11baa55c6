//! How long a read takes that finds its DEK not cached, while the key service takes 100 ms.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use waxseal::branch::BranchKek;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::store::MemoryStore;
use waxseal::{Aad, EncryptionContext, Envelope, EnvelopeBuilder, Limits};

use crate::report::{Figure, Report};

const LATENCY: Duration = Duration::from_millis(100);
const READS: usize = 25_000;
/// Reads before the timed ones: more than the cache holds, so that its memory is there.
const BEFORE: usize = 5_000;

fn acme() -> EncryptionContext {
    EncryptionContext::new([("tenant", "acme")]).unwrap()
}

/// Sorted, each kind by itself.
struct Times {
    passed: Vec<Duration>,
    /// What the thread used of a processor: without the time that other programs took.
    used: Vec<Duration>,
}

impl Times {
    fn at(times: &[Duration], percent: usize) -> Duration {
        times[times.len() * percent / 100]
    }
}

fn used() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

/// Reads `messages`, each under its own DEK, in a process that has the branch key cached and no DEK
/// of theirs.
async fn time(reader: &Envelope, messages: &[Vec<u8>]) -> Times {
    let context = acme();
    let (before, timed) = messages.split_at(BEFORE.min(messages.len() / 2));
    for message in before {
        reader.decrypt(&context, Aad::empty(), message).await.unwrap();
    }
    let mut times = Times { passed: Vec::new(), used: Vec::new() };
    for message in timed {
        let (before, start) = (used(), Instant::now());
        let plaintext = reader.decrypt(&context, Aad::empty(), message).await.unwrap();
        times.passed.push(start.elapsed());
        times.used.push(used() - before);
        drop(plaintext);
    }
    times.passed.sort();
    times.used.sort();
    times
}

fn report_times(report: &mut Report, name: &str, times: &Times, below: Duration) {
    report.time(name, Times::at(&times.passed, 99), below);
    report.time("    processor time of the thread alone", Times::at(&times.used, 99), below);
    report.line("    the median", Some(Figure::Time(Times::at(&times.passed, 50))), None);
}

/// A DEK for each message.
fn writer() -> EnvelopeBuilder {
    Envelope::builder().limits(Limits::default().max_messages(1))
}

pub(crate) fn cold_read(report: &mut Report) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let root = ScriptedKek::new("root").unwrap();
        let store = MemoryStore::new();
        let kek = || {
            let kek = BranchKek::builder(root.clone()).name("orders").per(["tenant"]);
            kek.store(store.clone()).build().unwrap()
        };
        let (derived, compact, plain) = messages(&root, &store, kek()).await;
        root.wait_for(|| Box::pin(tokio::time::sleep(LATENCY)));

        report.heading(
            "A cold read while the root takes 100 ms, its branch key cached: 99 in 100 take less",
            ["measured", "", "goal"],
        );
        let reader = Envelope::builder().wrap_with(kek()).build().unwrap();
        let times = time(&reader, &derived).await;
        let name = "derived DEKs, no store read";
        report_times(report, name, &times, Duration::from_micros(20));

        let reader = Envelope::builder().wrap_with(kek()).key_store(store.clone());
        let times = time(&reader.build().unwrap(), &compact).await;
        let name = "compact messages, DEK rows in a store in memory";
        report_times(report, name, &times, Duration::from_millis(2));
        // It needs a server: `cargo bench -p waxseal-sqlx --features postgres --bench cold_read`.
        let not_here = Figure::Text("see waxseal-sqlx".to_owned());
        report.line("    rows in PostgreSQL", Some(not_here), None);

        let reader = Envelope::builder().wrap_with(root.clone()).build().unwrap();
        let times = time(&reader, &plain).await;
        report.line(
            "no branch key: the median",
            Some(Figure::Time(Times::at(&times.passed, 50))),
            None,
        );
    });
}

async fn messages(
    root: &ScriptedKek,
    store: &MemoryStore,
    kek: BranchKek,
) -> (Vec<Vec<u8>>, Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let context = acme();
    let (mut derived, mut compact, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    let writing = writer().wrap_with(kek.clone()).build().unwrap();
    let stored = writer().wrap_with(kek).key_store(store.clone()).build().unwrap();
    for _ in 0..READS {
        derived.push(writing.encrypt(&context, Aad::empty(), b"row").await.unwrap());
        let message = stored.encrypt_compact(&context, Aad::empty(), b"row").await.unwrap();
        compact.push(message.into_parts().0);
    }
    let writing = writer().wrap_with(root.clone()).build().unwrap();
    for _ in 0..40 {
        plain.push(writing.encrypt(&context, Aad::empty(), b"row").await.unwrap());
    }
    (derived, compact, plain)
}
