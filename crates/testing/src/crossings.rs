//! What is left in memory of DEKs that went to a key service and came back. The service has to be a
//! separate process.

use data_encoding::BASE64;
use tokio::runtime::Runtime;
use waxseal::kek::{KekProvider, UnwrappedDek};
use zeroize::Zeroizing;

use crate::scan::Needle;
use crate::support::context;

/// Copies of DEKs, as bytes and as text.
#[derive(Debug)]
pub struct Found {
    /// The control: while the DEKs are held.
    pub held: (usize, usize),
    /// After the DEKs were dropped; the connections are open.
    pub dropped: (usize, usize),
    /// After providers, connections and runtime were dropped too.
    pub closed: (usize, usize),
}

/// What crosses to the service.
#[derive(Clone, Copy)]
pub struct Crossings {
    /// DEKs that each provider wraps and unwraps.
    pub deks: usize,
    /// Whether the service makes as many DEKs as well.
    pub generated: bool,
    /// A DEK as text, as the service's interface has it.
    pub text: fn(&[u8]) -> Zeroizing<String>,
}

/// A whole DEK in base64.
pub fn base64(dek: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(BASE64.encode(dek))
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

impl Crossings {
    /// Has the providers do it, and searches this process's memory.
    pub fn found<K: KekProvider>(self, runtime: Runtime, keks: Vec<K>) -> Found {
        let Self { deks, generated, text } = self;
        let mut needles: Vec<(Needle, Needle)> = Vec::new();
        let mut add = |dek: &[u8]| {
            needles.push((Needle::of(dek), Needle::of(text(dek).as_bytes())));
        };
        let alice = context("alice");
        let mut unwrapped = Vec::new();
        for kek in &keks {
            for _ in 0..deks {
                let own = {
                    // Not from a generator that keeps what it made.
                    let mut bytes = vec![0; 32];
                    getrandom::fill(&mut bytes).unwrap();
                    UnwrappedDek::new(bytes).to_dek().unwrap()
                };
                add(own.expose());
                let wrapped = runtime.block_on(kek.wrap(&alice, &own)).unwrap();
                unwrapped.push(runtime.block_on(kek.unwrap(&alice, &wrapped)).unwrap());
                if generated {
                    let (made, _) = runtime.block_on(kek.generate(&alice)).unwrap();
                    add(made.expose());
                    unwrapped.push(made);
                }
            }
        }
        let count = || {
            let sum = |look: fn(&(Needle, Needle)) -> usize| needles.iter().map(look).sum();
            (sum(|(bytes, _)| bytes.occurrences()), sum(|(_, text)| text.occurrences()))
        };
        let texts: Vec<_> = unwrapped.iter().map(|dek| text(dek.expose())).collect();
        let held = count();
        drop((texts, unwrapped));
        let dropped = count();
        drop(keks);
        drop(runtime);
        Found { held, dropped, closed: count() }
    }
}
