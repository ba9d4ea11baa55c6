//! What reading and writing DEKs have in common: keys that can be used for a while, and destroyed at any time.
#![forbid(unsafe_code)]

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::LimitsInForce;
use super::registry::Registration;
use crate::clock::{Clock, Moment};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::{KekId, WrappedDek, WrappedKeys};
use crate::kek::set::{Failure, SourceKek};
use crate::observe::WeakObservers;
use crate::suite::{AeadKey, DekId, Suite, jitter};
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use crate::sync::slot::Slot;
use crate::sync::{Arc, Mutex, PoisonError};

/// How soon after a failed renewal the next is tried: a twentieth of `max_age`, within these. A service that is back is noticed that soon.
const SOONEST_RETRY: Duration = Duration::from_millis(10);
const LATEST_RETRY: Duration = Duration::from_secs(1);
/// How long the callers that waited for an answer may use it once, if the answer came past its own end.
const LATE_RESPONSE_USE: Duration = Duration::from_secs(1);

const NEVER: i64 = i64::MIN;

/// The keys of a DEK in one suite, within their time.
pub(crate) struct Lease {
    pub(crate) context: EncryptionContext,
    pub(crate) id: DekId,
    pub(crate) suite: Suite,
    /// The wrapped keys that it came by, or was wrapped to.
    wrapped_keys: WrappedKeys,
    /// Who vouches for it: the KEK that unwrapped it, or all that wrapped it.
    source_keks: Box<[SourceKek]>,
    /// Who wants to know of its end. Not kept alive by it: a thread may remember a DEK for longer than the envelope lives.
    pub(super) observers: WeakObservers,
    key: Slot<AeadKey>,
    /// Set before the keys are taken away: no new use begins after it.
    ended: AtomicBool,
    /// It had to make room: only those who waited for it may still use it.
    evicted: AtomicBool,
    /// How many answers that callers wait for hold it.
    pins: AtomicUsize,
    announced: AtomicBool,
    registration: Mutex<Option<Registration>>,
    refresh_at: Moment,
    expires: Moment,
    /// The end of its last possible use.
    wipe_at: Moment,
    /// From when on it may be renewed, on the clock since boot: by the question it is the answer to, and by any other.
    renewal: [AtomicI64; 2],
    retry_after: Duration,
    /// An outage of who vouches for it is known until then, on the clock since boot.
    outage_until: AtomicI64,
    outage_is_throttling: AtomicBool,
    /// An outage was assumed, and nothing has been heard since of who vouches for it.
    is_assumed: AtomicBool,
    /// Who vouched for it denies: an outage does not prolong it any more.
    stale_forbidden: AtomicBool,
    /// How long a claim to renew it, and the knowledge of an outage, last at most.
    known_for: Duration,
    stale_reported: AtomicI64,
    clock: Clock,
}

/// One exact question to the key services. What is remembered of its answer concerns nobody who asks another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestKey([u8; 32]);

impl RequestKey {
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
pub(crate) enum Age {
    Fresh,
    /// Serves, and should be renewed.
    Due,
    /// Serves only while the key service is unavailable.
    Stale,
    Ended,
}

/// Whose question could renew a DEK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeysMatch {
    /// The one that it is the answer to.
    Same,
    /// One by other wrapped keys of the same DEK.
    Other,
}

/// What [`Lease::new`] takes over.
pub(super) struct Terms<'a> {
    pub(super) context: &'a EncryptionContext,
    pub(super) id: DekId,
    pub(super) suite: Suite,
    pub(super) wrapped_keys: WrappedKeys,
    pub(super) source_keks: Box<[SourceKek]>,
    /// From before the key service was asked.
    pub(super) asked: Moment,
    pub(super) stale_if_error: Duration,
    /// The longest that one question may take.
    pub(super) deadline: Duration,
    pub(super) clock: &'a Clock,
    pub(super) observers: WeakObservers,
}

