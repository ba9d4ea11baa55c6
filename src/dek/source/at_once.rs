//! A DEK that needs no call, because it is derived from a cached branch key on the caller's thread.
#![forbid(unsafe_code)]

use super::super::ReadingDek;
use super::super::cache::DekCache;
use super::super::lease::Age;
use super::super::pinned::Pinned;
use super::super::registry::end_all;
use super::reading::Owned;
use super::stored::Located;
use super::{DekRequest, DekSource, ReadingRequest};
use crate::format::WrappedKeys;
use crate::sync::Arc;

impl DekSource {
    /// Returns the DEK of a message if the first KEK to ask has all it needs in this process. It
    /// does what a call does, without a call: no flight, no budget, no task, no wait.
    ///
    /// Returns `None` for anything else, including failures. Then the call is made, and its error
    /// says what is wrong.
    pub(super) fn unwrapped_at_once(
        &self,
        cache: &DekCache,
        request: &ReadingRequest<'_>,
    ) -> Option<Arc<Pinned<ReadingDek>>> {
        // A tombstone in the store would refuse the message. Roots of branch keys are asked.
        if self.options.store.is_some() || self.options.branch.is_some() {
            return None;
        }
        let keys = request.known_keys()?;
        if !self.keks.may_unwrap_at_once() {
            return None;
        }
        let keys = WrappedKeys::try_from(keys).ok()?;
        self.check_context(request.context).ok()?;
        if cache.refusal(&request.request_key()).is_some() {
            return None;
        }
        let mark = cache.revocations.mark();
        // Order matters: shut-down closes first and then takes its mark.
        self.check_open().ok()?;
        let unwrapped = self.keks.unwrap_at_once(request.context, request.id, &keys)?;
        let owned = Owned::new(request.context, *request.id, request.suite, Some(keys.clone()));
        let located =
            Located { context: request.context.clone(), id: *request.id, wrapped_keys: keys };
        let dek = self.obtained(&owned, located, unwrapped).ok()?;
        // Pinned before an eviction can find it.
        let pinned = Arc::new(Pinned::new(dek.clone()));
        // A revocation from here on ends it, and an earlier one is seen below.
        cache.look_after(&dek);
        let lease = &dek.lease;
        if cache.revocations.concern(mark, request.context, lease.all_kek_ids())
            || lease.has_revoked_parent()
        {
            end_all(std::slice::from_ref(&dek));
            return None;
        }
        // Another caller may have been quicker. Then all continue with that caller's DEK.
        if let Ok(Some(there)) = request.find(cache)
            && there.lease.age(lease.now()) == Age::Fresh
        {
            // The DEK stays, so nothing must be reported as wiped.
            lease.is_first_to_announce_the_end();
            return Some(Arc::new(Pinned::new(there)));
        }
        // A branch key that was evicted meanwhile serves the waiting callers, and so does
        // everything derived through it.
        if lease.is_orphan() {
            lease.evict();
        }
        cache.put_reading(&dek);
        Some(pinned)
    }
}
