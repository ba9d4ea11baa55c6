//! A DEK that this process made, and how much it may still encrypt.
#![forbid(unsafe_code)]

use std::ops::Deref;

use super::LimitsInForce;
use super::budget::Budget;
use super::lease::{Lease, expired};
use super::registry::{Leased, announce_later};
use crate::error::{Error, ErrorKind};
use crate::format::limits::MAX_PLAINTEXT;
use crate::format::{Form, Prefix, WrappedKeys};
use crate::memory::fork;
use crate::suite::{Nonce, Nonces, TAG_LEN};

/// The keys of a DEK for writing, of one suite, within its limits.
pub(crate) struct WritingDek {
    pub(crate) lease: Lease,
    pub(crate) wrapped_keys: WrappedKeys,
    embedded: Prefix,
    compact: Prefix,
    nonces: Nonces,
    budget: Budget,
    max_len: u64,
    /// The process that made it. In a forked child it encrypts nothing.
    generation: u64,
}

impl Leased for WritingDek {
    fn lease(&self) -> &Lease {
        &self.lease
    }

    fn is_for_reading(&self) -> bool {
        false
    }
}

/// The last owner is gone: it was replaced, and its keys end with it.
impl Drop for WritingDek {
    fn drop(&mut self) {
        self.lease.end();
        announce_later(self);
    }
}

impl WritingDek {
    /// `generation` is taken before the DEK is drawn, so that a fork during the call to the key
    /// service is noticed.
    pub(super) fn new(
        lease: Lease,
        wrapped_keys: WrappedKeys,
        nonces: Nonces,
        limits: &LimitsInForce,
        generation: u64,
    ) -> Result<Self, Error> {
        Ok(Self {
            embedded: Prefix::new(lease.suite, lease.id, wrapped_keys.as_bytes())?,
            compact: Prefix::new(lease.suite, lease.id, &[])?,
            lease,
            wrapped_keys,
            nonces,
            budget: Budget::new(limits.max_messages, limits.max_bytes),
            max_len: max_len(limits),
            generation,
        })
    }

    pub(super) fn is_of_this_process(&self) -> bool {
        self.is_of(fork::generation())
    }

    pub(super) fn is_of(&self, generation: u64) -> bool {
        self.generation == generation
    }

    /// A message was refused because the budget was used up.
    pub(super) fn is_used_up(&self) -> bool {
        self.budget.is_used_up()
    }

    pub(super) fn is_nearly_used_up(&self) -> bool {
        self.budget.is_low()
    }

    /// Returns what precedes the ciphertext of each of its messages.
    pub(crate) fn prefix(&self, form: Form) -> &Prefix {
        match form {
            Form::Embedded => &self.embedded,
            Form::Compact => &self.compact,
        }
    }
}

/// The right to encrypt one message, already counted.
pub(crate) struct Reservation<D>(D);

impl<D: Deref<Target = WritingDek>> Reservation<D> {
    /// Counts a message of `len` plaintext bytes for a handle, unless the DEK's time is over.
    #[inline]
    pub(crate) fn for_handle(dek: D, len: usize, given_stale: bool) -> Result<Self, Error> {
        dek.lease.check_handle(given_stale)?;
        Self::new(dek, len)
    }

    /// Counts a message for a call that has just obtained the DEK.
    pub(super) fn new(dek: D, len: usize) -> Result<Self, Error> {
        if !dek.is_of_this_process() {
            return Err(expired());
        }
        let len = check_len(len, dek.max_len)?;
        dek.budget.reserve(len)?;
        Ok(Self(dek))
    }

    pub(crate) fn dek(&self) -> &WritingDek {
        &self.0
    }

    /// Encrypts `payload` in place under a new nonce, and fills `prefix` and `tag` around it.
    /// Returns *expired*, with everything untouched, if the DEK was taken away since.
    pub(crate) fn seal(
        &self,
        form: Form,
        aad: &[u8],
        prefix: &mut [u8],
        payload: &mut [u8],
        tag: &mut [u8; TAG_LEN],
    ) -> Result<(), Error> {
        let dek = &*self.0;
        dek.lease.with_key(|key| {
            let nonce = Nonce::random(dek.nonces, dek.lease.suite)?;
            dek.prefix(form).write(nonce.as_bytes(), prefix)?;
            *tag = key.seal(nonce.as_bytes(), aad, payload)?;
            Ok(())
        })?
    }
}

/// The longest message that an unused DEK may encrypt.
pub(super) fn max_len(limits: &LimitsInForce) -> u64 {
    limits.max_bytes.min(MAX_PLAINTEXT)
}

#[inline]
pub(super) fn check_len(len: usize, max: u64) -> Result<u64, Error> {
    u64::try_from(len).ok().filter(|len| *len <= max).ok_or_else(|| too_large(len, max))
}

#[cold]
fn too_large(len: usize, max: u64) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!("{len} bytes of plaintext; max_bytes and the format allow {max}"),
    )
}
