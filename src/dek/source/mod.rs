//! The look-up of a DEK: whether the cached one serves, and when the KEKs are asked.
//!
//! Reading and writing differ in what they ask ([`DekRequest`]); the look-up is one.
#![forbid(unsafe_code)]

mod decision;
mod reading;
mod writing;

use std::future::Future;
use std::ops::Deref;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use futures_util::future::{Either, select};

use super::cache::{DekCache, MemoOwner, SourceNumber};
use super::flight::{Answer, Waiter};
use super::lease::{Age, KeysMatch, Lease, RequestKey, shut_down};
use super::pinned::Pinned;
use super::registry::{Leased, end_all};
use super::statistics::{Counter, Counters, KekStatistics, Statistics, TargetStatistics};
use super::writing::{check_len, max_len};
use super::{LimitsInForce, ReadingDek, Reservation, WritingDek};
use crate::clock::{Clock, Moment};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::kek::call::{CallBounds, GuardedKek, Lane};
use crate::kek::set::{DekOrigin, Failure, KekSet};
use crate::kek::{BoxFuture, Dek, KekId};
use crate::observe::{Event, Observers};
use crate::runtime::Runtime;
use crate::suite::{AeadKey, Backend, Nonces, Suite, derive_message_key};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};
use decision::{Decision, decide};
pub(crate) use reading::ReadingRequest;
pub(crate) use writing::WritingRequest;

pub(crate) struct SourceOptions {
    pub(crate) suite: Suite,
    pub(crate) backend: Backend,
    pub(crate) nonces: Nonces,
    pub(crate) origin: DekOrigin,
    pub(crate) limits: LimitsInForce,
    pub(crate) clock: Clock,
    pub(crate) runtime: Option<Arc<dyn Runtime>>,
    pub(crate) observers: Observers,
}

pub(crate) struct DekSource {
    /// The cache of this process; the child of a fork puts its own in its place. First, so that it is dropped while the observers are
    /// there to be told.
    cache: ArcSwap<DekCache>,
    number: SourceNumber,
    keks: KekSet,
    options: SourceOptions,
    /// Shut down: nothing is asked any more.
    closed: AtomicBool,
    /// The providers have given up what they held.
    given_up: Arc<AtomicBool>,
    counters: Counters,
}

/// A source as envelopes and handles have it: when the last of them is gone, so are its DEKs, though a call on its way keeps the source
/// for its own time.
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
        }
    }
}

/// How often a call is begun again because its DEK was taken away between the look-up and the use, or its answer was revoked.
const ATTEMPTS: usize = 3;

/// How long a caller waits for the key service when the cached DEK is past its age and within the outage grace: a service that takes
/// longer than this, as none does that is well, is not felt.
const MAX_WAIT_WHILE_STALE: Duration = Duration::from_millis(250);

/// What differs between DEKs for reading and for writing.
pub(crate) trait Kind: 'static {
    type Dek: Leased + 'static;
    /// What is asked, without its caller.
    type Owned: Send + Sync + 'static;
    const HIT: Counter;
    const MISS: Counter;
    const LANE: Lane;

    fn age(dek: &Self::Dek, now: Moment) -> Age;

    fn remember(cache: &DekCache, dek: &Arc<Self::Dek>);

    fn find(cache: &DekCache, owned: &Self::Owned) -> Result<Option<Arc<Self::Dek>>, Error>;

    fn context(owned: &Self::Owned) -> &EncryptionContext;

    /// Shares the call of all who ask the same.
    fn join<F>(cache: &DekCache, now: Moment, request_key: RequestKey, ask: impl FnOnce() -> F) -> Waiter<Self::Dek>
    where
        F: Future<Output = Answer<Self::Dek>> + Send + 'static;

    /// Asks the KEKs.
    fn ask(
        source: &DekSource,
        cache: &DekCache,
        owned: &Self::Owned,
        bounds: CallBounds,
    ) -> impl Future<Output = Result<Obtained<Self::Dek>, Failure>> + Send;

    fn put(cache: &DekCache, obtained: &Obtained<Self::Dek>);

    /// Ends what the denial concerns, and tells.
    fn was_denied(source: &DekSource, cache: &DekCache, owned: &Self::Owned, failure: &Failure);
}

/// What a caller asks for.
pub(crate) trait DekRequest: Copy {
    type Kind: Kind;

    /// The cached DEK, whatever its age.
    fn find(&self, cache: &DekCache) -> Result<Option<Arc<DekOf<Self>>>, Error>;

