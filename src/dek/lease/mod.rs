//! The part that DEKs for reading, DEKs for writing and open streams share: keys that are valid for
//! a bounded time and can be destroyed at any moment.
#![forbid(unsafe_code)]

mod renewal;
mod request_key;

use std::time::Duration;

pub(crate) use request_key::RequestKey;

use super::LimitsInForce;
use super::registration::Registration;
use crate::clock::{Clock, Moment};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::{KekId, WrappedKeys};
use crate::kek::set::{Failure, SourceKek};
use crate::kek::{Dependants, Parent};
use crate::observe::{Accessed, WeakObservers};
use crate::suite::{BranchKey, DekId, DekKeys, StreamKey, StreamRoot, Suite, jitter};
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use crate::sync::slot::Slot;
use crate::sync::{Arc, Mutex, PoisonError, Weak};

/// The pause after a failed renewal: a twentieth of `max_age`, within these bounds. A recovered
/// service is noticed after this pause.
const SOONEST_RETRY: Duration = Duration::from_millis(10);
const LATEST_RETRY: Duration = Duration::from_secs(1);
/// How long waiting callers may use a response that arrived after its own end.
const LATE_RESPONSE_USE: Duration = Duration::from_secs(1);

/// The fraction of its lifetime after which a DEK is renewed if its parent ends sooner than
/// `max_age`.
const REFRESH_AHEAD: f64 = 0.8;

const NEVER: i64 = i64::MIN;

/// What a DEK is used as: to encrypt messages and streams in one suite, or as a branch key.
#[derive(Clone)]
pub(crate) enum LeasedKey {
    Dek(Arc<DekKeys>),
    Branch(Arc<BranchKey>),
}

enum Keys {
    Dek(Slot<DekKeys>),
    Branch(Slot<BranchKey>),
    /// The key of one stream, which has its own lease.
    Stream(Slot<StreamKey>),
}

/// The keys of a DEK in one suite, of a stream, or a branch key, with their deadlines.
pub(crate) struct Lease {
    pub(crate) context: EncryptionContext,
    pub(crate) id: DekId,
    /// The id that observers see. It is `id`, except for a branch key in a store: messages name 16
    /// bytes of that key's id, and `id` has no more.
    pub(crate) told_id: DekId,
    pub(crate) suite: Suite,
    /// The wrapped keys that it was unwrapped from or wrapped to.
    wrapped_keys: WrappedKeys,
    /// The wrapped keys are in a key store and not in the request.
    is_stored: bool,
    /// The KEKs it came from: the one that unwrapped it, or all that wrapped it.
    source_keks: Box<[SourceKek]>,
    /// The keys of this process that it was derived through. It ends when any of them ends.
    parents: Box<[Parent]>,
    /// Where to find the keys that were derived through this one.
    dependants: Mutex<Vec<Weak<dyn Dependants>>>,
    /// The observers of its end. The reference is weak because a thread may remember a DEK for
    /// longer than the envelope lives.
    pub(super) observers: WeakObservers,
    keys: Keys,
    /// Set before the keys are destroyed. No use begins after it.
    ended: AtomicBool,
    /// It was evicted. Only callers that waited for it may still use it.
    evicted: AtomicBool,
    /// It was ended by a denial, a revocation or a shut-down, not by time or to make room.
    revoked: AtomicBool,
    /// The number of responses that hold it for waiting callers.
    pins: AtomicUsize,
    announced: AtomicBool,
    registration: Mutex<Option<Registration>>,
    refresh_at: Moment,
    expires: Moment,
    /// When the keys are destroyed, at the end of the last possible use.
    wipe_at: Moment,
    /// The boot-clock time from which it may be renewed: by a request with the same wrapped keys,
    /// and by any other.
    renewal: [AtomicI64; 2],
    retry_after: Duration,
    /// The boot-clock time until which an outage of its source KEKs counts as known.
    outage_until: AtomicI64,
    outage_is_throttling: AtomicBool,
    /// An outage was assumed, and its source KEKs have not responded since.
    is_assumed: AtomicBool,
    /// Its source KEK denied access, so it is no longer served stale.
    stale_forbidden: AtomicBool,
    /// The longest time that a claim to renew it, or the knowledge of an outage, lasts.
    known_for: Duration,
    stale_reported: AtomicI64,
    clock: Clock,
}

/// The age class of a DEK.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Age {
    Fresh,
    /// It serves and should be renewed.
    Due,
    /// It is past `max_age`, and serves only while the key service is unavailable.
    Stale,
    Ended,
}

/// Whether a request has the wrapped keys that a cached DEK came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KeysMatch {
    /// It has the same wrapped keys.
    Same,
    /// It has other wrapped keys of the same DEK.
    Other,
}

