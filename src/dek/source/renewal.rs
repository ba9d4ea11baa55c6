//! Renews a cached DEK while it remains in use.
#![forbid(unsafe_code)]

use futures_util::FutureExt;

use super::super::flight::Answer;
use super::super::lease::{KeysMatch, Lease, RequestKey};
use super::super::registry::Leased;
use super::DekSource;
use super::kind::{DekOf, DekRequest, Kind};
use crate::error::{Error, ErrorKind};
use crate::kek::BoxFuture;
use crate::kek::call::Lane;
use crate::kek::set::Failure;
use crate::observe::Event;
use crate::sync::Arc;

/// The right to renew a DEK, given back if its owner is dropped.
struct Claim<D: Leased> {
    dek: Arc<D>,
    keys_match: KeysMatch,
    is_settled: bool,
}

impl<D: Leased> Claim<D> {
    fn on(dek: &Arc<D>, keys_match: KeysMatch) -> Option<Self> {
        dek.lease().claim_renewal(keys_match).then(|| Self {
            dek: dek.clone(),
            keys_match,
            is_settled: false,
        })
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

/// Who performs a renewal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Renewer {
    /// The runtime, in the background.
    Runtime,
    /// The runtime, or the caller if there is no runtime or it has ended.
    RuntimeOrCaller,
}

impl DekSource {
    /// Renews a DEK that is due while it remains in use. Returns `None` if another request renews
    /// it. Otherwise returns the renewal, for this caller to perform.
    pub(super) fn renew<Q: DekRequest>(
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
            // The wrapped keys are malformed, so no service can be asked.
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
        // A runtime that has ended drops the task, which gives back the claim.
        let lease = dek.lease();
        if !lease.is_turn(keys_match, lease.now()) {
            return None;
        }
        let claim = Claim::on(dek, keys_match)?;
        match renewer {
            Renewer::RuntimeOrCaller => {
                Some(Box::pin(self.clone().renewal::<Q::Kind>(claim, request_key, owned)))
            }
            Renewer::Runtime => {
                claim.settle(Err(
                    &Error::new(ErrorKind::Unavailable, "the runtime has ended").into()
                ));
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
        // The reserved lane is for DEKs in use. Wrapped keys that an attacker may have added do not
        // qualify.
        let lane = if claim.keys_match == KeysMatch::Same { Lane::Reserved } else { K::LANE };
        let answer = match self.ask::<K>(&self.cache(), request_key, &owned, lane) {
            Ok(call) => call.await,
            Err(failure) => Err(failure),
        };
        claim.settle(answer.as_ref().map(drop));
        let Lease { told_id: dek_id, context, .. } = dek.lease();
        match &answer {
            // The call has already reported, once for all waiting callers, that the same DEK
            // continues.
            Ok(renewed) if self.options.branch.is_none() && K::goes_on(&dek, renewed) => {}
            Ok(_) => self.emit(&Event::Refreshed { dek_id, context }),
            Err(failure) => {
                let kind = failure.error.kind();
                self.emit(&Event::RenewalFailed { dek_id, context, kind });
            }
        }
        answer
    }
}
