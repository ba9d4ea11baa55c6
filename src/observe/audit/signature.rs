//! Ed25519. Only this file names its crate.
#![forbid(unsafe_code)]

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::error::{Error, ErrorKind};

/// A key that signs. It is wiped on drop.
pub(super) struct Ed25519Key(Box<SigningKey>);

impl Ed25519Key {
    /// Takes the secret key of RFC 8032, section 5.1.5: 32 bytes.
    pub(super) fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Box::new(SigningKey::from_bytes(seed)))
    }

    pub(super) fn public(&self) -> [u8; 32] {
        self.0.verifying_key().to_bytes()
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for Ed25519Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ed25519Key([redacted])")
    }
}

/// A key that verifies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ed25519Public(VerifyingKey);

impl Ed25519Public {
    /// Refuses bytes that are not a point of the curve, and weak points, under which anything
    /// verifies.
    pub(super) fn from_bytes(bytes: &[u8; 32]) -> Result<Self, Error> {
        let refused = || Error::new(ErrorKind::InvalidOption, "not a public key of Ed25519");
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| refused())?;
        if key.is_weak() { Err(refused()) } else { Ok(Self(key)) }
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    pub(super) fn accepts(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex;

    /// RFC 8032, section 7.1, test 2.
    #[test]
    fn a_signature_is_the_one_of_the_standard() {
        let seed = hex::decode("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
            .unwrap();
        let key = Ed25519Key::from_seed(&seed);
        assert_eq!(
            hex::encode(&key.public()),
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
        );
        let signature = key.sign(&[0x72]);
        assert_eq!(
            hex::encode(&signature),
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        );
        let public = Ed25519Public::from_bytes(&key.public()).unwrap();
        assert!(public.accepts(&[0x72], &signature));
        assert!(!public.accepts(&[0x73], &signature));
    }

    #[test]
    fn a_weak_public_key_is_refused() {
        let mut neutral = [0; 32];
        neutral[0] = 1;
        assert!(Ed25519Public::from_bytes(&neutral).is_err());
        assert!(Ed25519Public::from_bytes(&[2; 32]).is_err());
    }
}
