//! Reads the canonical bytes of an encryption context.
#![forbid(unsafe_code)]

use super::reader::Reader;
use crate::context::{CONTEXT_MAGIC, EncryptionContext};
use crate::error::{Error, ErrorKind};

/// Reads [`EncryptionContext::as_bytes`]. Refuses anything but the one canonical encoding of a
/// valid context.
///
/// # Errors
/// [`ErrorKind::Malformed`] for bytes that are not such an encoding, [`ErrorKind::InvalidContext`]
/// for pairs that no context may have.
impl TryFrom<&[u8]> for EncryptionContext {
    type Error = Error;

    fn try_from(bytes: &[u8]) -> Result<Self, Error> {
        read(bytes, Self::new)
    }
}

/// Reads a context that may have reserved names. No caller made it, so every mistake is
/// [`ErrorKind::Malformed`].
pub(super) fn read_with_reserved_names(bytes: &[u8]) -> Result<EncryptionContext, Error> {
    read(bytes, EncryptionContext::with_reserved_names).map_err(|_| malformed("breaks a rule"))
}

fn read<'b>(
    bytes: &'b [u8],
    make: impl FnOnce(Vec<(&'b str, &'b str)>) -> Result<EncryptionContext, Error>,
) -> Result<EncryptionContext, Error> {
    if bytes.len() > EncryptionContext::MAX_BYTES {
        return Err(malformed("too long"));
    }
    let context = make(read_pairs(bytes).ok_or_else(|| malformed("cut short, or not UTF-8"))?)?;
    if context.as_bytes() != bytes {
        return Err(malformed("not in canonical form"));
    }
    Ok(context)
}

fn read_pairs(bytes: &[u8]) -> Option<Vec<(&str, &str)>> {
    let mut reader = Reader::new(bytes);
    if reader.array()? != &CONTEXT_MAGIC {
        return None;
    }
    let count = usize::from(reader.u16()?);
    if count > EncryptionContext::MAX_PAIRS {
        return None;
    }
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        let len = reader.u16()?;
        let name = reader.text(len.into())?;
        let len = reader.u16()?;
        pairs.push((name, reader.text(len.into())?));
    }
    reader.is_empty().then_some(pairs)
}

fn malformed(what: &'static str) -> Error {
    Error::new(ErrorKind::Malformed, format!("encryption context: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_written() {
        for pairs in
            [vec![], vec![("tenant", "alice")], vec![("b", "2"), ("a", "1"), ("ab", "\u{20ac}")]]
        {
            let context = EncryptionContext::new(pairs).unwrap();
            assert_eq!(EncryptionContext::try_from(context.as_bytes()).unwrap(), context);
        }
    }

    #[test]
    fn refuses_every_other_encoding() {
        let good = EncryptionContext::new([("a", "1"), ("b", "2")]).unwrap().as_bytes().to_vec();
        for len in 0..good.len() {
            assert!(EncryptionContext::try_from(&good[..len]).is_err(), "cut at {len}");
        }
        let mut long = good.clone();
        long.push(0);
        assert!(EncryptionContext::try_from(&long[..]).is_err(), "one byte more");
        let swapped = b"WXC\x01\x02\x00\x01\x00b\x01\x002\x01\x00a\x01\x001";
        assert_eq!(swapped.len(), good.len());
        assert_eq!(
            EncryptionContext::try_from(&swapped[..]).unwrap_err().kind(),
            ErrorKind::Malformed,
            "out of order"
        );
        assert!(EncryptionContext::try_from(&[0; 9000][..]).is_err());
    }
}