/// The parameters of [`Lease::new`].
pub(super) struct Terms<'a> {
    pub(super) context: &'a EncryptionContext,
    pub(super) id: DekId,
    pub(super) suite: Suite,
    pub(super) wrapped_keys: WrappedKeys,
    pub(super) is_stored: bool,
    pub(super) source_keks: Box<[SourceKek]>,
    pub(super) parents: Box<[Parent]>,
    /// When the request began.
    pub(super) asked: Moment,
    pub(super) stale_if_error: Duration,
    /// The longest time that one request takes.
    pub(super) deadline: Duration,
    pub(super) clock: &'a Clock,
    pub(super) observers: WeakObservers,
}

impl Lease {
    pub(super) fn new(terms: Terms<'_>, key: &LeasedKey, limits: &LimitsInForce) -> Self {
        let (keys, told_id) = match key {
            LeasedKey::Dek(keys) => (Keys::Dek(Slot::new(keys)), terms.id),
            LeasedKey::Branch(key) => (Keys::Branch(Slot::new(key)), *key.id()),
        };
        Self::with_keys(keys, told_id, terms, limits)
    }

    fn with_keys(keys: Keys, told_id: DekId, terms: Terms<'_>, limits: &LimitsInForce) -> Self {
        let Terms { asked, .. } = terms;
        let retry_after = (limits.max_age / 20).clamp(SOONEST_RETRY, LATEST_RETRY);
        let now = terms.clock.now();
        // A stream may outlive the keys that it was derived through, unless they are ended early.
        let bounds: Vec<_> = match keys {
            Keys::Stream(_) => Vec::new(),
            _ => terms.parents.iter().map(|parent| parent.bounds(now)).collect(),
        };
        let earliest = |own: Moment, of_parents: fn(&(Moment, Moment)) -> Moment| {
            bounds.iter().map(of_parents).fold(own, Moment::earlier)
        };
        let expires = earliest(asked.plus(limits.max_age), |bounds| bounds.0);
        let late = now.is_past(expires);
        let wipe_at = match late {
            true => now.plus(LATE_RESPONSE_USE.min(limits.max_age)),
            false => expires.plus(terms.stale_if_error),
        };
        let wipe_at = earliest(wipe_at, |bounds| bounds.1);
        // Up to a tenth earlier, so that DEKs made together do not fall due together.
        let earlier = 0.9 + 0.1 * jitter();
        let mut refresh_at = asked.plus(limits.refresh_after.mul_f64(earlier));
        if !bounds.is_empty() {
            let ahead = asked.until(expires).mul_f64(REFRESH_AHEAD * earlier);
            refresh_at = refresh_at.earlier(asked.plus(ahead));
        }
        Self {
            context: terms.context.clone(),
            id: terms.id,
            told_id,
            suite: terms.suite,
            wrapped_keys: terms.wrapped_keys,
            source_keks: terms.source_keks,
            parents: terms.parents,
            dependants: Mutex::default(),
            observers: terms.observers,
            keys,
            is_stored: terms.is_stored,
            ended: AtomicBool::new(false),
            evicted: AtomicBool::new(late),
            revoked: AtomicBool::new(false),
            pins: AtomicUsize::new(0),
            announced: AtomicBool::new(false),
            registration: Mutex::new(None),
            refresh_at,
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

    /// Returns the lease of a stream that is opened now with this DEK. Its parents are the DEK
    /// itself and the DEK's parents.
    pub(super) fn of_stream(
        &self,
        key: &Arc<StreamKey>,
        itself: Parent,
        limits: &LimitsInForce,
    ) -> Self {
        let terms = Terms {
            context: &self.context,
            id: self.id,
            suite: self.suite.of_streams(),
            wrapped_keys: self.wrapped_keys.clone(),
            is_stored: self.is_stored,
            source_keks: self.source_keks.clone(),
            parents: self.parents.iter().cloned().chain([itself]).collect(),
            asked: self.clock.now(),
            stale_if_error: Duration::ZERO,
            deadline: Duration::ZERO,
            clock: &self.clock,
            observers: self.observers.clone(),
        };
        Self::with_keys(Keys::Stream(Slot::new(key)), self.told_id, terms, limits)
    }

    /// Returns a lease on the same keys under new terms, unless this one has ended.
    pub(super) fn another(&self, terms: Terms<'_>, limits: &LimitsInForce) -> Option<Self> {
        if self.age(self.clock.now()) == Age::Ended {
            return None;
        }
        let keys = match &self.keys {
            Keys::Dek(keys) => Keys::Dek(keys.share()?),
            Keys::Branch(key) => Keys::Branch(key.share()?),
            Keys::Stream(key) => Keys::Stream(key.share()?),
        };
        Some(Self::with_keys(keys, self.told_id, terms, limits))
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

    /// Whether the response arrived after its own end. It then serves only the callers that waited
    /// for it.
    pub(super) fn is_late(&self) -> bool {
        self.evicted.load(Ordering::Acquire)
    }

    // --- use

    /// Uses the keys of messages. The caller has just checked the age.
    pub(super) fn with_dek_keys<R>(&self, work: impl FnOnce(&DekKeys) -> R) -> Result<R, Error> {
        if self.ended.load(Ordering::Acquire) {
            return Err(expired());
        }
        match &self.keys {
            Keys::Dek(keys) => keys.with(work).ok_or_else(expired),
            Keys::Branch(_) | Keys::Stream(_) => Err(expired()),
        }
    }

    /// Does the same as [`with_dek_keys`](Self::with_dek_keys), for the key that stream keys are
    /// derived from.
    pub(super) fn with_stream_root<R>(
        &self,
        work: impl FnOnce(&StreamRoot) -> R,
    ) -> Result<R, Error> {
        match &self.keys {
            Keys::Dek(keys) if !self.has_ended() => {
                keys.with(|keys| work(&keys.streams)).ok_or_else(expired)
            }
            _ => Err(expired()),
        }
    }

    /// Uses the key of a stream. The caller checks the time [for each chunk](Self::check_handle).
    pub(super) fn with_stream_key<R>(
        &self,
        work: impl FnOnce(&StreamKey) -> R,
    ) -> Result<R, Error> {
        match &self.keys {
            Keys::Stream(key) => key.with(work).ok_or_else(expired),
            _ => Err(expired()),
        }
    }

    /// Does the same as [`with_dek_keys`](Self::with_dek_keys), for a branch key.
    pub(crate) fn with_branch_key<R>(
        &self,
        work: impl FnOnce(&BranchKey) -> R,
    ) -> Result<R, Error> {
        match &self.keys {
            Keys::Branch(key) if !self.has_ended() => key.with(work).ok_or_else(expired),
            _ => Err(expired()),
        }
    }

    /// Checks whether a handle may still use it. A handle issued during an outage serves while the
    /// outage is known to last. All others end with `max_age`.
    #[inline]
    pub(super) fn check_handle(&self, given_stale: bool) -> Result<(), Error> {
        let serves = !self.ended.load(Ordering::Acquire) && !self.evicted.load(Ordering::Acquire);
        if serves && self.clock.is_well_before(self.expires) {
            return Ok(());
        }
        self.check_handle_exactly(given_stale)
    }

    #[inline(never)]
    fn check_handle_exactly(&self, given_stale: bool) -> Result<(), Error> {
        let now = self.clock.now();
        match self.age(now) {
            Age::Fresh | Age::Due => Ok(()),
            Age::Stale if given_stale && self.outage(now).is_some() => Ok(()),
            Age::Stale | Age::Ended => Err(expired()),
        }
    }

    /// Checks, in the middle of a longer use that began in time, whether the use may continue. It
    /// ends at the last possible use, when the keys are due to be wiped.
    pub(crate) fn check_in_use(&self) -> Result<(), Error> {
        match self.clock.now().is_past(self.wipe_at) {
            true => Err(expired()),
            false => Ok(()),
        }
    }

    #[inline]
    pub(crate) fn is_stale(&self) -> bool {
        // It is served stale only in a known outage.
        self.outage_until.load(Ordering::Acquire) != NEVER
            && self.age(self.clock.now()) == Age::Stale
    }

    /// Whether a DEK that still serves is past `max_age`.
    pub(super) fn is_past_max_age(&self, now: Moment) -> bool {
        now.is_past(self.expires)
    }

    // --- the end

    /// Whether it came from `kek_id`, as the KEK of a provider or of a wrapped key.
    pub(super) fn came_from(&self, kek_id: &KekId) -> bool {
        self.source_keks
            .iter()
            .any(|SourceKek { provider, entry }| provider == kek_id || entry == kek_id)
            || self.parents.iter().any(|parent| parent.kek_ids().contains(kek_id))
    }

    /// Whether these are its source KEKs and its parent keys, in any order: KEKs that are asked
    /// together answer in any order.
    pub(super) fn is_from(&self, source_keks: &[SourceKek], parents: &[Parent]) -> bool {
        let has = |other: &Parent| self.parents.iter().any(|p| p.key_id() == other.key_id());
        source_keks.len() == self.source_keks.len()
            && source_keks.iter().all(|source_kek| self.source_keks.contains(source_kek))
            && parents.len() == self.parents.len()
            && parents.iter().all(has)
    }

    pub(super) fn is_of_a_branch_key(&self) -> bool {
        matches!(self.keys, Keys::Branch(_))
    }

    pub(super) fn is_of_a_stream(&self) -> bool {
        matches!(self.keys, Keys::Stream(_))
    }

    pub(super) fn parents(&self) -> &[Parent] {
        &self.parents
    }

    pub(super) fn has_parent(&self, identity: usize) -> bool {
        self.parents.iter().any(|parent| parent.identity() == identity)
    }

    /// Whether a key that it was derived through was revoked.
    pub(super) fn has_revoked_parent(&self) -> bool {
        self.parents.iter().any(|parent| parent.is_revoked())
    }

    /// Whether a key that it was derived through was evicted or ended.
    pub(super) fn is_orphan(&self) -> bool {
        self.parents.iter().any(|parent| parent.is_gone())
    }

    /// Returns a value that distinguishes it from every other lease in memory.
    pub(super) fn identity(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::SeqCst)
    }

    pub(super) fn is_gone(&self) -> bool {
        self.has_ended() || self.evicted.load(Ordering::SeqCst)
    }

    /// See [`ParentKey::bounds`](crate::kek::ParentKey::bounds). While it is served stale, a DEK
    /// derived through it serves until the next look at the outage. If it came too late for anyone
    /// but the callers that waited, so did the DEK.
    pub(super) fn bounds_of_dependants(&self, now: Moment) -> (Moment, Moment) {
        let expires = match now.is_past(self.expires) && !self.is_late() {
            true => now.plus(self.retry_after).earlier(self.wipe_at),
            false => self.expires,
        };
        (expires, self.wipe_at)
    }

    pub(super) fn add_dependants(&self, dependants: Weak<dyn Dependants>) {
        let mut all = self.dependants.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.strong_count() > 0);
        if !all.iter().any(|known| known.ptr_eq(&dependants)) {
            all.push(dependants);
        }
    }

    /// Returns where to find the DEKs that were derived through it. The references are kept, so
    /// that a DEK that is evicted with it while in use can still be revoked.
    pub(super) fn dependants(&self) -> Vec<Arc<dyn Dependants>> {
        let all = self.dependants.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether one of its source KEKs denied the wrapped key that it came from.
    pub(super) fn is_denied_by(&self, failure: &Failure) -> bool {
        failure.denies(&self.source_keks, &self.wrapped_keys)
    }

    /// The ids of all KEKs that it depends on.
    pub(super) fn all_kek_ids(&self) -> impl Iterator<Item = &KekId> {
        let own = self
            .source_keks
            .iter()
            .flat_map(|source_kek| [&source_kek.provider, &source_kek.entry]);
        own.chain(self.parents.iter().flat_map(|parent| parent.kek_ids()))
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

    /// How long ago its uses were last reported, if they are reported.
    pub(super) fn since_summary(&self) -> Option<Duration> {
        let registration = self.registration.lock().unwrap_or_else(PoisonError::into_inner);
        registration.as_ref()?.since_summary()
    }

    /// Takes its counts by caller.
    pub(super) fn take_callers(&self, within: Duration) -> Vec<Accessed> {
        let registration = self.registration.lock().unwrap_or_else(PoisonError::into_inner);
        let registration = registration.as_ref();
        registration.map_or_else(Vec::new, |its| its.take_callers_of(&self.id, within))
    }

    /// Marks it as evicted, so that it is no longer found. Returns `true` if no caller waits to use
    /// it, so that it can be ended.
    pub(super) fn evict(&self) -> bool {
        self.evicted.store(true, Ordering::SeqCst);
        self.pins.load(Ordering::SeqCst) == 0
    }

    pub(super) fn pin(&self) {
        self.pins.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns `true` if it was evicted meanwhile and no other caller waits to use it.
    pub(super) fn unpin(&self) -> bool {
        self.pins.fetch_sub(1, Ordering::SeqCst) == 1 && self.evicted.load(Ordering::SeqCst)
    }

    /// Forbids any further use of it and of everything derived through it.
    pub(super) fn revoke(&self) {
        // Set first, so that a caller that opens a stream meanwhile looks up another DEK. This may
        // be one of very many that end together.
        self.ended.store(true, Ordering::SeqCst);
        self.revoked.store(true, Ordering::SeqCst);
    }

    /// Prevents any further use and destroys the keys that are not in use right now. Returns
    /// `false` if some are in use: call it again.
    pub(super) fn end(&self) -> bool {
        self.ended.store(true, Ordering::SeqCst);
        match &self.keys {
            Keys::Dek(keys) => keys.destroy(),
            Keys::Branch(key) => key.destroy(),
            Keys::Stream(key) => key.destroy(),
        }
    }
}

#[cold]
pub(super) fn expired() -> Error {
    Error::new(ErrorKind::Expired, "")
}

pub(super) fn shut_down() -> Error {
    Error::new(ErrorKind::ShutDown, "")
}
