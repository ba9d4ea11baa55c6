//! Random nonces that a fork does not make repeat.
#![forbid(unsafe_code)]

use std::cell::Cell;

use rand::Rng;

use super::Suite;
use crate::error::{Error, ErrorKind};
use crate::memory::fork;

/// Where nonces come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Nonces {
    /// A ChaCha12 generator per thread, seeded by the operating system and seeded anew after a fork. The default.
    ///
    /// **A virtual machine that is resumed twice from one snapshot repeats its nonces with this**, whatever the suite: use
    /// [`Nonces::System`] where that can happen.
    #[default]
    Thread,
    /// Every nonce from the operating system: a system call per message on most systems.
    System,
}

thread_local! {
    /// The fork generation that this thread's generator was last seeded in.
    static SEEDED_IN: Cell<u64> = const { Cell::new(0) };
}

/// A nonce of the length its suite wants.
pub(crate) struct Nonce {
    bytes: [u8; 24],
    len: usize,
}

impl Nonce {
    pub(crate) fn random(nonces: Nonces, suite: Suite) -> Result<Self, Error> {
        let mut nonce = Self { bytes: [0; 24], len: suite.nonce_len() };
        let bytes = nonce.bytes.get_mut(..nonce.len).unwrap_or_default();
        match nonces {
            Nonces::System => getrandom::fill(bytes)?,
            Nonces::Thread => fill_from_thread(bytes)?,
        }
        Ok(nonce)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

fn fill_from_thread(bytes: &mut [u8]) -> Result<(), Error> {
    let generation = fork::generation();
    let mut rng = rand::rng();
    if SEEDED_IN.get() != generation {
        rng.reseed().map_err(|source| Error::new(ErrorKind::Randomness, "").with_source(source))?;
        SEEDED_IN.set(generation);
    }
    rng.fill_bytes(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
