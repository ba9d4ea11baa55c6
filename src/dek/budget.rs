//! Counts how often a DEK may still be used, before each use.
#![forbid(unsafe_code)]

use crate::error::{Error, ErrorKind};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::shards::{shard, shards};
use crate::sync::{Mutex, PoisonError};

/// A cap on messages and bytes, handed out to groups of threads in small portions, so that threads
/// do not contend for one counter. It never hands out more than the cap in total.
pub(super) struct Budget {
    /// The part that no group has yet.
    rest: Mutex<Rest>,
    groups: Box<[Portion]>,
    portion: Rest,
    /// The initial number of messages.
    max_messages: u64,
    max_bytes: u64,
    /// The messages that were already reported.
    told: AtomicU64,
    /// When this little is left, the next DEK is made ahead of time.
    low: Rest,
    /// A message was refused, so the next DEK is needed.
    used_up: AtomicBool,
}

#[derive(Clone, Copy)]
struct Rest {
    messages: u64,
    bytes: u64,
}

#[repr(align(128))]
struct Portion {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Portion {
    /// Takes both or neither.
    #[inline]
    fn take(&self, messages: u64, len: u64) -> bool {
        if messages > 0 && !take(&self.messages, messages) {
            return false;
        }
        let taken = take(&self.bytes, len);
        if !taken && messages > 0 {
            self.messages.fetch_add(messages, Ordering::Relaxed);
        }
        taken
    }
}

#[cold]
fn exhausted() -> Error {
    Error::new(ErrorKind::Exhausted, "")
}

fn take(left: &AtomicU64, wanted: u64) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(wanted)).is_ok()
}

impl Budget {
    pub(super) fn new(max_messages: u64, max_bytes: u64) -> Self {
        let portion = |max: u64, most: u64| (max / 1024).clamp(1, most);
        Self {
            rest: Mutex::new(Rest { messages: max_messages, bytes: max_bytes }),
            groups: (0..shards())
                .map(|_| Portion { messages: AtomicU64::new(0), bytes: AtomicU64::new(0) })
                .collect(),
            portion: Rest {
                messages: portion(max_messages, 1 << 10),
                bytes: portion(max_bytes, 1 << 24),
            },
            max_messages,
            max_bytes,
            told: AtomicU64::new(0),
            low: Rest { messages: max_messages / 8, bytes: max_bytes / 8 },
            used_up: AtomicBool::new(false),
        }
    }

    pub(super) fn max_messages(&self) -> u64 {
        self.max_messages
    }

    pub(super) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Counts one message of `len` bytes.
    #[inline]
    pub(super) fn reserve(&self, len: u64) -> Result<(), Error> {
        self.reserve_of(1, len)
    }

    /// Counts more bytes of a message that was counted before.
    pub(super) fn reserve_bytes(&self, len: u64) -> Result<(), Error> {
        self.reserve_of(0, len)
    }

    /// Counts this many messages of this many bytes in total: all or none.
    #[inline]
    pub(super) fn reserve_of(&self, messages: u64, len: u64) -> Result<(), Error> {
        let mine = self.groups.get(shard()).ok_or_else(exhausted)?;
        match mine.take(messages, len) {
            true => Ok(()),
            false => self.reserve_with_new_portion(mine, messages, len),
        }
    }

