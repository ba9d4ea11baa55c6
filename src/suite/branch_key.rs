//! What a branch key does: it derives DEKs, and wraps them (docs/format.md, "Branch keys").
#![forbid(unsafe_code)]

use super::derive::{BRANCH_SALT_LEN, derive_branch_dek, derive_branch_wrap_key, derive_dek_id};
use super::nonce::{Nonce, Nonces};
use super::{AeadKey, Backend, Dek, DekId, Suite, TAG_LEN};
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::memory::Secret32;

/// The salt of a derived DEK.
pub(crate) type BranchSalt = [u8; BRANCH_SALT_LEN];

/// A DEK that a branch key wrapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BranchWrapped {
    pub(crate) nonce: [u8; 24],
    pub(crate) dek: [u8; 32],
    pub(crate) tag: [u8; TAG_LEN],
}

/// A branch key, with the context that its id commits to. It never encrypts a message.
pub(crate) struct BranchKey {
    key: Dek,
    id: DekId,
    context: EncryptionContext,
}

impl BranchKey {
    pub(crate) fn new(key: Dek, context: EncryptionContext) -> Result<Self, Error> {
        let id = derive_dek_id(&key, &context)?;
        Ok(Self { key, id, context })
    }

    pub(crate) fn id(&self) -> &DekId {
        &self.id
    }

    pub(crate) fn context(&self) -> &EncryptionContext {
        &self.context
    }

    /// Returns a fresh salt. It is drawn from the operating system: two processes, or two snapshots
    /// of one machine, must not derive one DEK for writing.
    pub(crate) fn random_salt() -> Result<BranchSalt, Error> {
        let mut salt = [0; BRANCH_SALT_LEN];
        getrandom::fill(&mut salt).map_err(Error::randomness)?;
        Ok(salt)
    }

    /// Derives the DEK of `context` and `salt`.
    pub(crate) fn derive(
        &self,
        context: &EncryptionContext,
        salt: &BranchSalt,
    ) -> Result<Dek, Error> {
        derive_branch_dek(&self.key, context, salt)
    }

    /// Wraps a DEK of `context`.
    pub(crate) fn wrap(
        &self,
        backend: Backend,
        context: &EncryptionContext,
        dek: &Dek,
    ) -> Result<BranchWrapped, Error> {
        let nonce = Nonce::random(Nonces::System, Suite::Xaes256Gcm)?;
        let mut wrapped = *dek.expose();
        let tag =
            self.wrap_key(backend)?.seal(nonce.as_bytes(), context.as_bytes(), &mut wrapped)?;
        let mut bytes = [0; 24];
        bytes.iter_mut().zip(nonce.as_bytes()).for_each(|(byte, of_nonce)| *byte = *of_nonce);
        Ok(BranchWrapped { nonce: bytes, dek: wrapped, tag })
    }

    /// Unwraps a DEK of `context`.
    pub(crate) fn unwrap(
        &self,
        backend: Backend,
        context: &EncryptionContext,
        wrapped: &BranchWrapped,
    ) -> Result<Dek, Error> {
        let mut dek = Secret32::zeroed();
        *dek.expose_mut() = wrapped.dek;
        self.wrap_key(backend)?.open(
            &wrapped.nonce,
            context.as_bytes(),
            dek.expose_mut(),
            &wrapped.tag,
        )?;
        Ok(Dek::from_secret(dek))
    }

    fn wrap_key(&self, backend: Backend) -> Result<std::sync::Arc<AeadKey>, Error> {
        let key = derive_branch_wrap_key(&self.key, &self.context)?;
        AeadKey::expand(backend, Suite::Xaes256Gcm, &key)
    }
}

impl std::fmt::Debug for BranchKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BranchKey([redacted])")
    }
}
