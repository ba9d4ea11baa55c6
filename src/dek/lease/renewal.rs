//! When a DEK is renewed, and what is known about its key services.
#![forbid(unsafe_code)]

use super::{KeysMatch, Lease, NEVER};
use crate::clock::Moment;
use crate::error::ErrorKind;
use crate::format::{KekId, WrappedDek, WrappedKeys};
use crate::kek::set::Failure;
use crate::sync::atomic::Ordering;

impl Lease {
    /// Whether any request may renew it now.
    pub(in crate::dek) fn is_renewal_open(&self, now: Moment) -> bool {
        self.renewal.iter().any(|open_from| now.boot_nanos() >= open_from.load(Ordering::Relaxed))
    }

    /// Whether these are the wrapped keys that it came from. The bytes are compared, not a digest.
    /// An empty list means those in the store.
    pub(in crate::dek) fn keys_match(&self, wrapped_keys: &[u8]) -> KeysMatch {
        let same = match wrapped_keys {
            [] => self.is_stored,
            bytes => !self.is_stored && self.wrapped_keys.as_bytes() == bytes,
        };
        if same { KeysMatch::Same } else { KeysMatch::Other }
    }

    /// Whether a request with these wrapped keys may renew it now.
    pub(in crate::dek) fn is_turn(&self, keys_match: KeysMatch, now: Moment) -> bool {
        let [same, other] = &self.renewal;
        let open_from = if keys_match == KeysMatch::Same { same } else { other };
        now.boot_nanos() >= open_from.load(Ordering::Relaxed)
    }

    /// Claims the right to renew it, for one caller at a time and for no longer than a request
    /// takes. A request with the same wrapped keys keeps the others from asking. A request with
    /// other wrapped keys does not keep the right one from asking, so a forged list cannot block a
    /// renewal.
    pub(in crate::dek) fn claim_renewal(&self, keys_match: KeysMatch) -> bool {
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

    /// Gives back a claim whose owner went away. Another request may renew at once.
    pub(in crate::dek) fn give_back(&self, keys_match: KeysMatch) {
        self.open_renewal(keys_match, NEVER);
    }

    fn open_renewal(&self, keys_match: KeysMatch, from: i64) {
        let [same, other] = &self.renewal;
        if keys_match == KeysMatch::Same {
            same.store(from, Ordering::Release);
        }
        other.store(from, Ordering::Release);
    }

    /// Records that a renewal failed. The next may begin after a pause.
    pub(in crate::dek) fn renewal_failed(&self, keys_match: KeysMatch, failure: &Failure) {
        self.learn_from(failure);
        self.open_renewal(keys_match, self.clock.now().plus(self.retry_after).boot_nanos());
    }

    // --- outages

    /// Records a failed request. An outage of its source KEKs counts as known for a while from now
    /// on. A denial by one of them ends stale serving for good. Failures of other KEKs do not
    /// count.
    pub(in crate::dek) fn learn_from(&self, failure: &Failure) {
        let about = failure.about(&self.source_keks, &self.wrapped_keys).or(failure.of_store);
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

    /// Records that a KEK answered about a wrapped key with something other than an outage. If it
    /// is a source KEK, an outage of others no longer prolongs this DEK.
    pub(in crate::dek) fn record_refusal(
        &self,
        provider: &KekId,
        entry: &WrappedDek,
        kind: ErrorKind,
    ) {
        if !self.source_keks.iter().any(|source_kek| source_kek.provider == *provider)
            || !self.has_wrapped_key(entry)
        {
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

    /// Whether it came from this wrapped key.
    fn has_wrapped_key(&self, entry: &WrappedDek) -> bool {
        self.source_keks.iter().any(|source_kek| source_kek.entry == *entry.kek_id())
            && self.wrapped_keys.entries().contains(entry)
    }

    /// Assumes an outage, since its source KEKs did not answer within the caller's time.
    pub(in crate::dek) fn assume_outage(&self) {
        self.is_assumed.store(true, Ordering::Release);
        self.outage_is_throttling.store(false, Ordering::Relaxed);
        self.outage_until
            .store(self.clock.now().plus(self.known_for).boot_nanos(), Ordering::Release);
    }

    /// Whether an outage may be assumed. It is not assumed twice in a row: a denial may be missed
    /// when a call is left to the background, so the next caller waits for the response.
    pub(in crate::dek) fn may_assume_outage(&self) -> bool {
        self.may_serve_stale() && !self.is_assumed.load(Ordering::Acquire)
    }

    /// Returns the outage of its source KEKs while it is known.
    pub(in crate::dek) fn outage(&self, now: Moment) -> Option<ErrorKind> {
        let known =
            now.boot_nanos() < self.outage_until.load(Ordering::Acquire) && self.may_serve_stale();
        let kind = match self.outage_is_throttling.load(Ordering::Relaxed) {
            true => ErrorKind::Throttled,
            false => ErrorKind::Unavailable,
        };
        known.then_some(kind)
    }

    /// Whether it may be served stale in an outage.
    pub(in crate::dek) fn may_serve_stale(&self) -> bool {
        !self.stale_forbidden.load(Ordering::Acquire)
    }

    /// Whether its wrapped keys are in a key store.
    pub(in crate::dek) fn is_stored(&self) -> bool {
        self.is_stored
    }

    /// Whether a request with these wrapped keys reaches one of its source KEKs.
    pub(in crate::dek) fn is_asked_about_by(&self, wrapped_keys: &WrappedKeys) -> bool {
        wrapped_keys.entries().iter().any(|entry| self.has_wrapped_key(entry))
    }

    /// Returns `true` from time to time, to the caller that should report stale serving.
    pub(in crate::dek) fn is_due_to_report_stale(&self, now: Moment) -> bool {
        let due = self.stale_reported.load(Ordering::Relaxed);
        let next = now.plus(self.retry_after).boot_nanos();
        now.boot_nanos() >= due
            && self
                .stale_reported
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}
