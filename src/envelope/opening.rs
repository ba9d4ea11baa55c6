//! Decryption: the handle, and how plaintext is read from a message.
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::handle::HandleTerms;
use super::{Aad, Plaintext, Sealed};
use crate::caller::Caller;
use crate::context::EncryptionContext;
use crate::dek::{OwnedSource, ReadingDek};
use crate::error::{Error, ErrorKind};
use crate::format::Message;
use crate::memory::zeros;
use crate::observe::Access;
use crate::policy::Permission;
use crate::suite::{DekId, InOut, Suite, Tag};

/// A lease on the DEK of a message. It decrypts every message of that DEK, for loops and blocking
/// code.
///
/// It decrypts synchronously and makes no call. After `max_age`, and when the DEK is denied,
/// revoked or evicted, it returns [`ErrorKind::Expired`]. Under a
/// [policy](crate::EnvelopeBuilder::policy) it also does when the allowing decision ends, and when
/// the policy is reloaded. Get another with [`Envelope::decryptor`](crate::Envelope::decryptor).
#[derive(Clone)]
pub struct Decryptor {
    dek: Arc<ReadingDek>,
    /// Keeps the source alive: the DEKs end with the last envelope or handle.
    source: Arc<OwnedSource>,
    terms: HandleTerms,
}

impl Decryptor {
    #[inline]
    pub(super) fn new(dek: Arc<ReadingDek>, stale: bool, source: Arc<OwnedSource>) -> Self {
        Self { dek, source, terms: HandleTerms::new(stale) }
    }

    /// Returns the same handle for a caller, based on a decision of the policy.
    pub(super) fn resting_on(
        mut self,
        permission: Option<Permission>,
        caller: Option<&Caller>,
    ) -> Self {
        let caller = caller.filter(|_| self.source.counts_callers());
        self.terms = self.terms.resting_on(permission, caller);
        self
    }

    /// Counts messages that were decrypted.
    #[inline]
    pub(super) fn count(&self, messages: u64) {
        if let Some(caller) = self.terms.caller() {
            let lease = &self.dek.lease;
            self.source.count(caller, &lease.id, &lease.context, Access::Decrypt, messages);
        }
    }

    /// Returns the DEK's id.
    #[must_use]
    pub fn dek_id(&self) -> DekId {
        self.dek.lease.id
    }

    /// Returns the suite of the messages that it decrypts.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.dek.lease.suite
    }

    /// Returns the context that the DEK is bound to.
    #[must_use]
    pub fn context(&self) -> &EncryptionContext {
        &self.dek.lease.context
    }

    /// Decrypts one message.
    ///
    /// # Errors
    /// [`ErrorKind::OtherDek`] for a message of another DEK or suite, [`ErrorKind::Expired`] as
    /// above, [`ErrorKind::Invalid`] if the message or its AAD is wrong, and the kinds for bytes
    /// that are not a message.
    pub fn decrypt<'s>(
        &self,
        aad: Aad<'_>,
        sealed: impl Into<Sealed<'s>>,
    ) -> Result<Plaintext, Error> {
        let sealed = sealed.into().as_bytes();
        let message = Message::parse(sealed)?;
        self.check(&message)?;
        let opened = open(&self.dek, aad, sealed, &message)?;
        self.count(1);
        Ok(opened)
    }

    /// Decrypts one message in the caller's buffer, without allocating, and returns the part that
    /// is now plaintext.
    ///
    /// If authentication fails, that part of the buffer is wiped. After any other error the buffer
    /// is unchanged.
    ///
    /// # Errors
    /// Those of [`decrypt`](Self::decrypt).
    pub fn decrypt_in_place<'b>(
        &self,
        aad: Aad<'_>,
        buffer: &'b mut [u8],
    ) -> Result<&'b mut [u8], Error> {
        let message = Message::parse(buffer)?;
        self.check(&message)?;
        let opened = Opened::of(&message);
        opened.in_place(buffer, |nonce, payload, tag| {
            self.dek.open_now(nonce, aad.as_bytes(), InOut::in_place(payload), tag)
        })?;
        self.count(1);
        Ok(opened.payload_of(buffer))
    }

    /// Checks that it can decrypt this message now.
    fn check(&self, message: &Message<'_>) -> Result<(), Error> {
        self.check_is_of_dek(message)?;
        self.check_time()
    }

    /// Checks that it may be used now.
    pub(super) fn check_time(&self) -> Result<(), Error> {
        self.dek.check_handle(self.terms.is_stale()?)
    }

    pub(super) fn dek(&self) -> &ReadingDek {
        &self.dek
    }

    /// Checks that this message belongs to its DEK.
    pub(super) fn check_is_of_dek(&self, message: &Message<'_>) -> Result<(), Error> {
        if (message.header.dek_id, message.header.suite)
            != (self.dek.lease.id, self.dek.lease.suite)
        {
            return Err(Error::new(ErrorKind::OtherDek, message.header.dek_id.to_string()));
        }
        Ok(())
    }
}

impl fmt::Debug for Decryptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decryptor")
            .field("dek_id", &self.dek.lease.id)
            .field("suite", &self.dek.lease.suite)
            .finish_non_exhaustive()
    }
}

/// Decrypts a message to a new buffer, in one pass if the backend can.
pub(super) fn open(
    dek: &ReadingDek,
    aad: Aad<'_>,
    sealed: &[u8],
    message: &Message<'_>,
) -> Result<Plaintext, Error> {
    let ciphertext = sealed.get(message.payload.clone()).unwrap_or_default();
    let mut to = zeros(ciphertext.len());
    let data = InOut { from: Some(ciphertext), to: &mut to };
    // Unauthentic output is wiped.
    dek.open_now(message.nonce, aad.as_bytes(), data, message.tag)?;
    Ok(Plaintext::new(to))
}

/// The parts of a message that are kept while its buffer is mutably borrowed.
pub(super) struct Opened {
    nonce: [u8; 24],
    nonce_len: usize,
    payload: Range<usize>,
    tag: Tag,
}

impl Opened {
    pub(super) fn of(message: &Message<'_>) -> Self {
        let mut nonce = [0; 24];
        for (to, from) in nonce.iter_mut().zip(message.nonce) {
            *to = *from;
        }
        Self {
            nonce,
            nonce_len: message.nonce.len(),
            payload: message.payload.clone(),
            tag: *message.tag,
        }
    }

    pub(super) fn in_place(
        &self,
        buffer: &mut [u8],
        decrypt: impl FnOnce(&[u8], &mut [u8], &Tag) -> Result<(), Error>,
    ) -> Result<(), Error> {
        decrypt(
            self.nonce.get(..self.nonce_len).unwrap_or_default(),
            self.payload_of(buffer),
            &self.tag,
        )
    }

    /// Decrypts the message in `buffer` with a DEK that was just obtained.
    #[inline(always)]
    pub(super) fn decrypt_with(
        &self,
        dek: &ReadingDek,
        aad: Aad<'_>,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        self.in_place(buffer, |nonce, payload, tag| {
            dek.open_now(nonce, aad.as_bytes(), InOut::in_place(payload), tag)
        })
    }

    pub(super) fn payload(&self) -> Range<usize> {
        self.payload.clone()
    }

    pub(super) fn payload_of<'b>(&self, buffer: &'b mut [u8]) -> &'b mut [u8] {
        buffer.get_mut(self.payload.clone()).unwrap_or_default()
    }
}
