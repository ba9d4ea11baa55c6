//! Decides at each look-up whether the DEK at hand may serve, and when the KEKs are asked.
#![forbid(unsafe_code)]

use std::future::Future;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use futures_util::future::{Either, select};

use super::cache::{DekCache, Hit};
use super::flight::{Answer, Part};
use super::keks::{DekOrigin, Keks};
use super::lease::{Lease, Request, Terms, expired, shut_down};
use super::statistics::{Counted, Counters, KekStatistics, Statistics, TargetStatistics};
use super::wiper::{Mortal, end_now};
use super::writing::{check_len, max_len};
use super::{LimitsInForce, ReadingDek, Reservation, WritingDek};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::WrappedKeys;
use crate::kek::call::{Caller, Question, Share};
use crate::kek::{Dek, KekId};
use crate::memory::clock::Clock;
use crate::memory::fork;
use crate::observer::{Event, Observers};
use crate::runtime::Runtime;
use crate::suite::{AeadKey, Backend, DekId, Nonces, Suite, derive_dek_id, derive_message_key};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};

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
    keks: Keks,
    options: SourceOptions,
    /// The cache of this process; the child of a fork puts its own in its place.
    cache: ArcSwap<DekCache>,
    /// Shut down: nothing is asked any more.
    closed: AtomicBool,
    counters: Counters,
}

/// A DEK for reading that is asked for.
#[derive(Clone, Copy)]
struct Wanted {
    id: DekId,
    suite: Suite,
    request: Request,
}

/// How often a call is begun again because its DEK was taken away between the look-up and the use.
const ATTEMPTS: usize = 3;

/// How long a caller waits for the key service when the DEK at hand is past its age and within the outage grace: a service that takes
/// longer than this, as none does that is well, is not felt.
const PATIENCE_IN_GRACE: Duration = Duration::from_millis(250);

impl DekSource {
    pub(crate) fn new(keks: Keks, options: SourceOptions) -> Arc<Self> {
        let cache = ArcSwap::from_pointee(DekCache::new(&options.limits, options.clock.clone()));
        Arc::new(Self { keks, options, cache, closed: AtomicBool::new(false), counters: Counters::new() })
    }

    pub(crate) fn keks(&self) -> &Keks {
        &self.keks
    }

    fn cache(&self) -> Arc<DekCache> {
        let cache = self.cache.load_full();
        if cache.is_of_this_process() {
            return cache;
        }
        let ours = Arc::new(DekCache::new(&self.options.limits, self.options.clock.clone()));
        let before = self.cache.compare_and_swap(&cache, ours.clone());
        if !Arc::ptr_eq(&before, &cache) {
            return self.cache.load_full();
        }
        cache.abandon();
        // Its locks may be held by threads that the fork left behind: it is never dropped.
        std::mem::forget(cache);
        ours
    }

    pub(crate) fn tell(&self, event: &Event<'_>) {
        self.options.observers.tell(event);
    }

    // --- reading

    /// Runs `work` with the DEK for reading, if it is at hand, without asking anybody.
    ///
    /// # Errors
    /// The id is known to belong to another context.
    pub(crate) fn with_reading_at_hand<R>(
        &self,
        context: &EncryptionContext,
        id: &DekId,
        suite: Suite,
        work: &mut impl FnMut(&ReadingDek) -> Result<R, Error>,
    ) -> Result<Option<R>, Error> {
        let remembered = self.cache.load().with_remembered_reading(context, id, suite, |dek| work(dek));
        let result = match remembered {
            Some(result) => result,
            None => match self.cache().reading(context, id, suite) {
                Hit::Fresh(dek) | Hit::Due(dek) => work(&dek),
                Hit::OtherContext => return Err(Error::invalid()),
                Hit::Grace(_) | Hit::None => return Ok(None),
            },
        };
        self.counters.count(Counted::ReadingAtHand);
        at_hand(result)
    }

    /// Runs `work` with the DEK for reading, asking the key service where that is needed.
    pub(crate) async fn with_reading<R>(
        self: &Arc<Self>,
        context: &EncryptionContext,
        id: &DekId,
        suite: Suite,
        wrapped_keys: &[u8],
        mut work: impl FnMut(&ReadingDek) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let remembered = self.cache.load().with_remembered_reading(context, id, suite, |dek| work(dek));
        if let Some(result) = remembered
            && let Some(result) = at_hand(result)?
        {
            self.counters.count(Counted::ReadingAtHand);
            return Ok(result);
        }
        let mut taken_away = 0;
        while taken_away < ATTEMPTS {
            let dek = self.reading(context, id, suite, wrapped_keys).await?;
            match work(&dek) {
                // Others used it up: they got on, and the next one is for whoever is quick.
                Err(error) if error.kind() == ErrorKind::Exhausted => {}
                result => match at_hand(result)? {
                    Some(result) => return Ok(result),
                    None => taken_away += 1,
                },
            }
        }
        Err(expired())
    }

