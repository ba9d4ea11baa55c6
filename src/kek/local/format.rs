//! The bytes that the local provider writes: its wrapped DEK and its key file (docs/format.md,
//! "Local wrapped key" and "Local key file").
#![forbid(unsafe_code)]

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::format::reader::Reader;
use crate::memory::Secret32;

/// The size of a DEK wrapped by the local provider: version, nonce, encrypted DEK, tag.
pub(crate) const WRAPPED_LEN: usize = 4 + 24 + 32 + 16;

/// The parts of a DEK wrapped by the local provider.
pub(crate) struct LocalWrapped<'a> {
    pub(crate) version: u32,
    pub(crate) nonce: &'a [u8; 24],
    pub(crate) dek: &'a [u8; 32],
    pub(crate) tag: &'a [u8; 16],
}

impl<'a> LocalWrapped<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let wrapped = Self {
            version: reader.u32()?,
            nonce: reader.array()?,
            dek: reader.array()?,
            tag: reader.array()?,
        };
        reader.is_empty().then_some(wrapped)
    }

    pub(crate) fn to_bytes(&self) -> Box<[u8]> {
        let mut bytes = Vec::with_capacity(WRAPPED_LEN);
        for part in [&self.version.to_le_bytes()[..], self.nonce, self.dek, self.tag] {
            bytes.extend_from_slice(part);
        }
        bytes.into()
    }
}

const FILE_MAGIC: [u8; 4] = [0xC1, b'W', b'L', 0x01];
const STATE_LIVE: u8 = 0;
const STATE_RETIRED: u8 = 1;

/// The maximum size of a key file: enough for 65,535 versions and the longest name.
pub(crate) const MAX_KEY_FILE: u64 = 4 + 2 + KeyFile::MAX_NAME as u64 + 2 + 65_535 * 37 + 32;

/// A local KEK: its name and its versions, ascending.
pub(crate) struct KeyFile {
    pub(crate) name: Box<str>,
    pub(crate) versions: Vec<(u32, Option<Secret32>)>,
}

impl KeyFile {
    /// The maximum size of a KEK's name, so that `local:NAME` is a valid KEK id.
    pub(crate) const MAX_NAME: usize = 506;

    /// Reads what [`to_bytes`](Self::to_bytes) writes. Returns `None` for anything else.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (body, digest) = bytes.split_last_chunk::<32>()?;
        if Sha256::digest(body).as_slice() != digest {
            return None;
        }
        let mut reader = Reader::new(body);
        if reader.array() != Some(&FILE_MAGIC) {
            return None;
        }
        let len = reader.u16()?;
        let name = reader.text(len.into())?;
        let count = reader.u16()?;
        let mut versions: Vec<(u32, Option<Secret32>)> = Vec::new();
        for _ in 0..count {
            let version = reader.u32()?;
            if versions.last().is_some_and(|(last, _)| *last >= version) {
                return None;
            }
            let secret = match reader.u8()? {
                STATE_LIVE => Some(Secret32::from_slice(reader.take(32)?)?),
                STATE_RETIRED => None,
                _ => return None,
            };
            versions.push((version, secret));
        }
        reader.is_empty().then(|| Self { name: name.into(), versions })
    }

    /// Returns `None` if a length does not fit.
    pub(crate) fn to_bytes(&self) -> Option<Zeroizing<Vec<u8>>> {
        // One allocation: a growing vector would leave secrets in the blocks it outgrew.
        let mut bytes = Zeroizing::new(Vec::with_capacity(
            4 + 2 + self.name.len() + 2 + self.versions.len() * 37 + 32,
        ));
        bytes.extend_from_slice(&FILE_MAGIC);
        bytes.extend_from_slice(&u16::try_from(self.name.len()).ok()?.to_le_bytes());
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.extend_from_slice(&u16::try_from(self.versions.len()).ok()?.to_le_bytes());
        for (version, secret) in &self.versions {
            bytes.extend_from_slice(&version.to_le_bytes());
            match secret {
                Some(secret) => {
                    bytes.push(STATE_LIVE);
                    bytes.extend_from_slice(secret.expose());
                }
                None => bytes.push(STATE_RETIRED),
            }
        }
        let digest: [u8; 32] = Sha256::digest(&**bytes).into();
        bytes.extend_from_slice(&digest);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_read_back_and_no_changed_byte_of_it_is() {
        let secret = |byte| Secret32::from_slice(&[byte; 32]);
        let file = KeyFile {
            name: "orders".into(),
            versions: vec![(1, None), (2, secret(2)), (7, secret(7))],
        };
        let bytes = file.to_bytes().unwrap();
        let read = KeyFile::read(&bytes).unwrap();
        assert_eq!(&*read.name, "orders");
        assert_eq!(read.to_bytes().unwrap(), bytes);
        assert!(
            read.versions[0].1.is_none()
                && read.versions[2].1.as_ref().unwrap().expose() == &[7; 32]
        );
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(KeyFile::read(&changed).is_none(), "byte {at}");
            assert!(KeyFile::read(&bytes[..at]).is_none(), "cut at {at}");
        }
    }

    #[test]
    fn a_local_wrapped_key_has_76_bytes_and_no_other_number() {
        let bytes: Vec<u8> = (0..76).collect();
        let wrapped = LocalWrapped::read(&bytes).unwrap();
        assert_eq!(wrapped.version, 0x0302_0100);
        assert_eq!(&*wrapped.to_bytes(), bytes);
        assert!(
            LocalWrapped::read(&bytes[..75]).is_none() && LocalWrapped::read(&[0; 77]).is_none()
        );
    }
}
