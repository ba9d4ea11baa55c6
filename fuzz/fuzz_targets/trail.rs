//! Any bytes as an audit trail.
//!
//! - The verifier never panics, and returns no error but that of another version.
//! - What it accepts is a chain: without a gap from the first record, and the lines before the
//!   fault verify by themselves, to the same hash.
#![no_main]

use libfuzzer_sys::fuzz_target;
use waxseal::ErrorKind;
use waxseal::audit::Verifier;

fuzz_target!(|bytes: &[u8]| {
    let mut sequences = Vec::new();
    let found = match Verifier::new().verify_stream(bytes, |record| sequences.push(record.sequence))
    {
        Ok(found) => found,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::UnsupportedVersion, "{error}");
            return;
        }
    };
    assert!(sequences.iter().copied().eq(0..found.records));
    let Some(fault) = &found.fault else { return };
    assert_eq!(fault.sequence, found.records, "{fault}");
    let accepted = usize::try_from(found.records).unwrap();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').take(accepted).collect();
    let again = Verifier::new().verify_stream(&lines.concat()[..], |_| {}).unwrap();
    assert_eq!((again.records, again.last_hash), (found.records, found.last_hash));
    assert!(again.fault.is_none() || accepted == 0, "{:?}", again.fault);
});
