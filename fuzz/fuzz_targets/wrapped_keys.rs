//! Any bytes as a list of wrapped keys, compared with bincode.
//!
//! - `WrappedKeys::try_from` accepts exactly the bytes that bincode reads to the end and writes
//!   back the same, and whose entries keep the limits and the order of docs/format.md. It never
//!   panics.
//! - What it accepts has the entries that bincode reads, and is what the entries are written as.
#![no_main]

use bincode::config::{self, Config};
use libfuzzer_sys::fuzz_target;
use waxseal::{ErrorKind, WrappedKeys};

/// KEK id, wrapped DEK, metadata.
type Entry = (String, Vec<u8>, Vec<u8>);

fuzz_target!(|bytes: &[u8]| {
    let expected = oracle(bytes);
    match WrappedKeys::try_from(bytes) {
        Ok(keys) => {
            assert_eq!(keys.as_bytes(), bytes);
            let entries = keys.entries().iter();
            let plain = entries
                .clone()
                .map(|e| (e.kek_id().as_str().to_owned(), e.wrapped().to_vec(), e.meta().to_vec()));
            assert_eq!(Some(plain.collect()), expected);
            let rebuilt = WrappedKeys::new(entries.rev().cloned()).unwrap();
            assert_eq!(rebuilt, keys);
            assert_eq!(rebuilt.as_bytes(), bytes);
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Malformed);
            assert_eq!(expected, None);
        }
    }
});

/// The entries, if `bytes` are the canonical encoding of a valid list.
fn oracle(bytes: &[u8]) -> Option<Vec<Entry>> {
    let (entries, read): (Vec<Entry>, usize) = bincode::decode_from_slice(bytes, config()).ok()?;
    // bincode also reads lengths that are not in their shortest form.
    let canonical =
        read == bytes.len() && bincode::encode_to_vec(&entries, config()).unwrap() == bytes;
    let within_limits = |(id, wrapped, meta): &Entry| {
        (1..=512).contains(&id.len()) && (1..=6144).contains(&wrapped.len()) && meta.len() <= 64
    };
    let valid = bytes.len() <= 65_535
        && (1..=16).contains(&entries.len())
        && entries.iter().all(within_limits)
        && entries.is_sorted_by(|(a, ..), (b, ..)| a.as_bytes() < b.as_bytes());
    (canonical && valid).then_some(entries)
}

/// The limit is twice what a list may have: bincode counts every length as eight bytes, and memory
/// for entries that it has yet to read.
fn config() -> impl Config {
    config::standard().with_limit::<131_072>()
}
