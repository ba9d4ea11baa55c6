//! Calls with a cached DEK, which never wait, for callers that have just read the clock.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::opening::Opened;
use super::{Aad, Envelope, Plaintext, Sealed, opening, request, sealing};
use crate::clock::Moment;
use crate::context::EncryptionContext;
use crate::dek::{ReadingDek, ReadingRequest};
use crate::error::Error;
use crate::format::Form;

impl Envelope {
    /// Encrypts if the DEK is cached and need not be renewed. The caller is not behind the policy.
    #[inline]
    pub(super) fn encrypt_cached(
        &self,
        now: Moment,
        context: &EncryptionContext,
        aad: Aad<'_>,
        plaintext: &[u8],
    ) -> Result<Option<Vec<u8>>, Error> {
        self.source.with_writing_cached(now, context, plaintext.len(), |dek| {
            sealing::seal(dek, Form::Embedded, aad, plaintext)
        })
    }

    /// Decrypts in place if the DEK is cached, and returns where the plaintext is.
    #[inline(always)]
    pub(super) fn open_cached(
        &self,
        now: Moment,
        context: &EncryptionContext,
        aad: Aad<'_>,
        buffer: &mut [u8],
    ) -> Result<Option<Range<usize>>, Error> {
        let message = self.parse(Sealed::from(&*buffer))?;
        let opened = Opened::of(&message);
        let (id, suite) = (message.header.dek_id, message.header.suite);
        let is_stored = message.wrapped_keys.is_empty();
        // The wrapped keys are in the buffer, so they are copied if the key service has to be
        // asked.
        let request = ReadingRequest { context, id: &id, suite, wrapped_keys: None, is_stored };
        let work = |dek: &ReadingDek| opened.decrypt_with(dek, aad, buffer);
        Ok(self.source.with_cached_at(now, request, work)?.map(|()| opened.payload()))
    }

    /// Does the same as [`decrypt_cached`](Self::decrypt_cached), for a caller that has just read
    /// the clock and is not behind the policy.
    #[inline(always)]
    pub(super) fn decrypt_cached_at(
        &self,
        now: Moment,
        context: &EncryptionContext,
        aad: Aad<'_>,
        sealed: Sealed<'_>,
    ) -> Result<Option<Plaintext>, Error> {
        let message = self.parse(sealed)?;
        self.source.with_cached_at(now, request(context, &message), |dek| {
            opening::open(dek, aad, sealed.as_bytes(), &message)
        })
    }
}
