//! A DEK that needs no call: it is derived from a cached branch key on the caller's thread.
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
    /// Returns the DEK of a message if the KEK that would be asked first has in this process what it
    /// takes. It does what a call does, without one: no flight, no budget, no task, no wait.
    ///
    /// `None` for anything else, failures included: then the call is made, which says what is wrong.
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
        // In this order: shut-down closes first and takes its mark then.
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
        // Another caller may have been quicker. Then all go on with that one.
        if let Ok(Some(there)) = request.find(cache)
            && there.lease.age(lease.now()) == Age::Fresh
        {
            // The DEK stays. Nobody is to be told that it was wiped.
            lease.is_first_to_announce_the_end();
            return Some(Arc::new(Pinned::new(there)));
        }
        // A branch key that was evicted meanwhile serves who waits, and so does what came through it.
        if lease.is_orphan() {
            lease.evict();
        }
        cache.put_reading(&dek);
        Some(pinned)
    }
}
