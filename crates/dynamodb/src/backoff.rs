//! Waiting before a repetition, within a bound.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use waxseal::store::StoreError;

const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(400);

/// The waits between repetitions of one call: each about twice as long as the one before.
pub(crate) struct Backoff {
    began: Instant,
    bound: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(bound: Duration) -> Self {
        Self { began: Instant::now(), bound, next: FIRST }
    }

    /// Waits between half and all of the present step.
    ///
    /// # Errors
    /// When the bound is used up.
    pub(crate) async fn wait(&mut self) -> Result<(), StoreError> {
        if self.began.elapsed() >= self.bound {
            let text = "other writers change the same rows, so the write found no turn in time";
            return Err(StoreError::throttled(text));
        }
        // Any spread will do: callers that met must not meet again.
        let random = RandomState::new().hash_one(0) % 1024;
        let spread = u32::try_from(random).unwrap_or(0);
        tokio::time::sleep(self.next / 2 + self.next / 2 * spread / 1024).await;
        self.next = (self.next * 2).min(LONGEST);
        Ok(())
    }
}
