//! Counts the requests of a shared call that are in flight, as opposed to waiting for a turn.
//!
//! A call without callers finishes the request in flight and begins no other. Calls are shared
//! above this layer, which therefore passes its counter to everything polled within
//! [`RequestCounter::scope`].
#![forbid(unsafe_code)]

use std::cell::RefCell;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, thread_local};

thread_local! {
    static CURRENT: RefCell<Option<RequestCounter>> = const { RefCell::new(None) };
}

/// Counts the requests of one call that are in flight.
#[derive(Clone, Default)]
pub(crate) struct RequestCounter(Arc<AtomicUsize>);

impl RequestCounter {
    pub(crate) fn is_busy(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }

    /// Runs `work`, and counts the requests that begin in it.
    pub(crate) fn scope<R>(&self, work: impl FnOnce() -> R) -> R {
        // While a thread's locals are destroyed there may be no current counter. Then nothing is
        // counted.
        let before = CURRENT.try_with(|current| current.replace(Some(self.clone())));
        let _restored = before.ok().map(Restored);
        work()
    }
}

/// Restores the previous counter, even if the work panics.
struct Restored(Option<RequestCounter>);

impl Drop for Restored {
    fn drop(&mut self) {
        let before = self.0.take();
        let _ = CURRENT.try_with(|current| current.replace(before));
    }
}

/// A request that is in flight until this is dropped.
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
