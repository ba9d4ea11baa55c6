//! The public interface: [`Envelope`], its handles, and the inspection of sealed values.
//!
//! It combines bytes (`format`) and keys (`dek`), behind a `policy` if one is set. It names no AEAD
//! and no key service.
#![forbid(unsafe_code)]

mod aad;
mod acting;
mod builder;
mod cached;
mod compact;
mod file;
mod handle;
mod inspect;
mod many;
mod opening;
mod plaintext;
mod rewrap;
mod sealing;
mod stream;
mod values;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;

pub use aad::Aad;
pub use acting::ActingFor;
use acting::Guarded;
pub use builder::{EnvelopeBuilder, StartOptions, StartUp};
pub use compact::{Compact, Sealed};
pub use file::FileOptions;
pub use inspect::{Inspection, KekEntry, StreamShape, inspect};
pub use opening::Decryptor;
pub use plaintext::Plaintext;
pub use sealing::{CompactEncryptor, Encryptor};
#[cfg(feature = "tokio")]
pub use stream::{AsyncStreamReader, AsyncStreamWriter};
pub use stream::{
    ReadAt, SeekableStream, StreamDecryptor, StreamEncryptor, StreamHead, StreamOptions,
    StreamReader, StreamWriter,
};
pub use values::{Plaintexts, Values};

use crate::caller::{Action, Caller};
use crate::context::EncryptionContext;
use crate::dek::{
    DekSource, OwnedSource, ReadingRequest, Reservation, Statistics, WritingDek, WritingRequest,
};
use crate::error::{Error, Shown};
use crate::format::{Form, Message};
use crate::kek::call::GuardedKek;
use crate::kek::{Health, KekId, named};
use crate::memory::wipe;
use opening::Opened;

/// Encrypts and decrypts messages under DEKs that its KEKs wrap.
///
/// Build one per set of KEKs and share it. A clone is a pointer, and all clones share the DEKs.
/// `async` calls suspend only to ask a key service. With a cached DEK they complete at once.
///
/// ```
/// use waxseal::{Aad, EncryptionContext, Envelope, kek::local::LocalKek};
///
/// # pollster::block_on(async {
/// let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("test")?).build()?;
/// let context = EncryptionContext::new([("tenant", "alice"), ("table", "cards")])?;
///
/// let sealed = envelope.encrypt(&context, Aad::from(b"row 17"), b"4111 1111 1111 1111").await?;
/// let card = envelope.decrypt(&context, Aad::from(b"row 17"), &sealed).await?;
/// assert_eq!(&*card, b"4111 1111 1111 1111");
///
/// // Another row, another tenant: refused.
/// assert!(envelope.decrypt(&context, Aad::from(b"row 18"), &sealed).await.is_err());
/// # Ok::<(), waxseal::Error>(()) })?;
/// # Ok::<(), waxseal::Error>(())
/// ```
#[derive(Clone)]
pub struct Envelope {
    source: Arc<OwnedSource>,
    /// Set if a policy stands in front of it.
    guarded: Option<Arc<Guarded>>,
}

impl Envelope {
    /// Returns a builder.
    pub fn builder() -> EnvelopeBuilder {
        EnvelopeBuilder::default()
    }

    fn new(source: Arc<DekSource>) -> Self {
        Self { source: OwnedSource::new(source), guarded: None }
    }

    fn source(&self) -> &DekSource {
        &self.source
    }

    /// Whether there is another clone or a handle.
    pub(crate) fn is_held(&self) -> bool {
        // A guard has its own envelope.
        let own = 1 + usize::from(self.guarded.is_some());
        Arc::strong_count(&self.source) > own
            || self.guarded.as_ref().is_some_and(|guarded| Arc::strong_count(guarded) > 1)
    }