    /// The DEK for reading that this thread used last, if it is fresh: for a handle, without a word with other threads.
    pub(crate) fn fresh_reading(
        &self,
        context: &EncryptionContext,
        id: &DekId,
        suite: Suite,
    ) -> Option<Arc<ReadingDek>> {
        let dek = self.cache.load().with_remembered_reading(context, id, suite, Arc::clone)?;
        self.counters.count(Counted::ReadingAtHand);
        Some(dek)
    }

    /// The DEK for reading.
    pub(crate) async fn reading(
        self: &Arc<Self>,
        context: &EncryptionContext,
        id: &DekId,
        suite: Suite,
        wrapped_keys: &[u8],
    ) -> Result<Arc<ReadingDek>, Error> {
        let cache = self.cache();
        let mut hit = cache.reading(context, id, suite);
        let mut renewal = Ok(());
        if let Hit::Due(dek) | Hit::Grace(dek) = &hit
            && (matches!(hit, Hit::Due(_)) || dek.lease.outage().is_some())
        {
            // While it serves, or while an outage is known, nobody has to wait; whose turn it is asks again.
            renewal = self.renew_reading(dek, wrapped_keys).await;
            hit = cache.reading(context, id, suite);
        }
        let in_grace = match hit {
            Hit::Fresh(dek) | Hit::Due(dek) => {
                self.counters.count(Counted::ReadingAtHand);
                return Ok(dek);
            }
            Hit::Grace(dek) => match dek.lease.outage() {
                Some(kind) => return Ok(self.past_its_age(dek, kind, Counted::ReadingAtHand)),
                None => Some(dek),
            },
            Hit::OtherContext => return Err(Error::invalid()),
            Hit::None => None,
        };
        // It no longer serves, and why is known already.
        renewal?;
        let answer = match wrapped_keys {
            [] => Err(Error::new(ErrorKind::MissingWrappedKeys, id.to_string())),
            bytes => match self.unwrap(&cache, context, id, suite, bytes, Share::Ordinary) {
                Ok(call) => self.answer(call, in_grace.is_some()).await,
                Err(error) => Err(error),
            },
        };
        self.counters.count(Counted::ReadingAsked);
        match (answer, in_grace) {
            (Err(error), Some(dek)) if error.is_retryable() => {
                dek.lease.renewal_failed(&error);
                Ok(self.past_its_age(dek, error.kind(), Counted::ReadingAtHand))
            }
            (answer, _) => answer,
        }
    }

    /// Serves within the outage grace, and says so.
    fn past_its_age<D: Mortal>(&self, dek: Arc<D>, kind: ErrorKind, served: Counted) -> Arc<D> {
        let lease = dek.lease();
        self.counters.count(served);
        self.counters.count(Counted::ServedPastAge);
        self.tell(&Event::ServedPastAge { dek_id: &lease.id, context: &lease.context, kind });
        dek
    }

    /// Asks the key service, once for all who ask the same at the same time.
    fn unwrap(
        self: &Arc<Self>,
        cache: &Arc<DekCache>,
        context: &EncryptionContext,
        id: &DekId,
        suite: Suite,
        wrapped_keys: &[u8],
        share: Share,
    ) -> Result<Part<ReadingDek>, Error> {
        self.check_open()?;
        let request = Request::unwrap(context, id, suite, wrapped_keys);
        if let Some(denial) = cache.denial(&request) {
            return Err(denial);
        }
        let keys = WrappedKeys::try_from(wrapped_keys)?;
        Ok(cache.flights.reading(self.options.clock.now(), request, || {
            let (source, cache, context) = (self.clone(), cache.clone(), context.clone());
            let wanted = Wanted { id: *id, suite, request };
            let question = self.keks.question(share);
            async move {
                let answer = source.ask_to_unwrap(&cache, question, &context, wanted, &keys);
                cache.unless_closed(answer).await
            }
        }))
    }

