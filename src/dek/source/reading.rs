//! DEKs for reading, obtained from the wrapped keys of a message.
#![forbid(unsafe_code)]

use std::future::Future;

use super::super::ReadingDek;
use super::super::cache::{DekCache, MemoOwner};
use super::super::flight::Waiter;
use super::super::lease::{Age, KeysMatch, Lease, RequestKey, Terms};
use super::super::statistics::Counter;
use super::{Answer, DekRequest, DekSource, Kind, Obtained, SourceOptions};
use crate::clock::Moment;
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::{KekId, WrappedDek, WrappedKeys};
use crate::kek::call::{CallBounds, Lane};
use crate::kek::set::{Failure, SourceKek, Unwrapped};
use crate::observe::Event;
use crate::suite::{AeadKey, DekId, Suite};
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
}

impl ReadingRequest<'_> {
    fn known_keys(&self) -> Option<&[u8]> {
        self.wrapped_keys.filter(|keys| !keys.is_empty())
    }
}

/// A request that outlives its caller.
pub(crate) struct Owned {
    context: EncryptionContext,
    id: DekId,
    suite: Suite,
    wrapped_keys: WrappedKeys,
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
            Some([]) => false,
            Some(keys) => lease.is_turn(lease.keys_match(keys), now),
            // Unknown: the caller comes again with the keys.
            None => true,
        }
    }

    fn is_about(&self, lease: &Lease) -> bool {
        let keys = WrappedKeys::try_from(self.wrapped_keys.unwrap_or_default());
        keys.is_ok_and(|keys| lease.is_asked_about_by(&keys))
    }

    fn request_key(&self) -> RequestKey {
        RequestKey::unwrap(self.context, self.id, self.suite, self.wrapped_keys.unwrap_or_default())
    }

    fn to_owned(&self) -> Result<Owned, Error> {
        let missing = || Error::new(ErrorKind::MissingWrappedKeys, self.id.to_string());
        let keys = self.known_keys().ok_or_else(missing)?;
        Ok(Owned::new(self.context, *self.id, self.suite, WrappedKeys::try_from(keys)?))
    }

    fn can_be_asked(&self) -> bool {
        self.known_keys().is_some()
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
    ) -> Waiter<ReadingDek>
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
        let Owned { context, id, suite, wrapped_keys } = owned;
        let on_failure = |provider: &KekId, entry: &WrappedDek, kind| {
            cache.record_failure(context, id, provider, entry, kind)
        };
        let Unwrapped { dek, source_kek, asked } =
            source.keks.unwrap_any(bounds, context, id, wrapped_keys, &on_failure).await?;
        let key = source.message_key(&dek, context, *suite)?;
        drop(dek);
        let dek = source.new_reading(owned, asked, Box::new([source_kek]), &key);
        Ok(Obtained { dek, for_reading_too: None, goes_on: false })
    }

    fn put(cache: &DekCache, obtained: &Obtained<ReadingDek>) {
        cache.put_reading(&obtained.dek);
    }

    fn was_denied(source: &DekSource, cache: &DekCache, owned: &Owned, failure: &Failure) {
        let Owned { context, id, wrapped_keys, .. } = owned;
        // Also DEKs from other wrapped keys of the message, if the KEK denied the entry that they
        // came from.
        cache.end_reading(context, id, |lease| {
            lease.keys_match(wrapped_keys.as_bytes()) == KeysMatch::Same
                || lease.is_denied_by(failure)
        });
        source.emit(&Event::Denied { dek_id: Some(id), context });
    }
}

impl DekSource {
    pub(super) fn new_reading(
        &self,
        owned: &Owned,
        asked: Moment,
        source_keks: Box<[SourceKek]>,
        key: &Arc<AeadKey>,
    ) -> Arc<ReadingDek> {
        let SourceOptions { limits, clock, observers, .. } = &self.options;
        observers.emit_unprotected_memory();
        let terms = Terms {
            context: &owned.context,
            id: owned.id,
            suite: owned.suite,
            wrapped_keys: owned.wrapped_keys.clone(),
            source_keks,
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
        wrapped_keys: WrappedKeys,
    ) -> Self {
        Self { context: context.clone(), id, suite, wrapped_keys }
    }
}
