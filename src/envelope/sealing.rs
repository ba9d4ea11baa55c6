//! Encryption: the handle, and how the bytes of a message are assembled.
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::handle::HandleTerms;
use super::{Aad, Compact};
use crate::caller::Caller;
use crate::context::EncryptionContext;
use crate::dek::{Many, OwnedSource, Reservation, WritingDek};
use crate::error::{Error, ErrorKind};
use crate::format::{Form, WrappedKeys};
use crate::observe::Access;
use crate::policy::Permission;
use crate::suite::{DekId, InOut, Suite, TAG_LEN};

/// A lease on the DEK that encrypts for one encryption context, for loops, streams of records and
/// blocking code.
///
/// It encrypts synchronously and makes no call. It ends with its DEK. After `max_age`, when the DEK
/// is denied, revoked or evicted, and in the child of a fork it returns [`ErrorKind::Expired`].
/// Under a [policy](crate::EnvelopeBuilder::policy) it also does when the allowing decision ends,
/// and when the policy is reloaded. At a cap on messages or bytes it returns
/// [`ErrorKind::Exhausted`]. Then get another with
/// [`Envelope::encryptor`](crate::Envelope::encryptor).
///
/// Clones share the caps.
#[derive(Clone)]
pub struct Encryptor {
    dek: Arc<WritingDek>,
    /// Keeps the source alive: the DEKs end with the last envelope or handle.
    source: Arc<OwnedSource>,
    terms: HandleTerms,
}

impl Encryptor {
    #[inline]
    pub(super) fn new(dek: Arc<WritingDek>, stale: bool, source: Arc<OwnedSource>) -> Self {
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

    /// Counts messages that were encrypted.
    #[inline]
    pub(super) fn count(&self, messages: u64) {
        if let Some(caller) = self.terms.caller() {
            let lease = &self.dek.lease;
            self.source.count(caller, &lease.id, &lease.context, Access::Encrypt, messages);
        }
    }

    /// Returns the same lease for messages in compact form. They do not carry their wrapped keys,
    /// which [`wrapped_keys`](CompactEncryptor::wrapped_keys) returns once for all of them.
    #[must_use]
    pub fn compact(self) -> CompactEncryptor {
        CompactEncryptor(self)
    }

    /// Returns the DEK's id, which each message carries.
    #[must_use]
    pub fn dek_id(&self) -> DekId {
        self.dek.lease.id
    }

    /// Returns the suite of each message.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.dek.lease.suite
    }

    /// Returns the context that the DEK is bound to.
    #[must_use]
    pub fn context(&self) -> &EncryptionContext {
        &self.dek.lease.context
    }

    /// Returns the wrapped forms of the DEK.
    #[must_use]
    pub fn wrapped_keys(&self) -> &WrappedKeys {
        &self.dek.wrapped_keys
    }

    /// Returns the length of the part of a message before the ciphertext: header, nonce, wrapped
    /// keys.
    #[must_use]
    pub fn prefix_len(&self) -> usize {
        self.dek.prefix(Form::Embedded).len()
    }

    /// Returns the length of the part of a message after the ciphertext.
    #[must_use]
    pub fn tag_len(&self) -> usize {
        TAG_LEN
    }

    /// Encrypts one message.
    ///
    /// # Errors
    /// [`ErrorKind::Expired`] and [`ErrorKind::Exhausted`] as above, [`ErrorKind::TooLarge`],
    /// [`ErrorKind::Randomness`].
    pub fn encrypt(&self, aad: Aad<'_>, plaintext: &[u8]) -> Result<Vec<u8>, Error> {
        let sealed = seal(&self.reserve(plaintext.len())?, Form::Embedded, aad, plaintext)?;
        self.count(1);
        Ok(sealed)
    }

    /// Counts a message, if the handle may still be used.
    #[inline]
    fn reserve(&self, len: usize) -> Result<Reservation<&WritingDek>, Error> {
        Reservation::for_handle(&*self.dek, len, self.terms.is_stale()?)
    }