impl Lease {
    pub(super) fn new(terms: Terms<'_>, key: &Arc<AeadKey>, limits: &LimitsInForce) -> Self {
        let Terms { asked, .. } = terms;
        let expires = asked.plus(limits.max_age);
        let retry_after = (limits.max_age / 20).clamp(SOONEST_RETRY, LATEST_RETRY);
        let now = terms.clock.now();
        let (mut wipe_at, late) = (expires.plus(terms.stale_if_error), now.is_past(expires));
        if late {
            wipe_at = now.plus(LATE_RESPONSE_USE.min(limits.max_age));
        }
        Self {
            context: terms.context.clone(),
            id: terms.id,
            suite: terms.suite,
            wrapped_keys: terms.wrapped_keys,
            source_keks: terms.source_keks,
            observers: terms.observers,
            key: Slot::new(key),
            ended: AtomicBool::new(false),
            evicted: AtomicBool::new(late),
            pins: AtomicUsize::new(0),
            announced: AtomicBool::new(false),
            registration: Mutex::new(None),
            // Up to a tenth earlier, so that what was made together does not fall due together.
            refresh_at: asked.plus(limits.refresh_after.mul_f64(0.9 + 0.1 * jitter())),
            expires,
            wipe_at,
            renewal: [AtomicI64::new(NEVER), AtomicI64::new(NEVER)],
            retry_after,
            outage_until: AtomicI64::new(NEVER),
            outage_is_throttling: AtomicBool::new(false),
            is_assumed: AtomicBool::new(false),
            stale_forbidden: AtomicBool::new(false),
            known_for: retry_after.saturating_add(terms.deadline),
            stale_reported: AtomicI64::new(NEVER),
            clock: terms.clock.clone(),
        }
    }

    #[inline]
    pub(super) fn age(&self, now: Moment) -> Age {
        if self.ended.load(Ordering::Acquire) || self.evicted.load(Ordering::Acquire) {
            return Age::Ended;
        }
        if !now.is_past(self.refresh_at) {
            Age::Fresh
        } else if !now.is_past(self.expires) {
            Age::Due
        } else if !now.is_past(self.wipe_at) {
            Age::Stale
        } else {
            Age::Ended
        }
    }

    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// The answer came past its own end: it is for those who waited, and for nobody else.
    pub(super) fn is_late(&self) -> bool {
        self.evicted.load(Ordering::Acquire)
    }

    // --- renewal

    /// Whether somebody may renew it now.
    pub(super) fn is_renewal_open(&self, now: Moment) -> bool {
        self.renewal.iter().any(|open_from| now.boot_nanos() >= open_from.load(Ordering::Relaxed))
    }

    /// Whose question these wrapped keys are. Compared, not hashed.
    pub(super) fn keys_match(&self, wrapped_keys: &[u8]) -> KeysMatch {
        if self.wrapped_keys.as_bytes() == wrapped_keys { KeysMatch::Same } else { KeysMatch::Other }
    }

    /// Whether it is the turn of this question to renew it.
    pub(super) fn is_turn(&self, keys_match: KeysMatch, now: Moment) -> bool {
        let [same, other] = &self.renewal;
        let open_from = if keys_match == KeysMatch::Same { same } else { other };
        now.boot_nanos() >= open_from.load(Ordering::Relaxed)
    }

    /// The right to renew it, for one caller at a time and for no longer than a question may take. The own question keeps the others
    /// from asking too; another one does not keep the own one, so that no list that somebody forged stands in its way.
    pub(super) fn claim_renewal(&self, keys_match: KeysMatch) -> bool {
        let now = self.clock.now();
        let [same, other] = &self.renewal;
        let mine = if keys_match == KeysMatch::Same { same } else { other };
        let open_from = mine.load(Ordering::Relaxed);
        let until = now.plus(self.known_for).boot_nanos();
        if now.boot_nanos() < open_from
            || mine.compare_exchange(open_from, until, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            return false;
        }
        if keys_match == KeysMatch::Same {
            other.fetch_max(until, Ordering::AcqRel);
        }
        true
    }