    fn with_remembered<R>(
        &self,
        owner: MemoOwner,
        serves: impl FnOnce(&DekOf<Self>) -> bool,
        work: impl FnOnce(&Arc<DekOf<Self>>) -> R,
    ) -> Option<R>;

    /// Whether a cached DEK is the answer to this very question.
    fn keys_match(&self, lease: &Lease) -> KeysMatch;

    /// Whether it may be the turn of this question to renew a cached DEK.
    fn is_turn(&self, lease: &Lease, now: Moment) -> bool;

    /// Whether there is anything to ask with.
    fn can_be_asked(&self) -> bool;

    /// Whether the question reaches a KEK that vouched for a cached DEK.
    fn is_about(&self, lease: &Lease) -> bool;

    fn request_key(&self) -> RequestKey;

    fn to_owned(&self) -> Result<<Self::Kind as Kind>::Owned, Error>;
}

type DekOf<Q> = <<Q as DekRequest>::Kind as Kind>::Dek;

/// What a key service just vouched for.
pub(crate) struct Obtained<D> {
    dek: Arc<D>,
    /// The same keys, where a new DEK was made.
    for_reading_too: Option<Arc<ReadingDek>>,
}

/// A DEK that a look-up gave.
pub(crate) enum Held<D: Leased + 'static> {
    Cached(Arc<D>),
    /// The caller waited for it.
    Awaited(Arc<Pinned<D>>),
}

impl<D: Leased> Held<D> {
    /// For a handle, which is not waited for any more: it ends if its DEK had to make room.
    pub(crate) fn into_dek(self) -> Arc<D> {
        match self {
            Self::Cached(dek) => dek,
            Self::Awaited(pinned) => Arc::clone(&pinned),
        }
    }
}

impl<D: Leased> Deref for Held<D> {
    type Target = Arc<D>;

    fn deref(&self) -> &Arc<D> {
        match self {
            Self::Cached(dek) => dek,
            Self::Awaited(pinned) => pinned,
        }
    }
}

/// The right to renew a DEK, given back if whoever has it goes away.
struct Claim<D: Leased> {
    dek: Arc<D>,
    keys_match: KeysMatch,
    is_settled: bool,
}

impl<D: Leased> Claim<D> {
    fn on(dek: &Arc<D>, keys_match: KeysMatch) -> Option<Self> {
        dek.lease().claim_renewal(keys_match).then(|| Self { dek: dek.clone(), keys_match, is_settled: false })
    }

    fn settle(mut self, answer: Result<(), &Failure>) {
        self.is_settled = true;
        if let Err(failure) = answer {
            self.dek.lease().renewal_failed(self.keys_match, failure);
        }
    }
}

impl<D: Leased> Drop for Claim<D> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.dek.lease().give_back(self.keys_match);
        }
    }
}

/// Who makes a renewal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Renewer {
    /// The runtime, in the background.
    Runtime,
    /// The runtime; the caller where there is none, or none that works.
    RuntimeOrCaller,
}

impl DekSource {
    pub(crate) fn new(keks: KekSet, options: SourceOptions) -> Arc<Self> {
        let SourceOptions { limits, clock, runtime, .. } = &options;
        let number = SourceNumber::next();
        let cache = ArcSwap::from_pointee(DekCache::new(number, limits, clock.clone(), runtime.clone()));
        Arc::new(Self {
            cache,
            number,
            keks,
            options,
            closed: AtomicBool::new(false),
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
        // Its locks may be held by threads that the fork left behind: it is never dropped.
        std::mem::forget(cache);
        ours
    }

    pub(crate) fn emit(&self, event: &Event<'_>) {
        self.options.observers.emit(event);
    }

    // --- the look-up

    /// Runs `work` with the DEK, asking the key service where that is needed.
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
            // The second time round, an eviction in between takes nothing away any more.
            let held = self.held(request, taken_away > 0).await?;
            match work(&held) {
                // Others used it up: they got on, and the next one is for whoever is quick.
                Err(error) if error.kind() == ErrorKind::Exhausted => {}
                result => match unless_taken_away(result)? {
                    Some(result) => return Ok(result),
                    None => taken_away += 1,
                },
            }
        }
        Err(revoked_meanwhile())
    }