    /// Reads a message. Without a store it must come with its wrapped keys.
    #[inline]
    fn parse<'s>(&self, sealed: Sealed<'s>) -> Result<Message<'s>, Error> {
        sealed.parse(|| self.source.has_store())
    }

    /// Asks the [policy](crate::EnvelopeBuilder::policy) whether an operation is allowed in a
    /// context, as every operation of an envelope does. Use it for related work in your own code,
    /// such as copying sealed bytes. Without a policy everything is allowed.
    ///
    /// # Errors
    /// [`ErrorKind::PolicyDenied`](crate::ErrorKind::PolicyDenied), including if the policy gives
    /// no answer.
    pub async fn check_policy(
        &self,
        operation: Action,
        context: &EncryptionContext,
    ) -> Result<(), Error> {
        self.permit(operation, context, None).await.map(drop)
    }

    /// Encrypts `plaintext`.
    ///
    /// `context` says what the DEK is for, and goes to the key service. `aad` belongs to this
    /// message, is authenticated with it and never leaves the process. Decryption needs both again.
    /// Messages with the same context share one DEK, and so one call to the key service, whatever
    /// their `aad`.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge), and those of the key service if a DEK
    /// has to be made: [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) and its siblings.
    pub async fn encrypt(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Error> {
        if self.guarded.is_some() {
            return self.for_nobody().encrypt_boxed(context, aad, plaintext).await;
        }
        self.source
            .with_writing(context, plaintext.len(), |dek| {
                sealing::seal(dek, Form::Embedded, aad, plaintext)
            })
            .await
    }

    /// Encrypts the content of `buffer`, which then holds the message. The plaintext moves up by
    /// the length of the prefix. To avoid that, leave room for it and use
    /// [`Encryptor::encrypt_in_place`].
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt). The plaintext is then still in the buffer and not in
    /// its spare capacity. If the AEAD itself failed, the plaintext is wiped.
    pub async fn encrypt_in_place(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        if self.guarded.is_some() {
            return self.for_nobody().encrypt_in_place_boxed(context, aad, buffer).await;
        }
        let len = buffer.len();
        let seal = |dek: &Reservation<&WritingDek>| {
            let prefix_len = dek.dek().prefix(Form::Embedded).len();
            grow(buffer, sealing::message_len(prefix_len, len)?);
            buffer.copy_within(..len, prefix_len);
            let sealed = sealing::seal_in_place(dek, Form::Embedded, aad, buffer);
            if sealed.is_err() {
                // The DEK ended in between, and the next one may have a longer prefix, so the
                // plaintext moves back. The part that is cut off is wiped, or it would stay in the
                // spare capacity.
                buffer.copy_within(prefix_len..prefix_len + len, 0);
                wipe(buffer.get_mut(len..).unwrap_or_default());
                buffer.truncate(len);
            }
            sealed
        };
        self.source.with_writing(context, len, seal).await
    }

    /// Encrypts `plaintext` in compact form. Without the wrapped keys, the message is a few hundred
    /// bytes shorter.
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt).
    pub async fn encrypt_compact(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        plaintext: &[u8],
    ) -> Result<Compact, Error> {
        if self.guarded.is_some() {
            return self.for_nobody().encrypt_compact_boxed(context, aad, plaintext).await;
        }
        let seal = |dek: &Reservation<&WritingDek>| sealing::seal_compact(dek, aad, plaintext);
        self.source.with_writing(context, plaintext.len(), seal).await
    }

    /// Decrypts a message.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if message, context and AAD do not match.
    /// [`ErrorKind::NotSealed`](crate::ErrorKind::NotSealed),
    /// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed) and the `Unsupported` kinds for bytes
    /// that are not a message of this format.
    /// [`ErrorKind::UnknownKek`](crate::ErrorKind::UnknownKek) if no provider has a KEK of the
    /// message. [`ErrorKind::MissingWrappedKeys`](crate::ErrorKind::MissingWrappedKeys) for a
    /// compact message without its wrapped keys. Those of the key service.
    pub async fn decrypt<'s>(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        sealed: impl Into<Sealed<'s>>,
    ) -> Result<Plaintext, Error> {
        if self.guarded.is_some() {
            return self.for_nobody().decrypt_boxed(context, aad, sealed.into()).await;
        }
        let sealed = sealed.into();
        let message = self.parse(sealed)?;
        self.source
            .with(request(context, &message), |dek| {
                opening::open(dek, aad, sealed.as_bytes(), &message)
            })
            .await
    }

    /// Decrypts a message in `buffer` and returns the part of it that is now plaintext. For a
    /// compact message, use [`Decryptor::decrypt_in_place`].
    ///
    /// # Errors
    /// Those of [`decrypt`](Self::decrypt). If authentication fails, that part of the buffer is
    /// wiped. After any other error, such as an unavailable key service, the buffer is unchanged.
    pub async fn decrypt_in_place<'b>(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        buffer: &'b mut [u8],
    ) -> Result<&'b mut [u8], Error> {
        if self.guarded.is_none()
            && let Some(payload) = self.open_cached(self.source.now(), context, aad, buffer)?
        {
            return Ok(buffer.get_mut(payload).unwrap_or_default());
        }
        self.decrypt_in_place_uncached(context, aad, buffer).await
    }

    /// A separate function, so that the parsed message is not kept while it waits.
    async fn decrypt_in_place_uncached<'b>(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        buffer: &'b mut [u8],
    ) -> Result<&'b mut [u8], Error> {
        if self.guarded.is_some() {
            return self.for_nobody().decrypt_in_place_boxed(context, aad, buffer).await;
        }
        let message = self.parse(Sealed::from(&*buffer))?;
        let opened = Opened::of(&message);
        let (id, suite) = (message.header.dek_id, message.header.suite);
        let wrapped_keys = message.wrapped_keys.to_vec();
        let is_stored = wrapped_keys.is_empty();
        let wrapped_keys = Some(&*wrapped_keys);
        let request = ReadingRequest { context, id: &id, suite, wrapped_keys, is_stored };
        self.source.with(request, |dek| opened.decrypt_with(dek, aad, buffer)).await?;
        Ok(opened.payload_of(buffer))
    }

    /// Decrypts a message whose DEK is cached, without suspending. Returns `None` if a key service
    /// or the policy would have to be asked. Then use [`decrypt`](Self::decrypt).
    ///
    /// # Errors
    /// Those of [`decrypt`](Self::decrypt), but none of the key service.
    pub fn decrypt_cached<'s>(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        sealed: impl Into<Sealed<'s>>,
    ) -> Result<Option<Plaintext>, Error> {
        let sealed = sealed.into();
        if self.guarded.is_some() {
            return self.for_nobody().decrypt_cached_cold(context, aad, sealed);
        }
        // Separate from `decrypt_cached_at`, so that both are inlined.
        let message = self.parse(sealed)?;
        self.source.with_cached(request(context, &message), |dek| {
            opening::open(dek, aad, sealed.as_bytes(), &message)
        })
    }

    /// Returns a lease on the DEK that encrypts for `context`.
    ///
    /// # Errors
    /// Those of the key service if a DEK has to be made.
    pub async fn encryptor(&self, context: &EncryptionContext) -> Result<Encryptor, Error> {
        if self.guarded.is_none()
            && let Some((dek, stale)) = self.source.get_cached(WritingRequest { context })?
        {
            return Ok(Encryptor::new(dek, stale, self.source.clone()));
        }
        self.encryptor_looked_up(context).await
    }

    async fn encryptor_looked_up(&self, context: &EncryptionContext) -> Result<Encryptor, Error> {
        if self.guarded.is_some() {
            return self.for_nobody().encryptor_boxed(context).await;
        }
        let (dek, stale) = self.source.look_up(WritingRequest { context }).await?;
        Ok(Encryptor::new(dek, stale, self.source.clone()))
    }

    /// Returns a lease on the DEK of `sealed`, for it and every other message of that DEK.
    ///
    /// # Errors
    /// Those of [`decrypt`](Self::decrypt), but the payload is not checked.
    pub async fn decryptor<'s>(
        &self,
        context: &EncryptionContext,
        sealed: impl Into<Sealed<'s>>,
    ) -> Result<Decryptor, Error> {
        let sealed = sealed.into();
        if self.guarded.is_none()
            && let message = self.parse(sealed)?
            && let Some((dek, stale)) = self.source.get_cached(request(context, &message))?
        {
            return Ok(Decryptor::new(dek, stale, self.source.clone()));
        }
        self.decryptor_looked_up(context, sealed).await
    }

    /// A separate function, so that the parsed message is not kept while it waits.
    async fn decryptor_looked_up(
        &self,
        context: &EncryptionContext,
        sealed: Sealed<'_>,
    ) -> Result<Decryptor, Error> {
        if self.guarded.is_some() {
            return self.for_nobody().decryptor_boxed(context, sealed).await;
        }
        let message = self.parse(sealed)?;
        let (dek, stale) = self.source.look_up(request(context, &message)).await?;
        Ok(Decryptor::new(dek, stale, self.source.clone()))
    }

    /// Stops using a KEK in this process, at once. Wipes every DEK obtained through it, ends their
    /// handles, and discards responses still in flight. It wraps and unwraps nothing until
    /// [`reinstate_kek`](Self::reinstate_kek). A DEK that another KEK of the message unwraps can
    /// still be used.
    pub fn revoke_kek(&self, kek_id: &KekId) {
        self.source.revoke_kek(kek_id);
    }

    /// Reverts a [`revoke_kek`](Self::revoke_kek).
    pub fn reinstate_kek(&self, kek_id: &KekId) {
        self.source.reinstate_kek(kek_id);
    }

    /// Wipes every DEK of a context, ends its handles, and discards responses still in flight. The
    /// next call asks the key service.
    pub fn evict_context(&self, context: &EncryptionContext) {
        self.source.evict_context(context);
    }

    /// Wipes every DEK, ends every handle, and forgets denials and the policy's decisions.
    pub fn evict_all(&self) {
        if let Some(guarded) = &self.guarded {
            guarded.forget();
        }
        self.source.evict_all();
    }

    /// Wipes every DEK, ends every handle and every call in flight, and refuses later calls with
    /// [`ErrorKind::ShutDown`](crate::ErrorKind::ShutDown). All clones are shut down. Without this
    /// call the same happens when the last clone and the last handle are dropped, except that calls
    /// in flight end in their own time.
    pub fn shut_down(&self) {
        self.source.shut_down();
    }

    /// Wipes every DEK and refuses later calls. A later shut-down notifies observers.
    pub(crate) fn stop(&self) {
        self.source.stop();
    }

    /// Does the same as [`shut_down`](Self::shut_down), without waiting for observers.
    pub(crate) fn shut_down_later(&self) {
        self.source.shut_down_later();
    }

    /// Shuts down like [`shut_down`](Self::shut_down), and waits until the providers have released
    /// what they hold at their key services, such as logins. Each has the time of one try.
    /// `shut_down` does that in the background, and without a [`Runtime`](crate::Runtime) not at
    /// all.
    pub async fn close(&self) {
        self.source.close().await;
    }

    /// Makes a DEK for writing for each of these contexts, unless one is cached, so that the first
    /// request does not wait. The policy is not asked, since nothing is encrypted yet. For reading,
    /// [`decryptor`](Self::decryptor) with any message of a DEK has the same effect.
    ///
    /// As many are made at the same time as the call budget allows in flight. Each has the full
    /// [`deadline`](crate::CallPolicy::deadline), and the whole has none. It continues after a
    /// failure.
    ///
    /// # Errors
    /// The failure of the first context that failed, after all were tried. A retryable failure is
    /// returned only if there is no other.
    pub async fn warm_up<'c>(
        &self,
        contexts: impl IntoIterator<Item = &'c EncryptionContext>,
    ) -> Result<(), Error> {
        let mut waiting = contexts.into_iter().collect::<Vec<_>>().into_iter().enumerate();
        let (mut asked, at_once) = (FuturesUnordered::new(), self.source.keks().at_once());
        // A permanent failure takes precedence over a retryable one.
        let rank = |n: usize, error: &Error| (error.is_retryable(), n);
        let mut first_failure: Option<(usize, Error)> = None;
        loop {
            while asked.len() < at_once
                && let Some((n, context)) = waiting.next()
            {
                asked.push(
                    async move { (n, self.source.get(WritingRequest { context }).await.err()) },
                );
            }
            match asked.next().await {
                None => return first_failure.map_or(Ok(()), |(_, error)| Err(error)),
                Some((n, Some(error)))
                    if first_failure
                        .as_ref()
                        .is_none_or(|(at, first)| rank(n, &error) < rank(*at, first)) =>
                {
                    first_failure = Some((n, error));
                }
                Some(_) => {}
            }
        }
    }

    /// Caches the DEKs of many messages, so that decrypting them asks no key service. Messages of
    /// one DEK count once. If a key service has batches (Vault Transit), one call returns many
    /// DEKs. Otherwise calls run in parallel within the [`CallBudget`](crate::CallBudget).
    ///
    /// Returns one result for each message, in order. A failed message does not affect the others.
    /// Prepare no more DEKs at a time than [`max_entries`](crate::Limits::max_entries): a full
    /// cache evicts.
    ///
    /// ```
    /// # use waxseal::{Aad, EncryptionContext, Envelope, kek::local::LocalKek};
    /// # pollster::block_on(async {
    /// # let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("test")?).build()?;
    /// # let context = EncryptionContext::empty();
    /// # let page = vec![envelope.encrypt(&context, Aad::empty(), b"text").await?];
    /// for prepared in envelope.prepare(page.iter().map(|row| (&context, row))).await {
    ///     prepared?;
    /// }
    /// // Without a call, and without `await`:
    /// for row in &page {
    ///     assert!(envelope.decrypt_cached(&context, Aad::empty(), row)?.is_some());
    /// }
    /// # Ok::<(), waxseal::Error>(()) }).unwrap();
    /// ```
    pub async fn prepare<'m, S: Into<Sealed<'m>>>(
        &self,
        messages: impl IntoIterator<Item = (&'m EncryptionContext, S)>,
    ) -> Vec<Result<(), Error>> {
        self.prepare_for(None, messages).await
    }

    async fn prepare_for<'m, S: Into<Sealed<'m>>>(
        &self,
        caller: Option<&Caller>,
        messages: impl IntoIterator<Item = (&'m EncryptionContext, S)>,
    ) -> Vec<Result<(), Error>> {
        let messages: Vec<(_, Sealed<'m>)> =
            messages.into_iter().map(|(context, sealed)| (context, sealed.into())).collect();
        let contexts = messages.iter().map(|(context, _)| *context);
        // A caller that is denied learns nothing about the message.
        let denied = self.denied(Action::Decrypt, contexts, caller).await;
        let messages: Vec<_> = messages
            .into_iter()
            .map(|(context, sealed)| match denied.get(context) {
                Some(error) => Err(error.clone()),
                None => Ok((context, self.parse(sealed)?)),
            })
            .collect();
        let (mut requests, mut places) = (Vec::new(), HashMap::new());
        let place_of: Vec<_> = messages
            .iter()
            .map(|message| {
                let (context, message) = message.as_ref().map_err(Clone::clone)?;
                let request = request(context, message);
                let key = (*request.id, request.suite, *context.digest(), message.wrapped_keys);
                Ok::<_, Error>(*places.entry(key).or_insert_with(|| {
                    requests.push(request);
                    requests.len() - 1
                }))
            })
            .collect();
        let prepared = self.source.prepare(&requests, 0).await;
        let answer = |place: usize| match prepared.get(place) {
            Some(prepared) => prepared.as_ref().map(|_| ()).map_err(Clone::clone),
            None => Err(Error::invalid()),
        };
        place_of.into_iter().map(|place| answer(place?)).collect()
    }

    /// Checks whether every KEK can be used now, in order of preference, even if its circuit
    /// breaker is open.
    pub async fn health(&self) -> Vec<(KekId, Result<Health, Error>)> {
        let ask = async |kek: &Arc<GuardedKek>| {
            let health = match kek.health().await {
                Ok(Health::Degraded(why)) => Ok(Health::Degraded(Shown(&why).to_string())),
                health => health.map_err(|error| named(kek, error)),
            };
            (kek.id().clone(), health)
        };
        join_all(self.source.keks().reading.iter().map(ask)).await
    }

    /// Returns how often DEKs were cached, how many are cached now, and the number of calls to the
    /// KEKs.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.source.statistics()
    }
}

fn request<'q>(context: &'q EncryptionContext, message: &'q Message<'_>) -> ReadingRequest<'q> {
    let (id, suite) = (&message.header.dek_id, message.header.suite);
    let (wrapped_keys, is_stored) = (message.wrapped_keys, message.wrapped_keys.is_empty());
    ReadingRequest { context, id, suite, wrapped_keys: Some(wrapped_keys), is_stored }
}

/// Extends `buffer` without leaving its plaintext in the old allocation.
fn grow(buffer: &mut Vec<u8>, len: usize) {
    if buffer.capacity() < len {
        let mut larger = Vec::with_capacity(len);
        larger.extend_from_slice(buffer);
        wipe(buffer);
        *buffer = larger;
    }
    buffer.resize(len, 0);
}

impl ActingFor<'_> {
    /// Does the same as [`Envelope::check_policy`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::check_policy`].
    pub async fn check_policy(
        self,
        operation: Action,
        context: &EncryptionContext,
    ) -> Result<(), Error> {
        self.permit(operation, context).await.map(drop)
    }
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids =
            |keks: &[Arc<GuardedKek>]| keks.iter().map(|kek| kek.id().clone()).collect::<Vec<_>>();
        let keks = self.source.keks();
        f.debug_struct("Envelope")
            .field("writes_to", &ids(&keks.writing))
            .field("reads_from", &ids(&keks.reading))
            .finish_non_exhaustive()
    }
}
