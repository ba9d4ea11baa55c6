//! Secrets of 32 bytes with a fixed address.
#![forbid(unsafe_code)]

use std::fmt;

use super::arena::{self, Loan};
use crate::error::Error;

/// A 256-bit secret in the memory of [`arena`]. Moving the handle copies no key byte, and the
/// secret is wiped on drop.
///
/// It belongs to the process that made it. In the child of a fork it reads as zeros if the system
/// wipes pages on fork. Check [`is_of_this_process`](Self::is_of_this_process) before deriving or
/// expanding a key.
pub(crate) struct Secret32(
    /// Taken only by `drop`.
    Option<Loan>,
);

impl Secret32 {
    /// Makes zeros, to be filled in place.
    pub(crate) fn zeroed() -> Self {
        Self(Some(arena::lend()))
    }

    /// Returns `None` unless `bytes` is exactly 32 long.
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 32] = bytes.try_into().ok()?;
        let mut secret = Self::zeroed();
        secret.expose_mut().copy_from_slice(bytes);
        Some(secret)
    }

    /// Draws from the operating system's generator, whose output neither a fork nor a thread's
    /// state repeats.
    pub(crate) fn random() -> Result<Self, Error> {
        let mut secret = Self::zeroed();
        getrandom::fill(secret.expose_mut()).map_err(Error::randomness)?;
        Ok(secret)
    }

    /// Makes another copy. `None` in the child of a fork, where there is nothing to copy.
    pub(crate) fn try_clone(&self) -> Option<Self> {
        self.is_of_this_process().then(|| Self::from_slice(self.expose())).flatten()
    }

    pub(crate) fn is_of_this_process(&self) -> bool {
        self.0.as_ref().is_some_and(Loan::is_of_this_process)
    }

    pub(crate) fn expose(&self) -> &[u8; 32] {
        self.0.as_ref().map_or(&[0; 32], |loan| loan.bytes)
    }

    pub(crate) fn expose_mut(&mut self) -> &mut [u8; 32] {
        self.0.get_or_insert_with(arena::lend).bytes
    }
}

impl Drop for Secret32 {
    fn drop(&mut self) {
        if let Some(loan) = self.0.take() {
            arena::give_back(loan);
        }
    }
}

impl fmt::Debug for Secret32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret32([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret32;

    #[test]
    fn only_exactly_32_bytes_become_a_secret() {
        for len in [0, 16, 31, 33, 64] {
            assert!(Secret32::from_slice(&vec![1; len]).is_none(), "{len} bytes");
        }
        assert_eq!(Secret32::from_slice(&[7; 32]).unwrap().expose(), &[7; 32]);
    }

    #[test]
    fn debug_shows_no_byte() {
        let text = format!("{:?}", Secret32::from_slice(&[0xAB; 32]).unwrap());
        assert_eq!(text, "Secret32([redacted])");
    }
}
