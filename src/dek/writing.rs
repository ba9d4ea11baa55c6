//! A DEK that this process made, and what it may still seal.
#![forbid(unsafe_code)]

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::LimitsInForce;
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::limits::MAX_PLAINTEXT;
use crate::format::{Form, Prefix, WrappedKeys};
use crate::memory::fork;
use crate::suite::{AeadKey, DekId, Nonce, Nonces, Suite, TAG_LEN};

/// The keys of a DEK for writing, of one suite, within its limits.
pub(crate) struct WritingDek {
    pub(crate) context: EncryptionContext,
    pub(crate) id: DekId,
    pub(crate) suite: Suite,
    pub(crate) wrapped_keys: WrappedKeys,
    embedded: Prefix,
    compact: Prefix,
    key: Arc<AeadKey>,
    nonces: Nonces,
    limits: LimitsInForce,
    expires: Instant,
    /// The process that made it: in a forked child it seals nothing.
    generation: u64,
    messages: AtomicU64,
    bytes: AtomicU64,
}

/// What [`WritingDek::new`] takes over.
pub(super) struct NewDek {
    pub(super) context: EncryptionContext,
    pub(super) id: DekId,
    pub(super) suite: Suite,
    pub(super) key: Arc<AeadKey>,
    pub(super) wrapped_keys: WrappedKeys,
    /// Taken before the DEK was drawn, so that a fork while the key service is asked is noticed.
    pub(super) generation: u64,
}

impl WritingDek {
    pub(super) fn new(new: NewDek, nonces: Nonces, limits: LimitsInForce) -> Result<Self, Error> {
        let NewDek { context, id, suite, key, wrapped_keys, generation } = new;
        Ok(Self {
            embedded: Prefix::new(suite, id, wrapped_keys.as_bytes())?,
            compact: Prefix::new(suite, id, &[])?,
            context,
            id,
            suite,
            wrapped_keys,
            key,
            nonces,
            limits,
            expires: Instant::now() + limits.max_age,
            generation,
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        })
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.generation == fork::generation() && Instant::now() < self.expires
    }

    pub(super) fn has_room(&self) -> bool {
        self.messages.load(Ordering::Relaxed) < self.limits.max_messages
            && self.bytes.load(Ordering::Relaxed) < self.limits.max_bytes
    }

    /// What stands in front of the ciphertext of each of its messages.
    pub(crate) fn prefix(&self, form: Form) -> &Prefix {
        match form {
            Form::Embedded => &self.embedded,
            Form::Compact => &self.compact,
        }
    }
}

/// The right to seal one message, already counted.
pub(crate) struct Reservation<D>(D);

impl<D: Deref<Target = WritingDek>> Reservation<D> {
    /// Counts a message of `len` plaintext bytes before it is sealed.
    pub(crate) fn new(dek: D, len: usize) -> Result<Self, Error> {
        if !dek.is_fresh() {
            return Err(Error::new(ErrorKind::Expired, ""));
        }
        let len = check_len(len, &dek.limits)?;
        reserve(&dek.messages, 1, dek.limits.max_messages, "max_messages")?;
        reserve(&dek.bytes, len, dek.limits.max_bytes, "max_bytes")?;
        Ok(Self(dek))
    }

    pub(crate) fn dek(&self) -> &WritingDek {
        &self.0
    }

    /// Encrypts `payload` in place under a nonce of its own, and fills `prefix` and `tag` around it.
    pub(crate) fn seal(
        self,
        form: Form,
        aad: &[u8],
        prefix: &mut [u8],
        payload: &mut [u8],
        tag: &mut [u8; TAG_LEN],
    ) -> Result<(), Error> {
        let nonce = Nonce::random(self.0.nonces, self.0.suite)?;
        self.0.prefix(form).write(nonce.as_bytes(), prefix)?;
        *tag = self.0.key.seal(nonce.as_bytes(), aad, payload)?;
        Ok(())
    }
}

/// Whether a message of this length could be sealed by a DEK that sealed nothing yet.
pub(super) fn check_len(len: usize, limits: &LimitsInForce) -> Result<u64, Error> {
    let max = limits.max_bytes.min(MAX_PLAINTEXT);
    u64::try_from(len).ok().filter(|len| *len <= max).ok_or_else(|| {
        Error::new(ErrorKind::TooLarge, format!("{len} bytes of plaintext; max_bytes and the format allow {max}"))
    })
}

fn reserve(count: &AtomicU64, more: u64, max: u64, field: &'static str) -> Result<(), Error> {
    // Never past the limit, whatever the number of threads, and so never around the end of the counter.
    let within = |used: u64| used.checked_add(more).filter(|sum| *sum <= max);
    match count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::new(ErrorKind::Exhausted, field)),
    }
}