    async fn ask_to_unwrap(
        &self,
        cache: &DekCache,
        question: Question,
        context: &EncryptionContext,
        Wanted { id, suite, request }: Wanted,
        keys: &WrappedKeys,
    ) -> Answer<ReadingDek> {
        // The same question may have been answered between the caller's look-up and this call.
        if let Hit::Fresh(dek) = cache.reading(context, &id, suite) {
            return Ok(dek);
        }
        if let Some(denial) = cache.denial(&request) {
            return Err(denial);
        }
        for _ in 0..ATTEMPTS {
            let epoch = cache.epoch();
            // In this order: who shuts down closes first, and counts then.
            self.check_open()?;
            match self.keks.unwrap_any(question, context, &id, keys).await {
                // An operator revoked something meanwhile: what was asked before does not count.
                _ if cache.epoch() != epoch => {}
                Ok((dek, kek_id)) => {
                    let key = self.message_key(&dek, context, suite)?;
                    let dek = self.new_reading(context, id, suite, request, Box::new([kek_id]), &key);
                    drop(key);
                    cache.put_reading(&dek);
                    if cache.epoch() == epoch {
                        return Ok(dek);
                    }
                    end_now(&*dek);
                }
                Err(error) => {
                    if error.kind() == ErrorKind::Denied {
                        cache.remember_denial(request, &error);
                        cache.end_reading(&id, suite, request);
                        self.tell(&Event::Denied { dek_id: Some(&id), context });
                    }
                    return Err(error);
                }
            }
        }
        Err(overtaken())
    }

    fn new_reading(
        &self,
        context: &EncryptionContext,
        id: DekId,
        suite: Suite,
        request: Request,
        kek_ids: Box<[KekId]>,
        key: &Arc<AeadKey>,
    ) -> Arc<ReadingDek> {
        let options = &self.options;
        let SourceOptions { limits, clock, observers, .. } = options;
        let grace = limits.outage_grace_reading;
        observers.tell_of_unprotected_memory();
        let terms = Terms { context, id, suite, request, kek_ids, grace, clock, observers };
        Arc::new(ReadingDek::new(Lease::new(terms, key, limits), limits))
    }

    /// Renews a DEK that is due, while it goes on serving: in the background where there is a runtime, else by this caller, who
    /// then learns why it failed.
    async fn renew_reading(self: &Arc<Self>, dek: &Arc<ReadingDek>, wrapped_keys: &[u8]) -> Result<(), Error> {
        // Only the question that it is the answer to renews it.
        let lease = &dek.lease;
        let same = Request::unwrap(&lease.context, &lease.id, lease.suite, wrapped_keys) == lease.request;
        if !same || !lease.claim_renewal() {
            return Ok(());
        }
        let (source, dek, keys) = (self.clone(), dek.clone(), wrapped_keys.to_vec());
        self.in_background(async move {
            let (cache, lease) = (source.cache(), &dek.lease);
            let answer = match source.unwrap(&cache, &lease.context, &lease.id, lease.suite, &keys, Share::Reserved) {
                Ok(call) => call.await.map(|_| ()),
                Err(error) => Err(error),
            };
            source.renewed(lease, answer)
        })
        .await
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
        let remembered = self.cache.load().with_remembered_writing(context, |dek| {
            Reservation::new(&**dek, len).and_then(|reservation| work(&reservation))
        });
        if let Some(result) = remembered
            && let Some(result) = at_hand(result)?
        {
            self.counters.count(Counted::WritingAtHand);
            return Ok(result);
        }
        let mut taken_away = 0;
        while taken_away < ATTEMPTS {
            let dek = self.writing(context).await?;
            let result = match Reservation::new(&*dek, len) {
                Ok(reservation) => work(&reservation),
                // Others used it up: they got on, and the next DEK is for whoever is quick.
                Err(error) if error.kind() == ErrorKind::Exhausted => continue,
                Err(error) => Err(error),
            };
            match at_hand(result)? {
                Some(result) => return Ok(result),
                None => taken_away += 1,
            }
        }
        Err(expired())
    }

    /// The DEK for writing that this thread used last, if it is fresh.
    pub(crate) fn fresh_writing(&self, context: &EncryptionContext) -> Option<Arc<WritingDek>> {
        let dek = self.cache.load().with_remembered_writing(context, Arc::clone)?;
        self.counters.count(Counted::WritingAtHand);
        Some(dek)
    }

