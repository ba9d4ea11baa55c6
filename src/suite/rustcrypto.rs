//! The suites from the RustCrypto crates.
#![forbid(unsafe_code)]

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use chacha20poly1305::ChaCha20Poly1305;
use xaes_256_gcm::Xaes256Gcm;

use super::{AeadFailure, InOut, Outcome, Suite, Tag};
use crate::memory::overwriting_the_stack_after;

/// How much of the stack is overwritten after each use of a key. With 512-bit registers the `aes`
/// crate puts every round key on the stack, four times over (960 bytes), and leaves them there. A
/// test measures how deep a use reaches: 11 KiB in the deepest of several builds.
const STACK: usize = 16 * 1024;

/// Each variant wipes its schedule on drop (the crates' feature `zeroize`).
pub(crate) enum Key {
    Aes256Gcm(Aes256Gcm),
    ChaCha20Poly1305(ChaCha20Poly1305),
    Xaes256Gcm(Xaes256Gcm),
}

impl Key {
    pub(super) fn new(suite: Suite, key: &[u8; 32]) -> Self {
        match suite {
            Suite::Aes256Gcm => Self::Aes256Gcm(Aes256Gcm::new(key.into())),
            Suite::ChaCha20Poly1305 => Self::ChaCha20Poly1305(ChaCha20Poly1305::new(key.into())),
            Suite::Xaes256Gcm => Self::Xaes256Gcm(Xaes256Gcm::new(key.into())),
        }
    }

    pub(super) fn seal(&self, nonce: &[u8], aad: &[u8], data: InOut<'_>, tag: &mut Tag) -> Outcome {
        let payload = data.copied()?;
        overwriting_the_stack_after::<STACK, _>(|| match self {
            Self::Aes256Gcm(key) => seal(key, nonce, aad, payload, tag),
            Self::ChaCha20Poly1305(key) => seal(key, nonce, aad, payload, tag),
            Self::Xaes256Gcm(key) => seal(key, nonce, aad, payload, tag),
        })
    }

    pub(super) fn open(&self, nonce: &[u8], aad: &[u8], data: InOut<'_>, tag: &Tag) -> Outcome {
        let payload = data.copied()?;
        overwriting_the_stack_after::<STACK, _>(|| match self {
            Self::Aes256Gcm(key) => open(key, nonce, aad, payload, tag),
            Self::ChaCha20Poly1305(key) => open(key, nonce, aad, payload, tag),
            Self::Xaes256Gcm(key) => open(key, nonce, aad, payload, tag),
        })
    }
}

fn seal<A: AeadInOut>(key: &A, nonce: &[u8], aad: &[u8], to: &mut [u8], tag: &mut Tag) -> Outcome {
    let nonce = nonce.try_into().map_err(|_| AeadFailure)?;
    let made = key.encrypt_inout_detached(nonce, aad, to.into()).map_err(|_| AeadFailure)?;
    made.as_slice().try_into().map(|made| *tag = made).map_err(|_| AeadFailure)
}

fn open<A: AeadInOut>(key: &A, nonce: &[u8], aad: &[u8], buffer: &mut [u8], tag: &Tag) -> Outcome {
    let nonce = nonce.try_into().map_err(|_| AeadFailure)?;
    let tag = tag.as_slice().try_into().map_err(|_| AeadFailure)?;
    key.decrypt_inout_detached(nonce, aad, buffer.into(), tag).map_err(|_| AeadFailure)
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn no_use_reaches_deeper_than_what_is_overwritten() {
        use super::*;

        #[inline(never)]
        fn seal_and_open<A: AeadInOut>(key: &A, nonce: &[u8], data: &mut [u8]) -> usize {
            let mut tag = [0; 16];
            assert!(seal(key, nonce, b"aad", data, &mut tag).is_ok());
            assert!(open(key, nonce, b"aad", data, &tag).is_ok());
            tag.as_ptr().addr()
        }
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305, Suite::Xaes256Gcm] {
            let key = Key::new(suite, &[7; 32]);
            for len in [0, 16, 1024, 5000] {
                let mut data = vec![7; len];
                let work = || match &key {
                    Key::Aes256Gcm(key) => seal_and_open(key, &[1; 12], &mut data),
                    Key::ChaCha20Poly1305(key) => seal_and_open(key, &[1; 12], &mut data),
                    Key::Xaes256Gcm(key) => seal_and_open(key, &[1; 24], &mut data),
                };
                let depth = crate::memory::tests::depth_on_the_stack(work);
                println!("{suite:?} {len}: {depth} bytes");
                assert!((256..STACK).contains(&depth), "{suite:?} {len}: {depth} bytes");
            }
        }
    }
}
