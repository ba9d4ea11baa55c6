//! What is left in memory of DEKs that went to AWS KMS and came back. The KMS front is a process of its own.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use data_encoding::BASE64;
use waxseal::kek::{KekProvider, UnwrappedDek};
use waxseal_aws_kms::AwsKmsKek;
use zeroize::Zeroizing;

use waxseal_testing::kms_front::child as kms_child;
use waxseal_testing::kms_front::client_at;
use waxseal_testing::scan::Needle;
use waxseal_testing::server_child::ServerChild;
use waxseal_testing::support::context;

const DEKS: usize = 3;

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

/// Has DEKs wrapped and unwrapped. `child` is the name of the test that plays the front.
pub fn run(child: &str) -> Found {
    let front = ServerChild::start(child);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut needles: Vec<(Needle, Needle)> = Vec::new();
    let mut add = |dek: &[u8]| {
        let text = Zeroizing::new(BASE64.encode(dek));
        needles.push((Needle::of(dek), Needle::of(text.as_bytes())));
    };
    let alice = context("alice");
    let client = client_at(front.url(), kms_child::REGION, &kms_child::login());
    let kek = runtime.block_on(AwsKmsKek::builder(kms_child::ARN).client(client).build()).unwrap();
    let mut unwrapped = Vec::new();
    for _ in 0..DEKS {
        let own = {
            // Not from a generator that keeps what it made.
            let mut bytes = vec![0; 32];
            getrandom::fill(&mut bytes).unwrap();
            UnwrappedDek::new(bytes).to_dek().unwrap()
        };
        add(own.expose());
        let wrapped = runtime.block_on(kek.wrap(&alice, &own)).unwrap();
        unwrapped.push(runtime.block_on(kek.unwrap(&alice, &wrapped)).unwrap());
        let (made, _) = runtime.block_on(kek.generate(&alice)).unwrap();
        add(made.expose());
        unwrapped.push(made);
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
