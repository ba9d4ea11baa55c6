//! The entry of a DEK in the registry, seen from the DEK's side.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::sync::Weak;

/// What holds the entries.
pub(super) trait Entries: Send + Sync {
    /// Whether it was made in this process. After a fork its lock may be held by a thread that is gone.
    fn is_of_this_process(&self) -> bool;

    fn remove(&self, number: u64);

    /// How long ago the uses of all DEKs were last reported. `None` if they are not counted.
    fn since_summary(&self) -> Option<Duration>;
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

    pub(super) fn since_summary(&self) -> Option<Duration> {
        let entries = self.entries.upgrade();
        entries.filter(|entries| entries.is_of_this_process())?.since_summary()
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
