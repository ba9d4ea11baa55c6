//! What users touch: [`Envelope`], its handles, and what can be said of a sealed value without a key.
//!
//! It puts bytes (`format`) and keys (`dek`) together and knows neither an AEAD nor a key service by name.
#![forbid(unsafe_code)]

mod aad;
mod builder;
mod compact;
mod inspect;
mod opening;
mod plaintext;
mod rewrap;
mod sealing;

use std::fmt;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;

pub use aad::Aad;
pub use builder::{EnvelopeBuilder, StartOptions, StartUp};
pub use compact::{Compact, Sealed};
pub use inspect::{Inspection, KekEntry, inspect};
pub use opening::Decryptor;
pub use plaintext::Plaintext;
pub use sealing::{CompactEncryptor, Encryptor};

use crate::context::EncryptionContext;
use crate::dek::{
    DekSource, OwnedSource, ReadingDek, ReadingRequest, Reservation, Statistics, WritingDek, WritingRequest,
};
use crate::error::{Error, Shown};
use crate::format::{Form, Message};
use crate::kek::call::GuardedKek;
use crate::kek::{Health, KekId, named};
use crate::memory::wipe;
use crate::suite::TAG_LEN;
use opening::Opened;

/// Seals and opens messages under DEKs that its KEKs wrap.
///
/// Build one per set of KEKs and share it: a clone is a pointer, and all clones share the DEKs. `async` calls suspend only
/// where a key service has to be asked; while a DEK is at hand they complete at once.
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
pub struct Envelope(Arc<OwnedSource>);

impl Envelope {
    /// Starts the configuration of one.
    pub fn builder() -> EnvelopeBuilder {
        EnvelopeBuilder::default()
    }

    fn new(source: Arc<DekSource>) -> Self {
        Self(OwnedSource::new(source))
    }

    fn source(&self) -> &DekSource {
        &self.0
    }

    /// Seals `plaintext`.
    ///
    /// `context` says what the DEK is for and goes to the key service; `aad` belongs to this one message, is authenticated with it and
    /// goes nowhere. The same two are needed to open it. Many messages with one context and a different `aad` each share
    /// one DEK, and so one call to the key service.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge); those of the key service where a DEK has to be made: [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) and its siblings.
    pub async fn encrypt(&self, context: &EncryptionContext, aad: Aad<'_>, plaintext: &[u8]) -> Result<Vec<u8>, Error> {
        self.0.with_writing(context, plaintext.len(), |dek| sealing::seal(dek, Form::Embedded, aad, plaintext)).await
    }

    /// Seals what is in `buffer`, which is then the message. The plaintext moves up by the length of the prefix; to avoid even that,
    /// leave room for it and use [`Encryptor::encrypt_in_place`].
    ///
    /// # Errors
    /// As [`encrypt`](Self::encrypt); the plaintext is then still in the buffer, and nowhere in its
    /// spare capacity, unless the AEAD itself failed: then it is wiped.
    pub async fn encrypt_in_place(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let len = buffer.len();
        let seal = |dek: &Reservation<&WritingDek>| {
            let prefix_len = dek.dek().prefix(Form::Embedded).len();
            grow(buffer, prefix_len + len + TAG_LEN);
            buffer.copy_within(..len, prefix_len);
            let sealed = sealing::seal_in_place(dek, Form::Embedded, aad, buffer);
            if sealed.is_err() {
                // Back to where it was: the DEK was taken away in between, and the next one may
                // have a longer prefix. What is cut off would stay in the buffer's spare room,
                // where nobody looks for it.
                buffer.copy_within(prefix_len..prefix_len + len, 0);
                wipe(buffer.get_mut(len..).unwrap_or_default());
                buffer.truncate(len);
            }
            sealed
        };
        self.0.with_writing(context, len, seal).await
    }

    /// Seals `plaintext` in compact form: the wrapped keys are not in the message, which makes it a few hundred bytes shorter.
    ///
    /// # Errors
    /// As [`encrypt`](Self::encrypt).
    pub async fn encrypt_compact(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        plaintext: &[u8],
    ) -> Result<Compact, Error> {
        let seal = |dek: &Reservation<&WritingDek>| sealing::seal_compact(dek, aad, plaintext);
        self.0.with_writing(context, plaintext.len(), seal).await
    }

