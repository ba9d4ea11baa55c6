//! DEKs for writing, which this process makes for a context.
#![forbid(unsafe_code)]

use std::future::Future;

use super::super::cache::{DekCache, MemoOwner};
use super::super::flight::Waiter;
use super::super::lease::{Age, KeysMatch, Lease, RequestKey, Terms};
use super::super::statistics::Counter;
use super::super::{LimitsInForce, Many, Reservation, WritingDek};
use super::reading::{Obtainment, Owned as ReadingOwned};
use super::{Answer, DekRequest, DekSource, Kind, Obtained, SourceOptions};
use crate::clock::Moment;
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::kek::Parent;
use crate::kek::call::{CallBounds, Lane};
use crate::kek::set::{Failure, Made, SourceKek};
use crate::memory::fork;
use crate::observe::Event;
use crate::suite::derive_dek_id;
use crate::sync::Arc;

/// DEKs that encrypt messages.
pub(crate) enum Writing {}

/// The request for a DEK to encrypt with.
#[derive(Clone, Copy)]
pub(crate) struct WritingRequest<'a> {
    pub(crate) context: &'a EncryptionContext,
}

impl DekRequest for WritingRequest<'_> {
    type Kind = Writing;

    fn find(&self, cache: &DekCache) -> Result<Option<Arc<WritingDek>>, Error> {
        Ok(cache.writing(self.context))
    }

    fn with_remembered<R>(
        &self,
        owner: MemoOwner,
        serves: impl FnOnce(&WritingDek) -> bool,
        work: impl FnOnce(&Arc<WritingDek>) -> R,
    ) -> Option<R> {
        owner.with_writing(self.context, serves, work)
    }

    fn keys_match(&self, _: &Lease) -> KeysMatch {
        KeysMatch::Same
    }

    fn is_turn(&self, lease: &Lease, now: Moment) -> bool {
        lease.is_turn(KeysMatch::Same, now)
    }

    fn can_be_asked(&self) -> bool {
        true
    }

    fn is_about(&self, _: &Lease) -> bool {
        true
    }

    fn request_key(&self) -> RequestKey {
        RequestKey::wrap(self.context)
    }

    fn to_owned(&self) -> Result<EncryptionContext, Error> {
        Ok(self.context.clone())
    }
}

impl Kind for Writing {
    type Dek = WritingDek;
    type Owned = EncryptionContext;
    const HIT: Counter = Counter::WritingHit;
    const MISS: Counter = Counter::WritingMiss;
    const LANE: Lane = Lane::Reserved;

    /// A DEK that is nearly used up is also due.
    fn age(dek: &WritingDek, now: Moment) -> Age {
        match dek.lease.age(now) {
            Age::Fresh if dek.is_nearly_used_up() => Age::Due,
            age => age,
        }
    }

    fn remember(cache: &DekCache, dek: &Arc<WritingDek>) {
        cache.remember_writing(dek);
    }

    fn find(
        cache: &DekCache,
        context: &EncryptionContext,
    ) -> Result<Option<Arc<WritingDek>>, Error> {
        Ok(cache.writing(context))
    }

    fn context(context: &EncryptionContext) -> &EncryptionContext {
        context
    }

    fn join<F>(
        cache: &DekCache,
        now: Moment,
        request_key: RequestKey,
        ask: impl FnOnce() -> F,
    ) -> Waiter<Answer<WritingDek>>
    where
        F: Future<Output = Answer<WritingDek>> + Send + 'static,
    {
        cache.flights.writing(now, request_key, ask)
    }