    /// Runs `work` with the cached DEK, if it serves, without waiting for anybody. One that is due is renewed in the background.
    ///
    /// # Errors
    /// The id is known to belong to another context.
    pub(crate) fn with_cached<Q: DekRequest, R>(
        self: &Arc<Self>,
        request: Q,
        mut work: impl FnMut(&DekOf<Q>) -> Result<R, Error>,
    ) -> Result<Option<R>, Error> {
        if let Some(result) = self.with_remembered(request, |dek| work(dek)) {
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

    /// The DEK, for a handle, and whether it is past its age.
    pub(crate) async fn get<Q: DekRequest>(self: &Arc<Self>, request: Q) -> Result<(Held<DekOf<Q>>, bool), Error> {
        let held = match self.with_remembered(request, Arc::clone) {
            Some(dek) => Held::Cached(dek),
            None => self.held(request, false).await?,
        };
        let stale = held.lease().is_stale();
        Ok((held, stale))
    }

    /// Runs `work` with the DEK that this thread used last, if it serves and nobody's turn has come to renew it.
    fn with_remembered<Q: DekRequest, R>(&self, request: Q, work: impl FnOnce(&Arc<DekOf<Q>>) -> R) -> Option<R> {
        let now = self.options.clock.now();
        let serves = |dek: &DekOf<Q>| {
            // That a DEK is nearly used up is left to the look-ups of the cache.
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

    /// The DEK, pinned if the caller wants that.
    async fn held<Q: DekRequest>(self: &Arc<Self>, request: Q, pinned: bool) -> Result<Held<DekOf<Q>>, Error> {
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
                        Err(failure) => self.serve_after_failure::<Q>(&cache, dek, failure).map(hold),
                    };
                }
                Decision::Ask | Decision::Refuse => {}
            }
        }
        let stale = cached.filter(|dek| Q::Kind::age(dek, now) == Age::Stale);
        self.counters.count(Q::Kind::MISS);
        let owned = Arc::new(request.to_owned()?);
        let answer = match self.ask::<Q::Kind>(&cache, request.request_key(), &owned, Q::Kind::LANE) {
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

    /// The cached DEK, if it still serves although this caller's question failed; else why it failed.
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

    /// Counts, and says now and then that a DEK serves past its age.
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
            self.emit(&Event::ServedStale { dek_id: &lease.id, context: &lease.context, kind });
        }
    }

    // --- asking

    /// Asks the key service, once for all who ask the same at the same time.
    fn ask<K: Kind>(
        self: &Arc<Self>,
        cache: &Arc<DekCache>,
        request_key: RequestKey,
        owned: &Arc<K::Owned>,
        lane: Lane,
    ) -> Result<Waiter<K::Dek>, Failure> {
        self.check_open()?;
        if let Some(refusal) = cache.refusal(&request_key) {
            return Err(refusal.into());
        }
        Ok(K::join(cache, self.options.clock.now(), request_key, || {
            let (source, cache, owned) = (self.clone(), cache.clone(), owned.clone());
            let bounds = self.keks.bounds(lane);
            async move {
                let answer = source.ask_until_current::<K>(&cache, request_key, &owned, bounds);
                cache.unless_closed(answer).await
            }
        }))
    }

    async fn ask_until_current<K: Kind>(
        &self,
        cache: &DekCache,
        request_key: RequestKey,
        owned: &K::Owned,
        bounds: CallBounds,
    ) -> Answer<K::Dek> {
        // The same question may have been answered between the caller's look-up and this call.
        if let Some(dek) = K::find(cache, owned)? {
            let pinned = Pinned::new(dek);
            if K::age(&pinned, self.options.clock.now()) == Age::Fresh {
                return Ok(Arc::new(pinned));
            }
        }
        if let Some(refusal) = cache.refusal(&request_key) {
            return Err(refusal.into());
        }
        let context = K::context(owned);
        for _ in 0..ATTEMPTS {
            let mark = cache.revocations.mark();
            // In this order: who shuts down closes first, and counts then.
            self.check_open()?;
            match K::ask(self, cache, owned, bounds).await {
                Ok(obtained) => {
                    // Before it is put where an eviction may find it.
                    let pinned = Arc::new(Pinned::new(obtained.dek.clone()));
                    // What is revoked from here on ends it, and what was revoked before is seen below. It is not at hand until then.
                    cache.look_after(&obtained.dek);
                    obtained.for_reading_too.iter().for_each(|dek| cache.look_after(dek));
                    if !cache.revocations.concern(mark, context, obtained.dek.lease().source_keks()) {
                        K::put(cache, &obtained);
                        return Ok(pinned);
                    }
                    end_all(obtained.for_reading_too.as_slice());
                    end_all(std::slice::from_ref(&obtained.dek));
                }
                // An operator revoked it meanwhile: what was asked before does not count.
                Err(_) if cache.revocations.concern(mark, context, &[]) => {}
                Err(failure) => {
                    match failure.error.kind() {
                        ErrorKind::Denied => {
                            cache.remember_refusal(request_key, &failure.error);
                            K::was_denied(self, cache, owned, &failure);
                        }
                        ErrorKind::Invalid => cache.remember_refusal(request_key, &failure.error),
                        _ => {}
                    }
                    return Err(failure);
                }
            }
        }
        Err(revoked_meanwhile().into())
    }

