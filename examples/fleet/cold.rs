//! A new process that reads rows of the past, picked at random.

use crate::cache::{Keeping, Use};
use crate::peers;

/// Rows that some processes wrote evenly, for one context.
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// How many processes wrote.
    pub processes: f64,
    /// Seconds between two rows of one process.
    pub interval: f64,
    /// For how many seconds they wrote.
    pub length: f64,
}

/// What the reader asks for.
#[derive(Clone, Copy, Debug)]
pub struct Cold {
    /// Distinct keys that the rows need from the key service.
    pub keys: f64,
    /// Calls of the key service.
    pub calls: f64,
    /// Reads of the key store.
    pub store_reads: f64,
}

/// Returns how many of `reads` uses of `keys` keys, picked at random, find theirs not cached, with
/// room for `capacity` keys.
#[must_use]
pub fn misses(keys: f64, reads: f64, capacity: f64) -> f64 {
    let distinct = |reads: f64| keys * (1.0 - (1.0 - 1.0 / keys).powf(reads));
    if keys <= 1.0 || distinct(reads) <= capacity {
        return distinct(reads).min(reads);
    }
    let until_full = (1.0 - capacity / keys).ln() / (1.0 - 1.0 / keys).ln();
    capacity + (reads - until_full) * (1.0 - capacity / keys)
}

impl History {
    fn whole_keys(&self, lifetime: f64) -> f64 {
        self.processes * (self.length / lifetime).ceil()
    }

    /// Waxseal without branch keys.
    #[must_use]
    pub fn waxseal(&self, max_age: f64, rotate_after: f64, reads: f64, capacity: f64) -> Cold {
        let lifetime =
            Keeping::ahead(max_age, 0.0).lifetime(Use::Every(self.interval), rotate_after);
        let keys = self.whole_keys(lifetime);
        Cold { keys, calls: misses(keys, reads, capacity), store_reads: 0.0 }
    }

    /// Waxseal with branch keys in a store, of which there are so many.
    #[must_use]
    pub fn waxseal_branches(&self, branch_keys: f64, reads: f64) -> Cold {
        let calls = misses(branch_keys, reads, branch_keys);
        Cold { keys: branch_keys, calls, store_reads: calls }
    }

    /// The AWS Encryption SDK with its caching CMM. See [`peers::CACHING_CMM`].
    #[must_use]
    pub fn caching_cmm(&self, max_age: f64, reads: f64, capacity: f64) -> Cold {
        let lifetime = Keeping::until(max_age).cycle(Use::Every(self.interval));
        let keys = self.whole_keys(lifetime);
        Cold { keys, calls: misses(keys, reads, capacity), store_reads: 0.0 }
    }

    /// The AWS Encryption SDK with one data key for each message. See [`peers::NO_CACHE`].
    #[must_use]
    pub fn no_cache(&self, reads: f64) -> Cold {
        let keys = self.processes * (self.length / self.interval).ceil();
        Cold { keys, calls: reads, store_reads: 0.0 }
    }

    /// The AWS Encryption SDK with its hierarchical keyring, if an operator makes so many versions
    /// of the branch key. See [`peers::HIERARCHICAL`].
    #[must_use]
    pub fn hierarchical(&self, versions: f64, reads: f64) -> Cold {
        let calls = misses(versions, reads, peers::HIERARCHICAL_CAPACITY);
        Cold { keys: versions, calls, store_reads: calls }
    }

    /// Asherah: only system keys need the key service, and both kinds of keys are in its store.
    /// See [`peers::ASHERAH`].
    #[must_use]
    pub fn asherah(&self, reads: f64) -> Cold {
        let keys = (self.length / peers::ASHERAH_EXPIRES).ceil();
        let calls = misses(keys, reads, peers::ASHERAH_CAPACITY);
        Cold { keys, calls, store_reads: 2.0 * calls }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DAY, MINUTE};

    const MONTH: History = History { processes: 4.0, interval: 60.0, length: 30.0 * DAY };

    #[test]
    fn a_small_cache_misses_again_what_it_dropped() {
        assert!((misses(43_200.0, 5_000.0, 1e9) - 4_721.0).abs() < 2.0);
        assert!((misses(43_200.0, 5_000.0, 4_096.0) - 4_727.0).abs() < 2.0);
        assert!((misses(10.0, 5_000.0, 1.0) - 4_500.0).abs() < 2.0, "nine of ten");
        assert!((misses(1.0, 5_000.0, 1.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_number_of_keys_follows_from_how_long_each_encrypts() {
        let waxseal = MONTH.waxseal(5.0 * MINUTE, MINUTE, 5_000.0, 4_096.0);
        assert!((waxseal.keys - 43_200.0).abs() < 1.0, "{waxseal:?}");
        let peer = MONTH.caching_cmm(5.0 * MINUTE, 5_000.0, 4_096.0);
        assert!((peer.keys - 34_560.0).abs() < 1.0, "five rows each: {peer:?}");
    }
}
