//! Pauses between repetitions of a write that conflicted with other writers.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::StoreError;
use crate::kek::toolkit::jitter;

const FIRST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_millis(400);

/// The pauses between repetitions of one write, for a [`KeyStore`](super::KeyStore) whose writes
/// can conflict. Each is about twice as long as the previous one: 2.5 to 5 ms at first, at most 200
/// to 400 ms.
#[derive(Debug)]
pub struct ConflictBackoff {
    began: Instant,
    bound: Duration,
    next: Duration,
}

impl ConflictBackoff {
    /// Starts the time: after `bound` there is no further repetition.
    #[must_use]
    pub fn new(bound: Duration) -> Self {
        Self { began: Instant::now(), bound, next: FIRST }
    }

    /// Waits before the next repetition, on tokio's timer.
    ///
    /// # Errors
    /// Throttled, immediately, when the bound is used up.
    pub async fn wait(&mut self) -> Result<(), StoreError> {
        if self.began.elapsed() >= self.bound {
            let text = "other writers change the same data, so the write got no turn in time";
            return Err(StoreError::throttled(text));
        }
        // Callers that collided must not collide again.
        tokio::time::sleep(self.next.mul_f64(0.5 + jitter() / 2.0)).await;
        self.next = (self.next * 2).min(LONGEST);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreErrorClass;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_the_longest_one() {
        let mut backoff = ConflictBackoff::new(Duration::from_secs(3600));
        for longest in [5, 10, 20, 40, 80, 160, 320, 400, 400].map(Duration::from_millis) {
            let before = tokio::time::Instant::now();
            backoff.wait().await.unwrap();
            // The timer counts in milliseconds, and never wakes too early.
            let pause = before.elapsed();
            let is_within = longest / 2 <= pause && pause <= longest + Duration::from_millis(1);
            assert!(is_within, "{pause:?} of {longest:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_bound_is_used_up_it_fails_without_a_pause() {
        let mut backoff = ConflictBackoff::new(Duration::ZERO);
        let before = tokio::time::Instant::now();
        assert_eq!(backoff.wait().await.unwrap_err().class(), StoreErrorClass::Throttled);
        assert_eq!(before.elapsed(), Duration::ZERO);
    }
}