    async fn ask(
        source: &DekSource,
        cache: &DekCache,
        context: &EncryptionContext,
        bounds: CallBounds,
    ) -> Result<Obtained<WritingDek>, Failure> {
        let SourceOptions { suite, nonces, origin, limits, clock, observers, .. } = &source.options;
        if let Some(branch) = &source.options.branch {
            return source.branch_key(branch, cache, context, bounds).await;
        }
        // Taken before the DEK is drawn, so that a fork during the call is noticed.
        let generation = fork::generation();
        let Made { dek, wrapped_keys, source_keks, parents, asked } =
            source.keks.make(bounds, context, *origin).await?;
        let deadline = source.keks.deadline();
        let terms = |id, wrapped_keys, source_keks, parents| Terms {
            context,
            id,
            suite: *suite,
            wrapped_keys,
            is_stored: false,
            source_keks,
            parents,
            asked,
            stale_if_error: limits.stale_if_error_writing,
            deadline,
            clock,
            observers: observers.downgrade(),
        };
        // The answer proves that wrapping is still allowed. Unless the current DEK's time is over,
        // it continues, and the new DEK is wiped unused.
        if !clock.now().is_past(asked.plus(limits.max_age))
            && let Some(present) = source.present(cache, context, &source_keks, &parents)
        {
            let (id, wrapped_keys) = (present.lease.id, present.wrapped_keys.clone());
            let terms = terms(id, wrapped_keys, source_keks.clone(), parents.clone());
            if let Some(dek) = cache.another_lease(&present, terms, limits) {
                return Ok(Obtained { dek, for_reading_too: None, goes_on: true });
            }
        }
        let id = derive_dek_id(&dek, context)?;
        source.keep(bounds, context, &id, &wrapped_keys).await?;
        let key = source.leased_key(dek, context, *suite)?;
        let reading = ReadingOwned::new(context, id, *suite, Some(wrapped_keys.clone()));
        let obtained = Obtainment {
            wrapped_keys: wrapped_keys.clone(),
            asked,
            source_keks: source_keks.clone(),
            parents: parents.clone(),
        };
        let reading = source.new_reading(&reading, obtained, &key);
        let terms = terms(id, wrapped_keys.clone(), source_keks, parents);
        let lease = Lease::new(terms, &key, limits);
        let dek = WritingDek::new(lease, wrapped_keys, *nonces, limits, asked, generation)?;
        let dek = Arc::new(dek);
        source.emit(&Event::Made { dek_id: &id, context, kek_ids: &dek.lease.kek_ids() });
        Ok(Obtained { dek, for_reading_too: Some(reading), goes_on: false })
    }

    /// This process can read what it writes without a call, for no longer than with any other DEK.
    fn put(cache: &DekCache, obtained: &Obtained<WritingDek>) {
        if let Some(reading) = &obtained.for_reading_too {
            cache.put_reading(reading);
        }
        cache.put_writing(&obtained.dek);
    }

    fn goes_on(present: &WritingDek, renewed: &WritingDek) -> bool {
        present.lease.id == renewed.lease.id
    }

    fn was_denied(
        source: &DekSource,
        cache: &DekCache,
        context: &EncryptionContext,
        failure: &Failure,
    ) {
        cache.end_writing(context);
        if source.options.branch.is_some() {
            cache.end_denied(context, None, failure);
        }
        source.emit(&Event::Denied { dek_id: None, context });
    }
}

impl DekSource {
    /// Does the same as [`with_writing`](Self::with_writing), for many messages that are counted
    /// together, once there is room for the results.
    pub(crate) async fn with_writing_many<M, R>(
        self: &Arc<Self>,
        context: &EncryptionContext,
        many: Many,
        room: impl Fn(&WritingDek) -> Result<M, Error>,
        mut work: impl FnMut(&Reservation<&WritingDek>, M) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let LimitsInForce { max_messages, max_bytes, .. } = self.options.limits;
        many.check(max_messages, max_bytes)?;
        let reserve = |dek: &WritingDek| {
            let room = room(dek)?;
            Reservation::of_many(dek, many).and_then(|reservation| work(&reservation, room))
        };
        self.with(WritingRequest { context }, reserve).await
    }

    /// Returns the cached DEK if it continues to encrypt after a renewal that these KEKs answered.
    /// The next DEK takes its place if a KEK was rotated, has another branch key, or answered under
    /// another id, such as an alias that now names another key.
    fn present(
        &self,
        cache: &DekCache,
        context: &EncryptionContext,
        source_keks: &[SourceKek],
        parents: &[Parent],
    ) -> Option<Arc<WritingDek>> {
        // In the child of a fork, threads that are gone may hold the locks of the parent's cache.
        if !cache.is_of_this_process() {
            return None;
        }
        let present = cache.writing(context)?;
        let goes_on = present.lease.is_from(source_keks, parents)
            && present.goes_on(self.options.clock.now())
            && !self.keks.are_outdated(&present.wrapped_keys);
        goes_on.then_some(present)
    }
}
