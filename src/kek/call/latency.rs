//! How long a key service takes to answer, lately.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::sync::Mutex;

const SAMPLES: usize = 128;
/// Fewer say nothing about a tail.
const ENOUGH: usize = 20;

/// The latest answers of one KEK. The lock is only ever tried: a sample more or less does not matter, and the child of a fork may inherit
/// it locked.
pub(super) struct Latency(Mutex<Ring>);

struct Ring {
    samples: [Duration; SAMPLES],
    seen: usize,
}

impl Latency {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Ring { samples: [Duration::ZERO; SAMPLES], seen: 0 }))
    }

    pub(super) fn record(&self, elapsed: Duration) {
        if let Ok(mut ring) = self.0.try_lock() {
            let at = ring.seen % SAMPLES;
            if let Some(sample) = ring.samples.get_mut(at) {
                *sample = elapsed;
            }
            ring.seen = ring.seen.saturating_add(1);
        }
    }

    /// The smallest latency that `percent` of the latest answers did not exceed; `None` while there are too few.
    pub(super) fn percentile(&self, percent: u8) -> Option<Duration> {
        let (mut samples, len) = {
            let ring = self.0.try_lock().ok()?;
            (ring.samples, ring.seen.min(SAMPLES))
        };
        let samples = samples.get_mut(..len).filter(|samples| samples.len() >= ENOUGH)?;
        let rank = (len * usize::from(percent)).div_ceil(100).saturating_sub(1);
        Some(*samples.select_nth_unstable(rank.min(len - 1)).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_that_of_the_latest_answers() {
        let latency = Latency::new();
        for ms in 1..=19 {
            latency.record(Duration::from_millis(ms));
            assert_eq!(latency.percentile(95), None, "too few");
        }
        latency.record(Duration::from_millis(20));
        assert_eq!(latency.percentile(95), Some(Duration::from_millis(19)));
        assert_eq!(latency.percentile(50), Some(Duration::from_millis(10)));
        assert_eq!(latency.percentile(100), Some(Duration::from_millis(20)));
        for _ in 0..SAMPLES {
            latency.record(Duration::from_millis(7));
        }
        assert_eq!(latency.percentile(99), Some(Duration::from_millis(7)), "old answers are forgotten");
    }
}
