//! A secret that many threads use at once without sharing a cache line, and that one thread can
//! destroy.
#![forbid(unsafe_code)]

use super::shards::{shard, shards};
use super::{Arc, PoisonError, RwLock, TryLockError};

/// Holds a value until it is [destroyed](Slot::destroy).
///
/// There is one lock per group of threads, each with its own pointer to the one value. A use takes
/// the lock of its own group for reading, and threads of other groups do not write to it.
/// Destroying takes all locks.
pub(crate) struct Slot<T>(Box<[Shard<T>]>);

/// Two cache lines, since processors fetch them in pairs.
#[repr(align(128))]
struct Shard<T>(RwLock<Option<Arc<T>>>);

impl<T> Slot<T> {
    pub(crate) fn new(value: &Arc<T>) -> Self {
        Self((0..shards()).map(|_| Shard(RwLock::new(Some(value.clone())))).collect())
    }

    /// Runs `work` on the value unless it was destroyed. The value stays while `work` runs.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&T) -> R) -> Option<R> {
        let Shard(lock) = self.0.get(shard())?;
        let value = lock.read().unwrap_or_else(PoisonError::into_inner);
        value.as_deref().map(work)
    }

    /// Returns another slot with the same value, unless it was destroyed. The value lasts until
    /// both slots are destroyed.
    pub(crate) fn share(&self) -> Option<Self> {
        let Shard(lock) = self.0.get(shard())?;
        let value = lock.read().unwrap_or_else(PoisonError::into_inner);
        value.as_ref().map(Self::new)
    }

    /// Removes the value from all groups that are not using it right now. Returns `true` once no
    /// group has it. Otherwise call it again.
    pub(crate) fn destroy(&self) -> bool {
        self.0.iter().fold(true, |all, Shard(lock)| match lock.try_write() {
            Ok(mut value) => {
                *value = None;
                all
            }
            Err(TryLockError::Poisoned(value)) => {
                *value.into_inner() = None;
                all
            }
            Err(TryLockError::WouldBlock) => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::atomic::{AtomicUsize, Ordering};
    use super::*;

    #[test]
    fn a_destroyed_value_is_dropped_and_cannot_be_used() {
        struct Flag(Arc<AtomicUsize>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let drops = Arc::new(AtomicUsize::new(0));
        let slot = Slot::new(&Arc::new(Flag(drops.clone())));
        assert_eq!(slot.with(|_| 7), Some(7));
        assert!(slot.destroy());
        assert_eq!(drops.load(Ordering::SeqCst), 1);
        assert_eq!(slot.with(|_| 7), None);
        assert!(slot.destroy(), "again changes nothing");
    }

    #[test]
    fn a_shared_value_is_gone_with_its_last_slot() {
        let value = Arc::new(7);
        let weak = Arc::downgrade(&value);
        let slot = Slot::new(&value);
        drop(value);
        let other = slot.share().unwrap();
        assert!(slot.destroy());
        assert_eq!((slot.with(|_| ()), other.with(|value| *value)), (None, Some(7)));
        assert!(slot.share().is_none());
        assert!(other.destroy());
        assert_eq!(weak.strong_count(), 0);
    }

    #[test]
    fn a_value_in_use_stays_until_it_is_not() {
        let slot = Slot::new(&Arc::new(()));
        slot.with(|()| assert!(!slot.destroy()));
        assert!(slot.destroy());
    }
}
