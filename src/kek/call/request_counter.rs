//! Whether a request of a shared call is on its way to a key service, or the call only waits for its turn.
//!
//! A call that nobody waits for any more finishes the request that is on its way, and begins no other. Who shares calls is above this
//! layer, so it lends its counter to whatever is polled within [`RequestCounter::scope`].
#![forbid(unsafe_code)]

use std::cell::RefCell;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, thread_local};

thread_local! {
    static CURRENT: RefCell<Option<RequestCounter>> = const { RefCell::new(None) };
}

/// Counts the requests of one call that are on their way.
#[derive(Clone, Default)]
pub(crate) struct RequestCounter(Arc<AtomicUsize>);

impl RequestCounter {
    pub(crate) fn is_busy(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }

    /// Runs `work`. Requests that it begins count here.
    pub(crate) fn scope<R>(&self, work: impl FnOnce() -> R) -> R {
        // In the destructors of a thread the place may be gone already. Then nothing counts.
        let before = CURRENT.try_with(|current| current.replace(Some(self.clone())));
        let _restored = before.ok().map(Restored);
        work()
    }
}

/// Puts back what was current before, also when the work panics.
struct Restored(Option<RequestCounter>);

impl Drop for Restored {
    fn drop(&mut self) {
        let before = self.0.take();
        let _ = CURRENT.try_with(|current| current.replace(before));
    }
}

/// A request that is on its way until this is dropped.
pub(super) struct RequestInFlight(Option<RequestCounter>);

impl RequestInFlight {
    pub(super) fn begin() -> Self {
        let wire = CURRENT.try_with(|current| current.borrow().clone()).ok().flatten();
        if let Some(wire) = &wire {
            wire.0.fetch_add(1, Ordering::SeqCst);
        }
        Self(wire)
    }
}

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        if let Some(wire) = &self.0 {
            wire.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
