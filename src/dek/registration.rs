//! The entry of a DEK in the registry, seen from the DEK's side.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::observe::Accessed;
use crate::suite::DekId;
use crate::sync::{Arc, Weak};

/// The registry that holds the entries.
pub(super) trait Entries: Send + Sync {
    /// Whether it was made in this process. After a fork, a thread that is gone may hold its lock.
    fn is_of_this_process(&self) -> bool;

    fn remove(&self, number: u64);

    /// How long ago the uses of all DEKs were last reported. `None` if they are not counted.
    fn since_summary(&self) -> Option<Duration>;

    /// Takes the counts by caller of a DEK that has ended.
    fn take_callers_of(&self, dek_id: &DekId, within: Duration) -> Vec<Accessed>;
}

/// A DEK's entry in the registry, removed with the DEK.
pub(super) struct Registration {
    entries: Weak<dyn Entries>,
    number: u64,
}

impl Registration {
    pub(super) fn new(entries: Weak<dyn Entries>, number: u64) -> Self {
        Self { entries, number }
    }

    fn entries(&self) -> Option<Arc<dyn Entries>> {
        self.entries.upgrade().filter(|entries| entries.is_of_this_process())
    }

    pub(super) fn since_summary(&self) -> Option<Duration> {
        self.entries()?.since_summary()
    }

    pub(super) fn take_callers_of(&self, dek_id: &DekId, within: Duration) -> Vec<Accessed> {
        self.entries().map_or_else(Vec::new, |entries| entries.take_callers_of(dek_id, within))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(entries) = self.entries.upgrade()
            && entries.is_of_this_process()
        {
            entries.remove(self.number);
        }
    }
}
