//! What reading and writing DEKs have in common: keys that can be used for a while, and destroyed at any time.
#![forbid(unsafe_code)]

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::LimitsInForce;
use super::registry::Seat;
use crate::clock::{Clock, Moment};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::{KekId, WrappedDek, WrappedKeys};
use crate::kek::set::{Failure, Voucher};
use crate::observe::WeakObservers;
use crate::suite::{AeadKey, DekId, Suite, jitter};
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use crate::sync::slot::Slot;
use crate::sync::{Arc, Mutex, PoisonError};

/// How soon after a failed renewal the next is tried: a twentieth of `max_age`, within these. A service that is back is noticed that soon.
const SOONEST_RETRY: Duration = Duration::from_millis(10);
const LATEST_RETRY: Duration = Duration::from_secs(1);
/// How long the callers that waited for an answer may use it once, if the answer came past its own end.
const FOR_THOSE_WHO_WAITED: Duration = Duration::from_secs(1);

const NEVER: i64 = i64::MIN;

/// The keys of a DEK in one suite, within their time.
pub(crate) struct Lease {
    pub(crate) context: EncryptionContext,
    pub(crate) id: DekId,
    pub(crate) suite: Suite,
    /// The wrapped keys that it came by, or was wrapped to.
    wrapped_keys: WrappedKeys,
    /// Who vouches for it: the KEK that unwrapped it, or all that wrapped it.
    vouchers: Box<[Voucher]>,
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
    seat: Mutex<Option<Seat>>,
    refresh_at: Moment,
    expires: Moment,
    /// The end of its last possible use.
    gone: Moment,
    /// From when on it may be renewed, on the clock since boot: by the question it is the answer to, and by any other.
    renewal: [AtomicI64; 2],
    retry_after: Duration,
    /// An outage of who vouches for it is known until then, on the clock since boot.
    outage_until: AtomicI64,
    outage_is_throttling: AtomicBool,
    /// An outage was assumed, and nothing has been heard since of who vouches for it.
    is_assumed: AtomicBool,
    /// Who vouched for it denies: an outage does not prolong it any more.
    grace_lost: AtomicBool,
    /// How long a claim to renew it, and the knowledge of an outage, last at most.
    known_for: Duration,
    past_age_told: AtomicI64,
    clock: Clock,
}

/// One exact question to the key services. What is remembered of its answer concerns nobody who asks another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
pub(crate) enum Age {
    Fresh,
    /// Serves, and should be renewed.
    Due,
    /// Serves only while the key service is unavailable.
    Grace,
    Gone,
}

/// Whose question could renew a DEK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Whose {
    /// The one that it is the answer to.
    Own,
    /// One by other wrapped keys of the same DEK.
    Other,
}

