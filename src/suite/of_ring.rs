//! The suites from ring, which has no XAES-256-GCM and no block cipher to build it from.
#![forbid(unsafe_code)]

use ring::aead;
use zeroize::optimization_barrier;

use super::{AeadFailure, InOut, Outcome, Suite, Tag};
use crate::memory::overwriting_the_stack_after;

super::binding::binding!(aead);

/// How much of the stack is overwritten after a use of ChaCha20-Poly1305, which passes the key on
/// the stack. AES-256-GCM reads its schedule where it is.
const STACK: usize = 4 * 1024;

/// AES-256-GCM or ChaCha20-Poly1305.
pub(crate) struct Key(LessSafeKey);

impl Key {
    pub(super) fn new(suite: Suite, key: &[u8; 32]) -> Outcome<Self> {
        expand(suite, key).map(Self)
    }

    #[inline(always)]
    pub(super) fn seal(&self, nonce: &[u8], aad: &[u8], data: InOut<'_>, tag: &mut Tag) -> Outcome {
        let (nonce, to) = (checked(nonce)?, data.copied()?);
        let sealed = self.with(|key| key.seal_in_place_separate_tag(nonce, Aad::from(aad), to));
        *tag = sealed.map_err(|_| AeadFailure)?.as_ref().try_into().map_err(|_| AeadFailure)?;
        Ok(())
    }

    pub(super) fn open(&self, nonce: &[u8], aad: &[u8], data: InOut<'_>, tag: &Tag) -> Outcome {
        let (nonce, to) = (checked(nonce)?, data.copied()?);
        let (aad, tag) = (Aad::from(aad), (*tag).into());
        let opened = self.with(|key| key.open_in_place_separate_tag(nonce, aad, tag, to, 0..));
        opened.map(|_| ()).map_err(|_| AeadFailure)
    }

    #[inline(always)]
    fn with<R>(&self, work: impl FnOnce(&LessSafeKey) -> R) -> R {
        match self.suite() {
            Suite::Aes256Gcm => work(&self.0),
            _ => overwriting_the_stack_after::<STACK, _>(|| work(&self.0)),
        }
    }

    fn suite(&self) -> Suite {
        let is_aes = self.0.algorithm() == &AES_256_GCM;
        if is_aes { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 }
    }
}

/// ring does not wipe its keys. They are plain values without indirection, so the schedule of a key
/// that is not secret overwrites this one's.
impl Drop for Key {
    fn drop(&mut self) {
        if let Ok(other) = expand(self.suite(), &[0; 32]) {
            self.0 = other;
        }
        optimization_barrier(self);
    }
}
