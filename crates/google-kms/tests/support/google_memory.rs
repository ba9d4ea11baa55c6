//! What is left in memory of DEKs that went to Cloud KMS and came back. The stand-in is a process of
//! its own.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use data_encoding::BASE64;
use waxseal::kek::{KekProvider, UnwrappedDek};
use waxseal_google_kms::GoogleKmsKek;
use waxseal_testing::google::child::KEY;
use waxseal_testing::scan::Needle;
use waxseal_testing::server_child::ServerChild;
use waxseal_testing::support::context;
use zeroize::Zeroizing;

const DEKS: usize = 6;

/// Copies of DEKs, as bytes and as text.
#[derive(Debug)]
pub struct Found {
    /// The control: while the DEKs are held.
    pub held: (usize, usize),
    /// After the DEKs were dropped; the connection is open.
    pub dropped: (usize, usize),
    /// After provider, connections and runtime were dropped too.
    pub closed: (usize, usize),
}

/// Has DEKs wrapped and unwrapped. `child` is the name of the test that plays the stand-in.
pub fn run(child: &str) -> Found {
    let front = ServerChild::start(child);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut needles: Vec<(Needle, Needle)> = Vec::new();
    let alice = context("alice");
    let builder = GoogleKmsKek::builder(KEY).endpoint(front.url()).metadata_server_at(front.url());
    let kek = runtime.block_on(builder.build()).unwrap();
    let mut unwrapped = Vec::new();
    for _ in 0..DEKS {
        let own = {
            // Not from a generator that keeps what it made.
            let mut bytes = vec![0; 32];
            getrandom::fill(&mut bytes).unwrap();
            UnwrappedDek::new(bytes).to_dek().unwrap()
        };
        let text = Zeroizing::new(BASE64.encode(own.expose()));
        needles.push((Needle::of(own.expose()), Needle::of(text.as_bytes())));
        let wrapped = runtime.block_on(kek.wrap(&alice, &own)).unwrap();
        unwrapped.push(runtime.block_on(kek.unwrap(&alice, &wrapped)).unwrap());
    }
    let count = || {
        let sum = |look: fn(&(Needle, Needle)) -> usize| needles.iter().map(look).sum();
        (sum(|(bytes, _)| bytes.occurrences()), sum(|(_, text)| text.occurrences()))
    };
    let text: Vec<_> =
        unwrapped.iter().map(|dek| Zeroizing::new(BASE64.encode(dek.expose()))).collect();
    let held = count();
    drop((text, unwrapped));
    let dropped = count();
    drop(kek);
    drop(runtime);
    Found { held, dropped, closed: count() }
}
