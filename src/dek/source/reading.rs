//! DEKs for reading, obtained from the wrapped keys of a message.
#![forbid(unsafe_code)]

use std::future::Future;

use super::super::ReadingDek;
use super::super::cache::{DekCache, MemoOwner};
use super::super::flight::Waiter;
use super::super::lease::{Age, KeysMatch, Lease, RequestKey, Terms};
use super::super::pinned::Pinned;
use super::super::statistics::Counter;
use super::stored::Located;
use super::{Answer, DekRequest, DekSource, Kind, LeasedKey, Obtained, SourceOptions};
use crate::clock::Moment;
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::{KekId, WrappedDek, WrappedKeys};
use crate::kek::Parent;
use crate::kek::call::{CallBounds, Lane};
use crate::kek::set::{Failure, SourceKek, Unwrapped};
use crate::observe::Event;
use crate::suite::{DekId, Suite};
use crate::sync::Arc;

/// DEKs that decrypt messages.
pub(crate) enum Reading {}

/// The request for the DEK of a message.
#[derive(Clone, Copy)]
pub(crate) struct ReadingRequest<'a> {
    pub(crate) context: &'a EncryptionContext,
    pub(crate) id: &'a DekId,
    pub(crate) suite: Suite,
    /// The bytes from the message, or kept apart for it. Empty if there are none. `None` for a
    /// caller that looks them up only if necessary.
    pub(crate) wrapped_keys: Option<&'a [u8]>,
    /// If the request has no wrapped keys, they are in the source's store.
    pub(crate) is_stored: bool,
}

impl ReadingRequest<'_> {
    pub(super) fn known_keys(&self) -> Option<&[u8]> {
        self.wrapped_keys.filter(|keys| !keys.is_empty())
    }
}

/// A request that outlives its caller.
pub(crate) struct Owned {
    pub(super) context: EncryptionContext,
    pub(super) id: DekId,
    pub(super) suite: Suite,
    /// `None` if they are in the store.
    pub(super) wrapped_keys: Option<WrappedKeys>,
}

impl DekRequest for ReadingRequest<'_> {
    type Kind = Reading;

    fn find(&self, cache: &DekCache) -> Result<Option<Arc<ReadingDek>>, Error> {
        cache.reading(self.context, self.id, self.suite)
    }

    fn with_remembered<R>(
        &self,
        owner: MemoOwner,
        serves: impl FnOnce(&ReadingDek) -> bool,
        work: impl FnOnce(&Arc<ReadingDek>) -> R,
    ) -> Option<R> {
        owner.with_reading(self.context, self.id, self.suite, serves, work)
    }

    fn keys_match(&self, lease: &Lease) -> KeysMatch {
        lease.keys_match(self.wrapped_keys.unwrap_or_default())
    }

    fn is_turn(&self, lease: &Lease, now: Moment) -> bool {
        match self.wrapped_keys {
            Some([]) if !self.is_stored => false,
            Some(keys) => lease.is_turn(lease.keys_match(keys), now),
            // Unknown: the caller asks again with the keys.
            None => true,
        }
    }

    fn is_about(&self, lease: &Lease) -> bool {
        let Some(keys) = self.known_keys() else { return self.is_stored && lease.is_stored() };
        let keys = WrappedKeys::try_from(keys);
        keys.is_ok_and(|keys| lease.is_asked_about_by(&keys))
    }

    fn request_key(&self) -> RequestKey {
        RequestKey::unwrap(self.context, self.id, self.suite, self.wrapped_keys.unwrap_or_default())
    }

    fn at_once(&self, source: &DekSource, cache: &DekCache) -> Option<Arc<Pinned<ReadingDek>>> {
        source.unwrapped_at_once(cache, self)
    }

    fn to_owned(&self) -> Result<Owned, Error> {
        let keys = match self.known_keys() {
            Some(keys) => Some(WrappedKeys::try_from(keys)?),
            None if self.is_stored => None,
            None => return Err(Error::new(ErrorKind::MissingWrappedKeys, self.id.to_string())),
        };
        Ok(Owned::new(self.context, *self.id, self.suite, keys))
    }

    fn can_be_asked(&self) -> bool {
        self.is_stored || self.known_keys().is_some()
    }
}

impl Kind for Reading {
    type Dek = ReadingDek;
    type Owned = Owned;
    const HIT: Counter = Counter::ReadingHit;
    const MISS: Counter = Counter::ReadingMiss;
    /// Anyone who can submit a message can cause such a call.
    const LANE: Lane = Lane::Ordinary;

    fn age(dek: &ReadingDek, now: Moment) -> Age {
        dek.lease.age(now)
    }