    /// Counts many messages, all or none, if the handle may still be used and `room` can be made.
    pub(super) fn reserve_many<R>(
        &self,
        many: Many,
        room: impl FnOnce(&WritingDek) -> Result<R, Error>,
    ) -> Result<(Reservation<&WritingDek>, R), Error> {
        Reservation::of_many_for_handle(&*self.dek, many, self.terms.is_stale()?, room)
    }

    pub(super) fn max_len(&self) -> u64 {
        self.dek.max_len()
    }

    /// Checks that it may be used now.
    pub(super) fn check_time(&self) -> Result<(), Error> {
        self.dek.lease.check_in_use()?;
        self.terms.is_stale().map(|_| ())
    }

    /// Encrypts one message in the caller's buffer, without allocating. The buffer consists of
    /// [`prefix_len`](Self::prefix_len) bytes of room, the plaintext, and
    /// [`tag_len`](Self::tag_len) bytes of room. Afterwards the buffer is the message.
    ///
    /// ```
    /// # use waxseal::{Aad, EncryptionContext, Envelope, kek::local::LocalKek};
    /// # let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("test")?).build()?;
    /// # let context = EncryptionContext::empty();
    /// # pollster::block_on(async {
    /// let encryptor = envelope.encryptor(&context).await?;
    /// let mut buffer = vec![0; encryptor.prefix_len() + 5 + encryptor.tag_len()];
    /// buffer[encryptor.prefix_len()..][..5].copy_from_slice(b"hello");
    /// encryptor.encrypt_in_place(Aad::from(b"row 1"), &mut buffer)?;
    /// assert_eq!(&*envelope.decrypt(&context, Aad::from(b"row 1"), &buffer).await?, b"hello");
    /// # Ok::<(), waxseal::Error>(()) })?;
    /// # Ok::<(), waxseal::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt), and [`ErrorKind::BufferSize`] for a buffer without that
    /// room. The plaintext is then still there.
    pub fn encrypt_in_place(&self, aad: Aad<'_>, buffer: &mut [u8]) -> Result<(), Error> {
        self.encrypt_form_in_place(Form::Embedded, aad, buffer)
    }

    fn encrypt_form_in_place(
        &self,
        form: Form,
        aad: Aad<'_>,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        let len =
            buffer.len().checked_sub(self.dek.prefix(form).len() + TAG_LEN).ok_or_else(no_room)?;
        seal_in_place(&self.reserve(len)?, form, aad, buffer)?;
        self.count(1);
        Ok(())
    }
}

/// An [`Encryptor`] for messages in compact form.
///
/// Store its [wrapped keys](Self::wrapped_keys), durably and under the [DEK id](Self::dek_id),
/// before the first message.
#[derive(Clone, Debug)]
pub struct CompactEncryptor(pub(super) Encryptor);

impl CompactEncryptor {
    /// Returns the DEK's id, which each message carries.
    #[must_use]
    pub fn dek_id(&self) -> DekId {
        self.0.dek_id()
    }

    /// Returns the wrapped keys of every message of this lease.
    #[must_use]
    pub fn wrapped_keys(&self) -> &WrappedKeys {
        self.0.wrapped_keys()
    }

    /// Returns the same length as [`Encryptor::prefix_len`].
    #[must_use]
    pub fn prefix_len(&self) -> usize {
        self.0.dek.prefix(Form::Compact).len()
    }

    /// Returns the same length as [`Encryptor::tag_len`].
    #[must_use]
    pub fn tag_len(&self) -> usize {
        self.0.tag_len()
    }

    /// Encrypts one message.
    ///
    /// # Errors
    /// Those of [`Encryptor::encrypt`].
    pub fn encrypt(&self, aad: Aad<'_>, plaintext: &[u8]) -> Result<Compact, Error> {
        let compact = seal_compact(&self.0.reserve(plaintext.len())?, aad, plaintext)?;
        self.0.count(1);
        Ok(compact)
    }

