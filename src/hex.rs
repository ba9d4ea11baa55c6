//! Lower-case hexadecimal digits.
#![forbid(unsafe_code)]

/// Returns two digits for each byte.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let digit =
        |nibble: u8| char::from(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 });
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xF)]).collect()
}

/// Reads what [`encode`] writes of `N` bytes. Returns `None` for anything else, including
/// upper-case digits.
pub(crate) fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    (text.len() == 2 * N).then(|| decode_all(text)?.try_into().ok())?
}

/// Reads what [`encode`] writes. Returns `None` for anything else, including upper-case digits.
pub(crate) fn decode_all(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |d: u8| match d {
        b'0'..=b'9' => Some(d - b'0'),
        b'a'..=b'f' => Some(d - b'a' + 10),
        _ => None,
    };
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

#[cfg(test)]
mod tests {
    use super::{decode, decode_all, encode};

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        assert_eq!(encode(&[0, 0x9A, 0xFF]), "009aff");
        assert_eq!(decode("009aff"), Some([0, 0x9A, 0xFF]));
        for text in ["", "009af", "009AFF", "009aff00", "009ag0", "é09af"] {
            assert_eq!(decode::<3>(text), None, "{text}");
        }
        assert_eq!(decode_all("009aff"), Some(vec![0, 0x9A, 0xFF]));
        assert_eq!(decode_all(""), Some(vec![]));
        for text in ["009af", "009AFF", "009ag0", "é09af"] {
            assert_eq!(decode_all(text), None, "{text}");
        }
    }
}
