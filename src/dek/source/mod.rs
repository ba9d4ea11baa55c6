//! The look-up of a DEK: whether a cached one serves, and when the KEKs are asked.
//!
//! Requests for reading and for writing differ in what they ask for ([`DekRequest`]). The look-up
//! is the same.
#![forbid(unsafe_code)]

mod asking;
mod at_once;
mod branch;
mod builder;
mod control;
mod decision;
mod kind;
mod period;
mod prepare;
mod reading;
mod renewal;
mod rewrap;
mod stored;
mod stream;
mod walk;
mod writing;

use std::ops::Deref;

use arc_swap::ArcSwap;

use super::cache::{DekCache, MemoOwner, SourceNumber};
use super::contexts::DomainContexts;
use super::flight::Answer;
use super::lease::{Age, LeasedKey};
use super::pinned::{Held, Pinned};
use super::registry::Leased;
use super::statistics::{
    Counter, Counters, KekStatistics, Statistics, StoreStatistics, TargetStatistics,
};
use super::writing::{check_len, max_len};
use super::{LimitsInForce, Reservation, WritingDek};
use crate::caller::Caller;
use crate::clock::{Clock, Moment};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::kek::Dek;
use crate::kek::call::{CallCounts, Calls, GuardedKek};
use crate::kek::set::{DekOrigin, Failure, KekSet};
use crate::observe::{Access, Event, LaterEvent, Observers};
use crate::runtime::Runtime;
use crate::store::KeyStore;
use crate::suite::{Backend, BranchKey, DekId, DekKeys, Nonces, Suite};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};
pub(crate) use branch::{BranchTerms, PERIOD, cached_as};
pub(crate) use builder::SourceBuilder;
use decision::{Decision, decide};
pub(crate) use kind::{DekOf, DekRequest};
use kind::{Kind, Obtained};
pub(crate) use reading::ReadingRequest;
use renewal::Renewer;
pub(crate) use stream::BegunStream;
pub(crate) use writing::WritingRequest;

pub(crate) struct SourceOptions {
    pub(crate) suite: Suite,
    pub(crate) backend: Backend,
    pub(crate) nonces: Nonces,
    pub(crate) origin: DekOrigin,
    pub(crate) limits: LimitsInForce,
    /// The store of wrapped keys that requests do not carry.
    pub(crate) store: Option<Arc<dyn KeyStore>>,
    /// Set for a source of branch keys.
    pub(crate) branch: Option<BranchTerms>,
    /// Set for the source of a data domain.
    pub(crate) domain: Option<Arc<DomainContexts>>,
    pub(crate) clock: Clock,
    pub(crate) runtime: Option<Arc<dyn Runtime>>,
    pub(crate) observers: Observers,
}

pub(crate) struct DekSource {
    /// The cache of this process. The child of a fork replaces it with its own. It is the first
    /// field, so that it is dropped while the observers still exist.
    cache: ArcSwap<DekCache>,
    number: SourceNumber,
    keks: KekSet,
    /// Calls to the key store.
    store_calls: Calls,
    options: SourceOptions,
    /// Set at shut-down. No key service is asked after it.
    closed: AtomicBool,
    /// Observers know of the shut-down.
    reported: AtomicBool,
    /// The providers have released what they held.
    given_up: Arc<AtomicBool>,
    counters: Counters,
}

/// The source as envelopes and handles own it. Its DEKs end when the last owner is dropped,
/// although a call in flight keeps the source itself alive until it ends.
pub(crate) struct OwnedSource(Arc<DekSource>);

impl OwnedSource {
    pub(crate) fn new(source: Arc<DekSource>) -> Arc<Self> {
        Arc::new(Self(source))
    }
}

impl Deref for OwnedSource {
    type Target = Arc<DekSource>;

    fn deref(&self) -> &Arc<DekSource> {
        &self.0
    }
}

impl Drop for OwnedSource {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::SeqCst);
        let cache = self.0.cache.load_full();
        if cache.is_of_this_process() {
            cache.end_all_later();
            for accessed in cache.take_counts() {
                self.0.options.observers.emit_later(LaterEvent::Accessed(accessed));
            }
        }
    }
}