    fn remember(cache: &DekCache, dek: &Arc<ReadingDek>) {
        cache.remember_reading(dek);
    }

    fn find(cache: &DekCache, owned: &Owned) -> Result<Option<Arc<ReadingDek>>, Error> {
        cache.reading(&owned.context, &owned.id, owned.suite)
    }

    fn context(owned: &Owned) -> &EncryptionContext {
        &owned.context
    }

    fn join<F>(
        cache: &DekCache,
        now: Moment,
        request_key: RequestKey,
        ask: impl FnOnce() -> F,
    ) -> Waiter<Answer<ReadingDek>>
    where
        F: Future<Output = Answer<ReadingDek>> + Send + 'static,
    {
        cache.flights.reading(now, request_key, ask)
    }

    async fn ask(
        source: &DekSource,
        cache: &DekCache,
        owned: &Owned,
        bounds: CallBounds,
    ) -> Result<Obtained<ReadingDek>, Failure> {
        let Owned { context, id, wrapped_keys, .. } = owned;
        let located = source.locate(bounds, context, id, wrapped_keys.as_ref()).await?;
        let on_failure = |provider: &KekId, entry: &WrappedDek, kind| {
            cache.record_failure(context, id, provider, entry, kind)
        };
        let unwrapped = {
            let Located { context, id, wrapped_keys } = &located;
            source.keks.unwrap_any(bounds, context, id, wrapped_keys, &on_failure).await?
        };
        let dek = source.obtained(owned, located, unwrapped)?;
        Ok(Obtained { dek, for_reading_too: None, goes_on: false })
    }

    fn put(cache: &DekCache, obtained: &Obtained<ReadingDek>) {
        cache.put_reading(&obtained.dek);
    }

    fn was_denied(source: &DekSource, cache: &DekCache, owned: &Owned, failure: &Failure) {
        let Owned { context, id, wrapped_keys, .. } = owned;
        let keys = wrapped_keys.as_ref().map(WrappedKeys::as_bytes).unwrap_or_default();
        // All of them if the key was erased. Also DEKs from other wrapped keys of the message, if
        // the KEK denied the entry that they came from.
        cache.end_reading(context, id, |lease| {
            failure.is_erased
                || lease.keys_match(keys) == KeysMatch::Same
                || lease.is_denied_by(failure)
        });
        if source.options.branch.is_some() {
            cache.end_denied(context, Some(id), failure);
        }
        let dek_id = Some(failure.key.as_ref().unwrap_or(id));
        source.emit(&Event::Denied { dek_id, context });
    }
}

/// How a DEK was obtained.
pub(super) struct Obtainment {
    pub(super) wrapped_keys: WrappedKeys,
    /// When the request was sent.
    pub(super) asked: Moment,
    pub(super) source_keks: Box<[SourceKek]>,
    pub(super) parents: Box<[Parent]>,
}

impl DekSource {
    /// Returns the DEK that the KEKs unwrapped for a request.
    pub(super) fn obtained(
        &self,
        owned: &Owned,
        located: Located,
        unwrapped: Unwrapped,
    ) -> Result<Arc<ReadingDek>, Error> {
        let Unwrapped { dek, source_kek, parent, asked } = unwrapped;
        let key = self.leased_key(dek, &located.context, owned.suite)?;
        let obtained = Obtainment {
            wrapped_keys: located.wrapped_keys,
            asked,
            source_keks: Box::new([source_kek]),
            parents: parent.into_iter().collect(),
        };
        Ok(self.new_reading(owned, obtained, &key))
    }

    pub(super) fn new_reading(
        &self,
        owned: &Owned,
        obtained: Obtainment,
        key: &LeasedKey,
    ) -> Arc<ReadingDek> {
        let Obtainment { wrapped_keys, asked, source_keks, parents } = obtained;
        let SourceOptions { limits, clock, observers, .. } = &self.options;
        observers.emit_unprotected_memory();
        let terms = Terms {
            context: &owned.context,
            id: owned.id,
            suite: owned.suite,
            wrapped_keys,
            is_stored: owned.wrapped_keys.is_none(),
            source_keks,
            parents,
            asked,
            stale_if_error: limits.stale_if_error_reading,
            deadline: self.keks.deadline(),
            clock,
            observers: observers.downgrade(),
        };
        Arc::new(ReadingDek::new(Lease::new(terms, key, limits), limits))
    }
}

impl Owned {
    pub(super) fn new(
        context: &EncryptionContext,
        id: DekId,
        suite: Suite,
        wrapped_keys: Option<WrappedKeys>,
    ) -> Self {
        Self { context: context.clone(), id, suite, wrapped_keys }
    }
}