    /// Runs once per portion.
    #[cold]
    fn reserve_with_new_portion(
        &self,
        mine: &Portion,
        messages: u64,
        len: u64,
    ) -> Result<(), Error> {
        // Under the lock nothing is moving between counters, so "not enough" means not enough in
        // total.
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        if rest.messages < messages || rest.bytes < len {
            for other in &self.groups {
                rest.messages += other.messages.swap(0, Ordering::Relaxed);
                rest.bytes += other.bytes.swap(0, Ordering::Relaxed);
            }
        }
        if rest.messages < messages || rest.bytes < len {
            self.used_up.store(true, Ordering::Relaxed);
            return Err(exhausted());
        }
        rest.messages -= messages;
        rest.bytes -= len;
        let more = Rest {
            messages: rest.messages.min(self.portion.messages),
            bytes: rest.bytes.min(self.portion.bytes),
        };
        rest.messages -= more.messages;
        rest.bytes -= more.bytes;
        mine.messages.fetch_add(more.messages, Ordering::Relaxed);
        mine.bytes.fetch_add(more.bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Returns a reservation of messages without bytes.
    pub(super) fn give_back(&self, messages: u64) {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        rest.messages = rest.messages.saturating_add(messages);
        self.used_up.store(false, Ordering::Relaxed);
    }

    /// Returns how many messages were counted since the last call.
    pub(super) fn take_counted(&self) -> u64 {
        // Under the lock nothing is moving between counters.
        let rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let portions = self.groups.iter().map(|portion| portion.messages.load(Ordering::Relaxed));
        let left = portions.fold(rest.messages, u64::saturating_add);
        let counted = self.max_messages.saturating_sub(left);
        // A message that is given back after it was reported reduces the next report.
        let told = self.told.fetch_max(counted, Ordering::Relaxed);
        counted.saturating_sub(told)
    }

    /// Whether nothing can be sealed any more.
    pub(super) fn is_used_up(&self) -> bool {
        self.used_up.load(Ordering::Relaxed)
    }

    /// Whether the next DEK should be made. It looks only at the part that no group has yet, and
    /// does not wait for it.
    pub(super) fn is_low(&self) -> bool {
        match self.rest.try_lock() {
            Ok(rest) => rest.messages <= self.low.messages || rest.bytes <= self.low.bytes,
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_limit_is_handed_out_among_threads() {
        for (messages, bytes, expected) in
            [(5000, u64::MAX, 5000), (u64::MAX, 50_000, 5000), (1, 10, 1), (3, 9, 0)]
        {
            let budget = Budget::new(messages, bytes);
            let taken: u64 = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            (0..2000).map(|_| u64::from(budget.reserve(10).is_ok())).sum::<u64>()
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(taken, expected, "{messages} messages, {bytes} bytes");
        }
    }

    #[test]
    fn what_is_given_back_is_there_again_and_no_more_than_that() {
        let budget = Budget::new(1000, u64::MAX);
        let used: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let mut used = 0;
                        for round in 0..4000 {
                            let reserved = budget.reserve(0).is_ok();
                            if reserved && round % 4 == 0 {
                                used += 1;
                            } else if reserved {
                                budget.give_back(1);
                            }
                        }
                        used
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let left: u64 = (0..2000).map(|_| u64::from(budget.reserve(0).is_ok())).sum();
        assert_eq!(used + left, 1000);
        assert!(budget.is_used_up());
        budget.give_back(1);
        assert!(!budget.is_used_up());
        assert!(budget.reserve(0).is_ok() && budget.reserve(0).is_err());
    }

    #[test]
    fn what_was_counted_is_told_once_and_nothing_is_missing() {
        for max in [10_000, u64::MAX] {
            let budget = Budget::new(max, u64::MAX);
            let told: u64 = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|_| scope.spawn(|| (0..500).for_each(|_| budget.reserve(1).unwrap())))
                    .collect();
                let mut told = 0;
                while !threads.iter().all(|thread| thread.is_finished()) {
                    told += budget.take_counted();
                }
                told
            });
            assert_eq!(told + budget.take_counted(), 4000);
            assert_eq!(budget.take_counted(), 0);
            budget.reserve(0).unwrap();
            budget.reserve(0).unwrap();
            budget.give_back(1);
            assert_eq!(budget.take_counted(), 1);
        }
    }

    #[test]
    fn a_refused_message_costs_nothing() {
        let budget = Budget::new(2, 100);
        assert!(budget.reserve(101).is_err());
        assert!(budget.reserve(60).is_ok());
        assert!(budget.reserve(41).is_err());
        assert!(budget.reserve(40).is_ok());
        assert!(budget.reserve(0).is_err(), "two messages were sealed");
    }

    #[test]
    fn more_bytes_of_a_message_cost_no_message() {
        let budget = Budget::new(1, 100);
        budget.reserve(0).unwrap();
        budget.reserve_bytes(60).unwrap();
        assert!(budget.reserve_bytes(41).is_err());
        budget.reserve_bytes(40).unwrap();
        assert!(budget.reserve_bytes(1).is_err() && budget.reserve(0).is_err());
        assert_eq!(budget.take_counted(), 1);
    }

    #[test]
    fn the_end_is_seen_ahead() {
        let budget = Budget::new(80, u64::MAX);
        assert!(!budget.is_low());
        (0..72).for_each(|_| budget.reserve(1).unwrap());
        assert!(budget.is_low());
    }
}
