//! The symmetric key of a trail. Only this file names the HMAC crate.
#![forbid(unsafe_code)]

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::error::{Error, ErrorKind};
use crate::hex;
use crate::memory::{Secret32, overwriting_the_stack_after, wipe};
use crate::suite::Dek;

/// Room for the states of two HMACs.
const STACK: usize = 2048;

/// The purpose that a key is derived for.
#[derive(Clone, Copy)]
pub(super) enum Use {
    Checkpoints,
    CheckpointKeyId,
    ContextValues,
}

impl Use {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Checkpoints => b"waxseal.audit.v1 checkpoints",
            Self::CheckpointKeyId => b"waxseal.audit.v1 checkpoint key id",
            Self::ContextValues => b"waxseal.audit.v1 context values",
        }
    }
}

/// A secret key of 32 bytes, for hashed context values and for the MACs of checkpoints. A separate
/// key is derived from it for each use.
///
/// To have a KEK protect it, make a [`Dek`], wrap it with a
/// [`KekProvider`](crate::kek::KekProvider), keep the [`WrappedDek`](crate::WrappedDek) in the
/// configuration, and unwrap it at each start.
///
/// It is wiped on drop, has no Clone and no serde, and shows nothing in Debug.
///
/// ```
/// # use waxseal::{Dek, EncryptionContext, audit::AuditKey, kek::{KekProvider, local::LocalKek}};
/// # pollster::block_on(async {
/// # let kek = LocalKek::in_memory("test")?;
/// let context = EncryptionContext::new([("purpose", "audit trail of cards")])?;
/// // Once, at set-up. `wrapped` is not secret.
/// let wrapped = kek.wrap(&context, &Dek::random()?).await?;
/// // At each start.
/// let key = kek.unwrap(&context, &wrapped).await?.to_dek().map(|dek| AuditKey::from_dek(&dek));
/// assert!(key.is_some());
/// # Ok::<(), waxseal::Error>(()) }).unwrap();
/// ```
pub struct AuditKey(
    /// `None` if it was made from a DEK that ended at a fork.
    Option<Secret32>,
);

impl AuditKey {
    /// The length in bytes.
    pub const LEN: usize = 32;

    /// Makes a new key with the operating system's generator.
    ///
    /// # Errors
    /// [`ErrorKind::Randomness`].
    pub fn random() -> Result<Self, Error> {
        Secret32::random().map(|secret| Self(Some(secret)))
    }

    /// Makes a key from a DEK that was made for this purpose only. If the process forked since, the
    /// DEK is gone, and the key is refused like one that was made before a fork.
    #[must_use]
    pub fn from_dek(dek: &Dek) -> Self {
        Self(dek.try_clone_secret())
    }

    /// Makes a key from its bytes, which the caller wipes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] unless there are exactly 32 bytes that are not all the same.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, Error> {
        let refused = || {
            let detail = "an audit key has 32 bytes from a random number generator";
            Error::new(ErrorKind::InvalidOption, detail)
        };
        if bytes.iter().all(|byte| Some(byte) == bytes.first()) {
            return Err(refused());
        }
        Secret32::from_slice(bytes).map(|secret| Self(Some(secret))).ok_or_else(refused)
    }

    /// Returns what a record shows for a [hashed](super::Disclosure::Hashed) value, for searching:
    /// 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`ErrorKind::Expired`] if the process forked since the key was made. The key is gone then.
    pub fn hash_value(&self, name: &str, value: &str) -> Result<String, Error> {
        let len = u64::try_from(name.len()).unwrap_or(u64::MAX).to_le_bytes();
        let mac = self.mac(Use::ContextValues, &[&len, name.as_bytes(), value.as_bytes()]);
        mac.map(|mac| hex::encode(&mac)).ok_or_else(|| {
            Error::new(ErrorKind::Expired, "the process forked since the audit key was made")
        })
    }

    /// Returns HMAC-SHA-256 over the parts, under a key that HMAC-SHA-256 derives for the use.
    /// `None` in the child of a fork, where the key reads as zeros.
    pub(super) fn mac(&self, purpose: Use, parts: &[&[u8]]) -> Option<[u8; 32]> {
        let secret = self.0.as_ref().filter(|secret| secret.is_of_this_process())?;
        overwriting_the_stack_after::<STACK, _>(|| {
            let derived = Secret32::from_slice(&of(secret.expose(), &[purpose.label()]))?;
            Some(of(derived.expose(), parts))
        })
    }

    /// Whether `tag` is the MAC of the parts, in constant time.
    pub(super) fn accepts(&self, purpose: Use, parts: &[&[u8]], tag: &[u8; 32]) -> bool {
        self.mac(purpose, parts).is_some_and(|mac| {
            let differing = mac.iter().zip(tag).fold(0, |sum, (a, b)| sum | (a ^ b));
            std::hint::black_box(differing) == 0
        })
    }

    /// Whether the key is still usable. In the child of a fork it is not.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.0.as_ref().is_some_and(Secret32::is_of_this_process)
    }

    /// Makes another copy. `None` in the child of a fork.
    pub(super) fn try_clone(&self) -> Option<Self> {
        self.0.as_ref()?.try_clone().map(|secret| Self(Some(secret)))
    }
}

impl fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuditKey([redacted])")
    }
}

fn of(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    // HMAC pads a key with zeros to the length of a block.
    let mut block = [0; 64];
    for (padded, byte) in block.iter_mut().zip(key) {
        *padded = *byte;
    }
    let mut mac = Hmac::<Sha256>::new(&block.into());
    wipe(&mut block);
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> AuditKey {
        let mut bytes = [byte; 32];
        bytes[0] = 0;
        AuditKey::from_slice(&bytes).unwrap()
    }

    #[test]
    fn a_hash_depends_on_key_name_and_value_and_on_where_one_ends() {
        let hashed = key(1).hash_value("tenant", "acme").unwrap();
        assert_eq!(hashed, key(1).hash_value("tenant", "acme").unwrap());
        for other in [
            key(2).hash_value("tenant", "acme").unwrap(),
            key(1).hash_value("tenan", "tacme").unwrap(),
            key(1).hash_value("tenant", "acme2").unwrap(),
        ] {
            assert_ne!(hashed, other);
        }
    }

    /// `python3 -c 'import hmac,hashlib; k=b"\0"+b"\1"*31; d=hmac.digest(k,b"waxseal.audit.v1
    /// context values","sha256");
    /// print(hmac.digest(d,(6).to_bytes(8,"little")+b"tenantacme","sha256").hex())'`
    #[test]
    fn the_hash_is_the_one_of_the_page() {
        assert_eq!(
            key(1).hash_value("tenant", "acme").unwrap(),
            "5040504eb798286e276025c20352dba3dc4f582b5dd1d1a0f36619fbcdd83b31"
        );
    }

    #[test]
    fn a_key_that_is_no_key_is_refused_and_debug_shows_nothing() {
        for bytes in [&[0; 32][..], &[7; 32], &[], &[1, 2, 3]] {
            assert!(AuditKey::from_slice(bytes).is_err());
        }
        assert_eq!(format!("{:?}", key(3)), "AuditKey([redacted])");
    }
}
