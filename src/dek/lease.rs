//! What reading and writing DEKs have in common: keys that can be used for a while, and destroyed at any time.
#![forbid(unsafe_code)]

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::LimitsInForce;
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::KekId;
use crate::memory::clock::{Clock, Moment};
use crate::memory::slot::Slot;
use crate::observer::Observers;
use crate::suite::{AeadKey, DekId, Suite, spread};
use crate::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use crate::sync::{Arc, Mutex, PoisonError};

/// How soon after a failed renewal the next is tried: a twentieth of `max_age`, within these. A service that is back is noticed that soon.
const SOONEST_RETRY: Duration = Duration::from_millis(10);
const LATEST_RETRY: Duration = Duration::from_secs(1);

/// The keys of a DEK in one suite, within their time.
pub(crate) struct Lease {
    pub(crate) context: EncryptionContext,
    pub(crate) id: DekId,
    pub(crate) suite: Suite,
    /// The exact question that this DEK is the answer to.
    pub(super) request: Request,
    /// The KEKs that vouch for it: the one that unwrapped it, or all that wrapped it.
    pub(super) kek_ids: Box<[KekId]>,
    /// Who wants to know of its end.
    pub(super) observers: Observers,
    key: Slot<AeadKey>,
    /// Set before the keys are taken away: no new use begins after it.
    ended: AtomicBool,
    announced: AtomicBool,
    refresh_at: Moment,
    expires: Moment,
    /// The end of its last possible use.
    gone: Moment,
    /// When it may be renewed, on the clock since boot; never, while somebody is at it.
    renewal: AtomicI64,
    retry_after: Duration,
    /// Why the last attempt to renew it failed, if the key service was in an outage.
    outage: Mutex<Option<ErrorKind>>,
    clock: Clock,
}

/// One exact question to the key services. What is remembered of its answer concerns nobody who asks another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Request([u8; 32]);

impl Request {
    /// To unwrap these wrapped keys to this DEK, in this context, for messages of this suite.
    pub(super) fn unwrap(context: &EncryptionContext, id: &DekId, suite: Suite, wrapped_keys: &[u8]) -> Self {
        let digest = Sha256::new_with_prefix(b"unwrap")
            .chain_update([suite.id()])
            .chain_update(context.digest())
            .chain_update(id.as_bytes())
            .chain_update(wrapped_keys);
        Self(digest.finalize().into())
    }

    /// To wrap a new DEK for this context.
    pub(super) fn wrap(context: &EncryptionContext) -> Self {
        Self(Sha256::new_with_prefix(b"wrap").chain_update(context.digest()).finalize().into())
    }
}

/// How far a DEK is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Age {
    Fresh,
    /// Serves, and should be renewed.
    Due,
    /// Serves only while the key service is unavailable.
    Grace,
    Gone,
}

/// What [`Lease::new`] takes over.
pub(super) struct Terms<'a> {
    pub(super) context: &'a EncryptionContext,
    pub(super) id: DekId,
    pub(super) suite: Suite,
    pub(super) request: Request,
    pub(super) kek_ids: Box<[KekId]>,
    pub(super) grace: Duration,
    pub(super) clock: &'a Clock,
    pub(super) observers: &'a Observers,
}

impl Lease {
    /// A lease that begins now.
    pub(super) fn new(terms: Terms<'_>, key: &Arc<AeadKey>, limits: &LimitsInForce) -> Self {
        let now = terms.clock.now();
        let expires = now.plus(limits.max_age);
        Self {
            context: terms.context.clone(),
            id: terms.id,
            suite: terms.suite,
            request: terms.request,
            kek_ids: terms.kek_ids,
            observers: terms.observers.clone(),
            key: Slot::new(key),
            ended: AtomicBool::new(false),
            announced: AtomicBool::new(false),
            // Up to a tenth earlier, so that what was made together does not fall due together.
            refresh_at: now.plus(limits.refresh_after.mul_f64(0.9 + 0.1 * spread())),
            expires,
            gone: expires.plus(terms.grace),
            renewal: AtomicI64::new(i64::MIN),
            retry_after: (limits.max_age / 20).clamp(SOONEST_RETRY, LATEST_RETRY),
            outage: Mutex::new(None),
            clock: terms.clock.clone(),
        }
    }

    pub(super) fn age(&self) -> Age {
        if self.ended.load(Ordering::Acquire) {
            return Age::Gone;
        }
        let now = self.clock.now();
        if !now.is_past(self.refresh_at) {
            Age::Fresh
        } else if !now.is_past(self.expires) {
            Age::Due
        } else if !now.is_past(self.gone) {
            Age::Grace
        } else {
            Age::Gone
        }
    }

    /// `true` for the one caller who is to renew it.
    pub(super) fn claim_renewal(&self) -> bool {
        let not_before = self.renewal.load(Ordering::Relaxed);
        self.clock.now().boot_nanos() >= not_before
            && self.renewal.compare_exchange(not_before, i64::MAX, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// A renewal failed: somebody else may try, but not at once. Until then an outage is known, and nobody has to wait to learn of it.
    pub(super) fn renewal_failed(&self, error: &Error) {
        *self.outage.lock().unwrap_or_else(PoisonError::into_inner) = error.is_retryable().then(|| error.kind());
        let later = self.clock.now().plus(self.retry_after).boot_nanos();
        self.renewal.store(later, Ordering::Release);
    }

    /// The outage that the last attempt to renew it met.
    pub(super) fn outage(&self) -> Option<ErrorKind> {
        *self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses the key, for a caller who has just looked at the age.
    pub(super) fn with_key<R>(&self, work: impl FnOnce(&AeadKey) -> R) -> Result<R, Error> {
        if self.ended.load(Ordering::Acquire) {
            return Err(expired());
        }
        self.key.with(work).ok_or_else(expired)
    }

    /// Whether a handle may still use it. One that was given out during an outage has the grace, others end with `max_age`.
    pub(super) fn check_handle(&self, given_in_grace: bool) -> Result<(), Error> {
        match self.age() {
            Age::Fresh | Age::Due => Ok(()),
            Age::Grace if given_in_grace => Ok(()),
            Age::Grace | Age::Gone => Err(expired()),
        }
    }

    pub(crate) fn is_in_grace(&self) -> bool {
        self.age() == Age::Grace
    }

    pub(super) fn is_first_to_announce_the_end(&self) -> bool {
        !self.announced.swap(true, Ordering::AcqRel)
    }

    pub(super) fn gone(&self) -> Moment {
        self.gone
    }

    /// Ends every use that has not begun, and destroys the keys as far as nobody is using them right now; `false` if somebody is:
    /// call again.
    pub(super) fn end(&self) -> bool {
        self.ended.store(true, Ordering::Release);
        self.key.destroy()
    }
}

pub(super) fn expired() -> Error {
    Error::new(ErrorKind::Expired, "")
}

pub(super) fn shut_down() -> Error {
    Error::new(ErrorKind::ShutDown, "")
}
