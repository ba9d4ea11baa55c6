//! The recent latencies of a key service.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::sync::Mutex;

const SAMPLES: usize = 128;
/// Fewer samples say nothing about a tail.
const ENOUGH: usize = 20;

/// The latest latencies of one target. The lock is only ever tried: one sample more or less does
/// not matter, and the child of a fork may inherit it locked.
#[derive(Default)]
pub(super) struct Latency(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    /// In microseconds. Grows up to `SAMPLES`.
    samples: Vec<u32>,
    seen: usize,
}

impl Latency {
    pub(super) fn record(&self, elapsed: Duration) {
        let sample = u32::try_from(elapsed.as_micros()).unwrap_or(u32::MAX);
        if let Ok(mut ring) = self.0.try_lock() {
            let at = ring.seen % SAMPLES;
            match ring.samples.get_mut(at) {
                Some(oldest) => *oldest = sample,
                None => ring.samples.push(sample),
            }
            ring.seen = ring.seen.saturating_add(1);
        }
    }

    /// Whether there was ever an answer.
    pub(super) fn is_known(&self) -> bool {
        self.0.try_lock().map_or(true, |ring| ring.seen > 0)
    }

    /// Returns the smallest latency that `percent` of the latest responses did not exceed, or
    /// `None` if there are too few.
    pub(super) fn percentile(&self, percent: u8) -> Option<Duration> {
        let mut samples =
            self.0.try_lock().ok().filter(|ring| ring.samples.len() >= ENOUGH)?.samples.clone();
        let rank = (samples.len() * usize::from(percent)).div_ceil(100).saturating_sub(1);
        let rank = rank.min(samples.len().saturating_sub(1));
        Some(Duration::from_micros(u64::from(*samples.select_nth_unstable(rank).1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_is_that_of_the_latest_answers() {
        let latency = Latency::default();
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
        assert_eq!(
            latency.percentile(99),
            Some(Duration::from_millis(7)),
            "old answers are forgotten"
        );
    }
}