/// How often a call is repeated because its DEK ended between look-up and use, or because its
/// response was revoked.
const ATTEMPTS: usize = 3;

/// A DEK for a handle, and whether it is stale.
pub(crate) type Issued<Q> = (Arc<DekOf<Q>>, bool);

impl DekSource {
    pub(crate) fn new(keks: KekSet, store_calls: Calls, options: SourceOptions) -> Arc<Self> {
        let SourceOptions { limits, clock, runtime, .. } = &options;
        let number = SourceNumber::next();
        let cache =
            ArcSwap::from_pointee(DekCache::new(number, limits, clock.clone(), runtime.clone()));
        Arc::new(Self {
            cache,
            number,
            keks,
            store_calls,
            options,
            closed: AtomicBool::new(false),
            reported: AtomicBool::new(false),
            given_up: Arc::default(),
            counters: Counters::new(),
        })
    }

    pub(crate) fn keks(&self) -> &KekSet {
        &self.keks
    }

    fn cache(&self) -> Arc<DekCache> {
        let cache = self.cache.load_full();
        if cache.is_of_this_process() {
            return cache;
        }
        let SourceOptions { limits, clock, runtime, .. } = &self.options;
        let ours = Arc::new(DekCache::new(self.number, limits, clock.clone(), runtime.clone()));
        let before = self.cache.compare_and_swap(&cache, ours.clone());
        if !Arc::ptr_eq(&before, &cache) {
            return self.cache.load_full();
        }
        cache.abandon();
        // Never dropped: threads that the fork left behind may hold its locks.
        std::mem::forget(cache);
        ours
    }

    /// Whether messages are counted by caller.
    pub(crate) fn counts_callers(&self) -> bool {
        self.options.limits.summaries.is_some()
    }

    /// Counts messages of a named caller, if such counts are requested. Its DEK was just used, so
    /// the cache is that of this process.
    #[inline]
    pub(crate) fn count(
        &self,
        caller: &Caller,
        dek_id: &DekId,
        context: &EncryptionContext,
        access: Access,
        messages: u64,
    ) {
        if self.counts_callers() {
            self.cache.load().count(caller, dek_id, context, access, messages);
        }
    }

    /// Returns how long a message may be.
    pub(crate) fn max_len(&self) -> u64 {
        max_len(&self.options.limits)
    }

    pub(crate) fn options(&self) -> &SourceOptions {
        &self.options
    }

    pub(crate) fn emit(&self, event: &Event<'_>) {
        self.options.observers.emit(event);
    }

