//! The log of revocations. A response is discarded if anything it depends on was revoked after its
//! request began.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::context::EncryptionContext;
use crate::format::KekId;
use crate::sync::{Mutex, MutexGuard, PoisonError};

/// The maximum number of names kept. Beyond it, all earlier requests are repeated.
const MAX_NAMES: usize = 4096;

/// The position of a request in the order of revocations.
#[derive(Clone, Copy)]
pub(super) struct Mark(u64);

#[derive(Default)]
pub(super) struct Revocations(Mutex<Log>);

#[derive(Default)]
struct Log {
    latest: u64,
    /// The latest revocation of everything, or of a name that is no longer kept.
    everything: u64,
    contexts: HashMap<[u8; 32], u64>,
    keks: HashMap<KekId, u64>,
    latest_kek: u64,
}

impl Log {
    fn next(&mut self) -> u64 {
        self.latest += 1;
        if self.contexts.len() + self.keks.len() >= MAX_NAMES {
            self.contexts.clear();
            self.keks.clear();
            self.everything = self.latest;
        }
        self.latest
    }
}

impl Revocations {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current position. It is taken before a request.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.lock().latest)
    }

    pub(super) fn of_everything(&self) {
        let mut log = self.lock();
        log.everything = log.next();
    }

    pub(super) fn of_context(&self, context: &EncryptionContext) {
        let mut log = self.lock();
        let number = log.next();
        log.contexts.insert(*context.digest(), number);
    }

    pub(super) fn of_kek(&self, kek_id: &KekId) {
        let mut log = self.lock();
        let number = log.next();
        log.keks.insert(kek_id.clone(), number);
        log.latest_kek = number;
    }

    /// Whether a response to a request of `mark` came too late, because its context or a KEK that
    /// it came from has been revoked since.
    pub(super) fn concern<'k>(
        &self,
        Mark(mark): Mark,
        context: &EncryptionContext,
        kek_ids: impl IntoIterator<Item = &'k KekId>,
    ) -> bool {
        let log = self.lock();
        let since = |number: Option<&u64>| number.is_some_and(|number| *number > mark);
        log.everything > mark
            || since(log.contexts.get(context.digest()))
            || kek_ids.into_iter().any(|kek_id| since(log.keks.get(kek_id)))
    }

    /// Does the same as [`concern`](Self::concern), if any KEK may have contributed to the
    /// response.
    pub(super) fn may_concern(&self, mark: Mark, context: &EncryptionContext) -> bool {
        self.concern(mark, context, []) || self.lock().latest_kek > mark.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(tenant: &str) -> EncryptionContext {
        EncryptionContext::new([("tenant", tenant)]).unwrap()
    }

    #[test]
    fn a_revocation_concerns_what_it_names_and_nothing_else() {
        let (log, alice, bob) = (Revocations::default(), context("alice"), context("bob"));
        let kek_ids = ["eu", "us"].map(|id| KekId::new(id).unwrap());
        let mark = log.mark();
        log.of_context(&bob);
        assert!(log.concern(mark, &bob, []) && !log.concern(mark, &alice, &kek_ids));
        for (kek, concerned) in [("asia", false), ("us", true), ("eu", true)] {
            let mark = log.mark();
            log.of_kek(&KekId::new(kek).unwrap());
            assert_eq!(log.concern(mark, &alice, &kek_ids), concerned, "{kek}");
            assert!(log.may_concern(mark, &alice));
        }
        let mark = log.mark();
        assert!(!log.may_concern(mark, &alice));
        log.of_everything();
        assert!(log.concern(mark, &alice, []));
        assert!(
            !log.concern(log.mark(), &alice, &kek_ids),
            "what was asked later is as good as new"
        );
    }

    #[test]
    fn what_is_forgotten_by_name_concerns_everybody_who_asked_before() {
        let (log, alice) = (Revocations::default(), context("alice"));
        let mark = log.mark();
        log.of_context(&alice);
        for i in 0..MAX_NAMES {
            log.of_context(&context(&format!("tenant {i}")));
        }
        assert!(log.concern(mark, &alice, []));
        assert!(log.0.lock().unwrap().contexts.len() <= MAX_NAMES);
        assert!(!log.concern(log.mark(), &alice, []));
    }
}