    /// Opens a message.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if message, context and AAD do not belong together; [`ErrorKind::NotSealed`](crate::ErrorKind::NotSealed),
    /// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed) and the `Unsupported` kinds for bytes that are no message of this format;
    /// [`ErrorKind::UnknownKek`](crate::ErrorKind::UnknownKek) if no provider holds a KEK of the message; [`ErrorKind::MissingWrappedKeys`](crate::ErrorKind::MissingWrappedKeys) for a compact message
    /// whose DEK is not at hand; those of the key service.
    pub async fn decrypt<'s>(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        sealed: impl Into<Sealed<'s>>,
    ) -> Result<Plaintext, Error> {
        let sealed = sealed.into();
        let message = sealed.parse()?;
        self.0.with(request(context, &message), |dek| open(dek, aad, sealed.as_bytes(), &message)).await
    }

    /// Decrypts a message in `buffer` and returns the part of it that is now plaintext. For a compact
    /// message, use [`Decryptor::decrypt_in_place`].
    ///
    /// # Errors
    /// As [`decrypt`](Self::decrypt). When authentication fails, that part of the buffer is wiped; after any other error, an
    /// unavailable key service among them, the buffer is as it was.
    pub async fn decrypt_in_place<'b>(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        buffer: &'b mut [u8],
    ) -> Result<&'b mut [u8], Error> {
        let message = Sealed::from(&*buffer).parse()?;
        let opened = Opened::of(&message);
        let (id, suite) = (message.header.dek_id, message.header.suite);
        let in_place = |buffer: &mut [u8], dek: &ReadingDek| {
            opened.in_place(buffer, |nonce, payload, tag| dek.open_now(nonce, aad.as_bytes(), payload, tag)).map(|_| ())
        };
        // The wrapped keys stand in the buffer, so they are copied if the key service has to be asked.
        let cached = ReadingRequest { context, id: &id, suite, wrapped_keys: None };
        if self.0.with_cached(cached, |dek| in_place(&mut *buffer, dek))?.is_none() {
            let wrapped_keys = Message::parse(buffer)?.wrapped_keys.to_vec();
            let request = ReadingRequest { wrapped_keys: Some(&wrapped_keys), ..cached };
            self.0.with(request, |dek| in_place(&mut *buffer, dek)).await?;
        }
        Ok(opened.payload_of(buffer))
    }

    /// Opens a message whose DEK is at hand, without suspending. `None`: a key service would have to be asked, so use
    /// [`decrypt`](Self::decrypt).
    ///
    /// # Errors
    /// As [`decrypt`](Self::decrypt), but none of the key service.
    pub fn decrypt_cached<'s>(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        sealed: impl Into<Sealed<'s>>,
    ) -> Result<Option<Plaintext>, Error> {
        let sealed = sealed.into();
        let message = sealed.parse()?;
        self.0.with_cached(request(context, &message), |dek| open(dek, aad, sealed.as_bytes(), &message))
    }

    /// A lease on the DEK that seals for `context`.
    ///
    /// # Errors
    /// Those of the key service, where a DEK has to be made.
    pub async fn encryptor(&self, context: &EncryptionContext) -> Result<Encryptor, Error> {
        let (dek, stale) = self.0.get(WritingRequest { context }).await?;
        Ok(Encryptor::new(dek.into_dek(), stale, self.0.clone()))
    }

    /// A lease on the DEK of `sealed`, for it and every other message of that DEK.
    ///
    /// # Errors
    /// As [`decrypt`](Self::decrypt), but the payload is not looked at.
    pub async fn decryptor<'s>(
        &self,
        context: &EncryptionContext,
        sealed: impl Into<Sealed<'s>>,
    ) -> Result<Decryptor, Error> {
        let sealed = sealed.into();
        let message = sealed.parse()?;
        let (dek, stale) = self.0.get(request(context, &message)).await?;
        Ok(Decryptor::new(dek.into_dek(), stale, self.0.clone()))
    }

    /// Takes a KEK out of use in this process, at once: every DEK that it vouches for is wiped, handles end, answers that
    /// are on their way do not count, and nothing is wrapped or unwrapped by it until [`reinstate_kek`](Self::reinstate_kek). A DEK that
    /// another KEK of the message unwraps goes on.
    pub fn revoke_kek(&self, kek_id: &KekId) {
        self.0.revoke_kek(kek_id);
    }

    /// Takes back a [`revoke_kek`](Self::revoke_kek).
    pub fn reinstate_kek(&self, kek_id: &KekId) {
        self.0.reinstate_kek(kek_id);
    }

    /// Wipes every DEK of a context, ends its handles, and lets no answer count that is on its way. The next call asks the key service.
    pub fn evict_context(&self, context: &EncryptionContext) {
        self.0.evict_context(context);
    }

    /// Wipes every DEK, ends every handle, and forgets what was denied.
    pub fn evict_all(&self) {
        self.0.evict_all();
    }

    /// Wipes every DEK, ends every handle and every call that is on its way, and refuses what comes after with
    /// [`ErrorKind::ShutDown`](crate::ErrorKind::ShutDown). All clones are shut down. Without it, the same is done when the last clone and the last handle
    /// are dropped, but for calls on their way, which end in their own time.
    pub fn shut_down(&self) {
        self.0.shut_down();
    }

    /// [`shut_down`](Self::shut_down), and waits while the providers give up what they hold at their key services, such as logins; each for
    /// the time of one try at most. `shut_down` leaves that to the background, and without a [`Runtime`](crate::Runtime) it is not done.
    pub async fn close(&self) {
        self.0.close().await;
    }

    /// Makes a DEK for writing for each of these contexts, unless it is cached: so that the first request does not wait for one.
    /// For reading, [`decryptor`](Self::decryptor) with any message of a DEK does the same.
    ///
    /// As many are made at the same time as the call budget has calls in flight, and each has the
    /// [`deadline`](crate::CallPolicy::deadline) for itself: the whole takes as long as it takes. It goes on past a failure.
    ///
    /// # Errors
    /// The failure of the first context that has one, after all were tried.
    pub async fn warm_up<'c>(&self, contexts: impl IntoIterator<Item = &'c EncryptionContext>) -> Result<(), Error> {
        let mut waiting = contexts.into_iter().collect::<Vec<_>>().into_iter().enumerate();
        let (mut asked, at_once) = (FuturesUnordered::new(), self.0.keks().at_once());
        let mut first_failure: Option<(usize, Error)> = None;
        loop {
            while asked.len() < at_once
                && let Some((n, context)) = waiting.next()
            {
                asked.push(async move { (n, self.0.get(WritingRequest { context }).await.err()) });
            }
            match asked.next().await {
                None => return first_failure.map_or(Ok(()), |(_, error)| Err(error)),
                Some((n, Some(error))) if first_failure.as_ref().is_none_or(|(first, _)| n < *first) => {
                    first_failure = Some((n, error));
                }
                Some(_) => {}
            }
        }
    }

    /// Asks every KEK whether it could be used now, in order of preference, also those whose circuit breaker is open.
    pub async fn health(&self) -> Vec<(KekId, Result<Health, Error>)> {
        let ask = async |kek: &Arc<GuardedKek>| {
            let health = match kek.health().await {
                Ok(Health::Degraded(why)) => Ok(Health::Degraded(Shown(&why).to_string())),
                health => health.map_err(|error| named(kek, error)),
            };
            (kek.id().clone(), health)
        };
        join_all(self.0.keks().reading.iter().map(ask)).await
    }

    /// How often DEKs were at hand, how many are, and what the calls to the KEKs came to.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.0.statistics()
    }
}