/// What [`Lease::new`] takes over.
pub(super) struct Terms<'a> {
    pub(super) context: &'a EncryptionContext,
    pub(super) id: DekId,
    pub(super) suite: Suite,
    pub(super) wrapped_keys: WrappedKeys,
    pub(super) vouchers: Box<[Voucher]>,
    /// From before the key service was asked.
    pub(super) asked: Moment,
    pub(super) grace: Duration,
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
        let (mut gone, late) = (expires.plus(terms.grace), now.is_past(expires));
        if late {
            gone = now.plus(FOR_THOSE_WHO_WAITED.min(limits.max_age));
        }
        Self {
            context: terms.context.clone(),
            id: terms.id,
            suite: terms.suite,
            wrapped_keys: terms.wrapped_keys,
            vouchers: terms.vouchers,
            observers: terms.observers,
            key: Slot::new(key),
            ended: AtomicBool::new(false),
            evicted: AtomicBool::new(late),
            pins: AtomicUsize::new(0),
            announced: AtomicBool::new(false),
            seat: Mutex::new(None),
            // Up to a tenth earlier, so that what was made together does not fall due together.
            refresh_at: asked.plus(limits.refresh_after.mul_f64(0.9 + 0.1 * jitter())),
            expires,
            gone,
            renewal: [AtomicI64::new(NEVER), AtomicI64::new(NEVER)],
            retry_after,
            outage_until: AtomicI64::new(NEVER),
            outage_is_throttling: AtomicBool::new(false),
            is_assumed: AtomicBool::new(false),
            grace_lost: AtomicBool::new(false),
            known_for: retry_after.saturating_add(terms.deadline),
            past_age_told: AtomicI64::new(NEVER),
            clock: terms.clock.clone(),
        }
    }

    #[inline]
    pub(super) fn age(&self, now: Moment) -> Age {
        if self.ended.load(Ordering::Acquire) || self.evicted.load(Ordering::Acquire) {
            return Age::Gone;
        }
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
    pub(super) fn whose(&self, wrapped_keys: &[u8]) -> Whose {
        if self.wrapped_keys.as_bytes() == wrapped_keys { Whose::Own } else { Whose::Other }
    }

    /// Whether it is the turn of this question to renew it.
    pub(super) fn is_turn(&self, whose: Whose, now: Moment) -> bool {
        let [own, other] = &self.renewal;
        let open_from = if whose == Whose::Own { own } else { other };
        now.boot_nanos() >= open_from.load(Ordering::Relaxed)
    }

    /// The right to renew it, for one caller at a time and for no longer than a question may take. The own question keeps the others
    /// from asking too; another one does not keep the own one, so that no list that somebody forged stands in its way.
    pub(super) fn claim_renewal(&self, whose: Whose) -> bool {
        let now = self.clock.now();
        let [own, other] = &self.renewal;
        let mine = if whose == Whose::Own { own } else { other };
        let open_from = mine.load(Ordering::Relaxed);
        let until = now.plus(self.known_for).boot_nanos();
        if now.boot_nanos() < open_from
            || mine.compare_exchange(open_from, until, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            return false;
        }
        if whose == Whose::Own {
            other.fetch_max(until, Ordering::AcqRel);
        }
        true
    }

    /// Whoever had claimed the renewal went away: somebody else may try at once.
    pub(super) fn give_back(&self, whose: Whose) {
        self.open_renewal(whose, NEVER);
    }

    fn open_renewal(&self, whose: Whose, from: i64) {
        let [own, other] = &self.renewal;
        if whose == Whose::Own {
            own.store(from, Ordering::Release);
        }
        other.store(from, Ordering::Release);
    }

    /// A renewal failed: somebody else may try, but not at once.
    pub(super) fn renewal_failed(&self, whose: Whose, failure: &Failure) {
        self.learn_from(failure);
        self.open_renewal(whose, self.clock.now().plus(self.retry_after).boot_nanos());
    }

    // --- outages

    /// An outage of who vouches for it is known from here on for a while; a denial by who vouches ends its grace for good. What
    /// befell other KEKs says nothing.
    pub(super) fn learn_from(&self, failure: &Failure) {
        let about = failure.about(&self.vouchers, &self.wrapped_keys);
        if about.is_some() {
            self.is_assumed.store(false, Ordering::Release);
        }
        match about {
            Some((kind, at)) if kind.is_outage() => {
                self.outage_is_throttling.store(kind == ErrorKind::Throttled, Ordering::Relaxed);
                self.outage_until.store(at.plus(self.known_for).boot_nanos(), Ordering::Release);
            }
            Some((ErrorKind::Denied, _)) => self.lose_grace(),
            Some(_) => self.outage_until.store(NEVER, Ordering::Release),
            None => {}
        }
    }

    /// A KEK answered about a wrapped key, and not with an outage. If it is the one that vouches, an outage of others prolongs nothing.
    pub(super) fn hear_refusal(&self, provider: &KekId, entry: &WrappedDek, kind: ErrorKind) {
        if !self.vouchers.iter().any(|voucher| voucher.provider == *provider) || !self.has_wrapped_key(entry) {
            return;
        }
        self.is_assumed.store(false, Ordering::Release);
        match kind {
            ErrorKind::Denied => self.lose_grace(),
            _ => self.outage_until.store(NEVER, Ordering::Release),
        }
    }

    fn lose_grace(&self) {
        self.grace_lost.store(true, Ordering::Release);
        self.outage_until.store(NEVER, Ordering::Release);
    }

    /// Whether it came by this wrapped key.
    fn has_wrapped_key(&self, entry: &WrappedDek) -> bool {
        self.vouchers.iter().any(|voucher| voucher.entry == *entry.kek_id())
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
        self.has_grace() && !self.is_assumed.load(Ordering::Acquire)
    }

    /// The outage of who vouches for it, while it is known.
    pub(super) fn outage(&self, now: Moment) -> Option<ErrorKind> {
        let known = now.boot_nanos() < self.outage_until.load(Ordering::Acquire) && self.has_grace();
        let kind = match self.outage_is_throttling.load(Ordering::Relaxed) {
            true => ErrorKind::Throttled,
            false => ErrorKind::Unavailable,
        };
        known.then_some(kind)
    }

    /// Whether an outage could prolong it.
    pub(super) fn has_grace(&self) -> bool {
        !self.grace_lost.load(Ordering::Acquire)
    }

    /// Whether a question by these wrapped keys asks who vouches for it.
    pub(super) fn is_asked_about_by(&self, wrapped_keys: &WrappedKeys) -> bool {
        wrapped_keys.entries().iter().any(|entry| self.has_wrapped_key(entry))
    }

    /// `true` now and then, for the one who tells that it serves past its age.
    pub(super) fn is_turn_to_tell_of_its_age(&self, now: Moment) -> bool {
        let due = self.past_age_told.load(Ordering::Relaxed);
        let next = now.plus(self.retry_after).boot_nanos();
        now.boot_nanos() >= due
            && self.past_age_told.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
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
    pub(super) fn check_handle(&self, given_in_grace: bool) -> Result<(), Error> {
        let now = self.clock.now();
        match self.age(now) {
            Age::Fresh | Age::Due => Ok(()),
            Age::Grace if given_in_grace && self.outage(now).is_some() => Ok(()),
            Age::Grace | Age::Gone => Err(expired()),
        }
    }

    #[inline]
    pub(crate) fn is_in_grace(&self) -> bool {
        // Only an outage that is known lets it serve then.
        self.outage_until.load(Ordering::Acquire) != NEVER && self.age(self.clock.now()) == Age::Grace
    }

    /// For one that serves.
    pub(super) fn is_past_its_age(&self, now: Moment) -> bool {
        now.is_past(self.expires)
    }

    // --- the end

    /// Whether `kek_id` vouches for it, as the KEK of a provider or of a wrapped key.
    pub(super) fn is_vouched_for_by(&self, kek_id: &KekId) -> bool {
        self.vouchers.iter().any(|Voucher { provider, entry }| provider == kek_id || entry == kek_id)
    }

    /// Whether the denial is one by who vouches for it.
    pub(super) fn is_denied_by(&self, failure: &Failure) -> bool {
        matches!(failure.about(&self.vouchers, &self.wrapped_keys), Some((ErrorKind::Denied, _)))
    }

    pub(super) fn vouchers(&self) -> &[Voucher] {
        &self.vouchers
    }

    pub(super) fn kek_ids(&self) -> Vec<KekId> {
        self.vouchers.iter().map(|voucher| voucher.entry.clone()).collect()
    }

    pub(super) fn is_first_to_announce_the_end(&self) -> bool {
        !self.announced.swap(true, Ordering::AcqRel)
    }

    pub(super) fn gone(&self) -> Moment {
        self.gone
    }

    pub(super) fn take_seat(&self, seat: Seat) {
        *self.seat.lock().unwrap_or_else(PoisonError::into_inner) = Some(seat);
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