    /// The DEK for writing.
    pub(crate) async fn writing(self: &Arc<Self>, context: &EncryptionContext) -> Result<Arc<WritingDek>, Error> {
        let cache = self.cache();
        let mut hit = cache.writing(context);
        let mut renewal = Ok(());
        if let Hit::Due(dek) | Hit::Grace(dek) = &hit
            && (matches!(hit, Hit::Due(_)) || dek.lease.outage().is_some())
        {
            renewal = self.renew_writing(dek).await;
            hit = cache.writing(context);
        }
        let in_grace = match hit {
            Hit::Fresh(dek) | Hit::Due(dek) => {
                self.counters.count(Counted::WritingAtHand);
                return Ok(dek);
            }
            Hit::Grace(dek) => match dek.lease.outage() {
                Some(kind) => return Ok(self.past_its_age(dek, kind, Counted::WritingAtHand)),
                None => Some(dek),
            },
            Hit::OtherContext | Hit::None => None,
        };
        renewal?;
        self.counters.count(Counted::WritingAsked);
        let answer = self.answer(self.wrap(&cache, context)?, in_grace.is_some()).await;
        match (answer, in_grace) {
            (Err(error), Some(dek)) if error.is_retryable() => {
                dek.lease.renewal_failed(&error);
                Ok(self.past_its_age(dek, error.kind(), Counted::WritingAtHand))
            }
            (answer, _) => answer,
        }
    }

    /// Makes a DEK, once for all who want one for this context at the same time.
    fn wrap(self: &Arc<Self>, cache: &Arc<DekCache>, context: &EncryptionContext) -> Result<Part<WritingDek>, Error> {
        self.check_open()?;
        let request = Request::wrap(context);
        if let Some(denial) = cache.denial(&request) {
            return Err(denial);
        }
        Ok(cache.flights.writing(self.options.clock.now(), request, || {
            let (source, cache, context) = (self.clone(), cache.clone(), context.clone());
            let question = self.keks.question(Share::Reserved);
            async move {
                let answer = source.ask_to_wrap(&cache, question, &context, request);
                cache.unless_closed(answer).await
            }
        }))
    }

    async fn ask_to_wrap(
        &self,
        cache: &DekCache,
        question: Question,
        context: &EncryptionContext,
        request: Request,
    ) -> Answer<WritingDek> {
        if let Hit::Fresh(dek) = cache.writing(context) {
            return Ok(dek);
        }
        if let Some(denial) = cache.denial(&request) {
            return Err(denial);
        }
        for _ in 0..ATTEMPTS {
            let (epoch, generation) = (cache.epoch(), fork::generation());
            self.check_open()?;
            match self.keks.make(question, context, self.options.origin).await {
                _ if cache.epoch() != epoch => {}
                Ok((dek, wrapped_keys)) => {
                    let (reading, writing) = self.new_pair(context, &dek, wrapped_keys, request, generation)?;
                    drop(dek);
                    self.tell(&Event::Made { dek_id: &writing.lease.id, context, kek_ids: &writing.lease.kek_ids });
                    // What this process writes it can read without asking, no longer than anything else.
                    cache.put_reading(&reading);
                    cache.put_writing(&writing);
                    if cache.epoch() == epoch {
                        return Ok(writing);
                    }
                    end_now(&*reading);
                    end_now(&*writing);
                }
                Err(error) => {
                    if error.kind() == ErrorKind::Denied {
                        cache.remember_denial(request, &error);
                        cache.end_writing(context, request);
                        self.tell(&Event::Denied { dek_id: None, context });
                    }
                    return Err(error);
                }
            }
        }
        Err(overtaken())
    }

    fn new_pair(
        &self,
        context: &EncryptionContext,
        dek: &Dek,
        wrapped_keys: WrappedKeys,
        request: Request,
        generation: u64,
    ) -> Result<(Arc<ReadingDek>, Arc<WritingDek>), Error> {
        let SourceOptions { suite, limits, nonces, clock, observers, .. } = &self.options;
        let id = derive_dek_id(dek, context)?;
        let key = self.message_key(dek, context, *suite)?;
        let kek_ids: Box<[KekId]> = wrapped_keys.entries().iter().map(|entry| entry.kek_id().clone()).collect();
        let read = Request::unwrap(context, &id, *suite, wrapped_keys.as_bytes());
        let reading = self.new_reading(context, id, *suite, read, kek_ids.clone(), &key);
        let grace = limits.outage_grace_writing;
        let terms = Terms { context, id, suite: *suite, request, kek_ids, grace, clock, observers };
        let lease = Lease::new(terms, &key, limits);
        let writing = WritingDek::new(lease, wrapped_keys, *nonces, limits, generation)?;
        Ok((reading, Arc::new(writing)))
    }

