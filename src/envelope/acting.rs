//! An envelope on behalf of a caller, and the policy in front of it.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::plaintext::Withheld;
use super::{Aad, Compact, Decryptor, Encryptor, Envelope, Plaintext, Sealed, StreamHead};
use crate::caller::{Action, Caller};
use crate::clock::Moment;
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::format::{Header, WrappedKeys};
use crate::kek::rewrap::Check;
use crate::observe::Access;
use crate::policy::{BoxFuture, Granted, Guard};
use crate::store::{RewrapOptions, RewrapProgress};
use crate::suite::DekId;

/// How many contexts of one call are checked with a policy at the same time.
const ASKED_AT_ONCE: usize = 16;
/// How often contexts are checked again because their decision ended before the last one was made.
const ROUNDS: usize = 3;

/// The decision that permitted an operation, if there is a policy.
pub(super) type Permitted = Option<Granted>;

/// What is known of an operation before the policy is asked.
#[derive(Clone, Copy, PartialEq)]
enum Known {
    /// It is allowed, and nothing else of the decision was looked up. There may be no policy.
    AtOnce,
    Granted(Granted),
    Unknown,
}

/// The policy in front of an envelope, and the same envelope without it.
pub(super) struct Guarded {
    guard: Arc<Guard>,
    plain: Envelope,
}

impl Deref for Guarded {
    type Target = Arc<Guard>;

    fn deref(&self) -> &Arc<Guard> {
        &self.guard
    }
}

impl Envelope {
    /// Returns a view of this envelope that acts on behalf of `caller`. The
    /// [policy](crate::EnvelopeBuilder::policy) and the observers see the caller. It costs nothing.
    ///
    /// ```
    /// # use waxseal::{Aad, Caller, EncryptionContext, Envelope, kek::local::LocalKek};
    /// # pollster::block_on(async {
    /// # let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("test")?).build()?;
    /// # let context = EncryptionContext::empty();
    /// let caller = Caller::builder().service("billing").role("clerk").build()?;
    /// let sealed = envelope.acting_for(&caller).encrypt(&context, Aad::empty(), b"text").await?;
    /// # Ok::<(), waxseal::Error>(()) }).unwrap();
    /// ```
    #[must_use]
    pub fn acting_for<'e>(&'e self, caller: &'e Caller) -> ActingFor<'e> {
        ActingFor { envelope: self, caller: Some(caller) }
    }

