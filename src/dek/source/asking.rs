//! Asks the key services: once for all callers with the same request, and again if the response was
//! revoked meanwhile.
#![forbid(unsafe_code)]

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, select};

use super::super::cache::DekCache;
use super::super::contexts::check_of_no_domain;
use super::super::flight::{Answer, Waiter};
use super::super::lease::{Age, Lease, RequestKey};
use super::super::pinned::Pinned;
use super::super::registry::{Leased, end_all};
use super::super::statistics::Counter;
use super::kind::{DekOf, DekRequest, Kind};
use super::{ATTEMPTS, DekSource, revoked_meanwhile};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::kek::call::{CallBounds, Lane};
use crate::kek::set::Failure;
use crate::observe::Event;
use crate::sync::Arc;

/// How long a caller waits for the key service while a stale DEK may serve. A healthy service
/// answers within this time, and a slower one does not delay callers any longer.
const MAX_WAIT_WHILE_STALE: Duration = Duration::from_millis(250);

impl DekSource {
    /// Asks the key service, once for all concurrent callers with the same request.
    pub(super) fn ask<K: Kind>(
        self: &Arc<Self>,
        cache: &Arc<DekCache>,
        request_key: RequestKey,
        owned: &Arc<K::Owned>,
        lane: Lane,
    ) -> Result<Waiter<Answer<K::Dek>>, Failure> {
        self.check_open()?;
        self.check_context(K::context(owned))?;
        if let Some(refusal) = cache.refusal(&request_key) {
            return Err(refusal.into());
        }
        let mut is_first = false;
        let waiter = K::join(cache, self.options.clock.now(), request_key, || {
            is_first = true;
            let (source, cache, owned) = (self.clone(), cache.clone(), owned.clone());
            let bounds = self.keks.bounds(lane);
            async move {
                let answer = source.ask_until_current::<K>(&cache, request_key, &owned, bounds);
                cache.unless_closed(answer).await
            }
        });
        if !is_first {
            self.counters.count(Counter::CallShared);
        }
        Ok(waiter)
    }

    /// Refuses contexts that are not this source's: those with the library's reserved names, which
    /// a key store returns, and those of other domains.
    ///
    /// A DEK is cached only after this check of its context, so a look-up needs no check.
    pub(super) fn check_context(&self, context: &EncryptionContext) -> Result<(), Error> {
        match (&self.options.branch, &self.options.domain) {
            (Some(_), _) => Ok(()),
            (None, Some(domain)) => domain.check(context),
            (None, None) => check_of_no_domain(context),
        }
    }

    /// Whether the context is of this source's domain, or of no domain if the source has none.
    pub(crate) fn is_of_domain(&self, context: &EncryptionContext) -> bool {
        context.domain() == self.options.domain.as_ref().map(|domain| domain.name())
    }

    async fn ask_until_current<K: Kind>(
        &self,
        cache: &DekCache,
        request_key: RequestKey,
        owned: &K::Owned,
        bounds: CallBounds,
    ) -> Answer<K::Dek> {
        // The same request may have been answered between the caller's look-up and this call.
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
            // Order matters: shut-down closes first and then takes its mark.
            self.check_open()?;
            match K::ask(self, cache, owned, bounds).await {
                Ok(obtained) => {
                    // Pinned before an eviction can find it.
                    let pinned = Arc::new(Pinned::new(obtained.dek.clone()));
                    // A revocation from here on ends it, and an earlier one is seen below. It is
                    // not cached until then.
                    if !obtained.goes_on {
                        cache.look_after(&obtained.dek);
                    }
                    obtained.for_reading_too.iter().for_each(|dek| cache.look_after(dek));
                    let lease = obtained.dek.lease();
                    let is_revoked = cache.revocations.concern(mark, context, lease.all_kek_ids());
                    if !is_revoked && !lease.has_revoked_parent() {
                        // A branch key that was evicted meanwhile serves the waiting callers, and
                        // so does everything derived through it.
                        if lease.is_orphan() {
                            lease.evict();
                            obtained.for_reading_too.iter().for_each(|dek| _ = dek.lease.evict());
                        }
                        K::put(cache, &obtained);
                        if obtained.goes_on {
                            let Lease { told_id: dek_id, context, .. } = pinned.lease();
                            self.emit(&Event::Refreshed { dek_id, context });
                        }
                        return Ok(pinned);
                    }
                    end_all(obtained.for_reading_too.as_slice());
                    end_all(std::slice::from_ref(&obtained.dek));
                }
                // An operator revoked it meanwhile, so the response does not count.
                Err(_) if cache.revocations.concern(mark, context, []) => {}
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

    /// Waits for a response. If a stale DEK may serve in an outage of the KEKs being asked, it
    /// waits only briefly, and the call continues in the background.
    pub(super) async fn answer<Q: DekRequest>(
        &self,
        call: Waiter<Answer<DekOf<Q>>>,
        request: Q,
        stale: Option<&Arc<DekOf<Q>>>,
    ) -> Answer<DekOf<Q>> {
        let stale =
            stale.filter(|dek| dek.lease().may_assume_outage() && request.is_about(dek.lease()));
        let (Some(runtime), Some(dek)) = (&self.options.runtime, stale) else { return call.await };
        let lease = dek.lease();
        match select(call, runtime.sleep(MAX_WAIT_WHILE_STALE)).await {
            Either::Left((answer, _)) => answer,
            // A source KEK has already denied, and only other KEKs delay the response.
            Either::Right(((), call)) if !lease.may_serve_stale() => call.await,
            Either::Right(((), call)) => {
                // Before the call can report anything.
                lease.assume_outage();
                let dek = dek.clone();
                runtime.spawn(Box::pin(call.map(move |answer| {
                    if let Err(failure) = answer {
                        dek.lease().learn_from(&failure);
                    }
                })));
                Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("no answer within {MAX_WAIT_WHILE_STALE:?}"),
                )
                .into())
            }
        }
    }
}