    /// Encrypts one message in the caller's buffer: see [`Encryptor::encrypt_in_place`]. To decrypt
    /// it, use [`Sealed::compact`](crate::Sealed::compact) with the
    /// [wrapped keys](Self::wrapped_keys).
    ///
    /// # Errors
    /// Those of [`Encryptor::encrypt_in_place`].
    pub fn encrypt_in_place(&self, aad: Aad<'_>, buffer: &mut [u8]) -> Result<(), Error> {
        self.0.encrypt_form_in_place(Form::Compact, aad, buffer)
    }
}

impl fmt::Debug for Encryptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encryptor")
            .field("dek_id", &self.dek.lease.id)
            .field("suite", &self.dek.lease.suite)
            .finish_non_exhaustive()
    }
}

#[cold]
fn no_room() -> Error {
    Error::new(ErrorKind::BufferSize, "the buffer has no room for prefix and tag")
}

/// Returns the length of a message, unless no buffer can hold it: on 32 bits a plaintext may fit in
/// memory and its message not.
#[inline]
pub(super) fn message_len(prefix: usize, plaintext: usize) -> Result<usize, Error> {
    let len = prefix.checked_add(plaintext).and_then(|len| len.checked_add(TAG_LEN));
    len.filter(|len| isize::try_from(*len).is_ok()).ok_or_else(no_buffer)
}

#[cold]
fn no_buffer() -> Error {
    let detail = "a message is in one buffer, which has at most half of the address space";
    Error::new(ErrorKind::TooLarge, detail)
}

/// Makes a message in a new buffer, with one allocation. If the backend can, the plaintext is
/// encrypted from where it is.
pub(super) fn seal<D: Deref<Target = WritingDek>>(
    reservation: &Reservation<D>,
    form: Form,
    aad: Aad<'_>,
    plaintext: &[u8],
) -> Result<Vec<u8>, Error> {
    let prefix_len = reservation.dek().prefix(form).len();
    let mut message = vec![0; message_len(prefix_len, plaintext.len())?];
    seal_between(reservation, form, aad, Some(plaintext), &mut message)?;
    Ok(message)
}

/// Makes a message in compact form, with its wrapped keys.
pub(super) fn seal_compact<D: Deref<Target = WritingDek>>(
    reservation: &Reservation<D>,
    aad: Aad<'_>,
    plaintext: &[u8],
) -> Result<Compact, Error> {
    let bytes = seal(reservation, Form::Compact, aad, plaintext)?;
    let dek = reservation.dek();
    Ok(Compact::new(bytes, dek.lease.id, dek.wrapped_keys.clone()))
}

/// `buffer` consists of room for the prefix, the plaintext, and room for the tag.
pub(super) fn seal_in_place<D: Deref<Target = WritingDek>>(
    reservation: &Reservation<D>,
    form: Form,
    aad: Aad<'_>,
    buffer: &mut [u8],
) -> Result<(), Error> {
    seal_between(reservation, form, aad, None, buffer)
}

/// Does the same as [`seal_in_place`], or encrypts a plaintext for which `buffer` has room. On an
/// error `buffer` holds no plaintext that was not there before.
#[inline]
fn seal_between<D: Deref<Target = WritingDek>>(
    reservation: &Reservation<D>,
    form: Form,
    aad: Aad<'_>,
    from: Option<&[u8]>,
    buffer: &mut [u8],
) -> Result<(), Error> {
    let prefix_len = reservation.dek().prefix(form).len();
    let (room, rest) = buffer.split_at_mut_checked(prefix_len).ok_or_else(no_room)?;
    let (to, tag_room) = rest.split_last_chunk_mut::<TAG_LEN>().ok_or_else(no_room)?;
    reservation.seal(form, aad.as_bytes(), room, InOut { from, to }, tag_room)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checked, since a length beyond every `Vec` would end the process.
    #[test]
    fn a_message_that_no_buffer_can_have_is_too_large() {
        let most = isize::MAX.unsigned_abs();
        assert_eq!(message_len(52, 0).unwrap(), 68);
        assert_eq!(message_len(52, most - 68).unwrap(), most);
        for (prefix, plaintext) in [(52, most - 67), (most, 0), (52, usize::MAX), (usize::MAX, 1)] {
            let error = message_len(prefix, plaintext).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TooLarge, "{prefix} and {plaintext}");
        }
    }
}
