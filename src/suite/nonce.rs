//! Random nonces that do not repeat after a fork.
#![forbid(unsafe_code)]

use std::cell::RefCell;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zeroize::Zeroizing;

use super::Suite;
use crate::error::Error;
use crate::memory::fork;

/// Where nonces come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum Nonces {
    /// A ChaCha12 generator per thread, seeded by the operating system, and seeded again after
    /// every 64 KiB and after a fork. The default.
    ///
    /// **A virtual machine that is resumed twice from one snapshot repeats its nonces with this
    /// option**, whatever the suite. Use [`Nonces::System`] if that can happen.
    #[default]
    Thread,
    /// Draws every nonce from the operating system, which costs a system call per message on most
    /// systems.
    System,
}

impl Nonces {
    /// Fills `bytes` with nonces, one or many.
    pub(crate) fn fill(self, bytes: &mut [u8]) -> Result<(), Error> {
        match self {
            Self::System => system(bytes),
            Self::Thread => fill_from_thread(bytes),
        }
    }
}

/// How many bytes a thread's generator returns before it is seeded again.
const RESEED_AFTER: usize = 64 * 1024;

thread_local! {
    static GENERATOR: RefCell<Generator> = const { RefCell::new(Generator::unseeded()) };
}

/// A nonce of its suite's length.
pub(crate) struct Nonce {
    bytes: [u8; 24],
    len: usize,
}

impl Nonce {
    pub(crate) fn random(nonces: Nonces, suite: Suite) -> Result<Self, Error> {
        let mut nonce = Self { bytes: [0; 24], len: suite.nonce_len() };
        nonces.fill(nonce.bytes.get_mut(..nonce.len).unwrap_or_default())?;
        Ok(nonce)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

fn fill_from_thread(bytes: &mut [u8]) -> Result<(), Error> {
    let filled = GENERATOR.try_with(|its| Some(its.try_borrow_mut().ok()?.fill(bytes, system)));
    // If the thread is ending, its generator may be gone.
    filled.ok().flatten().unwrap_or_else(|| system(bytes))
}

fn system(bytes: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(bytes).map_err(Error::randomness)
}

/// Returns a number between 0 and 1 that spreads events. It is 0.5 if the system's generator fails.
#[must_use]
pub fn jitter() -> f64 {
    let mut bytes = [0; 4];
    match fill_from_thread(&mut bytes) {
        Ok(()) => bytes.iter().rev().fold(0.0, |below, byte| (below + f64::from(*byte)) / 256.0),
        Err(_) => 0.5,
    }
}

/// A thread's generator like that of `rand`, which panics if the system's generator fails and does
/// not notice a fork.
struct Generator {
    rng: Option<StdRng>,
    /// The fork generation in which it was seeded.
    generation: u64,
    left: usize,
}

impl Generator {
    const fn unseeded() -> Self {
        Self { rng: None, generation: 0, left: 0 }
    }

    /// Fills `bytes`. If a seed is due and cannot be obtained, it fails: an old generator never
    /// continues.
    fn fill(
        &mut self,
        bytes: &mut [u8],
        seed: impl FnOnce(&mut [u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let generation = fork::generation();
        let rng = match &mut self.rng {
            Some(rng) if self.generation == generation && self.left >= bytes.len() => rng,
            rng => {
                let mut fresh = Zeroizing::new([0; 32]);
                seed(&mut *fresh)?;
                (self.generation, self.left) = (generation, RESEED_AFTER);
                rng.insert(StdRng::from_seed(*fresh))
            }
        };
        self.left = self.left.saturating_sub(bytes.len());
        match bytes.as_chunks_mut::<4>() {
            // Faster for one nonce than the general way.
            (words, []) if words.len() <= 6 => words.fill_with(|| rng.next_u32().to_le_bytes()),
            _ => rng.fill_bytes(bytes),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn nonces_have_the_suites_length_and_do_not_repeat() {
        for nonces in [Nonces::Thread, Nonces::System] {
            for suite in [Suite::Aes256Gcm, Suite::Xaes256Gcm] {
                let mut seen = std::collections::HashSet::new();
                for _ in 0..1000 {
                    let nonce = Nonce::random(nonces, suite).unwrap();
                    assert_eq!(nonce.as_bytes().len(), suite.nonce_len());
                    assert!(seen.insert(nonce.as_bytes().to_vec()));
                }
            }
        }
    }

    #[test]
    fn a_generator_that_cannot_be_seeded_gives_an_error_and_nothing_else() {
        let fails = |_: &mut [u8]| Err(Error::new(ErrorKind::Randomness, ""));
        let mut generator = Generator::unseeded();
        let mut bytes = [0; 24];
        assert_eq!(generator.fill(&mut bytes, fails).unwrap_err().kind(), ErrorKind::Randomness);
        let mut seeds = 0;
        let mut seen = std::collections::HashSet::new();
        for _ in 0..10 * RESEED_AFTER / bytes.len() {
            let before = bytes;
            let seed = |fresh: &mut [u8]| {
                seeds += 1;
                if seeds % 2 == 0 { fails(fresh) } else { system(fresh) }
            };
            match generator.fill(&mut bytes, seed) {
                Ok(()) => assert!(seen.insert(bytes)),
                Err(error) => assert_eq!(
                    (error.kind(), bytes),
                    (ErrorKind::Randomness, before),
                    "nothing was given"
                ),
            }
        }
        assert!((18..=20).contains(&seeds), "{seeds} times in 640 KiB, every other time in vain");
        generator.generation += 1;
        assert!(generator.fill(&mut bytes, fails).is_err(), "seeded in another process");
    }

    #[test]
    fn what_is_spread_lies_between_0_and_1_and_is_not_always_the_same() {
        let all: Vec<f64> = (0..1000).map(|_| jitter()).collect();
        assert!(all.iter().all(|at| (0.0..1.0).contains(at)));
        assert!(all.iter().any(|at| *at < 0.1) && all.iter().any(|at| *at > 0.9));
    }
}
