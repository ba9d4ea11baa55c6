//! The bytes of a wrapped key, and Key Vault's names of keys.
//!
//! ```text
//! 01 ‖ version ‖ iv (12) ‖ tag (16) ‖ ciphertext (32)      A256GCM
//! 02 ‖ version ‖ ciphertext (256 to 512)                   RSA-OAEP-256
//! ```
//!
//! `version` is `00` and the 16 bytes of 32 hexadecimal digits, as Key Vault makes them today, or a
//! length from 1 to 64 and that many letters, digits and hyphens. It is here and not in the
//! metadata, because `unwrap` depends on it.
#![forbid(unsafe_code)]

use data_encoding::HEXLOWER;

/// The size of the initialization vector and of the tag of AES-GCM in bytes.
pub(crate) const IV: usize = 12;
pub(crate) const TAG: usize = 16;
/// The size of a DEK, and of the digest of an encryption context, in bytes.
pub(crate) const DEK: usize = 32;

const A256GCM: u8 = 1;
const RSA_OAEP_256: u8 = 2;

const MOST_VERSION: usize = 64;
const HEX_DIGITS: usize = 32;
const MOST_NAME: usize = 127;
/// RSA of 2,048 to 4,096 bits.
const RSA_BYTES: [usize; 3] = [256, 384, 512];

/// The version of a key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Version(Box<str>);

impl Version {
    /// Reads a version. Returns `None` unless it can be a segment of a URL unchanged.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let well_formed = (1..=MOST_VERSION).contains(&text.len()) && is_plain(text);
        well_formed.then(|| Self(text.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns it as 16 bytes, if it is 32 lower-case hexadecimal digits.
    fn hex(&self) -> Option<Vec<u8>> {
        (self.0.len() == HEX_DIGITS).then(|| HEXLOWER.decode(self.0.as_bytes()).ok()).flatten()
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        match self.hex() {
            Some(hex) => {
                bytes.push(0);
                bytes.extend_from_slice(&hex);
            }
            None => {
                // At most 64.
                bytes.push(u8::try_from(self.0.len()).unwrap_or_default());
                bytes.extend_from_slice(self.0.as_bytes());
            }
        }
    }

    /// Returns the version at the start, and what follows it. Each version has only one encoding.
    fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (len, rest) = bytes.split_first()?;
        if *len == 0 {
            let (hex, rest) = rest.split_at_checked(HEX_DIGITS / 2)?;
            return Some((Self(HEXLOWER.encode(hex).into()), rest));
        }
        let (text, rest) = rest.split_at_checked(usize::from(*len))?;
        let version = Self::read(std::str::from_utf8(text).ok()?)?;
        version.hex().is_none().then_some((version, rest))
    }
}

/// The parts of a wrapped DEK.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    Gcm { version: Version, iv: [u8; IV], tag: [u8; TAG], text: [u8; DEK] },
    Rsa { version: Version, text: Vec<u8> },
}

impl Entry {
    pub(crate) fn version(&self) -> &Version {
        match self {
            Self::Gcm { version, .. } | Self::Rsa { version, .. } => version,
        }
    }

    /// Reads an entry. Returns `None` for anything else.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (form, rest) = bytes.split_first()?;
        let (version, rest) = Version::split(rest)?;
        match *form {
            A256GCM => {
                let (iv, rest) = rest.split_at_checked(IV)?;
                let (tag, text) = rest.split_at_checked(TAG)?;
                let iv: [u8; IV] = iv.try_into().ok()?;
                // No provider of this project ever wrote one.
                if iv == [0; IV] {
                    return None;
                }
                let (tag, text) = (tag.try_into().ok()?, text.try_into().ok()?);
                Some(Self::Gcm { version, iv, tag, text })
            }
            RSA_OAEP_256 if RSA_BYTES.contains(&rest.len()) => {
                Some(Self::Rsa { version, text: rest.to_vec() })
            }
            _ => None,
        }
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Gcm { version, iv, tag, text } => {
                bytes.push(A256GCM);
                version.write(&mut bytes);
                for part in [&iv[..], tag, text] {
                    bytes.extend_from_slice(part);
                }
            }
            Self::Rsa { version, text } => {
                bytes.push(RSA_OAEP_256);
                version.write(&mut bytes);
                bytes.extend_from_slice(text);
            }
        }
        bytes
    }
}

fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Whether a key can have this name: 1 to 127 letters, digits and hyphens.
pub(crate) fn is_key_name(text: &str) -> bool {
    (1..=MOST_NAME).contains(&text.len()) && is_plain(text)
}

/// The parts of an answer's `kid`, `https://HOST/keys/NAME/VERSION`.
pub(crate) struct Kid<'a> {
    /// Without a port.
    pub(crate) host: &'a str,
    pub(crate) name: &'a str,
    pub(crate) version: Version,
}