    /// Whoever had claimed the renewal went away: somebody else may try at once.
    pub(super) fn give_back(&self, keys_match: KeysMatch) {
        self.open_renewal(keys_match, NEVER);
    }

    fn open_renewal(&self, keys_match: KeysMatch, from: i64) {
        let [same, other] = &self.renewal;
        if keys_match == KeysMatch::Same {
            same.store(from, Ordering::Release);
        }
        other.store(from, Ordering::Release);
    }

    /// A renewal failed: somebody else may try, but not at once.
    pub(super) fn renewal_failed(&self, keys_match: KeysMatch, failure: &Failure) {
        self.learn_from(failure);
        self.open_renewal(keys_match, self.clock.now().plus(self.retry_after).boot_nanos());
    }

    // --- outages

    /// An outage of who vouches for it is known from here on for a while; a denial by who vouches ends its grace for good. What
    /// befell other KEKs says nothing.
    pub(super) fn learn_from(&self, failure: &Failure) {
        let about = failure.about(&self.source_keks, &self.wrapped_keys);
        if about.is_some() {
            self.is_assumed.store(false, Ordering::Release);
        }
        match about {
            Some((kind, at)) if kind.is_outage() => {
                self.outage_is_throttling.store(kind == ErrorKind::Throttled, Ordering::Relaxed);
                self.outage_until.store(at.plus(self.known_for).boot_nanos(), Ordering::Release);
            }
            Some((ErrorKind::Denied, _)) => self.forbid_stale(),
            Some(_) => self.outage_until.store(NEVER, Ordering::Release),
            None => {}
        }
    }

    /// A KEK answered about a wrapped key, and not with an outage. If it is the one that vouches, an outage of others prolongs nothing.
    pub(super) fn record_refusal(&self, provider: &KekId, entry: &WrappedDek, kind: ErrorKind) {
        if !self.source_keks.iter().any(|source_kek| source_kek.provider == *provider) || !self.has_wrapped_key(entry) {
            return;
        }
        self.is_assumed.store(false, Ordering::Release);
        match kind {
            ErrorKind::Denied => self.forbid_stale(),
            _ => self.outage_until.store(NEVER, Ordering::Release),
        }
    }

    fn forbid_stale(&self) {
        self.stale_forbidden.store(true, Ordering::Release);
        self.outage_until.store(NEVER, Ordering::Release);
    }

    /// Whether it came by this wrapped key.
    fn has_wrapped_key(&self, entry: &WrappedDek) -> bool {
        self.source_keks.iter().any(|source_kek| source_kek.entry == *entry.kek_id())
            && self.wrapped_keys.entries().contains(entry)
    }

    /// Who vouches for it does not answer in the time that a caller has.
    pub(super) fn assume_outage(&self) {
        self.is_assumed.store(true, Ordering::Release);
        self.outage_is_throttling.store(false, Ordering::Relaxed);
        self.outage_until.store(self.clock.now().plus(self.known_for).boot_nanos(), Ordering::Release);
    }

    /// Whether an outage may be assumed. Not twice in a row: if nothing came of the call that was left to the background, nobody may
    /// be there to hear a denial, so the next caller waits for the answer.
    pub(super) fn may_assume_outage(&self) -> bool {
        self.may_serve_stale() && !self.is_assumed.load(Ordering::Acquire)
    }

    /// The outage of who vouches for it, while it is known.
    pub(super) fn outage(&self, now: Moment) -> Option<ErrorKind> {
        let known = now.boot_nanos() < self.outage_until.load(Ordering::Acquire) && self.may_serve_stale();
        let kind = match self.outage_is_throttling.load(Ordering::Relaxed) {
            true => ErrorKind::Throttled,
            false => ErrorKind::Unavailable,
        };
        known.then_some(kind)
    }

    /// Whether an outage could prolong it.
    pub(super) fn may_serve_stale(&self) -> bool {
        !self.stale_forbidden.load(Ordering::Acquire)
    }

    /// Whether a question by these wrapped keys asks who vouches for it.
    pub(super) fn is_asked_about_by(&self, wrapped_keys: &WrappedKeys) -> bool {
        wrapped_keys.entries().iter().any(|entry| self.has_wrapped_key(entry))
    }

