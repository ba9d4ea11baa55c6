//! Any bytes, looked at without a key.
//!
//! - `is_sealed` and `inspect` never panic, and `inspect` fails with the documented kinds only.
//! - `is_sealed` depends on the first 40 bytes alone.
//! - What `inspect` accepts is sealed, and the parts of a message add up to its length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use waxseal::{ErrorKind, MessageKind, Suite, inspect, is_sealed};

const HEADER_LEN: usize = 40;
const TAG_LEN: usize = 16;

fuzz_target!(|bytes: &[u8]| {
    let sealed = is_sealed(bytes);
    assert_eq!(sealed, is_sealed(&bytes[..bytes.len().min(HEADER_LEN)]));
    let inspection = match inspect(bytes) {
        Ok(inspection) => inspection,
        Err(error) => {
            let expected: &[ErrorKind] = match sealed {
                // Its header is right, so only what follows can be wrong.
                true => &[ErrorKind::Malformed, ErrorKind::UnsupportedChunkSize],
                false => &[
                    ErrorKind::NotSealed,
                    ErrorKind::UnsupportedVersion,
                    ErrorKind::UnsupportedSuite,
                    ErrorKind::UnsupportedKind,
                    ErrorKind::Malformed,
                ],
            };
            assert!(expected.contains(&error.kind()), "{error}");
            return;
        }
    };

    assert!(sealed);
    assert_eq!([inspection.version, inspection.suite.id()], bytes[3..5]);
    assert_eq!(inspection.dek_id.as_bytes(), &bytes[8..HEADER_LEN]);
    match inspection.kind {
        MessageKind::Message => {
            let wrapped_len = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
            let nonce_len = if inspection.suite == Suite::Xaes256Gcm { 24 } else { 12 };
            let overhead = HEADER_LEN + nonce_len + wrapped_len + TAG_LEN;
            assert_eq!(inspection.plaintext_len.map(|len| overhead + len), Some(bytes.len()));
            assert_eq!(inspection.keks.is_empty(), wrapped_len == 0);
        }
        kind => {
            assert_eq!(kind, MessageKind::Stream);
            assert_ne!(inspection.suite, Suite::Xaes256Gcm);
            assert!(inspection.plaintext_len.is_none());
            let wrapped_len = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
            assert_eq!(inspection.keks.is_empty(), wrapped_len == 0);
            let shape = inspection.stream.unwrap();
            assert_eq!(shape.chunk_size, 1 << bytes[40]);
            assert_eq!(shape.room, u16::from_le_bytes([bytes[41], bytes[42]]));
            let head_len = 104 + wrapped_len + usize::from(shape.room);
            assert_eq!(shape.head_len, head_len);
            assert!(bytes.len() >= head_len);
        }
    }
});