    /// Makes the next DEK while this one goes on serving.
    async fn renew_writing(self: &Arc<Self>, dek: &Arc<WritingDek>) -> Result<(), Error> {
        if !dek.lease.claim_renewal() {
            return Ok(());
        }
        let (source, dek) = (self.clone(), dek.clone());
        self.in_background(async move {
            let answer = match source.wrap(&source.cache(), &dek.lease.context) {
                Ok(call) => call.await.map(|_| ()),
                Err(error) => Err(error),
            };
            source.renewed(&dek.lease, answer)
        })
        .await
    }

    // --- both

    /// Waits for an answer; while a DEK at hand may still serve in an outage, not for long. The call then goes on in the background.
    async fn answer<D>(&self, call: Part<D>, in_grace: bool) -> Answer<D>
    where
        D: Send + Sync + 'static,
    {
        let Some(runtime) = self.options.runtime.as_ref().filter(|_| in_grace) else { return call.await };
        match select(call, runtime.sleep(PATIENCE_IN_GRACE)).await {
            Either::Left((answer, _)) => answer,
            Either::Right(((), call)) => {
                runtime.spawn(Box::pin(call.map(drop)));
                Err(Error::new(ErrorKind::Unavailable, format!("no answer within {PATIENCE_IN_GRACE:?}")))
            }
        }
    }

    fn message_key(&self, dek: &Dek, context: &EncryptionContext, suite: Suite) -> Result<Arc<AeadKey>, Error> {
        AeadKey::expand(self.options.backend, suite, &derive_message_key(dek, context, suite)?)
    }

    async fn in_background(
        &self,
        renewal: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) -> Result<(), Error> {
        match &self.options.runtime {
            Some(runtime) => {
                runtime.spawn(Box::pin(renewal.map(drop)));
                Ok(())
            }
            // Boxed, so that the futures of those who never come here stay small.
            None => Box::pin(renewal).await,
        }
    }

    fn renewed(&self, lease: &Lease, answer: Result<(), Error>) -> Result<(), Error> {
        let (dek_id, context) = (&lease.id, &lease.context);
        match &answer {
            Ok(()) => self.tell(&Event::Refreshed { dek_id, context }),
            Err(error) => {
                self.tell(&Event::RenewalFailed { dek_id, context, kind: error.kind() });
                lease.renewal_failed(error);
            }
        }
        answer
    }

    // --- an operator's hand

    /// Ends every DEK that `kek_id` vouches for, and uses that KEK no more.
    pub(crate) fn revoke_kek(&self, kek_id: &KekId) {
        self.keks.revoke(kek_id);
        self.cache().revoke_where(|lease| lease.kek_ids.contains(kek_id));
    }

    pub(crate) fn reinstate_kek(&self, kek_id: &KekId) {
        self.keks.reinstate(kek_id);
        self.cache().forget_denials();
    }

    pub(crate) fn end_context(&self, context: &EncryptionContext) {
        self.cache().revoke_where(|lease| lease.context == *context);
    }

    pub(crate) fn clear(&self) {
        let cache = self.cache();
        cache.revoke_where(|_| true);
        cache.forget_denials();
    }

    /// Ends every DEK, every handle and every call, for good.
    pub(crate) fn shut_down(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let cache = self.cache();
        cache.close();
        cache.revoke_where(|_| true);
    }

    pub(crate) fn check_open(&self) -> Result<(), Error> {
        match self.closed.load(Ordering::SeqCst) {
            true => Err(shut_down()),
            false => Ok(()),
        }
    }

    pub(crate) fn statistics(&self) -> Statistics {
        let of = |kek: &Arc<Caller>| {
            let ((calls, failures), (breaker, targets)) = (kek.counts(), kek.breakers());
            let targets = targets.into_iter().map(|(name, breaker)| TargetStatistics { name, breaker }).collect();
            KekStatistics { kek_id: kek.id().clone(), breaker, targets, calls, failures }
        };
        self.counters.statistics(self.cache().counts(), self.keks.reading.iter().map(of).collect())
    }
}

/// `None` if the DEK was taken away, or used up by others, between look-up and use: then it is not at hand.
fn at_hand<R>(result: Result<R, Error>) -> Result<Option<R>, Error> {
    match result {
        Ok(result) => Ok(Some(result)),
        Err(error) if matches!(error.kind(), ErrorKind::Expired | ErrorKind::Exhausted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Revocations came faster than answers.
fn overtaken() -> Error {
    Error::new(ErrorKind::Unavailable, "DEKs were revoked while the key service was asked")
}