    /// `true` now and then, for the one who tells that it serves past its age.
    pub(super) fn is_due_to_report_stale(&self, now: Moment) -> bool {
        let due = self.stale_reported.load(Ordering::Relaxed);
        let next = now.plus(self.retry_after).boot_nanos();
        now.boot_nanos() >= due
            && self.stale_reported.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    // --- use

    /// Uses the key, for a caller who has just looked at the age.
    pub(super) fn with_key<R>(&self, work: impl FnOnce(&AeadKey) -> R) -> Result<R, Error> {
        if self.ended.load(Ordering::Acquire) {
            return Err(expired());
        }
        self.key.with(work).ok_or_else(expired)
    }

    /// Whether a handle may still use it. One that was given out during an outage serves while the outage is known to last,
    /// others end with `max_age`.
    #[inline]
    pub(super) fn check_handle(&self, given_stale: bool) -> Result<(), Error> {
        let now = self.clock.now();
        match self.age(now) {
            Age::Fresh | Age::Due => Ok(()),
            Age::Stale if given_stale && self.outage(now).is_some() => Ok(()),
            Age::Stale | Age::Ended => Err(expired()),
        }
    }

    #[inline]
    pub(crate) fn is_stale(&self) -> bool {
        // Only an outage that is known lets it serve then.
        self.outage_until.load(Ordering::Acquire) != NEVER && self.age(self.clock.now()) == Age::Stale
    }

    /// For one that serves.
    pub(super) fn is_past_max_age(&self, now: Moment) -> bool {
        now.is_past(self.expires)
    }

    // --- the end

    /// Whether `kek_id` vouches for it, as the KEK of a provider or of a wrapped key.
    pub(super) fn came_from(&self, kek_id: &KekId) -> bool {
        self.source_keks.iter().any(|SourceKek { provider, entry }| provider == kek_id || entry == kek_id)
    }

    /// Whether the denial is one by who vouches for it.
    pub(super) fn is_denied_by(&self, failure: &Failure) -> bool {
        matches!(failure.about(&self.source_keks, &self.wrapped_keys), Some((ErrorKind::Denied, _)))
    }

    pub(super) fn source_keks(&self) -> &[SourceKek] {
        &self.source_keks
    }

    pub(super) fn kek_ids(&self) -> Vec<KekId> {
        self.source_keks.iter().map(|source_kek| source_kek.entry.clone()).collect()
    }

    pub(super) fn is_first_to_announce_the_end(&self) -> bool {
        !self.announced.swap(true, Ordering::AcqRel)
    }

    pub(super) fn wipe_at(&self) -> Moment {
        self.wipe_at
    }

    pub(super) fn set_registration(&self, registration: Registration) {
        *self.registration.lock().unwrap_or_else(PoisonError::into_inner) = Some(registration);
    }

    /// It has to make room: looked up no more. `true` if nobody waits to use it, so that it can be ended.
    pub(super) fn evict(&self) -> bool {
        self.evicted.store(true, Ordering::SeqCst);
        self.pins.load(Ordering::SeqCst) == 0
    }

    pub(super) fn pin(&self) {
        self.pins.fetch_add(1, Ordering::SeqCst);
    }

    /// `true` if it was evicted meanwhile and this was the last who waited to use it.
    pub(super) fn unpin(&self) -> bool {
        self.pins.fetch_sub(1, Ordering::SeqCst) == 1 && self.evicted.load(Ordering::SeqCst)
    }

    /// Ends every use that has not begun, and destroys the keys as far as nobody is using them right now; `false` if somebody is:
    /// call again.
    pub(super) fn end(&self) -> bool {
        self.ended.store(true, Ordering::Release);
        self.key.destroy()
    }
}

#[cold]
pub(super) fn expired() -> Error {
    Error::new(ErrorKind::Expired, "")
}

pub(super) fn shut_down() -> Error {
    Error::new(ErrorKind::ShutDown, "")
}
