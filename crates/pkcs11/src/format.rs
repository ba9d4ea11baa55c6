//! The bytes of a DEK that a token wrapped: which key made them, the IV, the ciphertext.
#![forbid(unsafe_code)]

/// The first byte of this layout.
const FORMAT: u8 = 1;
/// Longest `CKA_ID` of a KEK, in bytes.
pub(crate) const MAX_ID: usize = 64;
/// Bytes of an IV: 12, or the 16 that some tokens make.
const IV_LENGTHS: std::ops::RangeInclusive<usize> = 12..=16;
/// Bytes of a wrapped DEK: 32 of ciphertext, 16 of tag.
pub(crate) const SEALED: usize = 32 + 16;

/// A wrapped DEK, taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wrapped<'a> {
    /// The `CKA_ID` of the key that made it. It may be empty.
    pub(crate) key_id: &'a [u8],
    pub(crate) iv: &'a [u8],
    /// Ciphertext and tag.
    pub(crate) sealed: &'a [u8],
}

impl<'a> Wrapped<'a> {
    /// `None` for anything but what [`to_bytes`](Self::to_bytes) writes.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Self> {
        let [FORMAT, id_len, iv_len, rest @ ..] = bytes else { return None };
        let (id_len, iv_len) = (usize::from(*id_len), usize::from(*iv_len));
        let (key_id, rest) = rest.split_at_checked(id_len)?;
        let (iv, sealed) = rest.split_at_checked(iv_len)?;
        let fits = id_len <= MAX_ID && IV_LENGTHS.contains(&iv_len) && sealed.len() == SEALED;
        // Such an IV is refused when wrapping. No token wrote it.
        let is_zero = iv.iter().all(|byte| *byte == 0);
        (fits && !is_zero).then_some(Self { key_id, iv, sealed })
    }

    /// `None` if a part has a length that it must not have, or the IV is zero.
    pub(crate) fn to_bytes(self) -> Option<Vec<u8>> {
        let lengths = [u8::try_from(self.key_id.len()).ok()?, u8::try_from(self.iv.len()).ok()?];
        let bytes = [&[FORMAT][..], &lengths, self.key_id, self.iv, self.sealed].concat();
        Wrapped::read(&bytes).is_some().then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            key_id in prop::collection::vec(any::<u8>(), 0..=MAX_ID),
            iv in prop::collection::vec(1..=u8::MAX, 12..=16),
            sealed in prop::collection::vec(any::<u8>(), SEALED),
        ) {
            let wrapped = Wrapped { key_id: &key_id, iv: &iv, sealed: &sealed };
            let bytes = wrapped.to_bytes().unwrap();
            prop_assert_eq!(bytes.len(), 3 + key_id.len() + iv.len() + SEALED);
            prop_assert_eq!(Wrapped::read(&bytes).unwrap(), wrapped);
            for len in 0..bytes.len() {
                prop_assert!(Wrapped::read(&bytes[..len]).is_none());
            }
            prop_assert!(Wrapped::read(&[&bytes[..], &[0]].concat()).is_none());
        }

        #[test]
        fn one_encoding_each(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(wrapped) = Wrapped::read(&bytes) {
                prop_assert_eq!(wrapped.to_bytes().unwrap(), bytes);
            }
        }
    }

    #[test]
    fn an_iv_of_zeros_is_neither_written_nor_read() {
        let wrapped = Wrapped { key_id: b"1", iv: &[0; 12], sealed: &[7; SEALED] };
        assert!(wrapped.to_bytes().is_none());
        let bytes = [&[FORMAT, 1, 12, b'1'][..], &[0; 12], &[7; SEALED]].concat();
        assert!(Wrapped::read(&bytes).is_none());
    }
}