impl<'a> Kid<'a> {
    pub(crate) fn read(text: &'a str) -> Option<Self> {
        let rest = text.strip_prefix("https://")?;
        let mut parts = rest.split('/');
        let mut next = || parts.next();
        let (authority, keys, name, version) = (next()?, next()?, next()?, next()?);
        let host = match authority.split_once(':') {
            Some((host, port)) => {
                port.parse::<u16>().ok()?;
                host
            }
            None => authority,
        };
        let well_formed =
            keys == "keys" && parts.next().is_none() && is_key_name(name) && !host.is_empty();
        let version = Version::read(version)?;
        well_formed.then_some(Self { host, name, version })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef";

    fn entries() -> Vec<Entry> {
        let versions = [HEX, "a", "0123456789ABCDEF0123456789abcdef", "-", &"v".repeat(64)];
        let mut entries = Vec::new();
        for version in versions {
            let version = Version::read(version).unwrap();
            entries.push(Entry::Gcm {
                version: version.clone(),
                iv: [7; IV],
                tag: [8; TAG],
                text: [9; DEK],
            });
            for len in RSA_BYTES {
                entries.push(Entry::Rsa { version: version.clone(), text: vec![5; len] });
            }
        }
        entries
    }

    #[test]
    fn what_is_written_is_read_back() {
        for entry in entries() {
            assert_eq!(Entry::read(&entry.write()), Some(entry));
        }
        let Some(Entry::Gcm { .. }) = entries().first().cloned() else { panic!() };
        assert_eq!(entries()[0].write().len(), 78, "of a Managed HSM, with today's versions");
    }

    #[test]
    fn every_truncation_and_every_byte_more_is_refused() {
        for entry in entries() {
            let bytes = entry.write();
            for len in 0..bytes.len() {
                // The rest of a long RSA text may be as long as a shorter one. RSA refuses it.
                if let Entry::Rsa { text, .. } = &entry
                    && RSA_BYTES.iter().any(|shorter| shorter + bytes.len() == len + text.len())
                {
                    continue;
                }
                assert_eq!(Entry::read(&bytes[..len]), None, "{entry:?} {len}");
            }
            for more in [0, 1, 0xff] {
                assert_eq!(Entry::read(&[&bytes[..], &[more]].concat()), None, "{entry:?}");
            }
        }
    }

    #[test]
    fn every_flipped_bit_gives_another_entry_or_none() {
        for entry in entries() {
            let bytes = entry.write();
            for bit in 0..bytes.len() * 8 {
                let mut other = bytes.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                if let Some(read) = Entry::read(&other) {
                    assert_ne!(read, entry, "bit {bit}");
                    assert_eq!(read.write(), other, "bit {bit}: one encoding for one entry");
                }
            }
        }
    }

    #[test]
    fn an_initialization_vector_of_zeros_is_refused() {
        let version = Version::read(HEX).unwrap();
        let zeros = Entry::Gcm { version, iv: [0; IV], tag: [8; TAG], text: [9; DEK] };
        assert_eq!(Entry::read(&zeros.write()), None);
    }

    #[test]
    fn a_version_of_32_digits_has_one_encoding() {
        let mut bytes = vec![A256GCM, 32];
        bytes.extend_from_slice(HEX.as_bytes());
        bytes.extend_from_slice(&[7; IV + TAG + DEK]);
        assert_eq!(Entry::read(&bytes), None);
    }

    #[test]
    fn a_kid_is_read_in_its_parts_and_nothing_else_is() {
        let kid = Kid::read("https://orders.vault.azure.net/keys/cards/0a").unwrap();
        assert_eq!((kid.host, kid.name), ("orders.vault.azure.net", "cards"));
        assert_eq!(kid.version.as_str(), "0a");
        let kid = Kid::read("https://orders.vault.azure.net:443/keys/cards/0a").unwrap();
        assert_eq!(kid.host, "orders.vault.azure.net");
        for text in [
            "",
            "http://orders.vault.azure.net/keys/cards/0a",
            "https://orders.vault.azure.net/keys/cards",
            "https://orders.vault.azure.net/keys/cards/",
            "https://orders.vault.azure.net/keys//0a",
            "https://orders.vault.azure.net/keys/cards/0a/",
            "https://orders.vault.azure.net/secrets/cards/0a",
            "https://orders.vault.azure.net/keys/cards/0a?x",
            "https://orders.vault.azure.net/keys/../0a",
            "https://:443/keys/cards/0a",
            "https://orders.vault.azure.net:x/keys/cards/0a",
        ] {
            assert!(Kid::read(text).is_none(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_to_the_same_bytes(
            form in 0u8..4,
            bytes in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let bytes = [&[form][..], &bytes].concat();
            if let Some(entry) = Entry::read(&bytes) {
                prop_assert_eq!(entry.write(), bytes);
            }
        }

        #[test]
        fn no_text_makes_reading_a_kid_panic(text in "\\PC{0,80}|https://[a-z.:0-9/-]{0,80}") {
            let _ = Kid::read(&text);
        }
    }
}