    /// Waits for an answer; while a cached DEK may still serve in an outage of who is asked, not for long. The call then goes on in the
    /// background.
    async fn answer<Q: DekRequest>(
        &self,
        call: Waiter<DekOf<Q>>,
        request: Q,
        stale: Option<&Arc<DekOf<Q>>>,
    ) -> Answer<DekOf<Q>> {
        let stale = stale.filter(|dek| dek.lease().may_assume_outage() && request.is_about(dek.lease()));
        let (Some(runtime), Some(dek)) = (&self.options.runtime, stale) else { return call.await };
        let lease = dek.lease();
        match select(call, runtime.sleep(MAX_WAIT_WHILE_STALE)).await {
            Either::Left((answer, _)) => answer,
            // Who vouched for it denied already, and only others keep the answer waiting.
            Either::Right(((), call)) if !lease.may_serve_stale() => call.await,
            Either::Right(((), call)) => {
                // Before anything can be heard of the call.
                lease.assume_outage();
                let dek = dek.clone();
                runtime.spawn(Box::pin(call.map(move |answer| {
                    if let Err(failure) = answer {
                        dek.lease().learn_from(&failure);
                    }
                })));
                Err(Error::new(ErrorKind::Unavailable, format!("no answer within {MAX_WAIT_WHILE_STALE:?}")).into())
            }
        }
    }

    // --- renewal

