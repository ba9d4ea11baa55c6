//! Any bytes as an encryption context.
//!
//! - `EncryptionContext::try_from` never panics, and fails with the documented kinds only.
//! - What it accepts keeps the rules of docs/format.md and is written as the bytes that were read;
//!   the same context comes from its pairs, in whatever order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use waxseal::{EncryptionContext, ErrorKind};

fuzz_target!(|bytes: &[u8]| {
    let context = match EncryptionContext::try_from(bytes) {
        Ok(context) => context,
        Err(error) => {
            assert!(
                matches!(error.kind(), ErrorKind::Malformed | ErrorKind::InvalidContext),
                "{error}"
            );
            return;
        }
    };
    assert_eq!(context.as_bytes(), bytes);

    let mut pairs: Vec<_> = context.iter().collect();
    assert!(bytes.len() <= 8192 && pairs.len() <= 64);
    assert!(pairs.is_sorted_by(|(a, _), (b, _)| a.as_bytes() < b.as_bytes()));
    for (name, value) in &pairs {
        assert!((1..=256).contains(&name.len()) && (1..=4096).contains(&value.len()));
        assert!(!name.chars().chain(value.chars()).any(|c| matches!(c, '\0'..='\x1f' | '\x7f')));
        let folded = name.to_ascii_lowercase();
        assert!(!folded.starts_with("waxseal"));
        assert_eq!(
            pairs.iter().filter(|(other, _)| other.to_ascii_lowercase() == folded).count(),
            1
        );
        assert_eq!(context.get(name), Some(*value));
    }

    assert_eq!(EncryptionContext::new(pairs.iter().copied()).unwrap(), context);
    pairs.reverse();
    let reversed = EncryptionContext::new(pairs).unwrap();
    assert_eq!((reversed.as_bytes(), reversed.digest()), (bytes, context.digest()));
});