    /// Returns the view for calls that name no caller.
    pub(super) fn for_nobody(&self) -> ActingFor<'_> {
        ActingFor { envelope: self, caller: None }
    }

    /// Returns the same envelope behind a policy.
    pub(super) fn behind(self, guard: Guard) -> Self {
        let source = self.source.clone();
        let guarded = Guarded { guard: Arc::new(guard), plain: self };
        Self { source, guarded: Some(Arc::new(guarded)) }
    }

    /// Checks whether an operation is allowed.
    pub(super) async fn permit(
        &self,
        operation: Action,
        context: &EncryptionContext,
        caller: Option<&Caller>,
    ) -> Result<Permitted, Error> {
        match &self.guarded {
            Some(guarded) => guarded.permit(operation, context, caller).await.map(Some),
            None => Ok(None),
        }
    }

    /// Checks whether a permitted operation is still allowed after it waited for a key service. If
    /// the rules changed or the decision ended meanwhile, the policy is asked again.
    pub(super) async fn confirm(
        &self,
        permitted: Permitted,
        operation: Action,
        context: &EncryptionContext,
        caller: Option<&Caller>,
    ) -> Result<(), Error> {
        match (&self.guarded, permitted) {
            (Some(guarded), Some(granted)) if guarded.is_over(granted) => {
                guarded.permit(operation, context, caller).await.map(|_| ())
            }
            _ => Ok(()),
        }
    }

    /// Returns the contexts for which an operation is not allowed, and why. A decision that ended
    /// while others were made is requested again.
    pub(super) async fn denied<'c>(
        &self,
        operation: Action,
        contexts: impl Iterator<Item = &'c EncryptionContext>,
        caller: Option<&Caller>,
    ) -> Denials<'c> {
        let mut denied = HashMap::new();
        let Some(guarded) = &self.guarded else { return Denials::default() };
        let distinct: HashSet<_> = contexts.collect();
        let (mut waiting, mut grants) = (distinct.into_iter().collect::<Vec<_>>(), Vec::new());
        for _ in 0..ROUNDS {
            let (mut left, mut asked) = (waiting.into_iter(), FuturesUnordered::new());
            loop {
                while asked.len() < ASKED_AT_ONCE
                    && let Some(context) = left.next()
                {
                    let answer = guarded.permit(operation, context, caller);
                    asked.push(async move { (context, answer.await) });
                }
                match asked.next().await {
                    None => break,
                    Some((context, Ok(granted))) => grants.push((context, granted)),
                    Some((context, Err(error))) => drop(denied.insert(context, error)),
                }
            }
            let over = grants.extract_if(.., |(_, granted)| guarded.is_over(*granted));
            waiting = over.map(|(context, _)| context).collect();
            if waiting.is_empty() {
                break;
            }
        }
        let unsettled = |context| (context, guarded.unsettled(operation, context, caller));
        denied.extend(waiting.into_iter().map(unsettled));
        let first_over = grants.into_iter().map(|(_, granted)| granted).reduce(Granted::first_over);
        Denials { denied, first_over }
    }

    /// Whether everything that was permitted still is.
    pub(super) fn still_permits(&self, denials: &Denials<'_>) -> bool {
        match (&self.guarded, denials.first_over) {
            (Some(guarded), Some(granted)) => !guarded.is_over(granted),
            _ => true,
        }
    }
}

/// The policy's decisions about an operation on many contexts.
#[derive(Default)]
pub(super) struct Denials<'c> {
    denied: HashMap<&'c EncryptionContext, Error>,
    /// The allowing decision that ends first.
    first_over: Permitted,
}

impl Denials<'_> {
    pub(super) fn get(&self, context: &EncryptionContext) -> Option<&Error> {
        self.denied.get(context)
    }
}

/// An [`Envelope`] on behalf of a [`Caller`]: see [`Envelope::acting_for`]. Each method does what
/// the envelope's method of the same name does. Only the caller that the policy and the observers
/// see differs.
#[derive(Clone, Copy, Debug)]
pub struct ActingFor<'e> {
    pub(super) envelope: &'e Envelope,
    pub(super) caller: Option<&'e Caller>,
}

