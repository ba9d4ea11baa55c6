//! After any change of a trail's bytes, the verifier passes on only records that were written.

use std::sync::LazyLock;

use proptest::prelude::*;
use waxseal::audit::{Record, Verifier};

use crate::ground::a_trail;

/// A trail as one stream, and its records.
static WRITTEN: LazyLock<(Vec<u8>, Vec<Record>)> = LazyLock::new(|| {
    let place = a_trail(12);
    assert_eq!(place.files().len(), 2);
    let bytes = place.files().iter().flat_map(|file| std::fs::read(file).unwrap()).collect();
    (bytes, place.records())
});

#[derive(Clone, Debug)]
enum Edit {
    Flip(usize, u8),
    Remove(usize, usize),
    Insert(usize, Vec<u8>),
    /// A line to another place.
    Move(usize, usize),
    Repeat(usize, usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let place = any::<usize>;
    let edit = prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, bits)| Edit::Flip(at, bits)),
        (place(), 1..300_usize).prop_map(|(at, len)| Edit::Remove(at, len)),
        (place(), proptest::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (place(), place()).prop_map(|(from, to)| Edit::Move(from, to)),
        (place(), place()).prop_map(|(from, to)| Edit::Repeat(from, to)),
    ];
    proptest::collection::vec(edit, 1..4)
}

fn edited(mut bytes: Vec<u8>, edits: Vec<Edit>) -> Vec<u8> {
    for edit in edits {
        let len = bytes.len();
        if len == 0 {
            break;
        }
        match edit {
            Edit::Flip(at, bits) => bytes[at % len] ^= bits,
            Edit::Remove(at, many) => drop(bytes.drain(at % len..(at % len + many).min(len))),
            Edit::Insert(at, more) => drop(bytes.splice(at % len..at % len, more)),
            Edit::Move(from, to) | Edit::Repeat(from, to) => {
                let mut lines: Vec<Vec<u8>> =
                    bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
                let (from, to) = (from % lines.len(), to % lines.len());
                let line = lines[from].clone();
                if matches!(edit, Edit::Move(..)) {
                    lines.remove(from);
                }
                lines.insert(to.min(lines.len()), line);
                bytes = lines.concat();
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_handed_over_is_what_was_written_and_a_change_is_a_fault(edits in edits()) {
        let (bytes, records) = &*WRITTEN;
        let changed = edited(bytes.clone(), edits);
        let mut seen = Vec::new();
        let found = Verifier::new().verify_stream(&changed[..], |record| seen.push(record.clone()));
        let found = found.unwrap();
        prop_assert!(records.starts_with(&seen), "a record that was never written");
        // Whole lines may have been cut off at the end, which only a witness can know.
        let is_unchanged = bytes.starts_with(&changed)
            && (changed.len() == bytes.len() || changed.ends_with(b"\n"));
        prop_assert_eq!(found.fault.is_none(), is_unchanged, "{:?}", found);
        prop_assert_eq!(found.records, seen.len() as u64);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        let found = Verifier::new().verify_stream(&bytes[..], |_| {}).unwrap();
        prop_assert!(found.fault.is_some() && found.records == 0);
    }
}