fn request<'q>(context: &'q EncryptionContext, message: &'q Message<'_>) -> ReadingRequest<'q> {
    let (id, suite) = (&message.header.dek_id, message.header.suite);
    ReadingRequest { context, id, suite, wrapped_keys: Some(message.wrapped_keys) }
}

fn open(dek: &ReadingDek, aad: Aad<'_>, sealed: &[u8], message: &Message<'_>) -> Result<Plaintext, Error> {
    opening::open(sealed, message, |payload| dek.open_now(message.nonce, aad.as_bytes(), payload, message.tag))
}

/// Lengthens `buffer` without leaving its plaintext behind in a block that it outgrew.
fn grow(buffer: &mut Vec<u8>, len: usize) {
    if buffer.capacity() < len {
        let mut larger = Vec::with_capacity(len);
        larger.extend_from_slice(buffer);
        wipe(buffer);
        *buffer = larger;
    }
    buffer.resize(len, 0);
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = |keks: &[Arc<GuardedKek>]| keks.iter().map(|kek| kek.id().clone()).collect::<Vec<_>>();
        let keks = self.0.keks();
        f.debug_struct("Envelope")
            .field("writes_to", &ids(&keks.writing))
            .field("reads_from", &ids(&keks.reading))
            .finish_non_exhaustive()
    }
}