impl<'e> ActingFor<'e> {
    /// Returns the envelope without its policy, for permitted operations.
    pub(super) fn plain(self) -> &'e Envelope {
        self.envelope.guarded.as_ref().map_or(self.envelope, |guarded| &guarded.plain)
    }

    /// Returns the DEK id of a message, if messages are counted by caller.
    fn counted_dek(self, message: &[u8]) -> Option<DekId> {
        self.is_counted().then(|| Header::of(message).ok().map(|header| header.dek_id)).flatten()
    }

    /// Counts a message that was just encrypted or decrypted, by its caller.
    #[inline]
    fn count(self, access: Access, context: &EncryptionContext, message: &[u8]) {
        if self.is_counted() {
            self.count_of(access, context, Header::of(message).ok().map(|header| header.dek_id));
        }
    }

    /// Does the same as [`count`](Self::count), by the DEK.
    #[inline(never)]
    fn count_of(self, access: Access, context: &EncryptionContext, dek_id: Option<DekId>) {
        if let (Some(caller), Some(dek_id)) = (self.caller, dek_id) {
            self.envelope.source.count(caller, &dek_id, context, access, 1);
        }
    }

    pub(super) async fn permit(
        self,
        operation: Action,
        context: &EncryptionContext,
    ) -> Result<Permitted, Error> {
        self.envelope.permit(operation, context, self.caller).await
    }

    /// Returns what is known without waiting. The clock is read once for the decision and the DEK.
    #[inline]
    fn known(
        self,
        now: Moment,
        operation: Action,
        context: &EncryptionContext,
    ) -> Result<Known, Error> {
        match &self.envelope.guarded {
            Some(guarded) if !guarded.allows_at_once(now, operation, context, self.caller) => {
                let known = guarded.permit_cached(now, operation, context, self.caller);
                known.map_or(Ok(Known::Unknown), |known| known.map(Known::Granted))
            }
            _ => Ok(Known::AtOnce),
        }
    }

    /// Returns the decision for an operation that has to wait: the known one, or the policy's.
    async fn permit_known(
        self,
        known: Known,
        operation: Action,
        context: &EncryptionContext,
    ) -> Result<Permitted, Error> {
        match known {
            Known::Granted(granted) => Ok(Some(granted)),
            Known::AtOnce | Known::Unknown => self.permit(operation, context).await,
        }
    }

    #[inline]
    fn now(self) -> Moment {
        self.envelope.source.now()
    }

    pub(super) async fn confirm(
        self,
        permitted: Permitted,
        operation: Action,
        context: &EncryptionContext,
    ) -> Result<(), Error> {
        self.envelope.confirm(permitted, operation, context, self.caller).await
    }

    /// Does the same as [`Envelope::encrypt`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::encrypt`].
    pub async fn encrypt(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let now = self.now();
        let known = self.known(now, Action::Encrypt, context)?;
        // With a cached DEK it encrypts at once, under the current rules.
        if known != Known::Unknown
            && let Some(sealed) = self.plain().encrypt_cached(now, context, aad, plaintext)?
        {
            self.count(Access::Encrypt, context, &sealed);
            return Ok(sealed);
        }
        let permitted = self.permit_known(known, Action::Encrypt, context).await?;
        let sealed = self.plain().encrypt(context, aad, plaintext).await?;
        self.confirm(permitted, Action::Encrypt, context).await?;
        self.count(Access::Encrypt, context, &sealed);
        Ok(sealed)
    }

    /// Does the same as [`Envelope::encrypt_in_place`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::encrypt_in_place`]. After a denial the plaintext is still in the
    /// buffer.
    pub async fn encrypt_in_place(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        // Not confirmed: the plaintext is the caller's, and would be lost.
        self.permit(Action::Encrypt, context).await?;
        self.plain().encrypt_in_place(context, aad, buffer).await?;
        self.count(Access::Encrypt, context, buffer);
        Ok(())
    }

    /// Does the same as [`Envelope::encrypt_compact`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::encrypt_compact`].
    pub async fn encrypt_compact(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        plaintext: &[u8],
    ) -> Result<Compact, Error> {
        let permitted = self.permit(Action::Encrypt, context).await?;
        let sealed = self.plain().encrypt_compact(context, aad, plaintext).await?;
        self.confirm(permitted, Action::Encrypt, context).await?;
        self.count_of(Access::Encrypt, context, Some(sealed.dek_id()));
        Ok(sealed)
    }

    /// Does the same as [`Envelope::decrypt`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::decrypt`].
    pub async fn decrypt<'s>(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        sealed: impl Into<Sealed<'s>>,
    ) -> Result<Plaintext, Error> {
        let sealed = sealed.into();
        let now = self.now();
        let known = self.known(now, Action::Decrypt, context)?;
        // A cached DEK decrypts at once, under the current rules.
        if known != Known::Unknown
            && let Some(opened) = self.plain().decrypt_cached_at(now, context, aad, sealed)?
        {
            self.count(Access::Decrypt, context, sealed.as_bytes());
            return Ok(opened);
        }
        let permitted = self.permit_known(known, Action::Decrypt, context).await?;
        let opened = self.plain().decrypt(context, aad, sealed).await?;
        self.confirm(permitted, Action::Decrypt, context).await?;
        self.count(Access::Decrypt, context, sealed.as_bytes());
        Ok(opened)
    }

    /// Does the same as [`Envelope::decrypt_in_place`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::decrypt_in_place`]. After a denial the buffer is unchanged. If the call
    /// waited for the key service, and the policy denies it by then, the decrypted part of the
    /// buffer is wiped.
    pub async fn decrypt_in_place<'b>(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        buffer: &'b mut [u8],
    ) -> Result<&'b mut [u8], Error> {
        let now = self.now();
        let known = self.known(now, Action::Decrypt, context)?;
        if known != Known::Unknown
            && let Some(payload) = self.plain().open_cached(now, context, aad, buffer)?
        {
            self.count(Access::Decrypt, context, buffer);
            return Ok(buffer.get_mut(payload).unwrap_or_default());
        }
        let permitted = self.permit_known(known, Action::Decrypt, context).await?;
        let dek_id = self.counted_dek(buffer);
        let opened = self.plain().decrypt_in_place_uncached(context, aad, buffer).await?;
        let mut withheld = Withheld(opened);
        self.confirm(permitted, Action::Decrypt, context).await?;
        self.count_of(Access::Decrypt, context, dek_id);
        Ok(std::mem::take(&mut withheld.0))
    }

    /// Does the same as [`Envelope::decrypt_cached`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::decrypt_cached`].
    pub fn decrypt_cached<'s>(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        sealed: impl Into<Sealed<'s>>,
    ) -> Result<Option<Plaintext>, Error> {
        let now = self.now();
        if self.known(now, Action::Decrypt, context)? == Known::Unknown {
            return Ok(None);
        }
        let sealed = sealed.into();
        let opened = self.plain().decrypt_cached_at(now, context, aad, sealed)?;
        if opened.is_some() {
            self.count(Access::Decrypt, context, sealed.as_bytes());
        }
        Ok(opened)
    }

    /// Does the same as [`Envelope::encryptor`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::encryptor`].
    pub async fn encryptor(self, context: &EncryptionContext) -> Result<Encryptor, Error> {
        let permission = match &self.envelope.guarded {
            Some(guarded) => Some(guarded.lease(Action::Encrypt, context, self.caller).await?),
            None => None,
        };
        Ok(self.plain().encryptor(context).await?.resting_on(permission, self.caller))
    }

    /// Does the same as [`Envelope::decryptor`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::decryptor`].
    pub async fn decryptor<'s>(
        self,
        context: &EncryptionContext,
        sealed: impl Into<Sealed<'s>>,
    ) -> Result<Decryptor, Error> {
        let sealed = sealed.into();
        let permission = match &self.envelope.guarded {
            Some(guarded) => Some(guarded.lease(Action::Decrypt, context, self.caller).await?),
            None => None,
        };
        Ok(self.plain().decryptor(context, sealed).await?.resting_on(permission, self.caller))
    }

    /// Does the same as [`Envelope::prepare`] on behalf of the caller.
    pub async fn prepare<'m, S: Into<Sealed<'m>>>(
        self,
        messages: impl IntoIterator<Item = (&'m EncryptionContext, S)>,
    ) -> Vec<Result<(), Error>> {
        self.envelope.prepare_for(self.caller, messages).await
    }

    /// Does the same as [`Envelope::rewrap`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::rewrap`].
    pub async fn rewrap(
        self,
        context: &EncryptionContext,
        sealed: &[u8],
    ) -> Result<Vec<u8>, Error> {
        self.envelope.rewrap_message(self.caller, context, sealed, Check::UnwrapEach).await
    }

    /// Does the same as [`Envelope::rewrap_head`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::rewrap_head`].
    pub async fn rewrap_head(
        self,
        context: &EncryptionContext,
        head: &StreamHead,
    ) -> Result<StreamHead, Error> {
        StreamHead::from_prefix(&self.rewrap(context, head.as_bytes()).await?)
    }

    /// Does the same as [`Envelope::rewrap_all`] on behalf of the caller.
    pub async fn rewrap_all<'m>(
        self,
        messages: impl IntoIterator<Item = (&'m EncryptionContext, &'m [u8])>,
    ) -> Vec<Result<Vec<u8>, Error>> {
        self.envelope.rewrap_all_for(self.caller, messages).await
    }

    /// Does the same as [`Envelope::rewrap_unverified`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::rewrap_unverified`].
    pub async fn rewrap_unverified(
        self,
        context: &EncryptionContext,
        sealed: &[u8],
    ) -> Result<Vec<u8>, Error> {
        self.envelope.rewrap_message(self.caller, context, sealed, Check::None).await
    }

    /// Does the same as [`Envelope::rewrap_wrapped_keys`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::rewrap_wrapped_keys`].
    pub async fn rewrap_wrapped_keys(
        self,
        context: &EncryptionContext,
        dek_id: &DekId,
        keys: &WrappedKeys,
    ) -> Result<WrappedKeys, Error> {
        let permitted = self.permit(Action::Rewrap, context).await?;
        let rewrapped = self.plain().rewrap_wrapped_keys(context, dek_id, keys).await?;
        self.confirm(permitted, Action::Rewrap, context).await.map(|()| rewrapped)
    }

    /// Does the same as [`Envelope::rewrap_stored`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::rewrap_stored`].
    pub async fn rewrap_stored(
        self,
        options: RewrapOptions,
        progress: impl FnMut(&RewrapProgress),
    ) -> Result<RewrapProgress, Error> {
        self.permit(Action::Rewrap, &EncryptionContext::empty()).await?;
        self.plain().rewrap_stored(options, progress).await
    }
}