    /// Runs `work` with the DEK. Asks the key service if necessary.
    pub(crate) async fn with<Q: DekRequest, R>(
        self: &Arc<Self>,
        request: Q,
        mut work: impl FnMut(&DekOf<Q>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        if let Some(result) = self.with_remembered(request, |dek| work(dek))
            && let Some(result) = unless_taken_away(result)?
        {
            return Ok(result);
        }
        let mut taken_away = 0;
        while taken_away < ATTEMPTS {
            // From the second attempt on, the DEK is pinned, so that an eviction does not remove
            // it.
            let held = self.held(request, taken_away > 0).await?;
            match work(&held) {
                // Other callers used it up. Look up the next one.
                Err(error) if error.kind() == ErrorKind::Exhausted => {}
                result => match unless_taken_away(result)? {
                    Some(result) => return Ok(result),
                    None => taken_away += 1,
                },
            }
        }
        Err(revoked_meanwhile())
    }

    /// Runs `work` with the cached DEK if it serves, without waiting. A DEK that is due is renewed
    /// in the background.
    ///
    /// # Errors
    /// Fails if the id is known to belong to another context.
    pub(crate) fn with_cached<Q: DekRequest, R>(
        self: &Arc<Self>,
        request: Q,
        work: impl FnMut(&DekOf<Q>) -> Result<R, Error>,
    ) -> Result<Option<R>, Error> {
        self.with_cached_at(self.now(), request, work)
    }

    /// Does the same as [`with_cached`](Self::with_cached), for a caller that has just read the
    /// clock.
    #[inline]
    pub(crate) fn with_cached_at<Q: DekRequest, R>(
        self: &Arc<Self>,
        now: Moment,
        request: Q,
        mut work: impl FnMut(&DekOf<Q>) -> Result<R, Error>,
    ) -> Result<Option<R>, Error> {
        if let Some(result) = self.with_remembered_at(now, request, |dek| work(dek)) {
            return unless_taken_away(result);
        }
        let cache = self.cache();
        let Some(dek) = request.find(&cache)? else { return Ok(None) };
        let now = self.options.clock.now();
        match self.decide(request, &dek, now, || true) {
            Decision::Serve => {}
            Decision::ServeAndRenew if !request.can_be_asked() => return Ok(None),
            Decision::ServeAndRenew => drop(self.renew(&dek, request, Renewer::Runtime)),
            Decision::Ask | Decision::Refuse => return Ok(None),
        }
        self.serve::<Q>(&cache, &dek, now);
        unless_taken_away(work(&dek))
    }

    /// Returns the DEK for longer work.
    pub(crate) async fn get<Q: DekRequest>(
        self: &Arc<Self>,
        request: Q,
    ) -> Result<Held<DekOf<Q>>, Error> {
        match self.with_remembered(request, Arc::clone) {
            Some(dek) => Ok(Held::Cached(dek)),
            None => self.held(request, false).await,
        }
    }

    /// Returns the DEK for a handle, and whether it is stale, if it is cached and need not be
    /// renewed.
    ///
    /// # Errors
    /// Those of [`with_cached`](Self::with_cached).
    #[inline]
    pub(crate) fn get_cached<Q: DekRequest>(&self, request: Q) -> Result<Option<Issued<Q>>, Error> {
        let dek = match self.with_remembered(request, Arc::clone) {
            Some(dek) => dek,
            None => match self.find_served(request)? {
                Some(dek) => dek,
                None => return Ok(None),
            },
        };
        let stale = dek.lease().is_stale();
        Ok(Some((dek, stale)))
    }

    /// Returns the cached DEK if it serves and need not be renewed.
    #[inline(never)]
    fn find_served<Q: DekRequest>(&self, request: Q) -> Result<Option<Arc<DekOf<Q>>>, Error> {
        let cache = self.cache();
        let Some(dek) = request.find(&cache)? else { return Ok(None) };
        let now = self.options.clock.now();
        if self.decide(request, &dek, now, || true) != Decision::Serve {
            return Ok(None);
        }
        self.serve::<Q>(&cache, &dek, now);
        Ok(Some(dek))
    }

    /// Returns the DEK for a handle, and whether it is stale.
    pub(crate) async fn look_up<Q: DekRequest>(
        self: &Arc<Self>,
        request: Q,
    ) -> Result<Issued<Q>, Error> {
        let dek = self.held(request, false).await?.into_dek();
        let stale = dek.lease().is_stale();
        Ok((dek, stale))
    }

    /// Returns the time by this source's clock.
    #[inline]
    pub(crate) fn now(&self) -> Moment {
        self.options.clock.now()
    }

    /// Runs `work` with the DEK that this thread used last, if it serves and this request need not
    /// renew it.
    #[inline]
    fn with_remembered<Q: DekRequest, R>(
        &self,
        request: Q,
        work: impl FnOnce(&Arc<DekOf<Q>>) -> R,
    ) -> Option<R> {
        self.with_remembered_at(self.now(), request, work)
    }

    fn with_remembered_at<Q: DekRequest, R>(
        &self,
        now: Moment,
        request: Q,
        work: impl FnOnce(&Arc<DekOf<Q>>) -> R,
    ) -> Option<R> {
        let serves = |dek: &DekOf<Q>| {
            // Look-ups in the cache decide whether a DEK is nearly used up.
            if dek.lease().age(now) == Age::Fresh {
                self.counters.count(Q::Kind::HIT);
                return true;
            }
            let serves = self.decide(request, dek, now, || true) == Decision::Serve;
            if serves {
                self.count_served::<Q>(dek, now);
            }
            serves
        };
        request.with_remembered(MemoOwner::now(self.number), serves, work)
    }

    fn decide<Q: DekRequest>(
        &self,
        request: Q,
        dek: &DekOf<Q>,
        now: Moment,
        is_refused: impl FnOnce() -> bool,
    ) -> Decision {
        let (age, lease) = (Q::Kind::age(dek, now), dek.lease());
        if age == Age::Fresh {
            return Decision::Serve;
        }
        let outage_is_known = age == Age::Stale && lease.outage(now).is_some();
        let serves = age == Age::Due || outage_is_known;
        let is_turn = serves && lease.is_renewal_open(now) && request.is_turn(lease, now);
        decide(age, outage_is_known, is_turn, is_refused)
    }

    /// Returns the DEK, pinned if the caller asks for that.
    pub(crate) async fn held<Q: DekRequest>(
        self: &Arc<Self>,
        request: Q,
        pinned: bool,
    ) -> Result<Held<DekOf<Q>>, Error> {
        let cache = self.cache();
        let hold = |dek: Arc<DekOf<Q>>| match pinned {
            true => Held::Awaited(Arc::new(Pinned::new(dek))),
            false => Held::Cached(dek),
        };
        let now = self.options.clock.now();
        let cached = request.find(&cache)?;
        if let Some(dek) = &cached {
            match self.decide(request, dek, now, || false) {
                Decision::Serve => {
                    self.serve::<Q>(&cache, dek, now);
                    return Ok(hold(dek.clone()));
                }
                Decision::ServeAndRenew => {
                    let Some(renewal) = self.renew(dek, request, Renewer::RuntimeOrCaller) else {
                        self.serve::<Q>(&cache, dek, now);
                        return Ok(hold(dek.clone()));
                    };
                    return match renewal.await {
                        Ok(renewed) => {
                            self.counters.count(Q::Kind::HIT);
                            Ok(Held::Awaited(renewed))
                        }
                        Err(failure) => {
                            self.serve_after_failure::<Q>(&cache, dek, failure).map(hold)
                        }
                    };
                }
                Decision::Ask | Decision::Refuse => {}
            }
        }
        let stale = cached.filter(|dek| Q::Kind::age(dek, now) == Age::Stale);
        self.counters.count(Q::Kind::MISS);
        if let Some(pinned) = request.at_once(self, &cache) {
            return Ok(Held::Awaited(pinned));
        }
        let owned = Arc::new(request.to_owned()?);
        let answer = match self.ask::<Q::Kind>(&cache, request.request_key(), &owned, Q::Kind::LANE)
        {
            Ok(call) => self.answer(call, request, stale.as_ref()).await,
            Err(failure) => Err(failure),
        };
        match (answer, stale) {
            (Ok(pinned), _) => Ok(Held::Awaited(pinned)),
            (Err(failure), Some(dek)) => {
                dek.lease().renewal_failed(request.keys_match(dek.lease()), &failure);
                self.serve_after_failure::<Q>(&cache, &dek, failure).map(hold)
            }
            (Err(failure), None) => Err(failure.error),
        }
    }

    /// Returns the cached DEK if it still serves although this caller's request failed, or else the
    /// failure.
    fn serve_after_failure<Q: DekRequest>(
        &self,
        cache: &DekCache,
        dek: &Arc<DekOf<Q>>,
        failure: Failure,
    ) -> Result<Arc<DekOf<Q>>, Error> {
        let now = self.options.clock.now();
        match decide(Q::Kind::age(dek, now), dek.lease().outage(now).is_some(), false, || true) {
            Decision::Serve => {
                self.serve::<Q>(cache, dek, now);
                Ok(dek.clone())
            }
            _ => Err(failure.error),
        }
    }

    fn serve<Q: DekRequest>(&self, cache: &DekCache, dek: &Arc<DekOf<Q>>, now: Moment) {
        self.count_served::<Q>(dek, now);
        Q::Kind::remember(cache, dek);
    }

    /// Counts a hit, and reports from time to time that a DEK is served stale.
    fn count_served<Q: DekRequest>(&self, dek: &DekOf<Q>, now: Moment) {
        self.counters.count(Q::Kind::HIT);
        let lease = dek.lease();
        if !lease.is_past_max_age(now) {
            return;
        }
        self.counters.count(Counter::ServedStale);
        if lease.is_due_to_report_stale(now)
            && let Some(kind) = lease.outage(now)
        {
            let (dek_id, context) = (&lease.told_id, &lease.context);
            self.emit(&Event::ServedStale { dek_id, context, kind });
        }
    }

    /// Returns what a DEK is used as.
    fn leased_key(
        &self,
        dek: Dek,
        context: &EncryptionContext,
        suite: Suite,
    ) -> Result<LeasedKey, Error> {
        if self.options.branch.is_some() {
            return BranchKey::new(dek, context.clone()).map(Arc::new).map(LeasedKey::Branch);
        }
        DekKeys::derive(self.options.backend, &dek, context, suite).map(LeasedKey::Dek)
    }

    /// Whether wrapped keys may be in a store.
    pub(crate) fn has_store(&self) -> bool {
        self.options.store.is_some()
    }

    /// Runs `work` with the right to encrypt one message of `len` bytes.
    pub(crate) async fn with_writing<R>(
        self: &Arc<Self>,
        context: &EncryptionContext,
        len: usize,
        mut work: impl FnMut(&Reservation<&WritingDek>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        check_len(len, max_len(&self.options.limits))?;
        let reserve = |dek: &WritingDek| {
            Reservation::new(dek, len).and_then(|reservation| work(&reservation))
        };
        self.with(WritingRequest { context }, reserve).await
    }

    /// Does the same as [`with_writing`](Self::with_writing), if the DEK is cached and need not be
    /// renewed.
    #[inline]
    pub(crate) fn with_writing_cached<R>(
        &self,
        now: Moment,
        context: &EncryptionContext,
        len: usize,
        mut work: impl FnMut(&Reservation<&WritingDek>) -> Result<R, Error>,
    ) -> Result<Option<R>, Error> {
        check_len(len, max_len(&self.options.limits))?;
        let mut reserve = |dek: &WritingDek| {
            Reservation::new(dek, len).and_then(|reservation| work(&reservation))
        };
        let request = WritingRequest { context };
        if let Some(result) = self.with_remembered_at(now, request, |dek| reserve(dek)) {
            return unless_taken_away(result);
        }
        match self.find_served(request)? {
            Some(dek) => unless_taken_away(reserve(&dek)),
            None => Ok(None),
        }
    }

    pub(crate) fn statistics(&self) -> Statistics {
        let of = |kek: &Arc<GuardedKek>| {
            let (breaker, targets) = kek.breakers();
            let CallCounts { calls, failures, budget_waits, budget_refusals } = kek.counts();
            let targets = targets
                .into_iter()
                .map(|(name, breaker)| TargetStatistics { name, breaker })
                .collect();
            KekStatistics {
                kek_id: kek.id().clone(),
                breaker,
                targets,
                calls,
                failures,
                budget_waits,
                budget_refusals,
                login: kek.login(),
            }
        };
        let keks = self.keks.reading.iter().map(of).collect();
        let store = self.options.store.as_ref().map(|store| store.name().into());
        let of_store = self.options.store.as_ref().map(|_| {
            let CallCounts { calls, failures, budget_waits, budget_refusals } =
                self.store_calls.counts();
            let (breaker, _) = self.store_calls.breakers();
            StoreStatistics { breaker, calls, failures, budget_waits, budget_refusals }
        });
        let observers = self.options.observers.failures();
        let statistics = self.counters.statistics(self.cache().counts(), (store, keks), observers);
        Statistics { branch_keys: self.branch_key_ages(), store_calls: of_store, ..statistics }
    }
}

/// Returns `None` if the DEK ended, or others used it up, between look-up and use.
fn unless_taken_away<R>(result: Result<R, Error>) -> Result<Option<R>, Error> {
    match result {
        Ok(result) => Ok(Some(result)),
        Err(error) if matches!(error.kind(), ErrorKind::Expired | ErrorKind::Exhausted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Revocations arrived faster than responses.
fn revoked_meanwhile() -> Error {
    Error::new(ErrorKind::Unavailable, "DEKs were revoked during the request")
}