    /// Renews a DEK that is due, while it goes on serving. `None` if somebody else does; otherwise the renewal, for this caller to make.
    fn renew<Q: DekRequest>(
        self: &Arc<Self>,
        dek: &Arc<DekOf<Q>>,
        request: Q,
        renewer: Renewer,
    ) -> Option<BoxFuture<'static, Answer<DekOf<Q>>>> {
        let runtime = self.options.runtime.as_ref();
        if runtime.is_none() && renewer == Renewer::Runtime {
            return None;
        }
        let keys_match = request.keys_match(dek.lease());
        let claim = Claim::on(dek, keys_match)?;
        let owned = match request.to_owned() {
            Ok(owned) => Arc::new(owned),
            // Wrapped keys that are none: there is nothing to ask.
            Err(error) => {
                claim.settle(Err(&error.into()));
                return None;
            }
        };
        let request_key = request.request_key();
        let Some(runtime) = runtime else {
            return Some(Box::pin(self.clone().renewal::<Q::Kind>(claim, request_key, owned)));
        };
        let renewal = self.clone().renewal::<Q::Kind>(claim, request_key, owned.clone());
        runtime.spawn(Box::pin(renewal.map(drop)));
        // A runtime that has ended drops what it is given, and the claim comes back.
        let lease = dek.lease();
        if !lease.is_turn(keys_match, lease.now()) {
            return None;
        }
        let claim = Claim::on(dek, keys_match)?;
        match renewer {
            Renewer::RuntimeOrCaller => Some(Box::pin(self.clone().renewal::<Q::Kind>(claim, request_key, owned))),
            Renewer::Runtime => {
                claim.settle(Err(&Error::new(ErrorKind::Unavailable, "the runtime has ended").into()));
                None
            }
        }
    }

    async fn renewal<K: Kind>(
        self: Arc<Self>,
        claim: Claim<K::Dek>,
        request_key: RequestKey,
        owned: Arc<K::Owned>,
    ) -> Answer<K::Dek> {
        let dek = claim.dek.clone();
        // The reserved share is for what is in use, which wrapped keys that somebody added are not.
        let lane = if claim.keys_match == KeysMatch::Same { Lane::Reserved } else { K::LANE };
        let answer = match self.ask::<K>(&self.cache(), request_key, &owned, lane) {
            Ok(call) => call.await,
            Err(failure) => Err(failure),
        };
        claim.settle(answer.as_ref().map(drop));
        let Lease { id: dek_id, context, .. } = dek.lease();
        match &answer {
            Ok(_) => self.emit(&Event::Refreshed { dek_id, context }),
            Err(failure) => {
                let kind = failure.error.kind();
                self.emit(&Event::RenewalFailed { dek_id, context, kind });
            }
        }
        answer
    }

    fn message_key(&self, dek: &Dek, context: &EncryptionContext, suite: Suite) -> Result<Arc<AeadKey>, Error> {
        AeadKey::expand(self.options.backend, suite, &derive_message_key(dek, context, suite)?)
    }

    // --- writing

    /// Runs `work` with the right to seal one message of `len` bytes.
    pub(crate) async fn with_writing<R>(
        self: &Arc<Self>,
        context: &EncryptionContext,
        len: usize,
        mut work: impl FnMut(&Reservation<&WritingDek>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        check_len(len, max_len(&self.options.limits))?;
        let reserve = |dek: &WritingDek| Reservation::new(dek, len).and_then(|reservation| work(&reservation));
        self.with(WritingRequest { context }, reserve).await
    }

    // --- an operator's hand

    /// Ends every DEK that `kek_id` vouches for, and uses that KEK no more.
    pub(crate) fn revoke_kek(&self, kek_id: &KekId) {
        self.keks.revoke(kek_id);
        self.cache().revoke_kek(kek_id);
    }

    pub(crate) fn reinstate_kek(&self, kek_id: &KekId) {
        self.keks.reinstate(kek_id);
        self.cache().forget_refusals();
    }

    pub(crate) fn evict_context(&self, context: &EncryptionContext) {
        self.cache().evict_context(context);
    }

    pub(crate) fn evict_all(&self) {
        let cache = self.cache();
        cache.revoke_all();
        cache.forget_refusals();
    }

    /// Ends every DEK, every handle and every call, for good. What the providers hold at their key services is given up in the
    /// background, where there is a runtime.
    pub(crate) fn shut_down(&self) {
        if self.end() {
            let Some(runtime) = &self.options.runtime else { return };
            runtime.spawn(Box::pin(self.give_up()));
        }
    }

    /// As [`shut_down`](Self::shut_down), and waits for the providers.
    pub(crate) async fn close(&self) {
        // Also after a `shut_down`, whose runtime may be none or gone, and after a `close` whose caller went away: what a provider has
        // given up already it does not give up again.
        self.end();
        if !self.given_up.load(Ordering::SeqCst) {
            self.give_up().await;
        }
    }

    fn give_up(&self) -> impl Future<Output = ()> + Send + 'static {
        let (closing, given_up) = (futures_util::future::join_all(self.keks.closing()), self.given_up.clone());
        closing.map(move |_| given_up.store(true, Ordering::SeqCst))
    }

    /// `false` if it was done already.
    fn end(&self) -> bool {
        let is_first = !self.closed.swap(true, Ordering::SeqCst);
        let cache = self.cache();
        cache.close();
        cache.revoke_all();
        is_first
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        match self.closed.load(Ordering::SeqCst) {
            true => Err(shut_down()),
            false => Ok(()),
        }
    }

    /// Runs `work`, which asks KEKs about a DEK of this context, as a look-up would: a shut-down ends it, and what an operator revoked
    /// meanwhile makes it begin again.
    pub(crate) async fn unless_revoked<R, F>(
        &self,
        context: &EncryptionContext,
        work: impl Fn() -> F,
    ) -> Result<R, Error>
    where
        F: Future<Output = Result<R, Error>>,
    {
        let cache = self.cache();
        for _ in 0..ATTEMPTS {
            let mark = cache.revocations.mark();
            self.check_open()?;
            let answer = cache.unless_closed(work()).await;
            self.check_open()?;
            if !cache.revocations.may_concern(mark, context) {
                return answer;
            }
        }
        Err(revoked_meanwhile())
    }

    pub(crate) fn statistics(&self) -> Statistics {
        let of = |kek: &Arc<GuardedKek>| {
            let ((calls, failures), (breaker, targets)) = (kek.counts(), kek.breakers());
            let targets = targets.into_iter().map(|(name, breaker)| TargetStatistics { name, breaker }).collect();
            KekStatistics { kek_id: kek.id().clone(), breaker, targets, calls, failures }
        };
        let keks = self.keks.reading.iter().map(of).collect();
        self.counters.statistics(self.cache().counts(), keks, self.options.observers.failures())
    }
}

/// `None` if the DEK was taken away, or used up by others, between look-up and use.
fn unless_taken_away<R>(result: Result<R, Error>) -> Result<Option<R>, Error> {
    match result {
        Ok(result) => Ok(Some(result)),
        Err(error) if matches!(error.kind(), ErrorKind::Expired | ErrorKind::Exhausted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Revocations came faster than answers.
fn revoked_meanwhile() -> Error {
    Error::new(ErrorKind::Unavailable, "DEKs were revoked while the key service was asked")
}
