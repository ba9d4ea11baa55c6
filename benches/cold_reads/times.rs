//! How long a read takes that finds its DEK not cached, while the key service takes 100 ms.

use std::time::{Duration, Instant};

use waxseal::branch::BranchKek;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::store::MemoryStore;
use waxseal::{Aad, EncryptionContext, Envelope, EnvelopeBuilder, Limits};

use crate::report::{Figure, Report};

const LATENCY: Duration = Duration::from_millis(100);
const READS: usize = 20_000;

fn acme() -> EncryptionContext {
    EncryptionContext::new([("tenant", "acme")]).unwrap()
}

struct Times(Vec<Duration>);

impl Times {
    fn at(&self, share: usize) -> Duration {
        self.0[(self.0.len() * share / 100).min(self.0.len() - 1)]
    }
}

/// Reads `messages`, each under a DEK of its own, in a process that has only the branch key cached.
async fn time(reader: &Envelope, messages: &[Vec<u8>]) -> Times {
    let context = acme();
    let (first, others) = messages.split_first().unwrap();
    reader.decrypt(&context, Aad::empty(), first).await.unwrap();
    let mut times = Vec::with_capacity(others.len());
    for message in others {
        let start = Instant::now();
        let plaintext = reader.decrypt(&context, Aad::empty(), message).await.unwrap();
        times.push(start.elapsed());
        drop(plaintext);
    }
    times.sort();
    Times(times)
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
        report.time(name, times.at(99), Duration::from_micros(20));
        report.line("    the median", Some(Figure::Time(times.at(50))), None);

        let reader = Envelope::builder().wrap_with(kek()).key_store(store.clone());
        let times = time(&reader.build().unwrap(), &compact).await;
        let name = "compact messages, their DEKs' rows in a store in memory";
        report.time(name, times.at(99), Duration::from_millis(2));
        report.line("    the median", Some(Figure::Time(times.at(50))), None);
        let not_here = Figure::Text("not measured here".to_owned());
        report.line("    rows in PostgreSQL", Some(not_here), None);

        let reader = Envelope::builder().wrap_with(root.clone()).build().unwrap();
        let times = time(&reader, &plain).await;
        report.line("no branch key: the median", Some(Figure::Time(times.at(50))), None);
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