/// Calls to an envelope that has a policy and no caller. They are boxed and separate, so that an
/// envelope without a policy does not pay for them.
impl<'e> ActingFor<'e> {
    #[cold]
    #[inline(never)]
    pub(super) fn encrypt_boxed(
        self,
        context: &'e EncryptionContext,
        aad: Aad<'e>,
        plaintext: &'e [u8],
    ) -> BoxFuture<'e, Result<Vec<u8>, Error>> {
        Box::pin(self.encrypt(context, aad, plaintext))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn encrypt_in_place_boxed(
        self,
        context: &'e EncryptionContext,
        aad: Aad<'e>,
        buffer: &'e mut Vec<u8>,
    ) -> BoxFuture<'e, Result<(), Error>> {
        Box::pin(self.encrypt_in_place(context, aad, buffer))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn encrypt_compact_boxed(
        self,
        context: &'e EncryptionContext,
        aad: Aad<'e>,
        plaintext: &'e [u8],
    ) -> BoxFuture<'e, Result<Compact, Error>> {
        Box::pin(self.encrypt_compact(context, aad, plaintext))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn decrypt_boxed(
        self,
        context: &'e EncryptionContext,
        aad: Aad<'e>,
        sealed: Sealed<'e>,
    ) -> BoxFuture<'e, Result<Plaintext, Error>> {
        Box::pin(self.decrypt(context, aad, sealed))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn decrypt_in_place_boxed<'b: 'e>(
        self,
        context: &'e EncryptionContext,
        aad: Aad<'e>,
        buffer: &'b mut [u8],
    ) -> BoxFuture<'e, Result<&'b mut [u8], Error>> {
        Box::pin(self.decrypt_in_place(context, aad, buffer))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn decrypt_cached_cold(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        sealed: Sealed<'_>,
    ) -> Result<Option<Plaintext>, Error> {
        self.decrypt_cached(context, aad, sealed)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn encryptor_boxed(
        self,
        context: &'e EncryptionContext,
    ) -> BoxFuture<'e, Result<Encryptor, Error>> {
        Box::pin(self.encryptor(context))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn decryptor_boxed(
        self,
        context: &'e EncryptionContext,
        sealed: Sealed<'e>,
    ) -> BoxFuture<'e, Result<Decryptor, Error>> {
        Box::pin(self.decryptor(context, sealed))
    }
}
